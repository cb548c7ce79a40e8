"""Measures all images of a test, and makes figures and the table of predictions of them."""

import contextlib
import csv
import dataclasses
import functools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from wsdl_jax import inputs
from wsdl_jax.evaluation import measures, metrics
from wsdl_jax.evaluation.measures import PADDING, TRIVIAL, ImageMeasures, MapMeasures
from wsdl_jax.evaluation.tested_run import TestedRun, localized
from wsdl_jax.inputs.perturbations import Chain, Perturbation
from wsdl_jax.runtime import hosts

_SHOWN = {"fake": 6, "real": 2}  # images on the sheet of examples
_FIGURES = (*metrics.LOCALIZATION, "manipulated_share", "iou_fitted")  # means of a fake side
_COLUMNS = ("key", "label", "score", "probability", *_FIGURES)  # of predictions.csv


class _MapMeans:
    """Means over images of what is measured of their maps."""

    _thresholds = tuple(f"{threshold:g}" for threshold in metrics.THRESHOLDS)

    def __init__(self):
        self.figures = metrics.Means(_FIGURES)
        self.iou_by_threshold = metrics.Means(self._thresholds)
        self.trivial = {name: metrics.Means(metrics.LOCALIZATION) for name in TRIVIAL}

    def add(self, localization: MapMeasures) -> None:
        """Counts an image in."""
        self.figures.add(_of_map(localization))
        comparison = localization.comparison
        if comparison is not None:
            points = zip(self._thresholds, comparison.iou_by_threshold, strict=True)
            self.iou_by_threshold.add(dict(points))
            for means, figures in zip(self.trivial.values(), comparison.trivial, strict=True):
                means.add(dataclasses.asdict(figures))


def score(
    test: TestedRun,
    threshold: float | None,
    map_threshold: float | None,
    path: epath.Path,
    perturbation: Perturbation | Chain | None = None,
) -> tuple[dict[str, Any], dict[str, dict[int, Float[np.ndarray, "h w"]]]]:
    """Scores all images of both sides and writes predictions.csv, image by image.

    Args:
      test: the run and its images.
      threshold: the score above which an image is called fake; None where it is not known.
      map_threshold: the probability above which a location is called manipulated, beside one half;
        None where it is not known.
      path: the table to be written.
      perturbation: applied to every image; none by default.

    Returns:
      The figures, times 100, and by side the maps of the images that are to be shown, by index.
    """
    means = _MapMeans()
    scores: dict[str, list[float]] = {side: [] for side in test.sides}
    probabilities: dict[str, list[float]] = {side: [] for side in test.sides}
    maps = {}
    with path.open("w", encoding="utf-8") as file, ThreadPoolExecutor() as pool:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for side, source in test.sides.items():
            maps[side] = dict.fromkeys(_shown(source, _SHOWN[side]))
            for images, keys in _measure_side(
                test, side, map_threshold, perturbation, pool, maps[side]
            ):
                for measured in images:
                    scores[side].append(measured.score)
                    probabilities[side].append(measured.probability)
                    if measured.localization is not None:
                        means.add(measured.localization)
                    if hosts.is_first():
                        key = keys.get(measured.index) or measures.key(source, measured.index)
                        writer.writerow({"key": key, "label": side, **_numbers(measured)})
    real_scores, fake_scores = np.array(scores["real"]), np.array(scores["fake"])
    detection = metrics.detection(
        real_scores,
        fake_scores,
        real_probabilities=np.array(probabilities["real"]),
        fake_probabilities=np.array(probabilities["fake"]),
    )
    at_thresholds = _percent(means.iou_by_threshold.means()).values()
    figures = {
        **_percent(means.figures.means()),
        "pixel_images": means.figures.count("pixel_auc"),
        **_percent(detection),
        "threshold": threshold,
        "real_above": _percent_above(real_scores, threshold),
        "fake_above": _percent_above(fake_scores, threshold),
        "map_threshold": map_threshold,
        "iou_by_threshold": [
            {"threshold": at, "iou_lg": iou}
            for at, iou in zip(metrics.THRESHOLDS.tolist(), at_thresholds, strict=True)
        ],
        "trivial": {name: _percent(trivial.means()) for name, trivial in means.trivial.items()},
    }
    return figures, maps


def _measure_side(
    test: TestedRun,
    side: str,
    map_threshold: float | None,
    perturbation: Perturbation | Chain | None,
    pool: ThreadPoolExecutor,
    maps: dict[int, Any],
) -> Iterator[tuple[list[ImageMeasures], dict[int, str]]]:
    """Measures every image of a side, in order, in batches, which are the same on all hosts.

    A batch is measured while the network works on the next one.

    Args:
      test: the run and its images.
      side: "fake" or "real".
      map_threshold: see `score`.
      perturbation: applied to every image.
      pool: threads to measure in.
      maps: has the indices of images as keys; their maps are put there, on all hosts.

    Yields:
      The measures of a batch, and the keys of those of its images that this host has measured.
    """
    source = test.sides[side]
    measure = functools.partial(
        _measure,
        source,
        side == "fake",  # masked
        map_threshold,
        perturbation is None,  # compared: perturbed images have the clean ones' trivial figures
    )

    def collect(pending: Iterator[tuple[str, ImageMeasures]]):
        keyed = list(pending)
        keys = {measured.index: key for key, measured in keyed}
        return measures.of_all_hosts([measured for _, measured in keyed], source), keys

    pending = None
    batches = localized(test, source, f"evaluating, {side}", perturbation=perturbation)
    with contextlib.closing(batches):
        for batch, found in batches:
            if pending is not None:
                yield collect(pending)
            indices = measures.image_indices(batch)
            pending = pool.map(measure, indices, *found)
            for row, index in enumerate(indices):
                if index in maps:  # a copy, or the whole batch would be kept
                    maps[index] = found.maps[row].copy()
    if pending is not None:
        yield collect(pending)
    shape = found.maps.shape[1:]
    absent = np.full(shape, -np.inf, np.float32)
    own = np.stack([absent if value is None else value for value in maps.values()])
    maps.update(zip(maps, hosts.gather(own).max(0), strict=True))


def _measure(
    source: inputs.Examples,
    masked: bool,
    map_threshold: float | None,
    compared: bool,
    index: int,
    score: np.float32,
    probability: np.float32,
    localization_map: Float[np.ndarray, "h w"],
) -> tuple[str, ImageMeasures]:
    """Measures one image of a batch.

    Args:
      source: the images.
      masked: whether maps are measured against the true masks, where the images have them.
      map_threshold: see `score`.
      compared: whether to measure the `Comparison`, too.
      index: the image's index in `source`; `PADDING` for what fills up a batch.
      score: the image's score.
      probability: the probability that it is fake.
      localization_map: its map.

    Returns:
      The image's key, and its measures. Padding, and an image whose map is not finite, have an
      empty key, and measures without numbers.
    """
    if index == PADDING or not np.isfinite(localization_map).all():
        return "", ImageMeasures(index)
    record = source[index]
    mask = inputs.full_mask(record) if masked and "mask" in record else None
    measured = measures.measure(
        index,
        float(score),
        float(probability),
        localization_map,
        mask,
        map_threshold=map_threshold,
        compared=compared,
    )
    return record["key"].decode(), measured


def _numbers(measured: ImageMeasures) -> dict[str, float]:
    """Returns the numbers that predictions.csv has of an image."""
    numbers = {"score": measured.score, "probability": measured.probability}
    localization = measured.localization
    return numbers if localization is None else numbers | _of_map(localization)


def _of_map(localization: MapMeasures) -> dict[str, float]:
    """Returns the measures of a map that are means over images in the end, by name."""
    return {
        **dataclasses.asdict(localization.figures),
        "manipulated_share": localization.manipulated_share,
        "iou_fitted": localization.iou_fitted,
    }


def _shown(source: inputs.Examples, count: int) -> list[int]:
    """Returns the indices of images for the sheet of examples, evenly spaced."""
    return np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()


def _percent(figures: dict[str, float]) -> dict[str, float | None]:
    """Returns figures times 100; None for one that no image has."""
    return {name: None if math.isnan(value) else 100 * value for name, value in figures.items()}


def _percent_above(scores: Float[np.ndarray, " n"], threshold: float | None) -> float | None:
    return None if threshold is None else 100 * float(np.mean(scores > threshold))
