"""The steps of one device that train and validate a detector."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from wsdl_jax import methods, runs
from wsdl_jax.models.layers import seed_dropout
from wsdl_jax.runs import State
from wsdl_jax.runtime import parallel
from wsdl_jax.runtime.parallel import AXIS, Step


def make_train_step(
    method: methods.Method,
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    microbatches: int = 1,
) -> Step:
    """Returns the step of one device: (state, its images) → ((state, metrics), None).

    Gradients, metrics and BatchNorm statistics are averaged over the axis "data". `model` gives
    the structure; its values are not used. With microbatches a device takes so many equal parts of
    its images one after the other: gradients are the mean of those of the parts, and BatchNorm
    normalizes each part, over all devices, by itself.

    What is dropped of an image depends on the seed, the step and the image's place in the batch of
    all hosts, and on nothing else. A batch may say it, `place` [B] int32, as it has to on several
    hosts; otherwise it is the place in the order of the devices.

    Of parameters and of the optimizer's state a device may have parts, see `runtime.parallel`.
    """
    make_network = runs.network(model)
    whole = parallel.shapes_of(nnx.state(model, nnx.Param))
    optimizer = optax.with_extra_args_support(optimizer)

    def gradient(state: State, stats: Any, batch: methods.Batch, key: jax.Array):
        def objective(params: Any):
            # A copy: inside a gradient, statistics of shared variables cannot be updated.
            network = make_network({**state, "params": params, "stats": stats}, copy=True)
            seed_dropout(network, jax.vmap(jax.random.fold_in, (None, 0))(key, batch["place"]))
            images = methods.network_input(batch["image"])
            loss, metrics = method.loss(network, {**batch, "image": images})
            return loss, ({"loss": loss, **metrics}, nnx.state(network, nnx.BatchStat))

        gradients, (metrics, moved) = jax.grad(objective, has_aux=True)(state["params"])
        return moved, (gradients, metrics)

    def accumulated(state: State, stats: Any, batch: methods.Batch, key: jax.Array):
        parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient, state, stats, first, key)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(carry: Any, part: Any):
            stats, sums = carry
            stats, values = gradient(state, stats, part, key)
            return (stats, jax.tree.map(jnp.add, sums, values)), None

        (stats, sums), _ = jax.lax.scan(add, (stats, zeros), parts)
        return stats, jax.tree.map(lambda x: x / microbatches, sums)

    def step(state: State, batch: methods.Batch):
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        images = batch["image"].shape[0]
        places = jax.lax.axis_index(AXIS) * images + jnp.arange(images)
        batch = {"place": places, **batch}
        backward = gradient if microbatches == 1 else accumulated
        stats, (gradients, metrics) = backward(state, state["stats"], batch, key)
        gradients, metrics = parallel.mean_gradient(gradients, whole), jax.lax.pmean(metrics, AXIS)
        norm = parallel.norm(gradients, whole)
        updates, opt_state = optimizer.update(
            gradients, state["optimizer"], state["params"], norm=norm
        )
        state = {
            **state,
            "step": state["step"] + 1,
            "params": optax.apply_updates(state["params"], updates),
            "stats": stats,
            "optimizer": opt_state,
        }
        return (state, {**metrics, "gradient_norm": norm}), None

    return step


def make_loss_step(
    method: methods.Method, model: nnx.Module, *, compares_maps: bool = False
) -> Step:
    """Returns the validation step of one device: (state, its images) → (sums, None).

    The sums, over all devices, are of each loss times the images' weights, and of the weights.

    Args:
      method: the method that is trained.
      model: gives the structure; its values are not used.
      compares_maps: whether there is a sum "iou", too, of the maps' intersections over union with
        the masks that batches have, at the maps' size and cut at 0.5.
    """
    make_network = runs.network(model)

    def step(state: State, batch: methods.Batch):
        network = make_network(state)
        network.eval()
        images = methods.network_input(batch["image"])
        loss, metrics = method.loss(network, {**batch, "image": images})
        if compares_maps:
            ious = _ious(method.localize(network, images).maps, batch["mask"])
            mean = (ious * batch["weight"]).sum() / jnp.maximum(batch["weight"].sum(), 1)
            metrics = {**metrics, "iou": mean}
        weight = batch["weight"].sum()
        sums = {name: value * weight for name, value in {"loss": loss, **metrics}.items()}
        return jax.lax.psum({**sums, "weight": weight}, AXIS), None

    return step


def _ious(maps: Float[Array, "b h w"], masks: Int[Array, "b h w"]) -> Float[Array, " b"]:
    """Returns each map's intersection over union with its mask; 1 where the union is empty.

    Of a map that is not a number everywhere it is not a number.
    """
    found, true = maps > 0.5, masks > 0
    union = (found | true).sum((1, 2))
    ious = jnp.where(union > 0, (found & true).sum((1, 2)) / jnp.maximum(union, 1), 1.0)
    return jnp.where(jnp.isnan(maps).any((1, 2)), jnp.nan, ious)
