"""What masks tell by themselves, and whether a mask is that of its image."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from scipy import ndimage, stats
from sklearn.model_selection import GroupKFold

from wsdl_data.audit.auc import FOLDS, Estimate
from wsdl_data.audit.likeness import SIDE, Thumbnail

_SAME = 8  # levels of 255 within which a cell of two thumbnails is the same
_CHANGED = 12  # levels beyond which it is another
_CELLS = 3  # that have to have changed, so that it can be said where a fake is one


@dataclasses.dataclass(frozen=True, eq=False)
class SeenMask:
    """What is kept of a mask.

    Attributes:
        share: of the image that is manipulated, from 0 to 1.
        coverage: of each cell of a grid of 32×32 how much is manipulated, 255 for all.
    """

    share: float
    coverage: UInt8[np.ndarray, "32 32"]


def seen(mask: Bool[np.ndarray, "h w"]) -> SeenMask:
    """Returns what is kept of a mask that is True where an image is manipulated."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    coverage = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))
    return SeenMask(float(mask.mean()), coverage)


def place_known(
    coverages: UInt8[np.ndarray, "n 32 32"], groups: Int[np.ndarray, " n"], level: float
) -> Estimate:
    """Returns how well the mean mask of other groups tells where a mask is.

    It is the mean over the masks of the AUC of the mean mask's cells, by five folds of groups. The
    bounds are those of the mean of as many independent values as there are groups, by Student's t.

    Args:
        coverages: of masks that are neither empty nor full, see `SeenMask`.
        groups: of the images; as many as there are folds at least.
        level: probability with which a bound may fail.
    """
    cells = coverages.reshape(len(coverages), -1) / 255
    inside = cells >= cells.max(1, keepdims=True) / 2
    values = np.empty(len(cells))
    for known, held in GroupKFold(FOLDS).split(cells, groups=groups):
        ranks = stats.rankdata(cells[known].mean(0))
        marked = inside[held].sum(1)
        over = inside[held] @ ranks - marked * (marked + 1) / 2
        free = cells.shape[1] - marked
        # A mask that has some of every cell is not anywhere: neither right nor wrong.
        values[held] = np.where(free, over / (marked * np.maximum(free, 1)), 0.5)
    return mean_of_groups(values, groups, level, (0.0, 1.0))


def mean_of_groups(
    values: Float[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    level: float,
    limits: tuple[float, float],
) -> Estimate:
    """Returns the mean over groups of their images' mean, with bounds by Student's t.

    Args:
        values: of the images.
        groups: of the images, two or more.
        level: probability with which a bound may fail.
        limits: between which the values are, and so the bounds.
    """
    _, group = np.unique(groups, return_inverse=True)
    means = np.bincount(group, values) / np.bincount(group)
    mean, count = float(means.mean()), len(means)
    wide = float(stats.t.isf(level, count - 1) * means.std(ddof=1) / np.sqrt(count))
    return Estimate(mean, max(limits[0], mean - wide), min(limits[1], mean + wide))


def is_original(fake: Thumbnail, real: Thumbnail) -> bool:
    """Returns whether a fake may have been made of a real image: half of it or more is the same."""
    return bool((_apart(fake, real) <= _SAME).mean() >= 0.5)


def lies_elsewhere(fake: Thumbnail, real: Thumbnail, mask: SeenMask) -> bool | None:
    """Returns whether most of what differs between a fake and its original is outside its mask.

    The mask is taken one cell of 32×32 wider on all sides.

    Returns:
        None where too little differs for that to be said.
    """
    changed = _apart(fake, real) > _CHANGED
    if changed.sum() < _CELLS:
        return None
    inside = ndimage.binary_dilation(mask.coverage > 0, np.ones((3, 3)))
    return bool(inside[changed].mean() < 0.5)


def _apart(fake: Thumbnail, real: Thumbnail) -> Int[np.ndarray, "32 32"]:
    return np.abs(fake.astype(np.int64) - real).max(-1)
