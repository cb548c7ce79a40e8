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

# Variable: a folder in which a file is looked up by its name, where it is not at a config's path.
FOLDER = "WSDL_JAX_BACKBONES"
_CHUNK = 2**24  # bytes


def with_digest(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a config with the SHA-256 of its backbone's file.

    Raises WeightsError for a file that cannot be read, or is another than the config says.
    """
    if config.model.backbone_path is None:
        return config
    path = _locate(config.model.backbone_path)
    config = config.copy_and_resolve_references()
    config.model.backbone_sha256 = _digest(path, config.model.backbone_sha256)
    return config


def fill_backbone(model: nnx.Module, config: ml_collections.ConfigDict) -> None:
    """Fills the backbone of a network from the file that its config names, in place.

    A file that is not where it was when the config was made is looked up, by its name, in the
    folder that the variable `WSDL_JAX_BACKBONES` of the environment names.

    Args:
      model: the network.
      config: of a run, with the file's path and its SHA-256.

    Raises:
      WeightsError: the file is not there, cannot be read, is another than the config says, or of
        another backbone.
    """
    path = _locate(config.model.backbone_path)
    _digest(path, config.model.backbone_sha256)
    try:
        fill(model.trunk, read(path))
    except WeightsError as error:
        raise WeightsError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _locate(name: str) -> epath.Path:
    path, folder = epath.Path(name), os.environ.get(FOLDER)
    if path.exists():
        return path
    if folder is None:
        raise WeightsError(
            f"config.model.backbone_path = {name}: is not there; put it back, or name the folder "
            f"that has it with the variable {FOLDER}"
        )
    if not (moved := epath.Path(folder) / path.name).exists():
        raise WeightsError(f"config.model.backbone_path = {name}: is not there, nor is {moved}")
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
