"""A trained forger: read from a run directory or from a file, and written as one."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import ml_collections
import safetensors
import safetensors.flax
from etils import epath
from flax import nnx, traverse_util

from wsdl_jax import configuration as configurations
from wsdl_jax import runs
from wsdl_jax.diffusion import configuration
from wsdl_jax.diffusion.networks import structures
from wsdl_jax.diffusion.state import Weights, blank_state
from wsdl_jax.runtime.errors import UserError, reason
from wsdl_jax.runtime.storage import write_whole


@dataclasses.dataclass(frozen=True)
class Forger:
    """Trained networks.

    Attributes:
      config: that they were trained by.
      weights: their parameters; of a latent one also "scale", the standard deviation of the latents
        before they are divided by it.
      step: of training.
    """

    config: ml_collections.ConfigDict
    weights: Weights
    step: int


def load(path: epath.PathLike) -> Forger:
    """Reads a forger from a file of `save`, or from the best checkpoint of a run directory.

    Raises UserError, naming the path, for anything else.
    """
    path = epath.Path(path)
    if path.is_dir():
        return _from_run(path)
    if not path.exists():
        raise UserError(f"no forger {path}: neither a file nor a run directory")
    try:
        with safetensors.safe_open(os.fspath(path), "flax") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = configuration.load(metadata["config"])
        step = int(metadata["step"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, UserError) as error:
        raise UserError(f"{path} is not a forger's file: {error!r}") from error
    tree = traverse_util.unflatten_dict(flat, sep="/")
    weights: Weights = {}
    for name, (_, like) in structures(config).items():
        expected = {"/".join(map(str, p)): x for p, x in nnx.to_flat_state(like)}
        found = traverse_util.flatten_dict(tree.get(name, {}), sep="/")
        for key in sorted(expected.keys() | found.keys()):
            shapes = [x[key].shape if key in x else None for x in (expected, found)]
            if shapes[0] != shapes[1]:
                raise UserError(f"{path}: {name}/{key} is {shapes[1]}, not {shapes[0]}")
        values = {
            p: x.replace(found["/".join(map(str, p))].astype(x.dtype))
            for p, x in nnx.to_flat_state(like)
        }
        weights[name] = nnx.from_flat_state(values)
    if config.part == "latent":
        weights["scale"] = tree["scale"].astype(jnp.float32)
    return Forger(config, weights, step)


def save(forger: Forger, path: epath.PathLike) -> None:
    """Writes a forger as a safetensors file of float16, with its config. It appears when whole.

    Of its config no path of the machine that it was trained on is kept. An earlier forger's file is
    replaced. Raises UserError where something else is there, or the file cannot be written.
    """
    path = epath.Path(path)
    if path.exists():
        try:
            load(path)
        except UserError as error:
            raise UserError(
                f"{path} is there and is no forger's file: choose another --out"
            ) from error
    config = forger.config.copy_and_resolve_references()
    config.data.dir = config.data.manual_dir = None
    if config.autoencoder.path:
        config.autoencoder.path = epath.Path(config.autoencoder.path).name
    flat = {
        "/".join(map(str, (name, *p))): x.get_value().astype(jnp.float16)
        for name, state in forger.weights.items()
        if name != "scale"
        for p, x in nnx.to_flat_state(state)
    }
    if "scale" in forger.weights:
        flat["scale"] = jnp.asarray(forger.weights["scale"], jnp.float32)
    metadata = {"config": configurations.save(config), "step": str(forger.step)}
    try:
        write_whole(path, safetensors.flax.save(flat, metadata))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {reason(error)}") from error


def load_config(run: epath.Path) -> ml_collections.ConfigDict:
    """Returns the config of a forger's run directory. Raises UserError if it is not one."""

    def load(text: str) -> ml_collections.ConfigDict:
        try:
            return configuration.load(text)
        except UserError as error:
            raise UserError(f"{run} is not a run of a forger: {error}") from error

    return runs.load_stored_config(run, load)


def _from_run(run: epath.Path) -> Forger:
    config = load_config(run)
    found = runs.Checkpoints(run, keep_best=config.train.keep_best).best_sound(blank_state(config))
    if found is None:
        raise UserError(f"{run} has no checkpoint yet")
    step, state = jax.tree.map(jnp.asarray, found)
    trained = "autoencoder" if config.part == "autoencoder" else "unet"
    return Forger(config, {trained: state["ema"], **state.get("frozen", {})}, int(step))
