"""Collects the results of a sweep into tables, beside published figures."""

import csv
import logging
from collections.abc import Sequence

from etils import epath

from wsdl_jax.evaluation.results import check_same_data
from wsdl_jax.runtime import shipped_files
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.sweeps import tables
from wsdl_jax.sweeps.directory import SweepDirectory, read_by_run
from wsdl_jax.sweeps.findings import Finding, Published
from wsdl_jax.sweeps.run import Run

log = logging.getLogger("wsdl_jax")


def collect(sweep: str, planned: Sequence[Run], workdir: epath.Path) -> None:
    """Writes the tables of a sweep's results and logs them.

    Args:
      sweep: FILE or FILE:VARIANT, the title of the tables.
      planned: the runs of the sweep.
      workdir: the directory of the sweep.

    Raises:
      UserError: a record that is damaged, results of one subset that are of different images, or a
        folder that cannot be written.
    """
    directory = SweepDirectory(workdir)
    records = read_by_run(directory.failures)
    try:
        failures = {str(name): str(record["error"]) for name, record in records.items()}
    except (TypeError, KeyError) as error:
        raise UserError(f"{directory.failures} is damaged ({error!r}); delete it") from error
    found = findings(planned)
    out = tables.write(found, published(sweep), failures, directory.tables, title=sweep)
    log.info("%s\nwritten to %s", (out / tables.MARKDOWN).read_text(), out)


def findings(planned: Sequence[Run]) -> list[Finding]:
    """Returns what the runs of a sweep have found, or have not yet, for the tables.

    Raises:
      UserError: results of one subset that are of different images.
    """
    found, read = [], []
    for run in planned:
        group, setting = run.name.split("/")
        for tested, results in run.results().items():
            trained = tuple(run.config.data.fake)
            found.append(Finding(group, setting, run.config.seed, trained, tested, results))
            if results is not None:
                read.append((run.folder, results))
    check_same_data(read)
    return found


def published(sweep: str) -> list[Published]:
    """Returns the figures in `published.csv` beside a sweep file; none where it is not there."""
    path = epath.Path(shipped_files.find(sweep.partition(":")[0])).parent / "published.csv"
    if not path.exists():
        return []
    with path.open("r") as file:
        rows = [{**row, "value": float(row["value"])} for row in csv.DictReader(file)]
    return [Published(**row) for row in rows]
