"""Plots of what runs have measured: detection, localization, robustness, training."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from sklearn.metrics import average_precision_score, precision_recall_curve

from wsdl_jax.inputs import perturbations
from wsdl_jax.reporting import plots
from wsdl_jax.reporting.evaluated_runs import EvaluatedRun, ScoredImage

_BINS = 30  # of a histogram of scores
_SIZES = 8  # groups of fake images by the size of their mask, of equal numbers
_REAL, _FAKE, _BASELINE = 2, 1, 7  # colours
_PERCENT = (0.0, 100.0)
_EVERYDAY = (  # figure of a point, title, factor
    ("retained", "Retained IoU, %", 100),
    ("retained_fitted", "Retained IoU at the fitted threshold, %", 100),
    ("ap", "AP", 1),
    ("real_above", "Real images called fake, %", 1),
)


def curves(all_runs: Sequence[EvaluatedRun]) -> list[tuple[str, list[Markup]]]:
    """Returns headings, each with its plots; those without data are left out."""
    sections = (
        ("Detection", _detection_plots(all_runs)),
        ("Localization", _localization_plots(all_runs)),
        ("Robustness", [*_everyday_plots(all_runs), *_robustness_plots(all_runs)]),
        ("Training", _training_plots(all_runs)),
    )
    return [(heading, drawn) for heading, drawn in sections if drawn]


def _training_plots(all_runs: Sequence[EvaluatedRun]) -> list[Markup]:
    out = []
    for name, title in (("loss", "Training loss"), ("valid_loss", "Validation loss")):
        series = [
            plots.Series(run.name, *zip(*run.losses[name], strict=True), colour=number)
            for number, run in enumerate(all_runs)
            if any(math.isfinite(loss) for _, loss in run.losses[name])
        ]
        if series:
            out.append(plots.plot(series, title=title, x_label="step", y_label="loss"))
    return out


def precision_recall(
    images: dict[str, list[ScoredImage]],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], float]:
    """Returns the precision-recall curve and the average precision, over all test images.

    Args:
      images: of sides "fake", which is to be found, and "real".

    Returns:
      Recalls in rising order, their precisions and the average precision, all in [0, 1].
    """
    scores = [row.score for side in ("real", "fake") for row in images[side]]
    labels = np.repeat([0, 1], [len(images["real"]), len(images["fake"])])
    precision, recall, _ = precision_recall_curve(labels, scores, drop_intermediate=True)
    return recall[::-1], precision[::-1], float(average_precision_score(labels, scores))


def _detection_plots(all_runs: Sequence[EvaluatedRun]) -> list[Markup]:
    series = []
    for number, run in enumerate(all_runs):
        recall, precision, ap = precision_recall(run.images)
        name = f"{run.name}, AP {100 * ap:.1f}"
        series.append(plots.Series(name, 100 * recall, 100 * precision, number))
    for share in sorted({_percent_of_fakes(run) for run in all_runs}):
        name = f"guessing, {share:.1f}"
        series.append(plots.Series(name, (0, 100), (share, share), _BASELINE, "dashed"))
    out = [
        plots.plot(
            series,
            title="Precision and recall, all test images",
            x_label="recall, %",
            y_label="precision, %",
            x_range=_PERCENT,
            y_range=_PERCENT,
        )
    ]
    for run in all_runs:
        sides = {
            side: np.array([row.score for row in run.images[side]]) for side in ("real", "fake")
        }
        edges = np.histogram_bin_edges(np.concatenate(list(sides.values())), _BINS)
        series = [
            plots.Series(side, edges, 100 * np.histogram(values, edges)[0] / len(values), c, "bars")
            for (side, values), c in zip(sides.items(), (_REAL, _FAKE), strict=True)
        ]
        title = f"Scores: {run.name}"
        out.append(plots.plot(series, title=title, x_label="score", y_label="images of a side, %"))
    return out


def _percent_of_fakes(run: EvaluatedRun) -> float:
    counts = {side: len(rows) for side, rows in run.images.items()}
    return 100 * counts["fake"] / sum(counts.values())


def iou_by_size(
    images: Sequence[ScoredImage],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns mean share and mean IoU of groups of images by the size of their masks.

    The groups are of equal numbers, but for one image. All images have a mask.
    """
    pairs = np.array(sorted((image.share, image.iou) for image in images))
    groups = np.array_split(pairs, min(_SIZES, len(pairs)))
    shares, ious = np.array([group.mean(0) for group in groups]).T
    return shares, ious


def _localization_plots(all_runs: Sequence[EvaluatedRun]) -> list[Markup]:
    by_size, by_threshold, trivial = [], [], []
    with_masks = [
        (number, run) for number, run in enumerate(all_runs) if run.results[0]["iou_lg"] is not None
    ]
    if not with_masks:
        return []
    for number, run in with_masks:
        shares, ious = iou_by_size(run.images["fake"])
        by_size.append(plots.Series(run.name, 100 * shares, 100 * ious, number, "dots"))
        # The map that calls everything manipulated has as IoU the share that is.
        trivial.append(plots.Series("all fake", 100 * shares, 100 * shares, _BASELINE, "dashed"))
        points = run.results[0]["iou_by_threshold"]
        thresholds, at = zip(*((p["threshold"], p["iou_lg"]) for p in points), strict=True)
        by_threshold.append(plots.Series(run.name, thresholds, at, number, "dots"))
    share = with_masks[0][1].results[0]["manipulated_share"]
    alike = len({run.results[0]["manipulated_share"] for _, run in with_masks}) == 1
    baseline = [plots.Series("all fake", (0, 1), (share, share), _BASELINE, "dashed")]
    return [
        plots.plot(
            [*by_size, *trivial[:1]],
            title="IoU against the size of the mask",
            x_label="manipulated, % of the image",
            y_label="iou_lg",
            y_range=_PERCENT,
        ),
        plots.plot(
            [*by_threshold, *(baseline if alike else [])],
            title="IoU against the threshold",
            x_label="a pixel is called manipulated above",
            y_label="iou_lg",
            x_range=(0.0, 1.0),
            y_range=_PERCENT,
        ),
    ]


def _everyday_plots(all_runs: Sequence[EvaluatedRun]) -> list[Markup]:
    groups: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    for number, run in enumerate(all_runs):
        for found in run.everyday:
            groups.setdefault((found["test_fake"], found["test_real"]), []).append((number, found))
    out = []
    for (fake, real), entries in groups.items():
        where = f": {fake}, {real}" if len(groups) > 1 else ""
        for figure, title, factor in _EVERYDAY:
            by_run = {}
            for number, found in entries:
                points = {point["perturbation"]: point[figure] for point in found["points"]}
                if figure in found["clean"]:
                    points = {"clean": found["clean"][figure], **points}
                known = {
                    name: factor * value for name, value in points.items() if value is not None
                }
                if known:
                    by_run[number] = known
            names = list(dict.fromkeys(name for known in by_run.values() for name in known))
            series = [
                plots.Bars(
                    all_runs[number].name, [known.get(name, math.nan) for name in names], number
                )
                for number, known in by_run.items()
            ]
            if series:
                out.append(plots.bars(names, series, title=title + where, x_range=_PERCENT))
    return out


def _robustness_plots(all_runs: Sequence[EvaluatedRun]) -> list[Markup]:
    groups: dict[tuple[str, str, str], list[tuple[int, dict[str, Any]]]] = {}
    for number, run in enumerate(all_runs):
        for found in run.robustness:
            key = found["perturbation"], found["test_fake"], found["test_real"]
            groups.setdefault(key, []).append((number, found))
    several = len({(fake, real) for _, fake, real in groups}) > 1
    out = []
    for (kind, fake, real), entries in groups.items():
        identity = perturbations.KINDS[kind].identity
        for figure in ("iou_lg", "ap"):
            series = []
            for number, found in entries:
                if found["clean"][figure] is None:  # no masks
                    continue
                name, clean = all_runs[number].name, found["clean"][figure]
                points = [(point["strength"], point[figure]) for point in found["points"]]
                if identity is not None:
                    points.append((identity, clean))
                x, y = zip(*sorted(points), strict=True)
                series.append(plots.Series(name, x, y, number, "dots"))
                if identity is None:
                    ends = (x[0], x[-1])
                    series.append(
                        plots.Series(f"{name}, clean", ends, (clean,) * 2, number, "dashed")
                    )
            if not series:
                continue
            out.append(
                plots.plot(
                    series,
                    title=f"{figure} after {kind}" + (f": {fake}, {real}" if several else ""),
                    x_label=f"{kind}: {perturbations.KINDS[kind].unit}",
                    y_label=figure,
                    y_range=_PERCENT,
                )
            )
    return out
