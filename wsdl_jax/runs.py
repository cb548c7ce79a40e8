"""A run directory: the config that it is of, and the state and the network in its checkpoints."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from etils import epath
from flax import nnx
from jaxtyping import Array

from wsdl_jax import configuration, methods
from wsdl_jax.checkpoint import Checkpoints
from wsdl_jax.errors import UserError
from wsdl_jax.storage import is_remote

State = dict[str, Any]  # step, params, stats (of BatchNorm), optimizer


class Trained(NamedTuple):
    """The best network of a run.

    Attributes:
      config: the run's.
      model: the network, in evaluation mode.
      step: of the checkpoint with the lowest validation loss, which the weights are from.
    """

    config: ml_collections.ConfigDict
    model: nnx.Module
    step: int


def make_optimizer(train: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam with PyTorch's defaults; clipping and a schedule where the config has them.

    In a warm-up of n steps the rate of step t (from 1) is t/n of what it would be.
    """
    rate: Any = train.learning_rate
    if train.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, train.epochs * train.steps_per_epoch)
    if train.warmup:
        settled = rate if callable(rate) else optax.constant_schedule(rate)

        def rate(count: Array) -> Array:
            return settled(count) * jnp.minimum(1, (count + 1) / train.warmup)

    adam = optax.adam(rate, b1=0.9, b2=0.999, eps=1e-8)
    return (
        optax.chain(optax.clip_by_global_norm(train.clip_norm), adam) if train.clip_norm else adam
    )


def initial_state(model: nnx.Module, train: ml_collections.ConfigDict) -> State:
    """The state before the first step; `train` is that part of the config."""
    params, stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "stats": stats,
        "optimizer": make_optimizer(train).init(params),
    }


def load_config(run: epath.Path) -> ml_collections.ConfigDict:
    """The config of a run directory. Raises UserError if it is not one."""
    path = epath.Path(run) / "config.json"
    if not path.exists():
        raise UserError(f"{run} is not a run directory: it has no config.json")
    return configuration.load(path.read_text())


def check(
    run: epath.Path,
    config: ml_collections.ConfigDict,
    load: Callable[[epath.Path], ml_collections.ConfigDict] = load_config,
) -> None:
    """Raises UserError unless a run directory is new, empty, or of this config, as `load` reads it.

    A run is never continued under another config; the message shows the differences. Of buckets,
    orbax writes to Google's alone.
    """
    if is_remote(run) and not os.fspath(run).startswith("gs://"):
        raise UserError(
            f"{run}: a run directory is on a disk or in gs://; choose another --workdir"
        )
    if (run / "config.json").exists():
        different = configuration.differences(load(run), config)
        if different:
            raise UserError(
                f"{run} is a run of another config ({'; '.join(different)}): choose another "
                "--workdir, or the same config to continue it"
            )
    elif run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file: choose another --workdir")
    elif run.exists() and any(run.iterdir()):
        raise UserError(f"{run} is not empty and holds no run: choose another --workdir")


def load(run: epath.Path, axis_name: str | None = None) -> Trained:
    """The best network of a run.

    axis_name: over which BatchNorm is synchronized, where the network will be trained on.

    Raises UserError: not a run, no checkpoint yet, or one that cannot be read.
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
    return Trained(config, model, step)
