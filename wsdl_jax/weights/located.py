"""The file of a run's backbone: where it is, and that it is the one."""

import hashlib
import os

import ml_collections
from etils import epath
from flax import nnx

from wsdl_jax.runtime.errors import reason
from wsdl_jax.weights.backbone_file import fill
from wsdl_jax.weights.files import read
from wsdl_jax.weights.tensors import WeightsError

# Where a network has a backbone, and what the names of its fields in config.model begin with.
_PLACES = {"trunk": "backbone", "beside": "beside"}
# Variable: a folder in which a file is looked up by its name, where it is not at a config's path.
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
            config.model[f"{field}_sha256"] = _digest(_locate(config, field), known)
        except MissingFileError:
            if kept is None or kept.model[f"{field}_path"] != path:
                raise
            if known is None:
                config.model[f"{field}_sha256"] = kept.model[f"{field}_sha256"]
    return config


def fill_backbone(model: nnx.Module, config: ml_collections.ConfigDict) -> None:
    """Fills the backbone of a network from the file that its config names, or both, in place.

    A file that is not where it was when the config was made is looked up, by its name, in the
    folder that the variable `WSDL_JAX_BACKBONES` of the environment names.

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
        path = _locate(config, field)
        _digest(path, config.model[f"{field}_sha256"])
        try:
            fill(getattr(model, place), read(path))
        except WeightsError as error:
            told = str(error) if str(path) in str(error) else f"{path}: {error}"
            raise WeightsError(told) from error


def _locate(config: ml_collections.ConfigDict, field: str) -> epath.Path:
    name = config.model[f"{field}_path"]
    path, folder = epath.Path(name), os.environ.get(FOLDER)
    if path.exists():
        return path
    missing = f"config.model.{field}_path = {name}: is not there"
    if folder is None:
        raise MissingFileError(
            f"{missing}; put it back, or name the folder that has it with the variable {FOLDER}"
        )
    if not (moved := epath.Path(folder) / path.name).exists():
        raise MissingFileError(f"{missing}, nor is {moved}")
    return moved


def _digest(path: epath.Path, expected: str | None) -> str:
    """Returns the SHA-256 of a file. Raises WeightsError if it is not the one that is expected."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {reason(error)}") from error
    found = digest.hexdigest()
    if expected not in (None, found):
        raise WeightsError(
            f"{path} is not the file that the run was trained with: its SHA-256 begins with "
            f"{found[:12]}, where {expected[:12]} is expected"
        )
    return found
