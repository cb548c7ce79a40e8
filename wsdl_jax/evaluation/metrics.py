"""Figures of merit of localization and detection, by the published protocol.

Figures are fractions here; reports multiply by 100. The positive class is fake, or manipulated.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer
from PIL import Image

THRESHOLD = 0.5  # a location is called manipulated strictly above it
DRAWS = 5  # subsamples of the larger side, for detection AP
THRESHOLDS = np.arange(1, 400) / 400  # maps are cut at each of these, `THRESHOLD` among them
SHOWN_THRESHOLDS = THRESHOLDS[19::20]  # of them those whose IoU is reported, 0.05 to 0.95
TOLERANT_INSIDE, TOLERANT_OUTSIDE = 15, 11  # pixels, sides of the squares of `tolerant_regions`


@dataclasses.dataclass(frozen=True)
class LocalizationFigures:
    """How well one localization map agrees with the true mask; fractions.

    In figures named `_lg` the map is brought to the mask's size, in those named `_sm` the mask to
    the map's. The other figures are at the mask's size, too. Those named `_best` are at whichever
    threshold suits this very image best, which nobody knows beforehand: upper bounds.

    Attributes:
      iou_lg: intersection over union of the thresholded map and the mask.
      iou_sm: the same at the map's size.
      pbca_lg: the share of pixels that the thresholded map classifies correctly.
      pbca_sm: the same at the map's size.
      f1: F1 of the thresholded map's pixels.
      pixel_auc: ROC AUC of the map's values; NaN for a mask of one class.
      pixel_ap: average precision of the map's values; NaN for a mask of one class.
      iou_best: the largest IoU over all thresholds; NaN for a mask of one class.
      f1_best: the largest F1 over all thresholds; NaN for a mask of one class.
      mcc: Matthews' correlation of the thresholded map's pixels, in [-1, 1]; 0 where the map or
        the mask has one class.
      f1_tolerant: F1 without the pixels near the mask's outline, of the thresholded map or of its
        opposite, whichever is larger, see `tolerant_f1`; NaN where one class has no other pixels.
      f1_tolerant_best: the largest of these over all thresholds; NaN likewise.
    """

    iou_lg: float
    iou_sm: float
    pbca_lg: float
    pbca_sm: float
    f1: float
    pixel_auc: float
    pixel_ap: float
    iou_best: float
    f1_best: float
    mcc: float
    f1_tolerant: float
    f1_tolerant_best: float


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


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Finite scores of two classes, each in ascending order.

    Sorting each class by itself is several times faster than ordering both by `argsort`.

    Attributes:
      positives: scores of what is manipulated.
      negatives: scores of the rest.
    """

    positives: Float[np.ndarray, " p"]
    negatives: Float[np.ndarray, " n"]

    @classmethod
    def of(cls, scores: Float[np.ndarray, "*shape"], true: Bool[np.ndarray, "*shape"]) -> "Ranked":
        """Returns scores by class, whose shape does not matter."""
        return cls(np.sort(scores[true]), np.sort(scores[~true]))

    def has_both(self) -> bool:
        """Returns whether there are scores of either class."""
        return bool(len(self.positives) and len(self.negatives))

    def auc_and_ap(self) -> tuple[float, float]:
        """Returns ROC AUC and average precision, by scikit-learn's definitions.

        AUC: the share of pairs of a positive and a negative in which the positive has the higher
        score, ties counting half. Average precision: the mean over positives of the precision among
        all scores that are not below the positive's own. Both are NaN for one class alone.
        """
        if not self.has_both():
            return np.nan, np.nan
        positives, negatives = len(self.positives), len(self.negatives)
        at = self._distinct
        counts = np.diff(at.lower, append=positives)
        wins = (counts * (at.below + at.tied / 2)).sum()
        hits = positives - at.lower
        precisions = hits / (hits + negatives - at.below)
        return float(wins / (positives * negatives)), float((counts * precisions).sum() / positives)

    def best_f1(self) -> float:
        """Returns the largest F1 over all thresholds; NaN where there is only one class.

        F1 can only fall where a threshold lets in negatives alone, so that those just below each
        positive's score are enough.
        """
        if not self.has_both():
            return np.nan
        positives, negatives, at = len(self.positives), len(self.negatives), self._distinct
        hits = positives - at.lower
        return float((2 * hits / (positives + hits + negatives - at.below)).max())

    def best_opposite_f1(self) -> float:
        """Returns `best_f1` of the scores with their sign changed, which rank the other way round.

        What is not above a threshold is then called positive.
        """
        if not self.has_both():
            return np.nan
        positives, at = len(self.positives), self._distinct
        hits = np.append(at.lower[1:], positives)
        return float((2 * hits / (positives + hits + at.below + at.tied)).max())

    def above(
        self, thresholds: Float[np.ndarray, " t"]
    ) -> tuple[Integer[np.ndarray, " t"], Integer[np.ndarray, " t"]]:
        """Returns how many positives and how many negatives are strictly above each threshold."""
        hits, false = (
            len(scores) - np.searchsorted(scores, thresholds, "right")
            for scores in (self.positives, self.negatives)
        )
        return hits, false

    @functools.cached_property
    def _distinct(self) -> "_Distinct":
        first = np.flatnonzero(np.append(True, self.positives[1:] != self.positives[:-1]))
        values = self.positives[first]
        below = np.searchsorted(self.negatives, values)
        equal = np.flatnonzero(self.negatives.take(below, mode="clip") == values)
        tied = np.zeros_like(below)
        tied[equal] = np.searchsorted(self.negatives, values[equal], "right") - below[equal]
        return _Distinct(first, below, tied)


@dataclasses.dataclass(frozen=True)
class _Distinct:
    """Where each distinct score of the positives stands among all scores, in ascending order.

    Attributes:
      lower: how many positives are below it.
      below: how many negatives are below it.
      tied: how many negatives have the same score.
    """

    lower: Integer[np.ndarray, " u"]
    below: Integer[np.ndarray, " u"]
    tied: Integer[np.ndarray, " u"]


def mcc(predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """Returns Matthews' correlation coefficient of two masks; 0 where one of them has one class.

    (TP·TN − FP·FN) / √((TP + FP)(TP + FN)(TN + FP)(TN + FN)), which is scikit-learn's
    `matthews_corrcoef`. Its sign is kept: a map that is wrong everywhere has −1.
    """
    # In Python's integers, since products of four counts exceed 64 bits.
    hits, marked, manipulated = (
        int(np.count_nonzero(mask)) for mask in (predicted & true, predicted, true)
    )
    product = marked * manipulated * (true.size - marked) * (true.size - manipulated)
    if not product:
        return 0.0
    return (hits * true.size - marked * manipulated) / math.sqrt(product)


def tolerant_regions(
    true: Bool[np.ndarray, "h w"],
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Returns where a mask is surely manipulated and where surely not, away from its outline.

    Manipulated is where all of the 15 × 15 pixels around are, untouched where none of the 11 × 11
    pixels around is manipulated. Between the two lies a band that is not counted. What would be
    beyond the image's edge has no part in it. These are the sizes of TruFor's published evaluation
    (Guillaro et al., CVPR 2023).
    """
    import cv2  # a third of a second, for those who measure maps

    mask = true.astype(np.uint8)
    inside = cv2.erode(mask, np.ones((TOLERANT_INSIDE, TOLERANT_INSIDE), np.uint8))
    outside = cv2.dilate(mask, np.ones((TOLERANT_OUTSIDE, TOLERANT_OUTSIDE), np.uint8))
    return inside > 0, outside == 0


def tolerant_f1(
    values: Float[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]
) -> tuple[float, float]:
    """Returns the F1 that forgives errors near the mask's outline, at `THRESHOLD` and at best.

    As TruFor's published evaluation has it: pixels of the band of `tolerant_regions` are left out,
    and the map counts or its opposite, whichever agrees better with the mask: what is told apart
    counts, not which side is called manipulated. A constant map has the F1 of calling everything
    manipulated. Both are NaN where no pixel is surely manipulated, as of small or thin masks, or
    none surely untouched.
    """
    inside, outside = tolerant_regions(true)
    ranked = Ranked(np.sort(values[inside]), np.sort(values[outside]))
    if not ranked.has_both():
        return np.nan, np.nan
    positives, negatives = len(ranked.positives), len(ranked.negatives)
    (hits,), (false,) = ranked.above(np.array([THRESHOLD]))
    at_half = 2 * hits / (positives + hits + false)
    missed, rejected = positives - hits, negatives - false
    opposite = 2 * missed / (positives + missed + rejected)
    return float(max(at_half, opposite)), max(ranked.best_f1(), ranked.best_opposite_f1())


def localization(
    localization_map: Float[np.ndarray, "h w"], mask: Integer[np.ndarray, "H W"]
) -> LocalizationFigures:
    """Compares one finite map with the full-size mask, in which 1 means manipulated."""
    values = resize_map(localization_map, *mask.shape)
    large = values > THRESHOLD
    small = localization_map > THRESHOLD
    small_mask = resize_mask(mask, *localization_map.shape) > 0
    full_mask = mask > 0
    ranked = Ranked.of(values, full_mask)
    pixel_auc, pixel_ap = ranked.auc_and_ap()
    f1_best = ranked.best_f1()
    f1_tolerant, f1_tolerant_best = tolerant_f1(values, full_mask)
    return LocalizationFigures(
        iou_lg=iou(large, full_mask),
        iou_sm=iou(small, small_mask),
        pbca_lg=pbca(large, full_mask),
        pbca_sm=pbca(small, small_mask),
        f1=f1(large, full_mask),
        pixel_auc=pixel_auc,
        pixel_ap=pixel_ap,
        iou_best=f1_best / (2 - f1_best),  # IoU grows with F1, and so is best where F1 is
        f1_best=f1_best,
        mcc=mcc(large, full_mask),
        f1_tolerant=f1_tolerant,
        f1_tolerant_best=f1_tolerant_best,
    )


def iou_by_threshold(
    localization_map: Float[np.ndarray, "h w"],
    mask: Integer[np.ndarray, "H W"] | Bool[np.ndarray, "H W"],
    thresholds: Float[np.ndarray, " t"] = THRESHOLDS,
) -> Float[np.ndarray, " t"]:
    """Returns `iou_lg` of a finite map at each of several thresholds in the place of `THRESHOLD`.

    thresholds: between 0 and 1, in any order.
    """
    true = mask > 0
    ranked = Ranked.of(resize_map(localization_map, *mask.shape), true)
    hits, false = ranked.above(thresholds)
    union = false + np.count_nonzero(true)
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
    scores, `balanced_accuracy`, the mean over both sides of the share of images on the correct
    side of probability 0.5, and `image_f1`, F1 of the images that are called fake there, take all
    images.

    Args:
      real_scores: scores of the real images; higher means more likely fake.
      fake_scores: scores of the fake images.
      real_probabilities: probabilities that the real images are fake.
      fake_probabilities: probabilities that the fake images are fake.

    Returns:
      `ap`, `ap_2sd`, `auc`, `balanced_accuracy` and `image_f1`, as fractions.

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
    real_called, fake_called = (p > THRESHOLD for p in (real_probabilities, fake_probabilities))
    recalls = np.mean(~real_called), np.mean(fake_called)
    return {
        "ap": float(np.mean(draws)),
        "ap_2sd": float(2 * np.std(draws)),
        "auc": float(roc_auc_score(all_labels, np.r_[real_scores, fake_scores])),
        "balanced_accuracy": float(np.mean(recalls)),
        "image_f1": image_f1(real_called, fake_called),
    }


def image_f1(real_called: Bool[np.ndarray, " n"], fake_called: Bool[np.ndarray, " m"]) -> float:
    """Returns F1 of a verdict, of which fakes are the positive class.

    Args:
      real_called: whether each real image is called fake.
      fake_called: whether each fake image is, one or more.
    """
    false, hits = np.count_nonzero(real_called), np.count_nonzero(fake_called)
    return 2 * hits / (hits + false + len(fake_called))
