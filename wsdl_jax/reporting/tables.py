"""The figures of runs, and their settings, as tables of text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from wsdl_jax import configuration, evaluation
from wsdl_jax.evaluation import intervals, metrics, retention, summary
from wsdl_jax.evaluation.verdict import ANSWERS
from wsdl_jax.reporting.evaluated_runs import EvaluatedRun

DETECTION = ("ap", "auc", "balanced_accuracy", "image_f1")
_BEST = ("best iou_lg", "best f1")  # columns, at one threshold for all images


class Cell(NamedTuple):
    """A cell of a table: its text, and whether its figure is the best of several runs."""

    text: str
    best: bool = False


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      name: of the run or the baseline.
      colour: the run's number; None for a baseline.
      cells: one for each column.
    """

    name: str
    colour: int | None
    cells: list[Cell]


class Table(NamedTuple):
    """Figures on one pair of test subsets.

    Attributes:
      title: says what the test images are.
      head: names of the columns.
      rows: of the runs, then of the baselines; or of one run's perturbations.
    """

    title: str
    head: tuple[str, ...]
    rows: list[Row]


def tables(all_runs: Sequence[EvaluatedRun]) -> list[Table]:
    """Returns a table for each pair of test subsets, with every run that was tested on it.

    The trivial maps are scored at each run's own map size: where runs differ, the cell has the
    least and the largest figure.
    """
    tested: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    for number, run in enumerate(all_runs):
        for results in run.results:
            names = results["test_fake"], results["test_real"]
            tested.setdefault(names, []).append((number, results))
    none = Cell("–")
    head = (*metrics.LOCALIZATION, *DETECTION, "called fake", "iou_fitted", *_BEST)
    made = []
    for (fake, real), entries in tested.items():
        of_runs = [results for _, results in entries]
        rows = [
            Row(all_runs[number].name, number, _cells(results, of_runs))
            for number, results in entries
        ]
        for name in evaluation.TRIVIAL:
            cells = [
                Cell(_range([results["trivial"][name][figure] for results in of_runs]))
                for figure in metrics.LOCALIZATION
            ]
            rows.append(Row(name, None, [*cells, *[none] * (len(head) - len(cells))]))
        chance = [*[Cell("50.0")] * (len(DETECTION) - 1), none]  # F1 has none of its own
        cells = [*[none] * len(metrics.LOCALIZATION), *chance, *[none] * (2 + len(_BEST))]
        rows.append(Row("guessing", None, cells))
        title = (
            f"{of_runs[0]['fake_images']} images of {fake} ({summary.masks(of_runs[0])}) and "
            f"{of_runs[0]['real_images']} of {real}"
        )
        made.append(Table(title, head, rows))
        made += _part_tables(all_runs, entries)
    return made


def _part_tables(
    all_runs: Sequence[EvaluatedRun], entries: Sequence[tuple[int, dict[str, Any]]]
) -> list[Table]:
    """Returns a table for each fact by which a pair of test subsets has parts.

    Args:
      all_runs: the runs.
      entries: of those that were tested on them the numbers and results.
    """
    rows: dict[str, list[tuple[str, Row]]] = {}
    for number, results in entries:
        for fact, parts in results["parts"].items():
            for value, figures in parts.items():
                name = summary.part_name(value)
                name += f", {all_runs[number].name}" if len(entries) > 1 else ""
                cells = [Cell(text) for text in summary.part_cells(figures)]
                rows.setdefault(fact, []).append((value, Row(name, number, cells)))
    return [
        Table(
            f"{entries[0][1]['test_fake']}, by {fact}",
            summary.PART_HEAD,
            [row for _, row in sorted(of_fact, key=lambda pair: pair[0])],
        )
        for fact, of_fact in rows.items()
    ]


def interval_tables(all_runs: Sequence[EvaluatedRun]) -> list[Table]:
    """Returns a table of bootstrap intervals for each pair of test subsets that have some."""
    rows: dict[str, list[Row]] = {}
    names = (*intervals.LOCALIZATION, *intervals.DETECTION)
    for number, run in enumerate(all_runs):
        for results in run.results:
            found = results["intervals"]
            if found is not None:
                tested = f"{results['test_fake']} and {results['test_real']}"
                cells = [Cell(summary.interval(found["figures"][name])) for name in names]
                title = f"{tested}: {summary.drawn(found)}"
                rows.setdefault(title, []).append(Row(run.name, number, cells))
    return [Table(title, names, of) for title, of in rows.items()]


def verdict_tables(all_runs: Sequence[EvaluatedRun]) -> list[Table]:
    """Returns a table of verdicts for each pair of test subsets that have some, in percent."""
    head = [f"{side}s: {a}" for side in ("fake", "real") for a in (*ANSWERS, "unlike")]
    rows: dict[str, list[Row]] = {}
    for number, run in enumerate(all_runs):
        for results in run.results:
            found = results["verdicts"]
            if found is not None:
                cells = [
                    Cell(summary.figure(found[side][answer]))
                    for side in ("fake", "real")
                    for answer in (*ANSWERS, "unlike")
                ]
                cells.append(Cell(summary.figure(found["pooled_false_positives"])))
                title = (
                    f"Verdicts on {results['test_fake']} and {results['test_real']}, at a "
                    f"false-positive rate of {found['false_positive_rate']:g}%"
                )
                rows.setdefault(title, []).append(Row(run.name, number, cells))
    pooled = "reals, by each other: fake"
    return [Table(title, (*head, pooled), of) for title, of in rows.items()]


def everyday_tables(all_runs: Sequence[EvaluatedRun]) -> list[Table]:
    """Returns, of every run and pair of test subsets, a table of everyday perturbations."""
    made = []
    for number, run in enumerate(all_runs):
        for found in run.everyday:
            head, rows = retention.table(found)
            title = f"{run.name}: {found['test_fake']} and {found['test_real']}"
            made.append(
                Table(title, head, [Row(name, number, list(map(Cell, row))) for name, row in rows])
            )
    return made


def _cells(results: dict[str, Any], of_runs: list[dict[str, Any]]) -> list[Cell]:
    """Returns a run's row.

    Args:
      results: of the run.
      of_runs: of all runs in the table.
    """
    cells = []
    for name in (*metrics.LOCALIZATION, *DETECTION):
        text = summary.figure(results[name])
        if name == "ap":
            text += f" ± {results['ap_2sd']:.1f}"
        known = [other[name] for other in of_runs if other[name] is not None]
        cells.append(Cell(text, len(known) > 1 and results[name] == max(known)))
    above = (summary.figure(results[f"{side}_above"]) for side in ("fake", "real"))
    cells.append(Cell(" / ".join(above)))
    if results["iou_lg"] is None:  # no masks
        return [*cells, *[Cell("–")] * (1 + len(_BEST))]
    fitted = "–"
    if results["map_threshold"] is not None:
        fitted = f"{results['iou_fitted']:.1f} at {results['map_threshold']:.2g}"
    cells.append(Cell(fitted))
    at = max(results["iou_by_threshold"], key=lambda point: point["iou_lg"])
    f1 = "–"
    if results["f1_best_fixed"] is not None and results["f1_best_fixed_at"] is not None:
        f1 = f"{results['f1_best_fixed']:.1f} at {results['f1_best_fixed_at']:.3g}"
    return [*cells, Cell(f"{at['iou_lg']:.1f} at {at['threshold']:.2f}"), Cell(f1)]


def _range(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    low, high = summary.figure(min(known)), summary.figure(max(known))
    return low if low == high else f"{low}–{high}"


def settings(all_runs: Sequence[EvaluatedRun]) -> list[tuple[str, list[str]]]:
    """Returns (field, its value in each run's config): all fields of one run, of several those that
    differ.
    """
    essences = [dict(configuration.essence(run.config)) for run in all_runs]
    rows = []
    for field in essences[0]:
        values = [_plain(essence[field]) for essence in essences]
        if len(values) == 1 or len(set(values)) > 1:
            rows.append((field, values))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
