"""The directory of a sweep: the names of its files besides the run directories."""

import dataclasses
import json
from typing import Any

from etils import epath

from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.storage import read_json, write_whole


@dataclasses.dataclass(frozen=True)
class SweepDirectory:
    """The files of a sweep besides its runs.

    Attributes:
      path: the directory.
    """

    path: epath.Path

    @property
    def failures(self) -> epath.Path:
        """Returns the file with exit code and last line of each run that failed here."""
        return self.path / "failures.json"

    @property
    def submitted(self) -> epath.Path:
        """Returns the file with the cluster's answer to each run that was submitted."""
        return self.path / "submitted.json"

    @property
    def tables(self) -> epath.Path:
        """Returns the folder of the tables of results."""
        return self.path / "tables"


def read_by_run(path: epath.Path) -> dict[str, Any]:
    """Returns what a file of the sweep has by run; empty where there is no file.

    Raises:
      UserError: a file that is damaged.
    """
    try:
        return dict(read_json(path)) if path.exists() else {}
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it") from error


def write_by_run(path: epath.Path, content: dict[str, Any]) -> None:
    """Writes what a file of the sweep has by run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=2) + "\n")
