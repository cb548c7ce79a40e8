"""What is measured of one test image, as a record, and how records travel between hosts."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer

from wsdl_jax import inputs
from wsdl_jax.evaluation import metrics
from wsdl_jax.evaluation.metrics import LocalizationFigures
from wsdl_jax.runtime import hosts
from wsdl_jax.runtime.errors import UserError

TRIVIAL = ("all real", "all fake", "random")  # maps that know nothing of the image
PADDING = -1  # in the place of an index


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What takes most of the time to measure, and does not depend on a perturbation of the image.

    Attributes:
      iou_by_threshold: `iou_lg` of the map at each of `metrics.THRESHOLDS`.
      trivial: the figures of each of the `TRIVIAL` maps, in that order.
    """

    iou_by_threshold: tuple[float, ...]
    trivial: tuple[LocalizationFigures, ...]


@dataclasses.dataclass(frozen=True)
class MapMeasures:
    """What is measured of a localization map against the true mask.

    Attributes:
      figures: how well the two agree.
      manipulated_share: the share of manipulated pixels in the mask.
      iou_fitted: `iou_lg` at the run's fitted threshold in the place of one half, see
        `map_threshold`; NaN where none was fitted.
      comparison: what the figures are compared with; None where that was left out.
    """

    figures: LocalizationFigures
    manipulated_share: float
    iou_fitted: float
    comparison: Comparison | None = None

    def named(self) -> dict[str, float]:
        """Returns what becomes a mean over images in the end, by name."""
        return {
            **dataclasses.asdict(self.figures),
            "manipulated_share": self.manipulated_share,
            "iou_fitted": self.iou_fitted,
        }


@dataclasses.dataclass(frozen=True)
class ImageMeasures:
    """What is measured of one test image.

    Attributes:
      index: the image's index in its source; `PADDING` for what fills up a batch.
      score: the method's score; NaN for padding, and where the map is not finite.
      probability: the probability of being fake; NaN where the score is.
      localization: what is measured of the map; None for images without a mask.
      is_like: whether it is like known images, as far as that is told, see `likeness`.
    """

    index: int
    score: float = math.nan
    probability: float = math.nan
    localization: MapMeasures | None = None
    is_like: bool = True

    def is_finite(self) -> bool:
        """Returns whether score and probability are finite, and so the map."""
        return math.isfinite(self.score) and math.isfinite(self.probability)


def measure(
    index: int,
    score: float,
    probability: float,
    localization_map: Float[np.ndarray, "h w"],
    mask: Integer[np.ndarray, "H W"] | None,
    *,
    map_threshold: float | None,
    compared: bool,
) -> ImageMeasures:
    """Measures what a network finds in one image.

    Args:
      index: the image's index in its source, which also seeds its random map.
      score: the image's score.
      probability: the probability that it is fake.
      localization_map: a finite map.
      mask: the true mask at its full size, 1 = manipulated; None where there is none.
      map_threshold: where the map is thresholded beside one half; None for nowhere.
      compared: whether to measure the `Comparison`, too.
    """
    localization = None
    if mask is not None:
        fitted = [] if map_threshold is None else [map_threshold]
        at = np.append(metrics.THRESHOLDS, fitted) if compared else np.array(fitted)
        ious = metrics.iou_by_threshold(localization_map, mask, at).tolist() if len(at) else []
        iou_fitted = ious.pop() if fitted else math.nan
        comparison = None
        if compared:
            comparison = Comparison(
                tuple(ious),
                tuple(
                    metrics.localization(trivial, mask)
                    for trivial in _trivial_maps(localization_map.shape, index)
                ),
            )
        figures = metrics.localization(localization_map, mask)
        localization = MapMeasures(figures, float(mask.mean()), iou_fitted, comparison)
    return ImageMeasures(index, float(score), float(probability), localization)


def _trivial_maps(
    shape: tuple[int, ...], index: int
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Returns the maps of `TRIVIAL`, which a learned one has to beat."""
    return (
        np.broadcast_to(np.float32(0), shape),
        np.broadcast_to(np.float32(1), shape),
        np.random.default_rng(index).random(shape, np.float32),
    )


# ----- Between hosts ------------------------------------------------------------------------------

_FIGURES, _THRESHOLDS = len(metrics.LOCALIZATION), len(metrics.THRESHOLDS)
# Of vectors: index, score, probability, whether there are measures of the map, whether there is a
# comparison, and whether the image is like known ones; the figures, the share and the IoU at the
# fitted threshold; IoU by threshold; the figures of the trivial maps.
_LENGTHS = (6, _FIGURES + 2, _THRESHOLDS, len(TRIVIAL) * _FIGURES)


def encode(measured: ImageMeasures) -> Float[np.ndarray, " k"]:
    """Returns a record as a float64 vector, whose length is the same for all records.

    `decode` gives back the same record to the bit. An index must be below 2^53.
    """
    localization = measured.localization
    comparison = None if localization is None else localization.comparison
    head, of_map, by_threshold, trivial = (np.full(length, np.nan) for length in _LENGTHS)
    head[:] = (
        *(measured.index, measured.score, measured.probability),
        *(localization is not None, comparison is not None, measured.is_like),
    )
    if localization is not None:
        of_map[:] = (
            *dataclasses.astuple(localization.figures),
            *(localization.manipulated_share, localization.iou_fitted),
        )
    if comparison is not None:
        by_threshold[:] = comparison.iou_by_threshold
        trivial[:] = np.ravel([dataclasses.astuple(figures) for figures in comparison.trivial])
    return np.concatenate([head, of_map, by_threshold, trivial])


def decode(vector: Float[np.ndarray, " k"]) -> ImageMeasures:
    """Returns the record that `encode` has made a vector of."""
    parts = np.split(vector, np.cumsum(_LENGTHS)[:-1])
    head, of_map, by_threshold, trivial = (part.tolist() for part in parts)
    index, score, probability, has_localization, has_comparison, is_like = head
    localization = comparison = None
    if has_comparison:
        rows = np.reshape(trivial, (len(TRIVIAL), _FIGURES)).tolist()
        comparison = Comparison(
            tuple(by_threshold), tuple(LocalizationFigures(*row) for row in rows)
        )
    if has_localization:
        *figures, manipulated_share, iou_fitted = of_map
        localization = MapMeasures(
            LocalizationFigures(*figures), manipulated_share, iou_fitted, comparison
        )
    return ImageMeasures(int(index), score, probability, localization, bool(is_like))


def of_all_hosts(own: Sequence[ImageMeasures], source: inputs.Examples) -> list[ImageMeasures]:
    """Returns the records of a batch from all hosts, in order of their indices, without padding.

    All hosts have to call together.

    Args:
      own: this host's records, padding included: as many as every other host has.
      source: the images.

    Raises:
      UserError: an image whose score or map is not finite.
    """
    vectors = hosts.gather(np.stack([encode(measured) for measured in own]))
    everywhere = [decode(vector) for of_host in vectors for vector in of_host]
    images = [measured for measured in everywhere if measured.index != PADDING]
    images.sort(key=lambda measured: measured.index)
    for measured in images:
        if not measured.is_finite():
            first = key(source, measured.index)
            raise UserError(f"scores or maps are not finite, first those of {first}")
    return images


def image_indices(batch: inputs.Batch) -> list[int]:
    """Returns the index of each image of a batch in its source, `PADDING` for padding."""
    return np.where(batch["weight"] > 0, batch["index"], PADDING).tolist()


def key(source: inputs.Examples, index: int) -> str:
    """Returns the key of an image in its source."""
    return source[index]["key"].decode()
