"""Tables against NumPy and the csv module."""

import csv
import re

import numpy as np
import pytest
from etils import epath
from findings_of_generators import GENERATORS, PUBLISHED, grid, results

from wsdl_jax.runtime import storage
from wsdl_jax.sweeps import tables
from wsdl_jax.sweeps.findings import FIGURES, Finding


def write(findings, tmp_path, published=PUBLISHED, failures=None) -> dict[str, epath.Path]:
    out = epath.Path(tmp_path) / "tables"
    assert tables.write(findings, published, failures or {}, out, title="a_sweep") == out
    return {path.name: path for path in out.iterdir()}


def cells(text: str, title: str) -> list[list[str]]:
    """The cells of a Markdown table, below its header."""
    _, rest = text.split(f"## {title}\n\n")
    lines = rest.split("\n\n")[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_markdown(tmp_path):
    findings, iou = grid()
    files = write(findings, tmp_path, failures={"one/ldm/seed-0": "no memory"})
    tables = {"results.csv", "results.md", "results.tex", storage.MANIFEST}
    assert set(files) == {*tables, "heatmaps.png"}
    text = files["results.md"].read_text()
    mean, std = iou.mean(0), iou.std(0, ddof=1)
    shown = cells(text, "IoU, this sweep, one: rows = tested, columns = trained")
    for i, row in enumerate(shown):
        assert row[1:] == [f"{mean[i, j]:.1f} ± {std[i, j]:.1f}" for j in range(3)]
    assert cells(text, "Runs")[1][:5] == [
        *("one", "ldm", "dolos/celebahq_lama", "2 of 2"),
        f"{mean[1, 0]:.1f} ± {std[1, 0]:.1f}",
    ]
    outside = ~np.eye(3, dtype=bool)
    assert cells(text, "IoU, mean over the cells") == [
        ["this sweep, one", f"{np.diag(mean).mean():.1f}", f"{mean[outside].mean():.1f}"],
        ["Other", "11.0", "11.0"],
        ["Means", "69.3", "20.4"],
    ]
    assert "sample standard deviation" in text
    assert "- Other: a paper\n" in text
    assert "- one/ldm/seed-0: no memory\n" in text


def test_published_figures_of_other_subsets_are_left_out(tmp_path):
    findings = [
        Finding("one", train, 0, (f"portraits/{train}",), f"portraits/{test}", results(1))
        for train in ("regrain", "upsample")
        for test in ("regrain", "upsample")
    ]
    for name in ("results.md", "results.csv", "results.tex"):
        assert "Other" not in write(findings, tmp_path)[name].read_text()


def test_csv(tmp_path):
    findings, iou = grid()
    with write(findings, tmp_path)["results.csv"].open("r") as file:
        rows = list(csv.DictReader(file))
    ours = [row for row in rows if row["system"] == "this sweep"]
    assert len(ours) == 9
    for row in ours:
        at = (slice(None), *map(GENERATORS.index, (row["tested"][15:], row["setting"])))
        assert float(row["iou_lg"]) == pytest.approx(iou[at].mean())
        assert float(row["iou_lg_std"]) == pytest.approx(iou[at].std(ddof=1))
        assert (row["done"], row["planned"]) == ("2", "2")
    assert [float(row["iou_lg"]) for row in rows[9:]] == [figure.value for figure in PUBLISHED]
    assert {row["reference"] for row in rows[9:]} == {"a paper", "another"}


def test_missing_is_empty_and_not_zero(tmp_path):
    findings, _ = grid(seeds=1)
    findings[0] = findings[0]._replace(results=None)
    files = write(findings, tmp_path, published=[])
    text = files["results.md"].read_text()
    assert cells(text, "Runs")[0][3:] == ["0 of 1", "", "", "", "", ""]
    matrix = cells(text, "IoU, this sweep, one: rows = tested, columns = trained")
    assert matrix[0][1] == ""
    assert all(matrix[i][1 + j] for i in range(3) for j in range(3) if i or j)
    # A mean over the others would be of other pairs.
    ((_, inside, outside),) = cells(text, "IoU, mean over the cells")
    assert inside == "" and outside != ""
    with files["results.csv"].open("r") as file:
        first = next(csv.DictReader(file))
    assert {first[name] for name in FIGURES} == {""}
    assert "nan" not in text + files["results.csv"].read_text() + files["results.tex"].read_text()


def test_without_a_matrix_there_is_no_heatmap(tmp_path):
    files = write([Finding("g", "s", 0, ("a/x",), "a/y", None)], tmp_path)
    assert set(files) == {"results.csv", "results.md", "results.tex", storage.MANIFEST}


def test_latex(tmp_path):
    findings, _ = grid()
    text = write(findings, tmp_path)["results.tex"].read_text()
    assert r"celebahq\_ldm" in text and r"$\pm$" in text
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.isascii()
    assert not re.search(r"(?<!\\)[_%#]", body)
    for name in ("table", "tabular"):
        assert body.count(rf"\begin{{{name}}}") == body.count(rf"\end{{{name}}}") == 4
    for tabular in re.findall(r"\\begin{tabular}{(l+)}(.*?)\\end{tabular}", body, re.DOTALL):
        lines = [line for line in tabular[1].splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") for line in lines} == {len(tabular[0]) - 1}
