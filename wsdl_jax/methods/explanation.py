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

    def explained(x: Array) -> tuple[Array, Array]:
        logits = upper(x)
        return logits[:, FAKE].sum(), logits

    gradients, logits = jax.grad(explained, has_aux=True)(activations)
    weights = gradients.astype(jnp.float32).mean((1, 2), keepdims=True)
    maps = jax.nn.relu((weights * activations.astype(jnp.float32)).sum(-1))
    maps -= maps.min((1, 2), keepdims=True)
    return logits, maps / (1e-7 + maps.max((1, 2), keepdims=True))


def to_image_size(
    maps: Float[Array, "b h w"], height: int, width: int
) -> Float[Array, "b {height} {width}"]:
    """Resizes maps bilinearly and divides each by its maximum; an all-zero map stays zero."""
    maps = jax.image.resize(maps, (maps.shape[0], height, width), "bilinear")
    peak = maps.max((1, 2), keepdims=True)
    return jnp.where(peak > 0, maps / jnp.where(peak > 0, peak, 1), 0)
