"""Measures all images of a test, and makes figures and the table of predictions of them."""

import contextlib
import csv
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from wsdl_jax import inputs
from wsdl_jax.evaluation import intervals, measures, metrics, verdict
from wsdl_jax.evaluation.measures import PADDING, TRIVIAL, ImageMeasures, MapMeasures
from wsdl_jax.evaluation.parts import Parts
from wsdl_jax.evaluation.verdict import Calibration, Verdict
from wsdl_jax.methods import Localization
from wsdl_jax.runtime import hosts, threads

_PIXELS = 2**25  # that are measured at once: 31 bytes each, a gigabyte in all
_SHOWN = {"fake": 6, "real": 2}  # images on the sheet of examples
_FIGURES = (*metrics.LOCALIZATION, "manipulated_share", "iou_fitted")  # means of a fake side
# Of predictions.csv.
_COLUMNS = ("key", "label", "score", "probability", "p_value", "verdict", *_FIGURES, "group")
_SET = "set"  # a further column of it, in a test of several sets
_GROUP = "group"  # the fact that says which images are drawn together for intervals


@dataclasses.dataclass
class _Side:
    """What is kept of every image of a side, in order.

    Attributes:
      scores: the scores.
      probabilities: the probabilities of being fake.
      names: what images are drawn with for intervals.
      answers: their verdicts, "" where none is known.
      unlike: how many of them are unlike known images.
      figures: the figures of their maps, by name.
    """

    scores: list[float] = dataclasses.field(default_factory=list)
    probabilities: list[float] = dataclasses.field(default_factory=list)
    names: list[intervals.Name] = dataclasses.field(default_factory=list)
    answers: list[str] = dataclasses.field(default_factory=list)
    unlike: int = 0
    figures: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: {name: [] for name in intervals.LOCALIZATION}
    )

    def add(self, measured: ImageMeasures, name: intervals.Name, said: Verdict | None) -> None:
        """Counts an image in, its name and the verdict on it."""
        self.answers.append("" if said is None else said.answer)
        self.unlike += not measured.is_like
        self.scores.append(measured.score)
        self.probabilities.append(measured.probability)
        self.names.append(name)
        if measured.localization is not None:
            named = measured.localization.named()
            for name, values in self.figures.items():
                values.append(named[name])

    def scored(self) -> intervals.Scored:
        """Returns what detection has found."""
        probabilities = np.array(self.probabilities)
        return intervals.Scored(np.array(self.scores), probabilities > metrics.THRESHOLD)


class _MapMeans:
    """Means over images of what is measured of their maps."""

    _thresholds = tuple(f"{threshold:g}" for threshold in metrics.THRESHOLDS)

    def __init__(self):
        self.figures = metrics.Means(_FIGURES)
        self.iou_by_threshold = metrics.Means(self._thresholds)
        self.f1_by_threshold = metrics.Means(self._thresholds)
        self.trivial = {name: metrics.Means(metrics.LOCALIZATION) for name in TRIVIAL}

    def add(self, localization: MapMeasures) -> None:
        """Counts an image in."""
        self.figures.add(localization.named())
        comparison = localization.comparison
        if comparison is not None:
            ious = comparison.iou_by_threshold
            self.iou_by_threshold.add(dict(zip(self._thresholds, ious, strict=True)))
            f1s = (2 * iou / (1 + iou) for iou in ious)  # by both's definitions
            self.f1_by_threshold.add(dict(zip(self._thresholds, f1s, strict=True)))
            for means, figures in zip(self.trivial.values(), comparison.trivial, strict=True):
                means.add(dataclasses.asdict(figures))

    def iou_at_shown(self) -> list[dict[str, float | None]]:
        """Returns the mean IoU × 100 at each of `metrics.SHOWN_THRESHOLDS`."""
        means = metrics.percent(self.iou_by_threshold.means())
        return [
            {"threshold": at, "iou_lg": means[f"{at:g}"]}
            for at in metrics.SHOWN_THRESHOLDS.tolist()
        ]

    def f1_at_best(self) -> dict[str, float | None]:
        """Returns the largest mean F1 × 100 that one threshold has for all images, and that."""
        means = np.array(list(self.f1_by_threshold.means().values()))
        if not self.f1_by_threshold.counts.any():  # no masks, or nothing was compared
            return {"f1_best_fixed": None, "f1_best_fixed_at": None}
        best = int(means.argmax())
        return {
            "f1_best_fixed": 100 * float(means[best]),
            "f1_best_fixed_at": float(metrics.THRESHOLDS[best]),
        }


class FoundBatch(NamedTuple):
    """What was found in the images of a batch by whatever means, as `methods.Localization` has it.

    Attributes:
      scores: higher = more likely fake.
      probabilities: of being fake.
      maps: probabilities of having been manipulated, in [0, 1]; of any size each.
      features: none.
    """

    scores: Sequence[np.floating]
    probabilities: Sequence[np.floating]
    maps: Sequence[Float[np.ndarray, "_ _"]]
    features: None = None


# A side → its images in batches, in order, with what was found in them.
Localize = Callable[[str], Iterator[tuple[inputs.Batch, Localization | FoundBatch]]]
# Of a side and a set, "" where the side is of one, keeps the map, score and probability of an image
# with a key.
Keep = Callable[[str, str, str, Float[np.ndarray, "h w"], float, float], None]


def score(
    sides: Mapping[str, inputs.Examples],
    localize: Localize,
    calibration: Calibration | None,
    map_threshold: float | None,
    path: epath.Path,
    *,
    compared: bool = True,
    keep: Keep | None = None,
) -> tuple[dict[str, Any], dict[str, dict[int, Float[np.ndarray, "h w"]]]]:
    """Scores all images of both sides and writes predictions.csv, image by image.

    Args:
      sides: the images of the sides "fake" and "real".
      localize: finds maps and scores in them.
      calibration: what is known of scores, from which verdicts follow, and the threshold above
        which figures call an image fake; None where nothing is.
      map_threshold: the probability above which a location is called manipulated, beside one half;
        None where it is not known.
      path: the table to be written.
      compared: whether to measure what images as they are have alone: trivial maps, figures at
        other thresholds, and intervals.
      keep: called on the first host with each map; nothing is kept by default.

    Returns:
      The figures, times 100, and by side the maps of the images that are to be shown, by index.
    """
    rate = verdict.FALSE_POSITIVE_RATE
    threshold = None if calibration is None else verdict.threshold(calibration.real, rate)
    means = _MapMeans()
    parts = {side: Parts(side, source.facts) for side, source in sides.items()}
    found = {side: _Side() for side in sides}
    maps = {}
    with path.open("w", encoding="utf-8") as file, ThreadPoolExecutor() as pool:
        has_sets = any(len(source.sizes) > 1 for source in sides.values())
        columns = (*_COLUMNS, _SET) if has_sets else _COLUMNS
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for side, source in sides.items():
            maps[side] = dict.fromkeys(_shown(source, _SHOWN[side]))
            known = parts[side].of
            has_groups = _GROUP in source.facts
            named_everywhere = has_groups or bool(parts[side].facts)
            measure = functools.partial(
                _measure,
                *(source, side == "fake", map_threshold, compared, known, calibration),
                threads.Bounded(_PIXELS),
            )
            batches = localize(side)
            if keep is not None:
                batches = _keeping(batches, source, functools.partial(keep, side))
            for images, names in _measured(source, batches, measure, pool, maps[side]):
                for measured in images:
                    if measured.localization is not None:
                        means.add(measured.localization)
                    name = names.get(measured.index)
                    if name is None and (named_everywhere or hosts.is_first()):
                        name = _Name.of(source[measured.index], known)
                    unit = intervals.Name()
                    if named_everywhere:  # else no image is drawn with another
                        of_set = source.subset(measured.index) if len(source.sizes) > 1 else ""
                        unit = intervals.Name(name.group, of_set, name.key if of_set else "")
                    said = None if calibration is None else _verdict(calibration, measured)
                    found[side].add(measured, unit, said)
                    if parts[side].facts:
                        parts[side].add(name.known, measured)
                    if hosts.is_first():
                        row = {"key": name.key, "label": side, _GROUP: name.group}
                        if has_sets:
                            row[_SET] = source.subset(measured.index)
                        if said is not None:
                            row |= {"p_value": said.p_value, "verdict": said.answer}
                        writer.writerow({**row, **_numbers(measured)})
    real_scores, fake_scores = (np.array(found[side].scores) for side in ("real", "fake"))
    of_reals, of_fakes = (np.array(found[side].probabilities) for side in ("real", "fake"))
    detection = metrics.detection(
        real_scores, fake_scores, real_probabilities=of_reals, fake_probabilities=of_fakes
    )
    real_parts = parts["real"].figures(fake_scores, of_fakes, threshold)
    figures = {
        **metrics.percent(means.figures.means()),
        "pixel_images": means.figures.count("pixel_auc"),
        "tolerant_images": means.figures.count("f1_tolerant"),
        **metrics.percent(detection),
        "threshold": threshold,
        "real_above": _percent_above(real_scores, threshold),
        "fake_above": _percent_above(fake_scores, threshold),
        "image_f1_verdict": None
        if threshold is None
        else 100 * metrics.image_f1(real_scores > threshold, fake_scores > threshold),
        "map_threshold": map_threshold,
        **means.f1_at_best(),
        "iou_by_threshold": means.iou_at_shown(),
        "trivial": {
            name: metrics.percent(trivial.means()) for name, trivial in means.trivial.items()
        },
        "parts": {
            **parts["fake"].figures(real_scores, of_reals, threshold),
            **{f"real {fact}": figures for fact, figures in real_parts.items()},
        },
        "intervals": _intervals(found) if compared else None,
        "verdicts": None if calibration is None else _verdicts(found),
    }
    return figures, maps


def _verdict(calibration: Calibration, measured: ImageMeasures) -> Verdict:
    if measured.is_like:
        return calibration.judge(measured.score)
    return verdict.unlike([calibration], measured.score)


def _verdicts(sides: dict[str, _Side]) -> dict[str, Any]:
    """Returns how many images of each side are called what, in percent, see `verdict`."""
    shares = {}
    for side, found in sides.items():
        count = len(found.answers)
        shares[side] = {
            answer: 100 * found.answers.count(answer) / count for answer in verdict.ANSWERS
        } | {"unlike": 100 * found.unlike / count}
    rate = verdict.FALSE_POSITIVE_RATE
    pooled = verdict.pooled_rate(np.array(sides["real"].scores), rate)
    return {
        "false_positive_rate": 100 * rate,
        **shares,
        "pooled_false_positives": None if pooled is None else 100 * pooled,
    }


def _intervals(sides: dict[str, _Side]) -> dict[str, Any]:
    """Returns the intervals × 100 of figures, and what they are of, as results.json has it."""
    drawn = {side: intervals.units_of(kept.names) for side, kept in sides.items()}
    units = {side: of.numbers for side, of in drawn.items()}
    fake = sides["fake"]
    found = dict.fromkeys(intervals.LOCALIZATION)
    if fake.figures["iou_lg"]:  # masks
        values = {name: np.array(of) for name, of in fake.figures.items()}
        found |= intervals.of_means(values, units["fake"])
    found |= intervals.of_detection(
        sides["real"].scored(), fake.scored(), units["real"], units["fake"]
    )
    return {
        "level": 100 * intervals.LEVEL,
        "resamples": intervals.RESAMPLES,
        "drawn": {side: of.kind for side, of in drawn.items()},
        "figures": {
            name: None if of is None else {"low": 100 * of.low, "high": 100 * of.high}
            for name, of in found.items()
        },
    }


@dataclasses.dataclass(frozen=True)
class _Name:
    """What an image is called, its group, and what else is known of it, see `Parts.of`."""

    key: str
    group: str
    known: tuple[str, ...]

    @classmethod
    def of(
        cls, record: dict[str, Any], known: Callable[[dict[str, Any]], tuple[str, ...]]
    ) -> "_Name":
        """Returns that of a record."""
        return cls(record["key"].decode(), record.get(_GROUP, b"").decode(), known(record))


def _measured(
    source: inputs.Examples,
    batches: Iterator[tuple[inputs.Batch, Localization | FoundBatch]],
    measure: Callable[..., tuple["_Name | None", ImageMeasures]],
    pool: ThreadPoolExecutor,
    maps: dict[int, Any],
) -> Iterator[tuple[list[ImageMeasures], dict[int, "_Name"]]]:
    """Measures every image of a side, in order, in batches, which are the same on all hosts.

    A batch is measured while the network works on the next one.

    Args:
      source: the images.
      batches: what was found in them, see `Localize`.
      measure: of an image: index, score, probability, map and features → see `_measure`.
      pool: threads to measure in.
      maps: has the indices of images as keys; their maps are put there, on all hosts.

    Yields:
      The measures of a batch, and the names of those of its images that this host has measured.
    """

    def collect(pending: Iterator[tuple["_Name | None", ImageMeasures]]):
        named = list(pending)
        names = {measured.index: name for name, measured in named if name is not None}
        return measures.of_all_hosts([measured for _, measured in named], source), names

    pending = None
    with contextlib.closing(batches):
        for batch, found in batches:
            if pending is not None:
                yield collect(pending)
            indices = measures.image_indices(batch)
            features = [None] * len(indices) if found.features is None else found.features
            columns = found.scores, found.probabilities, found.maps, features
            pending = pool.map(measure, indices, *columns)
            for row, index in enumerate(indices):
                if index in maps:  # a copy, or the whole batch would be kept
                    maps[index] = found.maps[row].copy()
    if pending is not None:
        yield collect(pending)
    if jax.process_count() == 1:
        return
    shape = found.maps.shape[1:]
    absent = np.full(shape, -np.inf, np.float32)
    own = np.stack([absent if value is None else value for value in maps.values()])
    maps.update(zip(maps, hosts.gather(own).max(0), strict=True))


def _keeping(
    batches: Iterator[tuple[inputs.Batch, Localization]],
    source: inputs.Examples,
    keep: Callable[[str, str, Float[np.ndarray, "h w"], float, float], None],
) -> Iterator[tuple[inputs.Batch, Localization]]:
    """Yields what is found, which the first host keeps before it goes on, that of all hosts."""
    with contextlib.closing(batches):
        for batch, found in batches:
            indices = hosts.gather(np.asarray(measures.image_indices(batch))).ravel()
            maps = hosts.gather(found.maps).reshape(-1, *found.maps.shape[1:])
            scores, probabilities = (
                hosts.gather(np.asarray(of)).ravel().tolist()
                for of in (found.scores, found.probabilities)
            )
            if hosts.is_first():
                for row in zip(indices.tolist(), maps, scores, probabilities, strict=True):
                    if row[0] != PADDING:
                        subset = source.subset(row[0]) if len(source.sizes) > 1 else ""
                        keep(subset, measures.key(source, row[0]), *row[1:])
            yield batch, found


def _measure(
    source: inputs.Examples,
    masked: bool,
    map_threshold: float | None,
    compared: bool,
    known: Callable[[dict[str, Any]], tuple[str, ...]],
    calibration: Calibration | None,
    bounded: threads.Bounded,
    index: int,
    score: np.floating,
    probability: np.floating,
    localization_map: Float[np.ndarray, "h w"],
    features: Float[np.ndarray, " d"] | None,
) -> tuple["_Name | None", ImageMeasures]:
    """Measures one image of a batch.

    Args:
      source: the images.
      masked: whether maps are measured against the true masks, where the images have them.
      map_threshold: see `score`.
      compared: whether to measure the `Comparison`, too.
      known: record → what is known of an image, see `Parts.of`.
      calibration: see `score`.
      bounded: bounds how many pixels are measured at once.
      index: the image's index in `source`; `PADDING` for what fills up a batch.
      score: the image's score.
      probability: the probability that it is fake.
      localization_map: its map.
      features: what it is like to the network; None where that is not known.

    Returns:
      The image's name, and its measures. Padding, and an image whose map is not finite, have no
      name, and measures without numbers.
    """
    if index == PADDING or not np.isfinite(localization_map).all():
        return None, ImageMeasures(index)
    record = source[index]
    mask = inputs.full_mask(record) if masked and "mask" in record else None
    with bounded.work(0 if mask is None else max(mask.size, localization_map.size)):
        measured = measures.measure(
            index,
            float(score),
            float(probability),
            localization_map,
            mask,
            map_threshold=map_threshold,
            compared=compared,
        )
    if calibration is not None and not calibration.is_like(features):
        measured = dataclasses.replace(measured, is_like=False)
    return _Name.of(record, known), measured


def _numbers(measured: ImageMeasures) -> dict[str, float]:
    """Returns the numbers that predictions.csv has of an image."""
    numbers = {"score": measured.score, "probability": measured.probability}
    localization = measured.localization
    return numbers if localization is None else numbers | localization.named()


def _shown(source: inputs.Examples, count: int) -> list[int]:
    """Returns the indices of images for the sheet of examples, evenly spaced."""
    return np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()


def _percent_above(scores: Float[np.ndarray, " n"], threshold: float | None) -> float | None:
    return None if threshold is None else 100 * float(np.mean(scores > threshold))
