"""predictions.csv: a row for each of a user's images."""

import collections
import csv
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from wsdl_jax.evaluation.verdict import ANSWERS
from wsdl_jax.prediction.fingerprint import Fingerprint
from wsdl_jax.runtime.errors import printable

FILE = "predictions.csv"  # in the folder of what is found
COLUMNS = (
    *("file", "score", "verdict", "p_value", "manipulated_share", "reason", "error", "note"),
)
_EVIDENT = ("score", "probability", "verdict", "p_value", "reason", "manipulated_share", "note")


class Row(NamedTuple):
    """What is known of an image in the end: figures, or the reason why there are none.

    Attributes:
      file: as it was given or found.
      name: of its files in the output's folders, without their suffix.
      score, verdict, p_value, manipulated_share, reason: see `Prediction`; None, and for the
        reason "", without a prediction.
      error: why there is no prediction, or "".
      note: what else is to be known of it, or "".
      probability, size: see `Prediction`.
      fingerprint: of the file that was looked at, see `fingerprint.of`.
      credentials: what the file says of itself, see `content_credentials.read`.
      has_trust: whether there is a picture of where its map can be trusted.
    """

    file: str
    name: str
    score: float | None = None
    verdict: str | None = None
    p_value: float | None = None
    manipulated_share: float | None = None
    reason: str = ""
    error: str = ""
    note: str = ""
    probability: float | None = None
    size: tuple[int, int] | None = None
    fingerprint: Fingerprint | None = None
    credentials: Mapping[str, Any] | None = None
    has_trust: bool = False

    def evidence(self) -> dict[str, Any]:
        """Returns what the record of evidence has of the image alone."""
        record: dict[str, Any] = {"file": printable(self.file)}
        if self.fingerprint is None:
            return {**record, "error": self.error}
        height, width = self.size
        return {
            **record,
            "sha256": self.fingerprint.sha256,
            "bytes": self.fingerprint.size,
            "width": width,
            "height": height,
            **{name: getattr(self, name) for name in _EVIDENT},
            "c2pa": self.credentials,
        }


def write(rows: list[Row], path: epath.Path) -> None:
    """Writes the table, with the columns `COLUMNS`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        values = row._asdict()
        shown = {name: printable(v) for name, v in values.items() if isinstance(v, str)}
        writer.writerow(values | shown)
    path.write_text(text.getvalue())


def verdict_counts(rows: list[Row]) -> str:
    """Returns in words how many images there are, and how many of which verdict."""
    number = collections.Counter(row.verdict or "without a map" for row in rows)
    counts = ", ".join(f"{number[kind]} {kind}" for kind in (*ANSWERS, "without a map"))
    return f"{len(rows)} images: {counts}"
