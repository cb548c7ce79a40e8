"""Explanations of an image classifier, as pure functions of the upper half of its network."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FAKE = 1  # the logit that is explained


def _grad_cam(gradients: Float[Array, "b h w c"], activations: Float[Array, "b h w c"]) -> Array:
    weights = gradients.mean((1, 2), keepdims=True)
    return (weights * activations).sum(-1)


def _hires_cam(gradients: Float[Array, "b h w c"], activations: Float[Array, "b h w c"]) -> Array:
    return (gradients * activations).sum(-1)


def _layer_cam(gradients: Float[Array, "b h w c"], activations: Float[Array, "b h w c"]) -> Array:
    return (jax.nn.relu(gradients) * activations).sum(-1)


# From d(logit)/d(activation) and activations, float32, to weighted sums of channels [B, h, w].
_WEIGHTED_SUMS: Mapping[str, Callable[[Array, Array], Array]] = MappingProxyType(
    {"grad_cam": _grad_cam, "hires_cam": _hires_cam, "layer_cam": _layer_cam}
)
KINDS = tuple(_WEIGHTED_SUMS)


def explain(
    upper: Callable[[Array], Array], activations: Float[Array, "b h w c"], kind: str = "grad_cam"
) -> tuple[Float[Array, "b 2"], Float[Array, "b h w"]]:
    """Explains the logit of "fake" at the given activations.

    The map is the ReLU of a weighted sum of channels, shifted and scaled to [0, 1] in each image.
    The weights of "grad_cam" (Selvaraju et al., 2017) are one a channel, the mean over space of
    d(logit)/d(activation). "hires_cam" (Draelos and Carin, 2020) takes the derivative of each
    location by itself, so that a location is not blamed for what its channel does elsewhere;
    "layer_cam" (Jiang et al., 2021) takes its positive part, for early layers as well. Only
    `upper` is differentiated: whatever made the activations is not part of the backward pass.

    Args:
      upper: activations [B, h, w, c] to image logits [B, 2], images independent of each other.
      activations: output of the explained layer.
      kind: one of `KINDS`.

    Returns:
      The image logits and the maps, float32. A map without a positive entry is all zero.
    """
    logits, sums = _weighted_sum(upper, activations, kind)
    maps = jax.nn.relu(sums)
    maps -= maps.min((1, 2), keepdims=True)
    return logits, maps / (1e-7 + maps.max((1, 2), keepdims=True))


def evidence(
    upper: Callable[[Array], Array], activations: Float[Array, "b h w c"], kind: str = "grad_cam"
) -> tuple[Float[Array, "b 2"], Float[Array, "b h w"]]:
    """Returns what each location says for "fake": the map of `explain` before ReLU and scaling.

    Arguments and logits are those of `explain`. The sum is multiplied by the number of locations,
    so that a map does not fade with its size: where `upper` is a global average pool and a linear
    layer, the evidence of Grad-CAM and of HiResCAM is the class activation map of Zhou et al.
    (2016), whose mean is the logit without its bias. It is any real number, and differentiable, by
    the parameters of `upper` too.
    """
    logits, sums = _weighted_sum(upper, activations, kind)
    return logits, sums * (sums.shape[1] * sums.shape[2])


def _weighted_sum(
    upper: Callable[[Array], Array], activations: Array, kind: str
) -> tuple[Float[Array, "b 2"], Float[Array, "b h w"]]:
    def explained(x: Array) -> tuple[Array, Array]:
        logits = upper(x)
        return logits[:, FAKE].sum(), logits

    gradients, logits = jax.grad(explained, has_aux=True)(activations)
    weighted_sum = _WEIGHTED_SUMS[kind]
    return logits, weighted_sum(gradients.astype(jnp.float32), activations.astype(jnp.float32))


def to_image_size(
    maps: Float[Array, "b h w"], height: int, width: int
) -> Float[Array, "b {height} {width}"]:
    """Resizes maps bilinearly and divides each by its maximum; an all-zero map stays zero."""
    maps = jax.image.resize(maps, (maps.shape[0], height, width), "bilinear")
    peak = maps.max((1, 2), keepdims=True)
    return jnp.where(peak > 0, maps / jnp.where(peak > 0, peak, 1), 0)
