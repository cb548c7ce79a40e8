"""The probability above which a location is called manipulated, fitted without anyone's masks.

A map ranks the locations of an image; one half is not where manipulated and untouched ones part
best if, for example, few of the locations that a network was trained on were fake. Validation
images have masks for free where whole fakes are spliced into real images (`inputs.Spliced`): the
threshold is the one at which maps of these agree best with where the fake is, by mean intersection
over union.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float

from wsdl_jax.evaluation import kept, metrics
from wsdl_jax.runs import RunDirectory

# Logits from −6 to 6, an eighth apart: probabilities from 0.0025 to 0.9975, 0.5 among them.
CANDIDATES = 1 / (1 + np.exp(-np.arange(-48, 49) / 8))
SPLICED, MASKED = "spliced", "masked"


@dataclasses.dataclass(frozen=True)
class MapThreshold:
    """A fitted threshold of localization maps.

    Attributes:
      value: the probability strictly above which a location is called manipulated.
      iou: the mean intersection over union at it, over the images that it was fitted on.
      images: how many these are.
      fitted_on: "spliced" validation images, or "masked" ones under full supervision.
    """

    value: float
    iou: float
    images: int
    fitted_on: str


def fit(
    pairs: Iterable[tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "H W"]]], fitted_on: str
) -> MapThreshold:
    """Returns the threshold of CANDIDATES with the largest mean intersection over union.

    Of several, it is the one that is nearest to one half.

    Args:
      pairs: finite maps, and the true masks at their full size; at least one.
      fitted_on: what the images are, "spliced" or "masked".
    """
    rows = [metrics.iou_by_threshold(of_map, mask, CANDIDATES) for of_map, mask in pairs]
    means = np.mean(rows, axis=0)
    best = np.flatnonzero(means == means.max())
    chosen = best[np.abs(CANDIDATES[best] - metrics.THRESHOLD).argmin()]
    return MapThreshold(float(CANDIDATES[chosen]), float(means[chosen]), len(rows), fitted_on)


def save(
    run: epath.Path,
    network: tuple[int, int | None],
    data: Mapping[str, str],
    fitted: MapThreshold,
) -> None:
    """Keeps a fitted threshold in a run directory.

    Args:
      run: the run directory.
      network: step and checksum of the checkpoint whose maps it was fitted on.
      data: hashes of the subsets whose validation images these are of, by their names.
      fitted: the threshold.
    """
    content = dataclasses.asdict(fitted)
    kept.save(RunDirectory(run).map_threshold, network, "data", data, content)


def load(
    run: epath.Path, network: tuple[int, int | None], data: Mapping[str, str] | None = None
) -> MapThreshold | None:
    """Returns the threshold that `save` has kept; None if there is none of this network and data.

    Args:
      run: the run directory.
      network: step and checksum of the checkpoint that is asked for.
      data: hashes of the subsets; None accepts one of any, where the data is not at hand.

    Raises:
      UserError: a file that cannot be read.
    """
    return kept.load(RunDirectory(run).map_threshold, network, "data", data, _parsed)


def _parsed(stored: Mapping[str, Any]) -> MapThreshold:
    names = (field.name for field in dataclasses.fields(MapThreshold))
    value, iou, images, fitted_on = (stored[name] for name in names)
    is_right = isinstance(value, float) and 0 < value < 1
    is_right &= isinstance(iou, float) and 0 <= iou <= 1
    if not (is_right and isinstance(images, int) and fitted_on in (SPLICED, MASKED)):
        raise ValueError(f"{fitted_on!r}: a threshold of {value}, an IoU of {iou}, {images}")
    return MapThreshold(value, iou, images, fitted_on)
