"""How much runs differ on the same test images: paired intervals and tests, as tables."""

import csv
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float

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
      groups: the names of their groups, "" for none.
      scored: what was found in them.
      figures: by name the figures of their maps; without those that the table does not have.
    """

    keys: list[str]
    groups: list[str]
    scored: Scored
    figures: dict[str, Float[np.ndarray, " n"]]


def difference_tables(all_runs: Sequence[EvaluatedRun]) -> list[Table]:
    """Returns, for each pair of test subsets, by how much every run is better than the first one.

    A cell has the difference × 100, its interval, and the p-value, see `evaluation.intervals`.

    Raises:
      UserError: a predictions.csv that cannot be read, that is not of its results, or of other
        images than the first run's.
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
            for side, of in sides.items():
                if of.keys != reference[side].keys:
                    raise UserError(
                        f"{path} and {first_path} are of different {side} images: evaluate both "
                        "runs again on the same"
                    )
            found = _differences(sides, reference)
            cells = [Cell(_text(found.get(name))) for name in names]
            rows.append(Row(all_runs[number].name, number, cells))
        if rows:
            title = f"{fake} and {real}: difference from {all_runs[first].name}"
            made.append(Table(title, names, rows))
    return made


def _differences(sides: dict[str, _Side], reference: dict[str, _Side]) -> dict[str, Difference]:
    """Returns by how much a run's figures are larger than the reference's, where both have them."""
    units = {side: intervals.units_of(of.groups) for side, of in reference.items()}
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

    return _Side(
        keys=[row["key"] for row in rows],
        groups=[row.get("group", "") for row in rows],  # earlier tables have none
        scored=Scored(column("score"), column("probability") > metrics.THRESHOLD),
        figures={name: column(name) for name in intervals.LOCALIZATION if rows and name in rows[0]},
    )
