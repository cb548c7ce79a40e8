"""The file of a run's backbone: where it is, and that it is the one."""

import functools
import hashlib
import os

import ml_collections
from etils import epath
from flax import nnx

from wsdl_jax.runtime.errors import reason
from wsdl_jax.runtime.storage import is_remote
from wsdl_jax.weights.backbone_file import fill
from wsdl_jax.weights.files import read
from wsdl_jax.weights.tensors import WeightsError

# Where a network has a backbone, and what the names of its fields in config.model begin with.
_PLACES = {"trunk": "backbone", "beside": "beside"}
# Variable: a folder in which files are looked up by name that are not at a config's path.
FOLDER = "WSDL_JAX_BACKBONES"
_CHUNK = 2**24  # bytes


class MissingFileError(WeightsError):
    """The file of a backbone that is not where it is looked for."""


def with_digest(
    config: ml_collections.ConfigDict, kept: ml_collections.ConfigDict | None = None
) -> ml_collections.ConfigDict:
    """Returns a config with the SHA-256 of its backbone's file, or of both.

    Args:
      config: with the paths of the files.
      kept: of a run that has no need of them. A file that is not there is then the run's, if it is
        named by the same path.

    Raises:
      MissingFileError: a file is not there.
      WeightsError: a file that cannot be read, or is another than the config says.
    """
    config = config.copy_and_resolve_references()
    for field in _PLACES.values():
        path, known = config.model[f"{field}_path"], config.model[f"{field}_sha256"]
        if path is None:
            continue
        try:
            _, config.model[f"{field}_sha256"] = _locate(config, field)
        except MissingFileError:
            if kept is None or kept.model[f"{field}_path"] != path:
                raise
            if known is None:
                config.model[f"{field}_sha256"] = kept.model[f"{field}_sha256"]
    return config


def fill_backbone(model: nnx.Module, config: ml_collections.ConfigDict) -> None:
    """Fills the backbone of a network from the file that its config names, or both, in place.

    Where the file is not at its path any more, or another one is, the one with the run's SHA-256 is
    looked up by its name in the folder that the variable `WSDL_JAX_BACKBONES` of the environment
    names, and in the folders in there.

    Args:
      model: the network.
      config: of a run, with the file's path and its SHA-256.

    Raises:
      WeightsError: the file is not there, cannot be read, is another than the config says, or of
        another backbone.
    """
    for place, field in _PLACES.items():
        if config.model[f"{field}_path"] is None:
            continue
        path, _ = _locate(config, field)
        try:
            fill(getattr(model, place), read(path))
        except WeightsError as error:
            told = str(error) if str(path) in str(error) else f"{path}: {error}"
            raise WeightsError(told) from error


def _locate(config: ml_collections.ConfigDict, field: str) -> tuple[epath.Path, str]:
    """Returns where a config's file is, and its SHA-256."""
    name, expected = config.model[f"{field}_path"], config.model[f"{field}_sha256"]
    path, folder = epath.Path(name), os.environ.get(FOLDER)
    places = [path] if path.exists() else []
    if folder is not None and (expected is not None or not places):
        places += _in_folder(epath.Path(folder), path.name)
    hint = f"put it back, or name the folder that has it with the variable {FOLDER}"
    if not places:
        where = hint if folder is None else f"nor is a file {path.name} in {FOLDER}={folder}"
        raise MissingFileError(f"config.model.{field}_path = {name}: is not there; {where}")
    if expected is None:
        if len(places) > 1:
            several = ", ".join(map(str, places))
            raise WeightsError(f"config.model.{field}_path = {name}: may be any of {several}")
        return places[0], _digest(places[0])
    others: list[tuple[epath.Path, str]] = []
    for place in places:
        if (found := _digest(place)) == expected:
            return place, found
        others.append((place, found[:12]))
    (first, found), *more = others
    nor = "".join(f", nor is {place} ({digest})" for place, digest in more)
    raise WeightsError(
        f"{first} is not the file that the run was trained with: its SHA-256 begins with {found}, "
        f"where {expected[:12]} is expected{nor}; {hint}"
    )


def _in_folder(folder: epath.Path, name: str) -> list[epath.Path]:
    """Returns the files of a name in a folder and in the folders in it."""
    try:
        inner = sorted(one for one in folder.iterdir() if one.is_dir())
    except OSError as error:
        raise WeightsError(f"{FOLDER}={folder} cannot be read: {reason(error)}") from error
    return [file for one in (folder, *inner) if (file := one / name).exists()]


def _digest(path: epath.Path) -> str:
    """Returns the SHA-256 of a file, which a command asks for several times."""
    try:
        if is_remote(path):
            return _sha256(path)
        state = os.stat(path)
        return _known(os.fspath(path), state.st_ino, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {reason(error)}") from error


@functools.lru_cache
def _known(path: str, *_state: int) -> str:
    return _sha256(epath.Path(path))


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
