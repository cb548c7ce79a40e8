"""How much runs differ on the same test images: paired intervals and tests, as tables."""

import csv
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, Integer

from wsdl_data import provenance
from wsdl_jax.evaluation import intervals, metrics
from wsdl_jax.evaluation.intervals import Difference, Scored
from wsdl_jax.reporting.evaluated_runs import EvaluatedRun
from wsdl_jax.reporting.tables import Cell, Row, Table
from wsdl_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Side:
    """What a predictions.csv has of the images of one side, in order.

    Attributes:
      keys: their names.
      groups: the names of their groups, "" for none; None where the table does not say them.
      sets: the names of their sets; None likewise, as where the test is of one set.
      scored: what was found in them.
      figures: by name the figures of their maps; without those that the table does not have.
    """

    keys: list[str]
    groups: list[str] | None
    sets: list[str] | None
    scored: Scored
    figures: dict[str, Float[np.ndarray, " n"]]


def difference_tables(all_runs: Sequence[EvaluatedRun]) -> list[Table]:
    """Returns, for each pair of test subsets, by how much every run is better than the first one.

    A cell has the difference × 100, its interval, and the p-value, see `evaluation.intervals`.

    Raises:
      UserError: a predictions.csv that cannot be read, that is not of its results, or of other
        images or other groups than the first run's.
    """
    tested: dict[tuple[str, str], list[tuple[int, epath.Path]]] = {}
    for number, run in enumerate(all_runs):
        for results, path in zip(run.results, run.predictions, strict=True):
            if len(all_runs) > 1:
                _check_digest(path, results["predictions"])
            names = results["test_fake"], results["test_real"]
            tested.setdefault(names, []).append((number, path))
    names = (*intervals.LOCALIZATION, *intervals.DETECTION)
    made = []
    for (fake, real), ((first, first_path), *others) in tested.items():
        reference = _read(first_path) if others else {}
        rows = []
        for number, path in others:
            sides = _read(path)
            units = {}
            for side, of in sides.items():
                other = reference[side]
                if of.keys != other.keys or _differ(of.sets, other.sets):
                    raise UserError(
                        f"{path} and {first_path} are of different {side} images: evaluate both "
                        "runs again on the same"
                    )
                if _differ(of.groups, other.groups):
                    raise UserError(
                        f"{path} and {first_path} have different groups of {side} images: "
                        "evaluate both runs again"
                    )
                units[side] = _units(of, other)
            found = _differences(sides, reference, units)
            cells = [Cell(_text(found.get(name))) for name in names]
            rows.append(Row(all_runs[number].name, number, cells))
        if rows:
            title = f"{fake} and {real}: difference from {all_runs[first].name}"
            made.append(Table(title, names, rows))
    return made


def _differ(one: list[str] | None, other: list[str] | None) -> bool:
    """Returns whether two tables, which both have a column, have other values in it."""
    return one is not None and other is not None and one != other


def _units(one: _Side, other: _Side) -> Integer[np.ndarray, " n"]:
    """Returns what the images of a side are drawn by, as whichever table says it has it."""
    nothing = [""] * len(one.keys)
    groups = one.groups or other.groups or nothing
    sets = one.sets or other.sets or nothing
    names = map(intervals.Name, groups, sets, one.keys)
    return intervals.units_of([*names]).numbers


def _differences(
    sides: dict[str, _Side],
    reference: dict[str, _Side],
    units: dict[str, Integer[np.ndarray, " _"]],
) -> dict[str, Difference]:
    """Returns by how much a run's figures are larger than the reference's, where both have them."""
    ours, theirs = sides["fake"].figures, reference["fake"].figures
    found = {
        name: intervals.difference_of_means(ours[name], theirs[name], units["fake"])
        for name in intervals.LOCALIZATION
        if name in ours and name in theirs
    }
    found |= intervals.differences_of_detection(
        (sides["real"].scored, sides["fake"].scored),
        (reference["real"].scored, reference["fake"].scored),
        units["real"],
        units["fake"],
    )
    return {name: difference for name, difference in found.items() if difference is not None}


def _text(found: Difference | None) -> str:
    if found is None:
        return "–"
    value, low, high = (
        f"{100 * number:+.1f}" for number in (found.value, found.interval.low, found.interval.high)
    )
    return f"{value} ({low} to {high}), p {found.p_value:.2g}"


def _check_digest(path: epath.Path, digest: str) -> None:
    if not path.exists():
        raise UserError(f"{path} is not there: evaluate the run again")
    if provenance.digest_of_file(path) != digest:
        raise UserError(f"{path} is not of the results beside it: evaluate the run again")


def _read(path: epath.Path) -> dict[str, _Side]:
    """Returns what a predictions.csv has of the sides "fake" and "real"."""
    rows: dict[str, list[dict[str, str]]] = {"fake": [], "real": []}
    try:
        for row in csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")):
            rows[row["label"]].append(row)
        return {side: _side(of) for side, of in rows.items()}
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error!r}): evaluate the run again") from error


def _side(rows: list[dict[str, str]]) -> _Side:
    def column(name: str) -> Float[np.ndarray, " n"]:
        return np.array([float(row[name] or "nan") for row in rows])

    def given(name: str) -> list[str] | None:
        return [row[name] for row in rows] if rows and name in rows[0] else None

    return _Side(
        keys=[row["key"] for row in rows],
        groups=given("group"),  # earlier tables have none
        sets=given("set"),
        scored=Scored(column("score"), column("probability") > metrics.THRESHOLD),
        figures={name: column(name) for name in intervals.LOCALIZATION if rows and name in rows[0]},
    )
