"""Grad-CAM (Selvaraju et al., 2017) as a pure function of the upper half of a network."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FAKE = 1  # the logit that is explained


def grad_cam(
    upper: Callable[[Array], Array], activations: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b 2"], Float[Array, "b h w"]]:
    """Explains the logit of "fake" at the given activations.

    A channel's weight is the mean over space of d(logit)/d(activation); the map is the ReLU of the
    weighted sum of channels, shifted and scaled to [0, 1] in each image. Only `upper` is
    differentiated: whatever made the activations is not part of the backward pass.

    Args:
      upper: activations [B, h, w, c] to image logits [B, 2], images independent of each other.
      activations: output of the explained layer.

    Returns:
      The image logits and the maps, float32. A map without a positive entry is all zero.
    """

    logits, maps = _weighted_sum(upper, activations)
    maps = jax.nn.relu(maps)
    maps -= maps.min((1, 2), keepdims=True)
    return logits, maps / (1e-7 + maps.max((1, 2), keepdims=True))


def evidence(
    upper: Callable[[Array], Array], activations: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b 2"], Float[Array, "b h w"]]:
    """Returns what each location says for "fake": the map of Grad-CAM before ReLU and scaling.

    Arguments and logits are those of `grad_cam`. Here a channel's weight is the sum over space of
    d(logit)/d(activation). So where `upper` is a global average pool and a linear layer, this is
    the class activation map of Zhou et al. (2016), whose mean is the logit without its bias. Any
    real number; differentiable, also by the parameters of `upper`.
    """
    logits, sums = _weighted_sum(upper, activations)
    return logits, sums * (sums.shape[1] * sums.shape[2])


def _weighted_sum(
    upper: Callable[[Array], Array], activations: Array
) -> tuple[Float[Array, "b 2"], Float[Array, "b h w"]]:
    def explained(x: Array) -> tuple[Array, Array]:
        logits = upper(x)
        return logits[:, FAKE].sum(), logits

    gradients, logits = jax.grad(explained, has_aux=True)(activations)
    weights = gradients.astype(jnp.float32).mean((1, 2), keepdims=True)
    return logits, (weights * activations.astype(jnp.float32)).sum(-1)


def to_image_size(
    maps: Float[Array, "b h w"], height: int, width: int
) -> Float[Array, "b {height} {width}"]:
    """Resizes maps bilinearly and divides each by its maximum; an all-zero map stays zero."""
    maps = jax.image.resize(maps, (maps.shape[0], height, width), "bilinear")
    peak = maps.max((1, 2), keepdims=True)
    return jnp.where(peak > 0, maps / jnp.where(peak > 0, peak, 1), 0)
