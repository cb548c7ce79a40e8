"""Scores a trained run on a dataset's test split, and writes predictions and results."""

import contextlib
import csv
import dataclasses
import functools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from wsdl_data import provenance
from wsdl_jax import inputs, runs
from wsdl_jax.evaluation import measures, metrics, sheet, summary, verdict
from wsdl_jax.evaluation.measures import PADDING, TRIVIAL, ImageMeasures, MapMeasures
from wsdl_jax.evaluation.tested_run import TestedRun, load, localized
from wsdl_jax.inputs import perturbations
from wsdl_jax.inputs.perturbations import Perturbation
from wsdl_jax.runtime import hosts, locks
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.storage import temporary_folder, write_whole

log = logging.getLogger("wsdl_jax")
_SHOWN = {"fake": 6, "real": 2}  # images on the sheet of examples
_FIGURES = (*metrics.LOCALIZATION, "manipulated_share")  # means of a fake side
_COLUMNS = ("key", "label", "score", "probability", *_FIGURES)  # of predictions.csv


def evaluate(
    run: epath.Path,
    *,
    fake: str | None = None,
    real: str | None = None,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Scores the best checkpoint of a run on the test splits of a fake and a real subset.

    Writes `results.json`, `results.txt`, `examples.png` and `predictions.csv` (a row per image)
    into the run directory, or, for other subsets than the config's, into `evaluations/FAKE+REAL/`
    in it, once every image has been scored: results that are there already stay until then. Of each
    image, only its score and probability are kept in memory.

    Args:
      run: a run directory.
      fake: a prepared subset of fake images; the config's own by default.
      real: a prepared subset of real images; the config's own by default.
      data_dir: the folder of the prepared datasets; the run's own by default.

    Returns:
      The content of results.json: fractions times 100 (None where no image has the figure), counts,
      and `threshold`, the score above which the run calls an image fake; `real_above` and
      `fake_above` are the shares of the images of each side that exceed it.

    Raises:
      ConfigError: a subset that is unknown or not prepared, or holds images of the other side.
      UserError: not a run, no checkpoint yet, data that differs from what the run used before, an
        image that cannot be read, or scores that are not finite.
    """
    test = load(run, fake=fake, real=real, data_dir=data_dir)
    threshold = _threshold(run, test)
    with temporary_folder() as folder:
        made = runs.ResultsFolder(epath.Path(folder))
        figures, maps = _score(test, threshold, made.predictions)
        results = {**figures, **_subject(test)}
        table = summary.text_table(
            results, title=f"{test.config.method}, setup {test.config.setup}"
        )

        def put() -> None:
            sheet.save(_examples(test.sides, maps), made.examples)
            made.text.write_text(table, encoding="utf-8")
            results["predictions"] = provenance.digest_of_file(made.predictions)
            _put(run, test, made, results)

        hosts.first(put)
    log.info("%s\nwritten to %s", table, test.out.path)
    return results


def robustness(
    run: epath.Path,
    kind: str,
    strengths: Sequence[str | int | float] | None = None,
    *,
    fake: str | None = None,
    real: str | None = None,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Scores a run as `evaluate` does, on clean test images and on perturbed ones.

    Writes `robustness-KIND.json` where `evaluate` writes its results, once all is scored.

    Args:
      run: a run directory.
      kind: one of `perturbations.KINDS`.
      strengths: strengths of the perturbation, in its kind's unit; the kind's own list by default.
      fake: a prepared subset of fake images; the config's own by default.
      real: a prepared subset of real images; the config's own by default.
      data_dir: the folder of the prepared datasets; the run's own by default.

    Returns:
      The content of the file: `clean`, the figures of the images as they are, and `points`, the
      figures at each `strength`; fractions times 100 (None where no image has the figure).

    Raises:
      ConfigError: a strength that the kind does not have; otherwise as `evaluate`.
      UserError: as `evaluate`.
    """
    series = perturbations.series(kind, strengths)
    test = load(run, fake=fake, real=real, data_dir=data_dir)
    threshold = _threshold(run, test)
    with temporary_folder() as folder:
        table, points = runs.ResultsFolder(epath.Path(folder)).predictions, []
        for perturbation in (None, *series):
            figures, _ = _score(test, threshold, table, perturbation)
            del figures["trivial"], figures["iou_by_threshold"]
            strength = "clean" if perturbation is None else f"{perturbation.strength:g}"
            iou = summary.figure(figures["iou_lg"])
            log.info("%s %-6s iou_lg %5s  ap %5.1f", kind, strength, iou, figures["ap"])
            points.append(figures)
        results = {
            "perturbation": kind,
            "unit": perturbations.KINDS[kind].unit,
            "clean": points[0],
            "points": [
                {"strength": perturbation.strength, **figures}
                for perturbation, figures in zip(series, points[1:], strict=True)
            ],
            **_subject(test),
        }
        path = test.out.robustness(kind)

        def put() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(results, indent=2) + "\n")

        hosts.first(put)
    log.info("written to %s", path)
    return results


def _put(
    run: epath.Path, test: TestedRun, made: runs.ResultsFolder, results: dict[str, Any]
) -> None:
    """Puts the files of an evaluation in their place, `results.json` last: it vouches for them."""
    out = test.out.path
    out.mkdir(parents=True, exist_ok=True)
    if out == run:
        sides = (examples.provenance for examples in test.sides.values())
        runs.keep_data(run, {name: kept for side in sides for name, kept in side.items()})
    with locks.locked(out, locks.RESULTS, wait=True):
        for path in sorted(made.path.iterdir()):
            write_whole(out / path.name, path.read_bytes())
        write_whole(test.out.results, json.dumps(results, indent=2) + "\n")


def _subject(test: TestedRun) -> dict[str, Any]:
    """Returns what figures are of: which images, with a hash of their files, and which network."""
    return {
        "test_fake": test.names["fake"],
        "test_real": test.names["real"],
        "fake_images": len(test.sides["fake"]),
        "real_images": len(test.sides["real"]),
        "checkpoint": test.checkpoint,
        "weights": test.weights,
        "data": {
            side: provenance.digests(examples.provenance)[test.names[side]]
            for side, examples in test.sides.items()
        },
    }


# ----- The threshold of a verdict -----------------------------------------------------------------


def _threshold(run: epath.Path, test: TestedRun) -> float | None:
    """Returns the score above which the run calls an image fake, see `verdict`.

    It is None where the scores of real validation images are not known and cannot be measured.
    """
    scores = _real_scores(run, test)
    return None if scores is None else verdict.threshold(scores, verdict.FALSE_POSITIVE_RATE)


def _real_scores(run: epath.Path, test: TestedRun) -> list[float] | None:
    """Returns the scores of the real images of the run's validation split, and keeps them in it.

    These images take part in the selection of the checkpoint; test images take part in neither.
    Where the images are not at hand, scores that were kept are used; None if there are none.
    """
    data = test.config.data
    subsets = data.real or (data.test_real,)  # setup c trains without real images
    network = test.checkpoint, test.weights
    try:
        source = inputs.Examples(subsets, "valid", data.dir)
    except ConfigError as error:
        kept = verdict.load(run, network)
        if not hosts.any_host(kept is None):
            return kept
        log.warning("no threshold for a verdict from real validation images: %s", error)
        return None
    runs.check_data(run, source.provenance)
    digests = provenance.digests(source.provenance)
    kept = verdict.load(run, network, digests)
    if not hosts.any_host(kept is None):
        return kept
    scores = []
    with contextlib.closing(localized(test, source, "scoring real images")) as batches:
        for batch, found in batches:
            columns = measures.image_indices(batch), found.scores, found.probabilities
            rows = zip(*columns, strict=True)
            own = [ImageMeasures(index, float(s), float(p)) for index, s, p in rows]
            scores += [measured.score for measured in _of_all_hosts(own, source)]
    hosts.first(lambda: verdict.save(run, network, digests, scores))
    return scores


# ----- Images → figures ---------------------------------------------------------------------------


class _MapMeans:
    """Means over images of what is measured of their maps."""

    _thresholds = tuple(f"{threshold:g}" for threshold in metrics.THRESHOLDS)

    def __init__(self):
        self.figures = metrics.Means(_FIGURES)
        self.iou_by_threshold = metrics.Means(self._thresholds)
        self.trivial = {name: metrics.Means(metrics.LOCALIZATION) for name in TRIVIAL}

    def add(self, localization: MapMeasures) -> None:
        """Counts an image in."""
        share = {"manipulated_share": localization.manipulated_share}
        self.figures.add(dataclasses.asdict(localization.figures) | share)
        comparison = localization.comparison
        if comparison is not None:
            points = zip(self._thresholds, comparison.iou_by_threshold, strict=True)
            self.iou_by_threshold.add(dict(points))
            for means, figures in zip(self.trivial.values(), comparison.trivial, strict=True):
                means.add(dataclasses.asdict(figures))


def _score(
    test: TestedRun,
    threshold: float | None,
    path: epath.Path,
    perturbation: Perturbation | None = None,
) -> tuple[dict[str, Any], dict[str, dict[int, Float[np.ndarray, "h w"]]]]:
    """Scores all images of both sides and writes predictions.csv, image by image.

    Args:
      test: the run and its images.
      threshold: the score above which an image is called fake; None where it is not known.
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
            for images, keys in _measure_side(test, side, perturbation, pool, maps[side]):
                for measured in images:
                    scores[side].append(measured.score)
                    probabilities[side].append(measured.probability)
                    if measured.localization is not None:
                        means.add(measured.localization)
                    if hosts.is_first():
                        key = keys.get(measured.index) or _key(source, measured.index)
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
    perturbation: Perturbation | None,
    pool: ThreadPoolExecutor,
    maps: dict[int, Any],
) -> Iterator[tuple[list[ImageMeasures], dict[int, str]]]:
    """Measures every image of a side, in order, in batches, which are the same on all hosts.

    A batch is measured while the network works on the next one.

    Args:
      test: the run and its images.
      side: "fake" or "real".
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
        side == "fake",
        # Perturbed images have the masks of the clean ones, and the same trivial figures.
        perturbation is None,
    )

    def collect(pending: Iterator[tuple[str, ImageMeasures]]):
        keyed = list(pending)
        keys = {measured.index: key for key, measured in keyed}
        return _of_all_hosts([measured for _, measured in keyed], source), keys

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
    compared: bool,
    index: int,
    score: np.float32,
    probability: np.float32,
    localization_map: Float[np.ndarray, "h w"],
) -> tuple[str, ImageMeasures]:
    """Returns the key and the measures of an image, whose mask counts only where `masked`.

    Padding, and an image whose map is not finite, have no key and no measures.
    """
    if index == PADDING or not np.isfinite(localization_map).all():
        return "", ImageMeasures(index)
    record = source[index]
    mask = inputs.full_mask(record) if masked and "mask" in record else None
    measured = measures.measure(
        index, float(score), float(probability), localization_map, mask, compared=compared
    )
    return record["key"].decode(), measured


def _of_all_hosts(own: Sequence[ImageMeasures], source: inputs.Examples) -> list[ImageMeasures]:
    """Returns `measures.of_all_hosts`. Raises UserError for an image that is not finite."""
    images = measures.of_all_hosts(own)
    for measured in images:
        if not measured.is_finite():
            first = _key(source, measured.index)
            raise UserError(f"scores or maps are not finite, first those of {first}")
    return images


def _key(source: inputs.Examples, index: int) -> str:
    return source[index]["key"].decode()


def _numbers(measured: ImageMeasures) -> dict[str, float]:
    """Returns the numbers that predictions.csv has of an image."""
    numbers = {"score": measured.score, "probability": measured.probability}
    localization = measured.localization
    if localization is not None:
        numbers |= dataclasses.asdict(localization.figures)
        numbers["manipulated_share"] = localization.manipulated_share
    return numbers


def _shown(source: inputs.Examples, count: int) -> list[int]:
    """Returns the indices of images for the sheet of examples, evenly spaced."""
    return np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()


def _examples(
    sides: dict[str, inputs.Examples], maps: dict[str, dict[int, Float[np.ndarray, "h w"]]]
) -> list[sheet.Example]:
    """Reads the images of the sheet of examples, which are the keys of `maps`."""
    examples = []
    for side, source in sides.items():
        for index, localization_map in maps[side].items():
            record = source[index]
            mask = inputs.full_mask(record) if side == "fake" and "mask" in record else None
            examples.append(sheet.Example(inputs.full_image(record), mask, localization_map))
    return examples


def _percent(figures: dict[str, float]) -> dict[str, float | None]:
    """Returns figures times 100; None for one that no image has."""
    return {name: None if math.isnan(value) else 100 * value for name, value in figures.items()}


def _percent_above(scores: Float[np.ndarray, " n"], threshold: float | None) -> float | None:
    return None if threshold is None else 100 * float(np.mean(scores > threshold))
