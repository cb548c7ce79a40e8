"""Means, tables and heatmaps against NumPy, the csv module and Pillow."""

import csv
import re

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsdl_jax.evaluation import summary
from wsdl_jax.runtime import storage
from wsdl_jax.sweeps import tables
from wsdl_jax.sweeps.tables import Finding, Published

GENERATORS = ("ldm", "lama", "pluralistic")


def results(iou: float, **figures: float | None) -> dict[str, float | None]:
    return {**dict.fromkeys(tables.FIGURES, 50.0), "iou_lg": iou, **figures}


def subset(generator: str) -> str:
    return f"dolos/celebahq_{generator}"


def grid(seeds: int = 2, group: str = "one") -> tuple[list[Finding], np.ndarray]:
    """Findings of every generator × every generator, and their IoU, [seed, tested, trained]."""
    iou = np.random.default_rng(0).uniform(0, 100, (seeds, len(GENERATORS), len(GENERATORS)))
    findings = [
        Finding(group, train, seed, (subset(train),), subset(test), results(iou[seed, i, j]))
        for seed in range(seeds)
        for j, train in enumerate(GENERATORS)
        for i, test in enumerate(GENERATORS)
    ]
    return findings, iou


PUBLISHED = [
    Published("Other", "iou_lg", subset(train), subset(test), 10.0 * i + j, "a paper")
    for i, test in enumerate(GENERATORS)
    for j, train in enumerate(GENERATORS)
] + [
    Published("Means", "iou_lg", "each", "in-domain", 69.3, "another"),
    Published("Means", "iou_lg", "each", "out-of-domain", 20.4, "another"),
]


# ----- Numbers ------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100) | st.none(), min_size=1, max_size=6))
def test_mean_and_sample_standard_deviation(values):
    """None: a run that is not done."""
    findings = [
        Finding("g", "s", seed, ("a/x",), "a/y", None if value is None else results(value))
        for seed, value in enumerate(values)
    ]
    (row,) = tables.summarize(findings)
    done = [value for value in values if value is not None]
    assert (row.done, row.planned) == (len(done), len(values))
    if not done:
        assert row.mean["iou_lg"] is None
    else:
        assert row.mean["iou_lg"] == pytest.approx(np.mean(done), abs=1e-9)
        assert row.mean["ap"] == 50
    if len(done) < 2:
        assert row.std["iou_lg"] is None
    else:
        variance = np.sum((np.array(done) - np.mean(done)) ** 2) / (len(done) - 1)
        assert row.std["iou_lg"] == pytest.approx(np.sqrt(variance), abs=1e-9)
        assert row.std["ap"] == 0


def test_a_figure_that_a_run_has_not_is_left_out():
    findings = [
        Finding("g", "s", seed, ("a/x",), "a/y", results(10, pixel_auc=value))
        for seed, value in enumerate((None, 70.0, 80.0))
    ]
    (row,) = tables.summarize(findings)
    assert (row.mean["pixel_auc"], row.done) == (75, 3)
    assert row.std["pixel_auc"] == pytest.approx(np.std([70, 80], ddof=1))


def test_matrix():
    findings, iou = grid(seeds=3)
    alone = [Finding("alone", "a", 0, (subset("ldm"),), subset("ldm"), results(1))]
    (matrix,) = tables.matrices(tables.summarize([*alone, *findings]))
    assert matrix.rows == matrix.columns == list(GENERATORS)
    np.testing.assert_allclose(matrix.mean, iou.mean(0))
    np.testing.assert_allclose(matrix.std, iou.std(0, ddof=1))
    np.testing.assert_array_equal(matrix.in_domain, np.eye(3, dtype=bool))


def test_in_and_out_of_domain_when_one_is_left_out():
    findings = [
        Finding("g", left, 0, tuple(subset(o) for o in GENERATORS if o != left), subset(test), None)
        for left in GENERATORS
        for test in GENERATORS
    ]
    (matrix,) = tables.matrices(tables.summarize(findings))
    np.testing.assert_array_equal(matrix.in_domain, ~np.eye(3, dtype=bool))
    assert np.isnan(matrix.mean).all()


def test_published_matrix_is_of_the_same_subsets():
    findings, _ = grid()
    (matrix,) = tables.published_matrices(PUBLISHED, tables.summarize(findings))
    np.testing.assert_array_equal(matrix.mean, [[0, 1, 2], [10, 11, 12], [20, 21, 22]])
    assert (matrix.title, matrix.rows) == ("Other", list(GENERATORS))
    (matrix,) = tables.published_matrices(PUBLISHED, tables.summarize(findings[::-1]))
    np.testing.assert_array_equal(matrix.mean, [[22, 21, 20], [12, 11, 10], [2, 1, 0]])
    some = [f for f in findings if not f.tested.endswith("lama")]
    assert tables.published_matrices(PUBLISHED, tables.summarize(some)) == []


# ----- Files --------------------------------------------------------------------------------------


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
    assert cells(text, "Runs")[0][3:] == ["0 of 1", "", "", "", ""]
    matrix = cells(text, "IoU, this sweep, one: rows = tested, columns = trained")
    assert matrix[0][1] == ""
    assert all(matrix[i][1 + j] for i in range(3) for j in range(3) if i or j)
    # A mean over the others would be of other pairs.
    ((_, inside, outside),) = cells(text, "IoU, mean over the cells")
    assert inside == "" and outside != ""
    with files["results.csv"].open("r") as file:
        first = next(csv.DictReader(file))
    assert {first[name] for name in tables.FIGURES} == {""}
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


def test_heatmap_has_the_colours_of_its_cells(tmp_path):
    findings, iou = grid(seeds=1)
    findings[4] = findings[4]._replace(results=None)
    with Image.open(write(findings, tmp_path, published=[])["heatmaps.png"]) as image:
        colours = {colour for _, colour in image.getcolors(1 << 24)}
    values = np.delete(iou[0].T.ravel(), 4)
    for colour in summary.colour(values[None] / 100)[0]:
        assert tuple(colour.tolist()) in colours
    assert tuple(summary.colour(np.zeros((1, 1)))[0, 0].tolist()) not in colours
    assert (225, 225, 225) in colours
