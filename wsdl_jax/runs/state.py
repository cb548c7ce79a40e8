"""The state of a training, and the optimizer that moves it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jaxtyping import Array

from wsdl_jax.models.backbone import Frozen
from wsdl_jax.runs.plateau import divide_on_plateau
from wsdl_jax.runtime.parallel import shapes_of, whole

# Of a training: step, params, stats (of BatchNorm), optimizer. On devices there is "backbone"
# beside them where the network has frozen variables; checkpoints have it not.
State = dict[str, Any]


def make_optimizer(train: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Returns Adam or AdamW (Loshchilov and Hutter, 2019), with clipping and a schedule where the
    config has them.

    Both have PyTorch's defaults, but for the decay, which is the config's. In a warm-up of n steps
    the learning rate of step t (from 1) is t/n of what it would be.

    train: that part of a config.
    """
    rate: Any = train.learning_rate
    if train.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, train.epochs * train.steps_per_epoch)
    if train.warmup:
        settled = rate if callable(rate) else optax.constant_schedule(rate)

        def rate(count: Array) -> Array:
            return settled(count) * jnp.minimum(1, (count + 1) / train.warmup)

    kwargs: dict[str, Any] = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
    if train.get("optimizer") == "adamw":  # which a forger's config does not say
        adam = optax.adamw(rate, weight_decay=train.weight_decay, **kwargs)
    else:
        adam = optax.adam(rate, **kwargs)
    before = [_clip(train.clip_norm)] if train.clip_norm else []
    after = [divide_on_plateau()] if train.schedule == "plateau" else []
    # Adam by itself is no chain of one: the state has the structure that checkpoints have.
    return optax.chain(*before, adam, *after) if before or after else adam


def _clip(longest: float) -> optax.GradientTransformationExtraArgs:
    """Returns what shortens gradients to a global norm.

    As optax.clip_by_global_norm, but where a device has parts of gradients it cannot know the norm:
    `update` takes it as the argument `norm`; without, it is that of the gradients.
    """

    def update(
        gradients: Any, state: Any, params: Any = None, *, norm: Array | None = None, **_: Any
    ) -> tuple[Any, Any]:
        norm = optax.tree.norm(gradients) if norm is None else norm
        factor = jnp.where(norm < longest, 1.0, longest / norm)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), gradients), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def variables(model: nnx.Module) -> State:
    """Returns what a network computes with: "params", "stats" and, if it has any, "backbone"."""
    params, stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    frozen = nnx.state(model, Frozen)
    return {"params": params, "stats": stats, **({"backbone": frozen} if frozen else {})}


def network(model: nnx.Module) -> Callable[..., nnx.Module]:
    """Returns a function of a state that makes the network with the state's variables.

    In a step of one device, which may have parts of them, they are gathered from all.

    Args:
      model: gives the structure; its variables are not used. The function has an argument `copy`,
        see `flax.nnx.merge`.
    """
    shapes = shapes_of(variables(model))
    graphdef, _, _, _, rest = nnx.split(model, nnx.Param, nnx.BatchStat, Frozen, ...)

    def make(state: State, *, copy: bool = False) -> nnx.Module:
        found = whole({name: state[name] for name in shapes}, shapes)
        return nnx.merge(graphdef, *found.values(), rest, copy=copy)

    return make


def structure(model: nnx.Module) -> nnx.Module:
    """Returns a network whose variables are shapes, of which no device holds values.

    It does where a network gives the structure alone, as that of `network` does.

    model: the network, which stays as it is. What it has beside variables of `variables`, such as
      the keys of its dropout, has its values in both.
    """
    graphdef, taken, rest = nnx.split(model, (nnx.Param, nnx.BatchStat, Frozen), ...)
    return nnx.merge(graphdef, shapes_of(taken), rest)


def kept(state: State) -> State:
    """Returns what a checkpoint keeps of a state: all but what is frozen."""
    return {name: value for name, value in state.items() if name != "backbone"}


def initial_state(model: nnx.Module, train: ml_collections.ConfigDict) -> State:
    """Returns the state of a network before the first step, without what is frozen.

    train: that part of a config, from which the optimizer's state follows.
    """
    trained = kept(variables(model))
    return {
        "step": jnp.zeros((), jnp.int32),
        **trained,
        "optimizer": make_optimizer(train).init(trained["params"]),
    }
