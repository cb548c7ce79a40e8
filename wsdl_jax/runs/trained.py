"""The trained network of a run."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax import nnx

from wsdl_jax import methods, weights
from wsdl_jax.models.backbone import Frozen
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runs.directory import load_config
from wsdl_jax.runs.state import initial_state
from wsdl_jax.runtime.errors import UserError


class Trained(NamedTuple):
    """The best network of a run.

    Attributes:
      config: the run's.
      model: the network, in evaluation mode.
      step: of the checkpoint that ranks first, see `Checkpoints`, which the weights are from.
      checksum: that checkpoint's, which tells it from one of the same step of another training;
        None for a checkpoint that was kept without one.
    """

    config: ml_collections.ConfigDict
    model: nnx.Module
    step: int
    checksum: int | None


def weights_digest(model: nnx.Module) -> str:
    """Returns a SHA-256 of the names, types, shapes and values of a network's weights."""
    state = nnx.state(model, (nnx.Param, nnx.BatchStat, Frozen))
    leaves, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    digest = hashlib.sha256()
    for path, value in sorted((jax.tree_util.keystr(p), np.asarray(v)) for p, v in leaves):
        digest.update(f"{path} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def load(run: epath.Path, axis_name: str | None = None) -> Trained:
    """Returns the best network of a run.

    Args:
      run: the run directory.
      axis_name: the axis of devices over which BatchNorm is synchronized, where the network will be
        trained further; None for one device.

    Raises:
      UserError: not a run, no checkpoint yet, or one that cannot be read; the file of a frozen
        backbone is not there, or another one than it was trained with.
    """
    config = load_config(run)
    model = methods.blank(config, axis_name)
    checkpoints = Checkpoints(run, keep_best=config.train.keep_best)
    best = checkpoints.best_sound(initial_state(model, config.train))
    if best is None:
        raise UserError(f"{run} has no checkpoint yet")
    step, state = best
    params, stats = jax.tree.map(jnp.asarray, (state["params"], state["stats"]))
    nnx.update(model, params, stats)
    if config.model.frozen:
        weights.fill_backbone(model, config)
    model.eval()
    return Trained(config, model, step, checkpoints.checksum(step))
