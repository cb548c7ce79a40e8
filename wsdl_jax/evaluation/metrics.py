"""Figures of merit of localization and detection, by the published protocol.

Figures are fractions here; reports multiply by 100. The positive class is fake, or manipulated.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer
from PIL import Image

THRESHOLD = 0.5  # a location is called manipulated strictly above it
DRAWS = 5  # subsamples of the larger side, for detection AP
THRESHOLDS = np.arange(1, 20) / 20  # IoU is known at each of these, `THRESHOLD` among them
LOCALIZATION = ("iou_lg", "iou_sm", "pbca_lg", "pbca_sm", "f1", "pixel_auc", "pixel_ap")


def resize_map(
    localization_map: Float[np.ndarray, "h w"],
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
) -> Float[np.ndarray, "{height} {width}"]:
    """A map at another size, by Pillow's bicubic filter on float32 pixels.

    box: the part of the map that is wanted at that size: left, top, right, bottom, in its pixels.
    """
    localization_map = localization_map.astype(np.float32, copy=False)
    if localization_map.min() == localization_map.max():  # the filter's weights add up to 1
        return np.full((height, width), localization_map[0, 0])
    image = Image.fromarray(localization_map)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box))


def resize_mask(
    mask: Integer[np.ndarray, "h w"], height: int, width: int
) -> Integer[np.ndarray, "{height} {width}"]:
    """A mask of zeros and ones at another size, by Pillow's nearest neighbour."""
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def iou(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union; 1 where the union is empty."""
    union = np.count_nonzero(predicted | true)
    return float(np.count_nonzero(predicted & true) / union) if union else 1.0


def f1(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """2·TP / (2·TP + FP + FN); 1 where nothing is predicted and nothing is true."""
    total = np.count_nonzero(predicted) + np.count_nonzero(true)
    return float(2 * np.count_nonzero(predicted & true) / total) if total else 1.0


def pbca(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """Pixel-wise binary classification accuracy: the share of pixels classified right."""
    return float(np.count_nonzero(predicted == true) / true.size)


def ranking(scores: Float[np.ndarray, " n"], true: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """ROC AUC and average precision of scores (finite), by scikit-learn's definitions.

    AUC: the share of pairs of a positive and a negative in which the positive has the higher
    score, ties counting half. Average precision: the mean over positives of the precision among
    all scores that are not below the positive's own. Both are NaN where there is but one class.

    Sorting each class by itself is several times faster than ordering both by `argsort`.
    """
    positives, negatives = np.count_nonzero(true), np.count_nonzero(~true)
    if not positives or not negatives:
        return np.nan, np.nan
    if scores.min() == scores.max():
        return 0.5, float(positives / true.size)
    high, low = np.sort(scores[true]), np.sort(scores[~true])
    first = np.flatnonzero(np.append(True, high[1:] != high[:-1]))  # positives of a new score
    thresholds, counts = high[first], np.diff(first, append=positives)
    below = np.searchsorted(low, thresholds)
    tied = low.take(below, mode="clip") == thresholds
    ties = np.searchsorted(low, thresholds[tied], "right") - below[tied]
    wins = (counts * below).sum() + (counts[tied] * ties).sum() / 2
    hits = positives - first
    precisions = hits / (hits + negatives - below)
    return float(wins / (positives * negatives)), float((counts * precisions).sum() / positives)


def localization(
    localization_map: Float[np.ndarray, "h w"], mask: Integer[np.ndarray, "H W"]
) -> dict[str, float]:
    """`LOCALIZATION`: figures of one map (finite) against the full-size mask (1 = manipulated).

    `_lg`: the map is brought to the mask's size; `_sm`: the mask to the map's. `f1`, `pixel_auc`
    and `pixel_ap` are at the mask's size too; the last two, of the map's values, are NaN for a mask
    of one class.
    """
    values = resize_map(localization_map, *mask.shape)
    large = values > THRESHOLD
    small = localization_map > THRESHOLD
    small_mask = resize_mask(mask, *localization_map.shape) > 0
    full_mask = mask > 0
    pixel_auc, pixel_ap = ranking(values.ravel(), full_mask.ravel())
    return {
        "iou_lg": iou(large, full_mask),
        "iou_sm": iou(small, small_mask),
        "pbca_lg": pbca(large, full_mask),
        "pbca_sm": pbca(small, small_mask),
        "f1": f1(large, full_mask),
        "pixel_auc": pixel_auc,
        "pixel_ap": pixel_ap,
    }


def iou_by_threshold(
    localization_map: Float[np.ndarray, "h w"], mask: Integer[np.ndarray, "H W"]
) -> Float[np.ndarray, " t"]:
    """`iou_lg` of a map (finite) with each of `THRESHOLDS` in the place of `THRESHOLD`."""
    values, true = resize_map(localization_map, *mask.shape).ravel(), mask.ravel() > 0
    passed = np.searchsorted(THRESHOLDS, values)  # how many thresholds a pixel is strictly above
    # Pixels above threshold t are those that have passed more than t of them.
    predicted, hits = (
        len(numbers) - np.bincount(numbers, minlength=len(THRESHOLDS) + 1).cumsum()[:-1]
        for numbers in (passed, passed[true])
    )
    union = predicted + np.count_nonzero(true) - hits
    return np.divide(hits, union, where=union > 0, out=np.ones(len(THRESHOLDS)))


class Means:
    """Means over images of figures that come one image at a time.

    Attributes:
      names: of the figures.
      sums: of the figures, and in the second row how many images they are of. Sums over parts of
        a test set add up to those over all of it.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self.sums: Float[np.ndarray, "2 k"] = np.zeros((2, len(self.names)))

    def add(self, figures: Mapping[str, float]) -> None:
        """Counts an image in, except for figures that are NaN: those it does not have."""
        values = np.array([figures[name] for name in self.names])
        self.sums += np.where(np.isnan(values), 0, [values, np.ones(len(values))])

    def means(self) -> dict[str, float]:
        """NaN for a figure that no image has."""
        sums, counts = self.sums
        means = np.divide(sums, counts, where=counts > 0, out=np.full(len(sums), np.nan))
        return dict(zip(self.names, means.tolist(), strict=True))

    def count(self, name: str) -> int:
        """How many images have a figure."""
        return int(self.sums[1, self.names.index(name)])


def detection(
    real_scores: Float[np.ndarray, " n"],
    fake_scores: Float[np.ndarray, " m"],
    *,
    real_probabilities: Float[np.ndarray, " n"],
    fake_probabilities: Float[np.ndarray, " m"],
) -> dict[str, float]:
    """How well scores (higher = more likely fake) and probabilities of being fake tell the sides.

    For `ap`, average precision of the scores, real and fake images count alike: the larger side is
    subsampled to the size of the smaller one, five times with fixed seeds; `ap` is the mean and
    `ap_2sd` two standard deviations over the draws. `auc`, of the ROC curve of the scores, and
    `balanced_accuracy`, the mean of the shares of either side that are on the right side of
    probability 0.5, take all images. Raises ValueError for an empty side or a NaN score.
    """
    # Here, since it takes two seconds, which a command that starts to train need not wait for.
    from sklearn.metrics import average_precision_score, roc_auc_score

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
    recalls = np.mean(real_probabilities <= THRESHOLD), np.mean(fake_probabilities > THRESHOLD)
    return {
        "ap": float(np.mean(draws)),
        "ap_2sd": float(2 * np.std(draws)),
        "auc": float(roc_auc_score(all_labels, np.r_[real_scores, fake_scores])),
        "balanced_accuracy": float(np.mean(recalls)),
    }
