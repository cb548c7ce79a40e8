"""The state of a training, and the optimizer that moves it."""

from typing import Any

import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jaxtyping import Array

State = dict[str, Any]  # step, params, stats (of BatchNorm), optimizer


def make_optimizer(train: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Returns Adam with PyTorch's defaults; with clipping and a schedule where the config has them.

    In a warm-up of n steps the learning rate of step t (from 1) is t/n of what it would be.

    train: that part of a config.
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
    """Returns the state of a network before the first step.

    train: that part of a config, from which the optimizer's state follows.
    """
    params, stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "stats": stats,
        "optimizer": make_optimizer(train).init(params),
    }
