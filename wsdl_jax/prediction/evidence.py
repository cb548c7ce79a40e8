"""evidence.jsonl: of each image, what was looked at, by what, and what came out."""

import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from wsdl_jax.prediction import fingerprint
from wsdl_jax.prediction.localizer import Localizer
from wsdl_jax.runs import RunDirectory
from wsdl_jax.runtime.errors import printable

FILE = "evidence.jsonl"  # in the folder of what is found


def of_network(localizer: Localizer, run: epath.Path) -> dict[str, Any]:
    """Returns what all predictions of a localizer have in common.

    Args:
      localizer: of a run.
      run: the run directory.
    """
    known = [
        {
            "of": calibration.source,
            "real_images": calibration.images,
            "known_fakes": len(calibration.fake),
            "sha256": calibration.digest(),
        }
        for calibration in localizer.calibrations
    ]
    return {
        "wsdl_jax": importlib.metadata.version("wsdl-jax"),
        "run": printable(os.fspath(run)),
        "config_sha256": fingerprint.of(RunDirectory(run).config).sha256,
        "weights_sha256": localizer.weights_digest,
        "mode": localizer.mode,
        "map_threshold": localizer.cut,
        "false_positive_rate": localizer.false_positive_rate,
        "calibrations": known,
    }


def write(records: Iterable[Mapping[str, Any]], path: epath.Path) -> None:
    """Writes records, a line of JSON each."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")
