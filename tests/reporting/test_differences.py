"""Tables of intervals and of differences, against predictions.csv."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from sklearn.metrics import roc_auc_score

from wsdl_jax.evaluation import intervals
from wsdl_jax.reporting.differences import difference_tables
from wsdl_jax.reporting.evaluated_runs import read
from wsdl_jax.reporting.page import report
from wsdl_jax.reporting.tables import interval_tables, verdict_tables
from wsdl_jax.runtime.errors import UserError

Change = Callable[[list[dict[str, str]]], None]


@pytest.fixture
def changed(evaluated: epath.Path, tmp_path: Path) -> Callable[[Change], list[epath.Path]]:
    """(change of rows) → an evaluated run, and a copy whose table was changed so."""

    def make(change: Change) -> list[epath.Path]:
        other = tmp_path / "other"
        shutil.copytree(evaluated, other)
        rows = rows_of(other)
        change(rows)
        write(other, rows)
        return [evaluated, epath.Path(other)]

    return make


def rows_of(run: epath.Path | Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def write(run: epath.Path | Path, rows: list[dict[str, str]]) -> None:
    with open(run / "predictions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    stored = json.loads((run / "results.json").read_text())
    digest = hashlib.sha256((run / "predictions.csv").read_bytes()).hexdigest()
    (run / "results.json").write_text(json.dumps({**stored, "predictions": digest}))


def cells(run: epath.Path, other: epath.Path) -> dict[str, str]:
    (table,) = difference_tables(read([run, other]))
    (row,) = table.rows
    assert (row.name, row.colour) == ("other", 1) and "difference from run" in table.title
    return dict(zip(table.head, (cell.text for cell in row.cells), strict=True))


def test_differences(changed):
    def better(rows: list[dict[str, str]]) -> None:
        for place, row in enumerate(rows):
            if row["label"] == "fake":
                row["iou_lg"] = str(float(row["iou_lg"]) + 0.1 + 0.01 * (place % 3))
                row["score"] = str(float(row["score"]) + 9)

    run, other = changed(better)
    found = cells(run, other)
    iou = [
        np.mean([float(row["iou_lg"] or "nan") for row in rows_of(r)[:11]]) for r in (run, other)
    ]
    assert found["iou_lg"].startswith(f"{100 * (iou[1] - iou[0]):+.1f} (+10.")
    assert float(found["iou_lg"].split("p ")[1]) <= 4 / 2000  # of 11 images: 2 / 2^11 of all signs
    assert found["f1"] == "+0.0 (+0.0 to +0.0), p 1"
    rows = rows_of(run)
    auc = roc_auc_score([r["label"] == "fake" for r in rows], [float(r["score"]) for r in rows])
    assert found["auc"].startswith(f"{100 * (1 - auc):+.1f} (")


def test_what_earlier_tables_lack_is_left_out(changed):
    def earlier(rows: list[dict[str, str]]) -> None:
        for row in rows:
            del row["mcc"], row["group"]

    found = cells(*changed(earlier))
    assert found["mcc"] == "–" and found["f1"] == "+0.0 (+0.0 to +0.0), p 1"


def test_groups_are_those_of_whichever_table_has_them(changed, monkeypatch):
    drawn = []
    measure = intervals.difference_of_means

    def noted(first, second, units):
        drawn.append(units.tolist())
        return measure(first, second, units)

    def grouped(rows: list[dict[str, str]]) -> None:
        for place, row in enumerate(rows):
            row["group"] = str(place // 2)

    runs = changed(grouped)
    expected = [place // 2 for place in range(11)]
    monkeypatch.setattr(intervals, "difference_of_means", noted)
    with pytest.raises(UserError, match="have different groups of fake images: eval") as told:
        difference_tables(read(runs))
    assert "\n" not in str(told.value) and not drawn
    earlier = runs[1].parent / "earlier"
    shutil.copytree(runs[0], earlier)
    rows = [{k: v for k, v in row.items() if k != "group"} for row in rows_of(earlier)]
    write(earlier, rows)
    for pair in ([earlier, runs[1]], [runs[1], earlier]):
        drawn.clear()
        difference_tables(read(pair))
        assert drawn and all(units == expected for units in drawn)


def test_images_that_differ_are_told(changed):
    def renamed(rows: list[dict[str, str]]) -> None:
        rows[3]["key"] = "other.png"

    with pytest.raises(UserError, match="are of different fake images: evaluate both") as told:
        difference_tables(read(changed(renamed)))
    assert "\n" not in str(told.value)


def test_a_single_run_is_compared_with_none(evaluated):
    assert difference_tables(read([evaluated])) == []


def test_intervals_are_shown(evaluated, changed, tmp_path):
    stored = json.loads((evaluated / "results.json").read_text())["intervals"]
    assert (stored["level"], stored["resamples"]) == (95, 2000)
    assert stored["drawn"] == {"fake": "image", "real": "image"}
    fakes = rows_of(evaluated)[:11]
    expected = intervals.of_means(
        {"f1": np.array([float(row["f1"]) for row in fakes])}, np.arange(11)
    )["f1"]
    found = stored["figures"]["f1"]
    assert (found["low"], found["high"]) == pytest.approx((100 * expected.low, 100 * expected.high))
    (table,) = interval_tables(read([evaluated]))
    shown = dict(zip(table.head, (cell.text for cell in table.rows[0].cells), strict=True))
    assert shown["f1"] == f"{found['low']:.1f} to {found['high']:.1f}"
    text = (evaluated / "results.txt").read_text()
    assert f"f1 {shown['f1']}" in " ".join(text.split())
    report(changed(lambda rows: None), epath.Path(tmp_path / "out"), count=0)
    page = (tmp_path / "out/index.html").read_text()
    assert shown["f1"] in page and "difference from run" in page


def test_verdicts_are_shown(evaluated, tmp_path):
    stored = json.loads((evaluated / "results.json").read_text())["verdicts"]
    (table,) = verdict_tables(read([evaluated]))
    (row,) = table.rows
    shown = dict(zip(table.head, (cell.text for cell in row.cells), strict=True))
    for side in ("fake", "real"):
        for answer in ("real", "fake", "unsure", "unlike"):
            assert shown[f"{side}s: {answer}"] == f"{stored[side][answer]:.1f}"
    assert shown["reals, by each other: fake"] == f"{stored['pooled_false_positives']:.1f}"
    assert table.title.endswith("at a false-positive rate of 5%")
    report([evaluated], epath.Path(tmp_path / "out"), count=0)
    assert "Verdicts on dolos" in (tmp_path / "out/index.html").read_text()
