"""The findings of a sweep as tables: Markdown, LaTeX and CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from wsdl_jax.runtime import storage
from wsdl_jax.sweeps import heatmaps
from wsdl_jax.sweeps.findings import (
    COMPARED,
    FIGURES,
    OURS,
    SHOWN,
    Finding,
    Published,
    Row,
    cell_text,
    matrices,
    published_matrices,
    summarize,
)

MARKDOWN = "results.md"
_WORDS = ("", "group", "setting", "tested on")  # headers of columns of words, not numbers
_NOTE = (
    "Figures × 100: mean ± sample standard deviation (n − 1) over seeds, where there are two or "
    "more. IoU, PBCA and F1 at the masks' size; IoU fitted: where maps are cut at the threshold "
    "that each run has fitted on validation images. Empty: no result yet."
)
_MADE_BY = "sweep"  # in the manifest of the folder: the next tables may replace it


class Table(NamedTuple):
    """A table of text.

    Attributes:
      title: the table's heading.
      header: the names of the columns.
      rows: the cells of each row, as many as there are columns.
    """

    title: str
    header: list[str]
    rows: list[list[str]]


def tables(rows: Sequence[Row], figures: Sequence[Published]) -> list[Table]:
    """Returns all tables of a sweep.

    Args:
      rows: what the sweep has found.
      figures: published figures, which are shown where they are of the same subsets.
    """
    header = [*_WORDS[1:], "seeds", *SHOWN.values()]
    body = [
        [
            *(row.group, row.setting, row.tested, f"{row.done} of {row.planned}"),
            *(cell_text(row.mean[figure], row.std[figure]) for figure in SHOWN),
        ]
        for row in rows
    ]
    found = [Table("Runs", header, body)]
    own = matrices(rows)
    theirs = published_matrices(figures, rows) if own else []
    for matrix in (*own, *theirs):
        title = f"{SHOWN[COMPARED]}, {matrix.title}: rows = tested, columns = trained"
        lines = [
            [label, *map(cell_text, mean, std)]
            for label, mean, std in zip(matrix.rows, matrix.mean, matrix.std, strict=True)
        ]
        found.append(Table(title, ["", *matrix.columns], lines))
    if own:
        # A mean over some of the cells would be of other pairs: NaN, and empty, unless all are in.
        lines = [
            [
                matrix.title,
                *(
                    cell_text(float(matrix.mean[of].mean()) if of.any() else None)
                    for of in (matrix.in_domain, ~matrix.in_domain)
                ),
            ]
            for matrix in (*own, *theirs)
        ]
        for system in dict.fromkeys(f.system for f in figures if f.trained == "each" and theirs):
            means = {
                f.tested: f.value for f in figures if (f.system, f.trained) == (system, "each")
            }
            domains = "in-domain", "out-of-domain"
            lines.append([system, *(cell_text(means.get(domain)) for domain in domains)])
        header = ["", "in-domain", "out-of-domain"]
        found.append(Table(f"{SHOWN[COMPARED]}, mean over the cells", header, lines))
    return found


def markdown(table: Table) -> str:
    """Returns a table as Markdown, with its title as a heading."""
    rules = ["---" if name in _WORDS else "---:" for name in table.header]
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
    """Returns a table as LaTeX, for the package booktabs."""

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
    """Writes means and standard deviations of all figures, then the published figures."""
    names = [name for figure in FIGURES for name in (figure, f"{figure}_std")]
    known = ["system", "group", "setting", "trained", "tested", "done", "planned"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*known, *names, "reference"], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            numbers = {figure: row.mean[figure] for figure in FIGURES}
            numbers |= {f"{figure}_std": row.std[figure] for figure in FIGURES}
            words = row._asdict() | {"system": OURS, "trained": "+".join(row.trained)}
            writer.writerow({name: words[name] for name in known} | numbers)
        for figure in figures:
            words = {"system": figure.system, "reference": figure.reference}
            words |= {"trained": figure.trained, "tested": figure.tested}
            writer.writerow(words | {figure.figure: figure.value})


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
      findings: the findings of all runs of a sweep, those that are not done included.
      figures: published figures.
      failures: the reason why a run failed, by its name.
      out: the folder; earlier tables in it are replaced.
      title: the heading of the tables.

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
    text = f"# {title}\n\n{_NOTE}\n\n" + "\n".join(map(markdown, shown))
    if figures:
        references = dict.fromkeys(f"- {f.system}: {f.reference}\n" for f in figures)
        text += "\nPublished figures:\n\n" + "".join(references)
    if failures:
        text += "\nFailed:\n\n" + "".join(f"- {name}: {why}\n" for name, why in failures.items())
    with storage.whole_folder(out, replaces=_MADE_BY) as made:
        folder = Path(made)
        (folder / MARKDOWN).write_text(text, encoding="utf-8")
        head = f"% {title}. {_NOTE}\n% \\usepackage{{booktabs}}\n"
        (folder / "results.tex").write_text(head + "\n".join(map(latex, shown)), encoding="utf-8")
        _write_csv(rows, figures, folder / "results.csv")
        if own:
            heatmaps.save([*own, *theirs], folder / "heatmaps.png")
    return out
