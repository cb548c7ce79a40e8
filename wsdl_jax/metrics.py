"""Figures of merit of localization and detection, by the published protocol.

Figures are fractions here; reports multiply by 100. The positive class is fake, or manipulated.
"""

import numpy as np
from jaxtyping import Bool, Float, Integer
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

THRESHOLD = 0.5  # a location is called manipulated strictly above it
DRAWS = 5  # subsamples of the larger side, for detection AP


def resize_map(
    localization_map: Float[np.ndarray, "h w"], height: int, width: int
) -> Float[np.ndarray, "{height} {width}"]:
    """A map at another size, by Pillow's bicubic filter on float32 pixels."""
    image = Image.fromarray(localization_map.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def resize_mask(
    mask: Integer[np.ndarray, "h w"], height: int, width: int
) -> Integer[np.ndarray, "{height} {width}"]:
    """A mask of zeros and ones at another size, by Pillow's nearest neighbour."""
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def iou(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union; 1 where the union is empty."""
    union = np.count_nonzero(predicted | true)
    return np.count_nonzero(predicted & true) / union if union else 1.0


def f1(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """2·TP / (2·TP + FP + FN); 1 where nothing is predicted and nothing is true."""
    total = np.count_nonzero(predicted) + np.count_nonzero(true)
    return 2 * np.count_nonzero(predicted & true) / total if total else 1.0


def pbca(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """Pixel-wise binary classification accuracy: the share of pixels classified right."""
    return float(np.mean(predicted == true))


def localization(
    localization_map: Float[np.ndarray, "h w"], mask: Integer[np.ndarray, "H W"]
) -> dict[str, float]:
    """Figures of one map against the image's full-size mask (1 = manipulated).

    `_lg`: the map is brought to the mask's size; `_sm`: the mask to the map's. `f1` is at the
    mask's size.
    """
    large = resize_map(localization_map, *mask.shape) > THRESHOLD
    small = localization_map > THRESHOLD
    small_mask = resize_mask(mask, *localization_map.shape) > 0
    full_mask = mask > 0
    return {
        "iou_lg": iou(large, full_mask),
        "iou_sm": iou(small, small_mask),
        "pbca_lg": pbca(large, full_mask),
        "pbca_sm": pbca(small, small_mask),
        "f1": f1(large, full_mask),
    }


def detection(
    real_scores: Float[np.ndarray, " n"], fake_scores: Float[np.ndarray, " m"]
) -> dict[str, float]:
    """Average precision and ROC AUC of scores, higher = more likely fake.

    For `ap`, real and fake images count alike: the larger side is subsampled to the size of the
    smaller one, five times with fixed seeds; `ap` is the mean and `ap_2sd` two standard deviations
    over the draws. `auc` takes all scores. Raises ValueError for an empty side or a NaN score.
    """
    if not len(real_scores) or not len(fake_scores):
        raise ValueError(f"{len(real_scores)} real and {len(fake_scores)} fake scores")
    size = min(len(real_scores), len(fake_scores))
    labels = np.r_[np.zeros(size), np.ones(size)]
    draws = []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        real, fake = (
            side if len(side) == size else rng.choice(side, size, replace=False)
            for side in (real_scores, fake_scores)
        )
        draws.append(average_precision_score(labels, np.r_[real, fake]))
    all_labels = np.r_[np.zeros(len(real_scores)), np.ones(len(fake_scores))]
    return {
        "ap": float(np.mean(draws)),
        "ap_2sd": float(2 * np.std(draws)),
        "auc": float(roc_auc_score(all_labels, np.r_[real_scores, fake_scores])),
    }
