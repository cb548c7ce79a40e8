"""The results of many runs → tables, with mean and standard deviation over seeds, and heatmaps."""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from wsdl_jax.evaluation import summary
from wsdl_jax.runtime import storage

FIGURES = (
    *("iou_lg", "iou_sm", "pbca_lg", "pbca_sm", "f1", "pixel_auc", "pixel_ap"),
    *("ap", "auc", "balanced_accuracy"),
)
SHOWN = {"iou_lg": "IoU", "pbca_lg": "PBCA", "f1": "F1", "ap": "AP"}  # the rest is in the CSV
COMPARED = "iou_lg"  # what the heatmaps show, and published figures are set beside
WORDS = ("", "group", "setting", "tested on")  # headers of columns of words
OURS = "this sweep"
NOTE = (
    "Figures × 100: mean ± sample standard deviation (n − 1) over seeds, where there are two or "
    "more. IoU, PBCA and F1 at the masks' size. Empty: no result yet."
)
_MADE_BY = "sweep"  # in the manifest of the folder: the next tables may replace it
_CELL, _MARGIN, _FONT = 64, 12, 13  # pixels


class Finding(NamedTuple):
    """What one run has on one tested subset.

    Attributes:
      group, setting: its place in the tables; those of a group are compared with one another.
      seed: of the run.
      trained: fake subsets that it was trained on.
      tested: fake subset.
      results: as in results.json; None where there are none yet.
    """

    group: str
    setting: str
    seed: int
    trained: tuple[str, ...]
    tested: str
    results: dict[str, Any] | None


class Published(NamedTuple):
    """A published figure, × 100.

    Attributes:
      system: what was trained.
      figure: one of FIGURES.
      trained, tested: subsets; or "each" and "in-domain" or "out-of-domain", for a mean over all
        pairs of one, or of two, generators.
      value: the figure, × 100.
      reference: where it is from.
    """

    system: str
    figure: str
    trained: str
    tested: str
    value: float
    reference: str


class Row(NamedTuple):
    """The findings of all seeds. `mean` and `std` are None where there are too few of a figure."""

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
      title: whose it is.
      rows, columns: labels.
      mean: NaN where there is none.
      std: likewise.
      in_domain: whether a cell's tested subset is among those trained on.
    """

    title: str
    rows: list[str]
    columns: list[str]
    mean: Float[np.ndarray, "rows columns"]
    std: Float[np.ndarray, "rows columns"]
    in_domain: np.ndarray


class Table(NamedTuple):
    """Text in cells."""

    title: str
    header: list[str]
    rows: list[list[str]]


# ----- Findings → numbers -------------------------------------------------------------------------


def summarize(findings: Sequence[Finding]) -> list[Row]:
    """Mean and sample standard deviation (n − 1) over seeds, in order of first appearance."""
    together: dict[tuple, list[Finding]] = {}
    for finding in findings:
        key = (finding.group, finding.setting, finding.trained, finding.tested)
        together.setdefault(key, []).append(finding)
    rows = []
    for key, seeds in together.items():
        done = [finding.results for finding in seeds if finding.results is not None]
        mean, std = {}, {}
        for figure in FIGURES:
            values = [results[figure] for results in done if results.get(figure) is not None]
            mean[figure] = float(np.mean(values)) if values else None
            std[figure] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        rows.append(Row(*key, len(done), len(seeds), mean, std))
    return rows


def matrices(rows: Sequence[Row]) -> list[Matrix]:
    """The groups in which every setting is tested on the same subsets, two or more."""
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
    """The published matrices over subsets that a sweep has tested on as well, in its order."""
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
    """Names without what they have in common up to a "/" or "_"."""
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
    values = [[read(row) for row in line] for line in grid]
    return np.array([[np.nan if v is None else v for v in line] for line in values], float)


# ----- Numbers → text -----------------------------------------------------------------------------


def _cell(mean: float | None, std: float | None = None) -> str:
    if mean is None or math.isnan(mean):
        return ""
    return f"{mean:.1f}" if std is None or math.isnan(std) else f"{mean:.1f} ± {std:.1f}"


def tables(rows: Sequence[Row], figures: Sequence[Published]) -> list[Table]:
    """Everything of a sweep; published figures where they are of the same subsets."""
    header = [*WORDS[1:], "seeds", *SHOWN.values()]
    body = [
        [
            *(row.group, row.setting, row.tested, f"{row.done} of {row.planned}"),
            *(_cell(row.mean[figure], row.std[figure]) for figure in SHOWN),
        ]
        for row in rows
    ]
    found = [Table("Runs", header, body)]
    own = matrices(rows)
    theirs = published_matrices(figures, rows) if own else []
    for matrix in (*own, *theirs):
        title = f"{SHOWN[COMPARED]}, {matrix.title}: rows = tested, columns = trained"
        lines = [
            [label, *map(_cell, mean, std)]
            for label, mean, std in zip(matrix.rows, matrix.mean, matrix.std, strict=True)
        ]
        found.append(Table(title, ["", *matrix.columns], lines))
    if own:
        # A mean over some of the cells would be of other pairs: NaN, and empty, unless all are in.
        lines = [
            [
                matrix.title,
                *(
                    _cell(float(matrix.mean[of].mean()) if of.any() else None)
                    for of in (matrix.in_domain, ~matrix.in_domain)
                ),
            ]
            for matrix in (*own, *theirs)
        ]
        for system in dict.fromkeys(f.system for f in figures if f.trained == "each" and theirs):
            told = {f.tested: f.value for f in figures if (f.system, f.trained) == (system, "each")}
            lines.append([system, *(_cell(told.get(d)) for d in ("in-domain", "out-of-domain"))])
        header = ["", "in-domain", "out-of-domain"]
        found.append(Table(f"{SHOWN[COMPARED]}, mean over the cells", header, lines))
    return found


def markdown(table: Table) -> str:
    """A Markdown table; its title is a heading."""
    rules = ["---" if name in WORDS else "---:" for name in table.header]
    lines = [table.header, rules, *table.rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return f"## {table.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in escaped)


_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "λ": r"$\lambda$",
}


def latex(table: Table) -> str:
    """A LaTeX table, for the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in cells) + r" \\"

    title = line([table.title]).removesuffix(r" \\")
    return "\n".join(
        [
            rf"\begin{{table}}\caption{{{title}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.header)}}}",
            *(r"\toprule", line(table.header), r"\midrule"),
            *map(line, table.rows),
            *(r"\bottomrule", r"\end{tabular}", r"\end{table}", ""),
        ]
    )


def _write_csv(rows: Sequence[Row], figures: Sequence[Published], path: Path) -> None:
    names = [name for figure in FIGURES for name in (figure, f"{figure}_std")]
    known = ["system", "group", "setting", "trained", "tested", "done", "planned"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*known, *names, "reference"], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            numbers = {figure: row.mean[figure] for figure in FIGURES}
            numbers |= {f"{figure}_std": row.std[figure] for figure in FIGURES}
            told = row._asdict() | {"system": OURS, "trained": "+".join(row.trained)}
            writer.writerow({name: told[name] for name in known} | numbers)
        for figure in figures:
            told = {"system": figure.system, "reference": figure.reference}
            told |= {"trained": figure.trained, "tested": figure.tested}
            writer.writerow(told | {figure.figure: figure.value})


def save_heatmaps(found: Sequence[Matrix], path: Path) -> None:
    """Writes a PNG with the matrices side by side; a cell without a figure is grey and empty."""
    font, bold = ImageFont.load_default(_FONT), ImageFont.load_default(_FONT + 2)
    line = _FONT + 8

    def panel(matrix: Matrix) -> Image.Image:
        def width(text: str) -> int:
            return int(font.getlength(text)) + _MARGIN

        left = max(map(width, matrix.rows))
        cell = max(_CELL, *map(width, matrix.columns))
        over = int(bold.getlength(matrix.title)) + _MARGIN
        size = (max(left + cell * len(matrix.columns), over), 2 * line + _CELL * len(matrix.rows))
        image = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(image)
        draw.text((0, 0), matrix.title, fill="black", font=bold)
        for column, label in enumerate(matrix.columns):
            place = (left + column * cell + cell // 2, line + _FONT // 2)
            draw.text(place, label, fill="black", font=font, anchor="mm")
        for row, label in enumerate(matrix.rows):
            top = 2 * line + row * _CELL
            draw.text((0, top + _CELL // 2), label, fill="black", font=font, anchor="lm")
            for column, value in enumerate(matrix.mean[row]):
                at = left + column * cell
                box = (at, top, at + cell - 2, top + _CELL - 2)
                if math.isnan(value):
                    draw.rectangle(box, fill=(225, 225, 225))
                    continue
                shade = tuple(summary.colour(np.array([[value / 100]]))[0, 0].tolist())
                draw.rectangle(box, fill=shade)
                dark = np.dot(shade, (0.299, 0.587, 0.114)) < 140
                text = _cell(value, matrix.std[row, column]).replace(" ", "\n", 1)
                place = (at + cell // 2, top + _CELL // 2)
                fill = "white" if dark else "black"
                draw.multiline_text(place, text, fill=fill, font=font, anchor="mm", align="center")
        return image

    panels = [panel(matrix) for matrix in found]
    head = f"{SHOWN[COMPARED]}, %; rows: tested on, columns: trained on"
    width = _MARGIN + sum(image.width + 2 * _MARGIN for image in panels)
    width = max(width, int(bold.getlength(head)) + 2 * _MARGIN)
    height = max(image.height for image in panels) + line + 2 * _MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(sheet).text((_MARGIN, _MARGIN), head, fill="black", font=bold)
    at = _MARGIN
    for image in panels:
        sheet.paste(image, (at, _MARGIN + line))
        at += image.width + 2 * _MARGIN
    sheet.save(path, "PNG", optimize=True)


def write(
    findings: Sequence[Finding],
    figures: Sequence[Published],
    failures: dict[str, str],
    out: epath.Path,
    *,
    title: str,
) -> epath.Path:
    """Writes results.csv, results.md, results.tex and, where there are matrices, heatmaps.png.

    Published figures stand beside those of the sweep where both are of the same subsets.

    Args:
      findings: of all runs of a sweep, those that are not done included.
      figures: published ones.
      failures: run → why it failed.
      out: folder; earlier tables in it are replaced.
      title: of the whole.

    Returns:
      `out`.

    Raises:
      UserError: there is something else in `out`, or it cannot be written.
    """
    rows = summarize(findings)
    own = matrices(rows)
    theirs = published_matrices(figures, rows) if own else []
    figures = figures if theirs else []
    shown = tables(rows, figures)
    text = f"# {title}\n\n{NOTE}\n\n" + "\n".join(map(markdown, shown))
    if figures:
        references = dict.fromkeys(f"- {f.system}: {f.reference}\n" for f in figures)
        text += "\nPublished figures:\n\n" + "".join(references)
    if failures:
        text += "\nFailed:\n\n" + "".join(f"- {name}: {why}\n" for name, why in failures.items())
    with storage.whole_folder(out, replaces=_MADE_BY) as made:
        folder = Path(made)
        (folder / "results.md").write_text(text, encoding="utf-8")
        head = f"% {title}. {NOTE}\n% \\usepackage{{booktabs}}\n"
        (folder / "results.tex").write_text(head + "\n".join(map(latex, shown)), encoding="utf-8")
        _write_csv(rows, figures, folder / "results.csv")
        if own:
            save_heatmaps([*own, *theirs], folder / "heatmaps.png")
    return out
