"""An AUC of scores that a probe gives to images that it has not learned from, with its bounds."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, stats
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold

FOLDS = 5
FEWEST = 10  # groups of each kind, below which nothing is learned
_TREES = 40
_LEAF = 4  # images in a leaf of a tree, at least
_TINY = 1e-9


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimate with its bounds.

    Attributes:
        value: of the AUC, from 0 to 1.
        lower: bound that the true value is above, at the level that was asked for.
        upper: bound that it is below, at the same level.
    """

    value: float
    lower: float
    upper: float


def out_of_fold(
    columns: Float[np.ndarray, "n k"], labels: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Returns a score of each image, by trees that have not seen any image of its group.

    The trees see ranks, so that neither outliers nor units matter.

    Args:
        columns: a row of traces an image.
        labels: 0 real, 1 fake.
        groups: of the images; `FEWEST` at least of each label.
    """
    ranks = stats.rankdata(columns, axis=0)
    scores = np.zeros(len(labels))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for seen, held in folds.split(ranks, labels, groups):
        trees = ExtraTreesClassifier(_TREES, min_samples_leaf=_LEAF, random_state=0)
        trees.fit(ranks[seen], labels[seen])
        if len(trees.classes_) == 2:  # else groups of one label fill a fold; it tells nothing then
            scores[held] = trees.predict_proba(ranks[held])[:, 1]
        else:
            scores[held] = 0.5
    return scores


def estimate(
    scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    level: float,
) -> Estimate:
    """Returns the AUC of scores with bounds that hold for images in groups.

    Each bound is the wider of two: that of `clustered_deviation`, which has the correlation within
    groups but is zero wide where the AUC is 1, and that of `newcombe`, for as many images as there
    are groups.

    Args:
        scores: higher for what is rather fake.
        labels: 0 real, 1 fake, both present.
        groups: of the images.
        level: probability with which a bound may fail, such as 0.01.
    """
    normal = float(stats.norm.isf(level))
    fake = labels == 1
    value, deviation = clustered_deviation(scores, fake, groups)
    sizes = len(np.unique(groups[~fake])), len(np.unique(groups[fake]))
    low, high = newcombe(value, *sizes, normal)
    return Estimate(
        value,
        max(0.0, min(low, value - normal * deviation)),
        min(1.0, max(high, value + normal * deviation)),
    )


def clustered_deviation(
    scores: Float[np.ndarray, " n"], fake: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]
) -> tuple[float, float]:
    """Returns the AUC of scores and its standard deviation where images come in groups.

    Obuchowski, Biometrics 53 (1997), pages 567 to 578; with an image a group it is that of DeLong,
    DeLong and Clarke-Pearson, Biometrics 44 (1988), but for the covariance, which is then zero.
    """
    fakes, reals = int(fake.sum()), int((~fake).sum())
    ranks = stats.rankdata(scores)
    # Of each image the share of those of the other label that it is on the right side of.
    placed = np.empty(len(scores))
    placed[fake] = (ranks[fake] - stats.rankdata(scores[fake])) / reals
    placed[~fake] = 1 - (ranks[~fake] - stats.rankdata(scores[~fake])) / fakes
    value = float(placed[fake].mean())
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    sides = {side: fake == side for side in (True, False)}
    sums = {
        side: np.bincount(group, np.where(of, placed - value, 0), count)
        for side, of in sides.items()
    }
    having = {side: len(np.unique(group[of])) for side, of in sides.items()}
    variance = 0.0
    for side, number in ((True, fakes), (False, reals)):
        if having[side] > 1:
            factor = having[side] / (having[side] - 1)
            variance += factor * float((sums[side] ** 2).sum()) / number**2
    if count > 1:
        product = float((sums[True] * sums[False]).sum())
        variance += 2 * count / (count - 1) * product / (fakes * reals)
    return value, float(np.sqrt(max(variance, 0.0)))


def newcombe(value: float, reals: int, fakes: int, normal: float) -> tuple[float, float]:
    """Returns the score interval of an AUC of independent images.

    Method 5 of Newcombe, Statistics in Medicine 25 (2006), pages 559 to 573: the values from which
    the measured one is `normal` standard deviations away, by the variance that Hanley and McNeil
    give for that value.

    Args:
        value: the measured AUC.
        reals: images of one label.
        fakes: images of the other.
        normal: quantile of the normal distribution.
    """
    more = (reals + fakes) / 2 - 1

    def excess(true: float) -> float:
        odds = (1 - true) / (2 - true) + true / (1 + true)
        variance = true * (1 - true) * (1 + more * odds) / (reals * fakes)
        return (value - true) ** 2 - normal**2 * variance

    # At 0 and at 1 itself there is no variance, which makes a measured 0 or 1 a root.
    low = 0.0 if value == 0 else optimize.brentq(excess, 0, min(value, 1 - _TINY))
    high = 1.0 if value == 1 else optimize.brentq(excess, max(value, _TINY), 1)
    return float(low), float(high)
