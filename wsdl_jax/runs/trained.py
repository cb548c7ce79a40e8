"""The trained network of a run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from flax import nnx

from wsdl_jax import methods
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runs.directory import load_config
from wsdl_jax.runs.state import initial_state
from wsdl_jax.runtime.errors import UserError


class Trained(NamedTuple):
    """The best network of a run.

    Attributes:
      config: the run's.
      model: the network, in evaluation mode.
      step: the step of the checkpoint with the lowest validation loss, which the weights are from.
      checksum: that checkpoint's, which tells it from one of the same step of another training;
        None for a checkpoint that was kept without one.
    """

    config: ml_collections.ConfigDict
    model: nnx.Module
    step: int
    checksum: int | None


def load(run: epath.Path, axis_name: str | None = None) -> Trained:
    """Returns the best network of a run.

    Args:
      run: the run directory.
      axis_name: the axis of devices over which BatchNorm is synchronized, where the network will be
        trained further; None for one device.

    Raises:
      UserError: not a run, no checkpoint yet, or one that cannot be read.
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
    model.eval()
    return Trained(config, model, step, checkpoints.checksum(step))
