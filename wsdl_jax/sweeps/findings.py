"""The results of many runs as numbers: means over seeds, and matrices of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from wsdl_jax.evaluation import metrics

FIGURES = (*metrics.LOCALIZATION, "iou_fitted", "ap", "auc", "balanced_accuracy")
SHOWN = {
    "iou_lg": "IoU",
    "iou_fitted": "IoU fitted",
    "pbca_lg": "PBCA",
    "f1": "F1",
    "ap": "AP",
}  # the rest is in the CSV
COMPARED = "iou_lg"  # what matrices have, and published figures are set beside
OURS = "this sweep"


class Finding(NamedTuple):
    """The results of one run on one tested subset.

    Attributes:
      group: the part of the tables that it belongs to; settings of one group are compared.
      setting: what is particular to the run within its group.
      seed: the seed of the run.
      trained: the fake subsets that it was trained on.
      tested: the fake subset that it was tested on.
      results: the content of results.json; None where there are none yet.
    """

    group: str
    setting: str
    seed: int
    trained: tuple[str, ...]
    tested: str
    results: dict[str, Any] | None


class Published(NamedTuple):
    """A published figure.

    Attributes:
      system: the name of what was trained.
      figure: one of FIGURES.
      trained: the subset that it was trained on; "each" for a mean over subsets.
      tested: the subset that it was tested on; for a mean, "in-domain" where it is over all pairs
        of a generator with itself, "out-of-domain" where it is over all pairs of two generators.
      value: the figure, × 100.
      reference: the publication that it is from.
    """

    system: str
    figure: str
    trained: str
    tested: str
    value: float
    reference: str


class Row(NamedTuple):
    """The findings of all seeds of a setting on one tested subset.

    Attributes:
      group: as of its findings.
      setting: as of its findings.
      trained: as of its findings.
      tested: as of its findings.
      done: how many seeds have results.
      planned: how many seeds there are.
      mean: by figure, the mean over seeds, × 100; None where no seed has it.
      std: by figure, the sample standard deviation (n − 1); None where less than two have it.
    """

    group: str
    setting: str
    trained: tuple[str, ...]
    tested: str
    done: int
    planned: int
    mean: dict[str, float | None]
    std: dict[str, float | None]


class Matrix(NamedTuple):
    """A figure by what was trained on (columns) and what was tested on (rows).

    Attributes:
      title: the name of what was trained.
      rows: the labels of the tested subsets.
      columns: the labels of what was trained on.
      mean: the figure's mean over seeds, × 100; NaN where there is none.
      std: its sample standard deviation; NaN where there is none.
      in_domain: whether a cell's tested subset is among those that were trained on.
    """

    title: str
    rows: list[str]
    columns: list[str]
    mean: Float[np.ndarray, "rows columns"]
    std: Float[np.ndarray, "rows columns"]
    in_domain: Bool[np.ndarray, "rows columns"]


def summarize(findings: Sequence[Finding]) -> list[Row]:
    """Returns the means over seeds, in the order in which the settings first appear."""
    findings_by_row: dict[tuple, list[Finding]] = {}
    for finding in findings:
        key = (finding.group, finding.setting, finding.trained, finding.tested)
        findings_by_row.setdefault(key, []).append(finding)
    rows = []
    for key, seeds in findings_by_row.items():
        done = [finding.results for finding in seeds if finding.results is not None]
        mean, std = {}, {}
        for figure in FIGURES:
            values = [results[figure] for results in done if results.get(figure) is not None]
            mean[figure] = float(np.mean(values)) if values else None
            std[figure] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        rows.append(Row(*key, len(done), len(seeds), mean, std))
    return rows


def matrices(rows: Sequence[Row]) -> list[Matrix]:
    """Returns the groups in which all settings are tested on the same subsets, two or more."""
    found = []
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        settings = list(dict.fromkeys(row.setting for row in members))
        tested = list(dict.fromkeys(row.tested for row in members))
        cells = {(row.tested, row.setting): row for row in members}
        if len(tested) < 2 or len(cells) != len(settings) * len(tested):
            continue
        grid = [[cells[test, setting] for setting in settings] for test in tested]
        found.append(
            Matrix(
                f"{OURS}, {group}",
                _short(tested),
                settings,
                _numbers(grid, lambda row: row.mean[COMPARED]),
                _numbers(grid, lambda row: row.std[COMPARED]),
                np.array([[row.tested in row.trained for row in line] for line in grid]),
            )
        )
    return found


def published_matrices(figures: Sequence[Published], rows: Sequence[Row]) -> list[Matrix]:
    """Returns the published matrices over subsets that a sweep has tested on as well.

    Args:
      figures: published figures.
      rows: what a sweep has found, whose order of subsets the matrices take over.
    """
    tested = list(dict.fromkeys(row.tested for row in rows))
    found = []
    for system in dict.fromkeys(figure.system for figure in figures):
        cells = {
            (figure.tested, figure.trained): figure.value
            for figure in figures
            if figure.system == system and figure.figure == COMPARED and figure.trained != "each"
        }
        subsets = {subset for pair in cells for subset in pair}
        if not subsets or not subsets.issubset(tested):
            continue
        names = [subset for subset in tested if subset in subsets]
        mean = np.array([[cells.get((test, train), np.nan) for train in names] for test in names])
        labels, in_domain = _short(names), np.eye(len(names), dtype=bool)
        found.append(Matrix(system, labels, labels, mean, np.full_like(mean, np.nan), in_domain))
    return found


def _short(subsets: list[str]) -> list[str]:
    """Returns names without their common beginning, which ends with a "/" or "_"."""
    common = 0
    for end, letters in enumerate(zip(*subsets, strict=False), 1):
        if len(set(letters)) > 1:
            break
        if letters[0] in "/_":
            common = end
    return [name[common:] for name in subsets]


def _numbers(
    grid: list[list[Row]], read: Callable[[Row], float | None]
) -> Float[np.ndarray, "rows columns"]:
    """Returns a number of each row of a grid; NaN where it is None."""
    values = [[read(row) for row in line] for line in grid]
    return np.array([[np.nan if v is None else v for v in line] for line in values], float)


def cell_text(mean: float | None, std: float | None = None) -> str:
    """Returns "mean ± std" as text, without what is None or NaN."""
    if mean is None or math.isnan(mean):
        return ""
    return f"{mean:.1f}" if std is None or math.isnan(std) else f"{mean:.1f} ± {std:.1f}"
