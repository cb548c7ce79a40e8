"""predictions.csv: a row for each of a user's images."""

import collections
import csv
import io
from typing import NamedTuple

from etils import epath

FILE = "predictions.csv"  # in the folder of what is found
COLUMNS = ("file", "score", "verdict", "manipulated_share", "error", "note")


class Row(NamedTuple):
    """What is known of an image in the end: figures, or the reason why there are none.

    Attributes:
      file: as it was given or found.
      name: of its files in the output's folders, without their suffix.
      score, verdict, manipulated_share: see `Prediction`; None without a prediction.
      error: why there is no prediction, or "".
      note: what else is to be known of it, or "".
    """

    file: str
    name: str
    score: float | None = None
    verdict: str | None = None
    manipulated_share: float | None = None
    error: str = ""
    note: str = ""


def printable(text: str) -> str:
    """Returns a file's name as UTF-8 can have it: bytes of other encodings are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def write(rows: list[Row], path: epath.Path) -> None:
    """Writes the table, with the columns `COLUMNS`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(row._asdict() | {"file": printable(row.file)} for row in rows)
    path.write_text(text.getvalue())


def verdict_counts(rows: list[Row]) -> str:
    """Returns in words how many images there are, and how many of which verdict."""
    number = collections.Counter(row.verdict or "without a map" for row in rows)
    counts = ", ".join(f"{number[kind]} {kind}" for kind in ("fake", "real", "without a map"))
    return f"{len(rows)} images: {counts}"
