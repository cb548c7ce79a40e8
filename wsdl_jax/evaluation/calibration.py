"""What is known of a network's scores, kept as JSON: of validation images, and of a user's own."""

import itertools
import json
import math
import os
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from wsdl_jax.evaluation import kept
from wsdl_jax.evaluation.likeness import Likeness
from wsdl_jax.evaluation.verdict import CLEAN, Calibration
from wsdl_jax.runs import RunDirectory
from wsdl_jax.runtime.errors import UserError, printable
from wsdl_jax.runtime.storage import is_remote, read_json, write_whole


def save(
    run: epath.Path,
    network: tuple[int, int | None],
    data: Mapping[str, str],
    calibration: Calibration,
    fakes: Mapping[str, str] | None = None,
) -> None:
    """Keeps in a run directory what its network says of images of the validation split.

    Args:
      run: the run directory.
      network: step and checksum of the checkpoint whose network it is.
      data: hashes of the real subsets by their names, see wsdl_data.provenance.
      calibration: of their validation images.
      fakes: hashes of the subsets that known fakes are of; None where there were none at hand.
    """
    content = {**_stored(calibration), "of_fakes": None if fakes is None else dict(fakes)}
    kept.save(RunDirectory(run).real_scores, network, "real", data, content)


def load(
    run: epath.Path,
    network: tuple[int, int | None],
    data: Mapping[str, str] | None = None,
    kinds: Collection[str] | None = None,
    fakes: Mapping[str, str] | None = None,
) -> Calibration | None:
    """Returns what `save` has kept; None if there is nothing of this network and data.

    Args:
      run: the run directory.
      network: step and checksum of the checkpoint that is asked for.
      data: hashes of the real subsets; None accepts any, where the data is not at hand.
      kinds: what was to be done to the images, `CLEAN` and perturbations; None accepts any.
      fakes: hashes of the subsets that known fakes are to be of. None accepts any, and none, and
        files of versions that knew real images alone.

    Raises:
      UserError: a file that cannot be read.
    """
    found = kept.load(RunDirectory(run).real_scores, network, "real", data, _parsed)
    if found is None:
        return None
    calibration, of_fakes = found
    if not calibration.real or not all(map(len, calibration.real.values())):
        return None
    if kinds is not None and calibration.real.keys() != set(kinds):
        return None
    if fakes is not None and of_fakes != dict(fakes):
        return None
    return calibration if all(map(math.isfinite, _scores(calibration))) else None


def save_own(path: epath.Path, network: tuple[int, int | None], calibration: Calibration) -> None:
    """Writes a calibration of a user's own images to a file.

    Raises UserError if there is something already, or it cannot be written.
    """
    check_new(path)
    step, checksum = network
    facts = {
        "checkpoint": step,
        "weights": checksum,
        "source": calibration.source,
        "mode": calibration.mode,
        "files": list(calibration.files),
    }
    try:
        write_whole(path, json.dumps({**facts, **_stored(calibration)}) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def check_new(path: epath.Path) -> None:
    """Raises UserError where a calibration would take the place of something."""
    if path.exists():
        raise UserError(f"{path} is there already: delete it, or choose another --calibration")
    if is_remote(path):
        return
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise UserError(f"--calibration {path}: there is no folder {path.parent} to write it to")


def load_own(path: epath.Path, network: tuple[int, int | None]) -> Calibration:
    """Returns what `save_own` has written.

    Args:
      path: the file.
      network: step and checksum of the checkpoint that is to be judged by it.

    Raises:
      UserError: no such file, one that cannot be read, or one of another network.
    """
    stored = read_json(path)
    try:
        calibration, _ = _parsed(stored)
        of_network = stored["checkpoint"], stored["weights"]
        own = {
            # Somebody else's file may have anything in it.
            "source": printable(str(stored["source"])),
            "mode": str(stored["mode"]),
            "files": tuple(map(str, stored["files"])),
        }
        if not calibration.images or not all(map(math.isfinite, _scores(calibration))):
            raise ValueError("no scores, or such as are not finite")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} cannot be read ({error!r}): calibrate again") from error
    if of_network != network:
        raise UserError(
            f"{path} is of another network, of checkpoint {of_network[0]}: delete it and calibrate "
            "again"
        )
    return Calibration(calibration.real, calibration.fake, calibration.likeness, **own)


def _stored(calibration: Calibration) -> dict[str, Any]:
    named = {name: sorted(map(float, scores)) for name, scores in calibration.real.items()}
    return {
        "scores": named.pop(CLEAN),
        **({"perturbed": named} if named else {}),
        "fakes": sorted(map(float, calibration.fake)),
        "likeness": None if calibration.likeness is None else calibration.likeness.stored(),
    }


def _parsed(stored: Mapping[str, Any]) -> tuple[Calibration, dict[str, str] | None]:
    """Returns a calibration, and the hashes of the subsets that its fakes are of."""
    named = {CLEAN: stored["scores"], **stored.get("perturbed", {})}
    real = {name: tuple(sorted(map(float, values))) for name, values in named.items()}
    fake = tuple(sorted(map(float, stored.get("fakes", ()))))
    of = stored.get("likeness")
    likeness = None if of is None else Likeness.of_stored(of)
    of_fakes = stored.get("of_fakes")
    return Calibration(real, fake, likeness), None if of_fakes is None else dict(of_fakes)


def _scores(calibration: Calibration) -> itertools.chain[float]:
    return itertools.chain(*calibration.real.values(), calibration.fake)
