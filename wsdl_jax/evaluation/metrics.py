"""Figures of merit of localization and detection, by the published protocol.

Figures are fractions here; reports multiply by 100. The positive class is fake, or manipulated.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer
from PIL import Image

THRESHOLD = 0.5  # a location is called manipulated strictly above it
DRAWS = 5  # subsamples of the larger side, for detection AP
THRESHOLDS = np.arange(1, 20) / 20  # IoU is measured at each of these, `THRESHOLD` among them


@dataclasses.dataclass(frozen=True)
class LocalizationFigures:
    """How well one localization map agrees with the true mask; fractions.

    In figures named `_lg` the map is brought to the mask's size, in those named `_sm` the mask to
    the map's. The other figures are at the mask's size, too.

    Attributes:
      iou_lg: intersection over union of the thresholded map and the mask.
      iou_sm: the same at the map's size.
      pbca_lg: the share of pixels that the thresholded map classifies correctly.
      pbca_sm: the same at the map's size.
      f1: F1 of the thresholded map's pixels.
      pixel_auc: ROC AUC of the map's values; NaN for a mask of one class.
      pixel_ap: average precision of the map's values; NaN for a mask of one class.
    """

    iou_lg: float
    iou_sm: float
    pbca_lg: float
    pbca_sm: float
    f1: float
    pixel_auc: float
    pixel_ap: float


LOCALIZATION = tuple(field.name for field in dataclasses.fields(LocalizationFigures))


def resize_map(
    localization_map: Float[np.ndarray, "h w"],
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
) -> Float[np.ndarray, "{height} {width}"]:
    """Returns a map at another size, by Pillow's bicubic filter on float32 pixels.

    Args:
      localization_map: the map.
      height: the new height in pixels.
      width: the new width in pixels.
      box: left, top, right and bottom, in the map's pixels, of the part that is brought to that
        size; the whole map by default.
    """
    localization_map = localization_map.astype(np.float32, copy=False)
    if localization_map.min() == localization_map.max():  # the filter's weights add up to 1
        return np.full((height, width), localization_map[0, 0])
    image = Image.fromarray(localization_map)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box))


def resize_mask(
    mask: Integer[np.ndarray, "h w"], height: int, width: int
) -> Integer[np.ndarray, "{height} {width}"]:
    """Returns a mask of zeros and ones at another size, by Pillow's nearest neighbour."""
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def iou(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """Returns the intersection over union of two masks; 1 where the union is empty."""
    union = np.count_nonzero(predicted | true)
    return float(np.count_nonzero(predicted & true) / union) if union else 1.0


def f1(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """Returns F1, 2·TP / (2·TP + FP + FN); 1 where nothing is predicted and nothing is true."""
    total = np.count_nonzero(predicted) + np.count_nonzero(true)
    return float(2 * np.count_nonzero(predicted & true) / total) if total else 1.0


def pbca(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """Returns the pixel-wise binary classification accuracy: the share of correct pixels."""
    return float(np.count_nonzero(predicted == true) / true.size)


def ranking(scores: Float[np.ndarray, " n"], true: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """Returns ROC AUC and average precision of finite scores, by scikit-learn's definitions.

    AUC: the share of pairs of a positive and a negative in which the positive has the higher
    score, ties counting half. Average precision: the mean over positives of the precision among
    all scores that are not below the positive's own. Both are NaN where there is only one class.

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
) -> LocalizationFigures:
    """Compares one finite map with the full-size mask, in which 1 means manipulated."""
    values = resize_map(localization_map, *mask.shape)
    large = values > THRESHOLD
    small = localization_map > THRESHOLD
    small_mask = resize_mask(mask, *localization_map.shape) > 0
    full_mask = mask > 0
    pixel_auc, pixel_ap = ranking(values.ravel(), full_mask.ravel())
    return LocalizationFigures(
        iou_lg=iou(large, full_mask),
        iou_sm=iou(small, small_mask),
        pbca_lg=pbca(large, full_mask),
        pbca_sm=pbca(small, small_mask),
        f1=f1(large, full_mask),
        pixel_auc=pixel_auc,
        pixel_ap=pixel_ap,
    )


def iou_by_threshold(
    localization_map: Float[np.ndarray, "h w"],
    mask: Integer[np.ndarray, "H W"] | Bool[np.ndarray, "H W"],
    thresholds: Float[np.ndarray, " t"] = THRESHOLDS,
) -> Float[np.ndarray, " t"]:
    """Returns `iou_lg` of a finite map at each of several thresholds in the place of `THRESHOLD`.

    thresholds: in ascending order.
    """
    values, true = resize_map(localization_map, *mask.shape).ravel(), mask.ravel() > 0
    passed = np.searchsorted(thresholds, values)  # how many thresholds a pixel is strictly above
    # Pixels above threshold t are those that have passed more than t of them.
    predicted, hits = (
        len(numbers) - np.bincount(numbers, minlength=len(thresholds) + 1).cumsum()[:-1]
        for numbers in (passed, passed[true])
    )
    union = predicted + np.count_nonzero(true) - hits
    return np.divide(hits, union, where=union > 0, out=np.ones(len(thresholds)))


class Means:
    """Means over images of figures that come one image at a time.

    Attributes:
      names: the names of the figures.
      totals: the sum of each figure over the images that have it.
      counts: how many images have each figure.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self.totals: Float[np.ndarray, " k"] = np.zeros(len(self.names))
        self.counts: Integer[np.ndarray, " k"] = np.zeros(len(self.names), int)

    def add(self, figures: Mapping[str, float]) -> None:
        """Counts an image in, except for figures that are NaN, which it does not have."""
        values = np.array([figures[name] for name in self.names])
        self.totals += np.where(np.isnan(values), 0, values)
        self.counts += ~np.isnan(values)

    def means(self) -> dict[str, float]:
        """Returns the mean of each figure; NaN for one that no image has."""
        unknown = np.full(len(self.names), np.nan)
        means = np.divide(self.totals, self.counts, where=self.counts > 0, out=unknown)
        return dict(zip(self.names, means.tolist(), strict=True))

    def count(self, name: str) -> int:
        """Returns how many images have a figure."""
        return int(self.counts[self.names.index(name)])


def percent(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Returns figures times 100; None for one that is NaN, which no image has."""
    return {name: None if np.isnan(value) else 100 * value for name, value in figures.items()}


def detection(
    real_scores: Float[np.ndarray, " n"],
    fake_scores: Float[np.ndarray, " m"],
    *,
    real_probabilities: Float[np.ndarray, " n"],
    fake_probabilities: Float[np.ndarray, " m"],
) -> dict[str, float]:
    """Measures how well scores and probabilities of being fake separate fake from real images.

    For `ap`, average precision of the scores, real and fake images count alike: the larger side is
    subsampled to the size of the smaller one, five times with fixed seeds; `ap` is the mean and
    `ap_2sd` two standard deviations over the draws. `auc`, the area under the ROC curve of the
    scores, and `balanced_accuracy`, the mean over both sides of the share of images on the correct
    side of probability 0.5, take all images.

    Args:
      real_scores: scores of the real images; higher means more likely fake.
      fake_scores: scores of the fake images.
      real_probabilities: probabilities that the real images are fake.
      fake_probabilities: probabilities that the fake images are fake.

    Returns:
      `ap`, `ap_2sd`, `auc` and `balanced_accuracy`, as fractions.

    Raises:
      ValueError: an empty side or a NaN score.
    """
    # Imported here, since it takes two seconds, which a command that starts to train is spared.
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
