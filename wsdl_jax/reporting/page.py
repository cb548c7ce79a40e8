"""The report: a folder with a page for people, which needs no server and no network."""

import importlib.resources
import logging
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from etils import epath

from wsdl_jax.evaluation import rendering
from wsdl_jax.reporting import plots
from wsdl_jax.reporting.curves import curves
from wsdl_jax.reporting.differences import difference_tables
from wsdl_jax.reporting.evaluated_runs import EvaluatedRun, read
from wsdl_jax.reporting.gallery import Card, gallery
from wsdl_jax.reporting.tables import (
    everyday_tables,
    interval_tables,
    settings,
    tables,
    verdict_tables,
)
from wsdl_jax.runtime import storage

log = logging.getLogger("wsdl_jax")
GALLERY = 60  # test images shown, by default
_MADE_BY = "report"  # in the manifest of the folder: the next report may replace it


def report(
    paths: Sequence[epath.Path],
    out: epath.Path,
    *,
    count: int = GALLERY,
    data_dir: str | None = None,
) -> None:
    """Writes a folder with `index.html` and the pictures that it shows; an earlier one is replaced.

    Args:
      paths: of run directories, each evaluated.
      out: the folder.
      count: how many test images the gallery has, about; without any, no data is read.
      data_dir: the prepared datasets; where the runs were trained on them by default.

    Raises:
      UserError: what cannot be read, or a folder with anything else in it than an earlier report,
        as it was written.
    """
    storage.check_folder(out, replaces=_MADE_BY)
    all_runs = read(paths)
    with storage.whole_folder(out, replaces=_MADE_BY) as made:
        folder = Path(made)
        cards = []
        if count:
            pictures = folder / "images"
            pictures.mkdir()
            cards = gallery(all_runs, count, data_dir, pictures)
        (folder / "index.html").write_text(_render(all_runs, cards), encoding="utf-8")
    log.info("written to %s", out / "index.html")


def _render(all_runs: Sequence[EvaluatedRun], cards: Sequence[Card]) -> str:
    source = importlib.resources.files(__package__).joinpath("page.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    scale = rendering.colour(np.linspace(0, 1, 9)[None])[0].tolist()
    return environment.from_string(source).render(
        runs=all_runs,
        tables=tables(all_runs),
        verdicts=verdict_tables(all_runs),
        intervals=interval_tables(all_runs),
        differences=difference_tables(all_runs),
        everyday=everyday_tables(all_runs),
        curves=curves(all_runs),
        settings=settings(all_runs),
        cards=cards,
        scale=", ".join(f"rgb({r} {g} {b})" for r, g, b in scale),
        colours=plots.COLOURS,
    )
