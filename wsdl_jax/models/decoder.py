"""Decoders of DeCLIP (Smeu et al., 2025): from a feature map to logits of a map 16 times as large.

A decoder has one logit z a location, that of "manipulated"; as class scores [real, fake], which
every network of this package gives, it is [0, z].
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wsdl_jax.models.interpolation import bicubic
from wsdl_jax.models.layers import BatchNorm, Dtype, Pointwise
from wsdl_jax.models.xception import scaled

ENLARGED = 16  # times as many locations a side as the features have
_WIDTHS = (512, 256, 128, 64)  # of the four stages of a convolutional decoder


class Conv5x5(nnx.Module):
    """A dense 5×5 convolution with bias and padding 2: float32 parameters, computed in `dtype`."""

    def __init__(self, inputs: int, outputs: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jnp.zeros((5, 5, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Returns the features convolved, in `dtype`."""
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            window_strides=(1, 1),
            padding=((2, 2), (2, 2)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + self.bias[...].astype(self.dtype)


class Stage(nnx.Module):
    """Convolutions of one width, each with BatchNorm and ReLU behind it, then twice the size."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        convolutions: int,
        *,
        remat: bool = False,
        dtype: Dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        widths = [inputs, *[outputs] * convolutions]
        self.convs = nnx.List(
            Conv5x5(a, b, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(widths)
        )
        self.norms = nnx.List(BatchNorm(outputs, axis_name=axis_name) for _ in range(convolutions))
        self.remat = remat

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w d"]:
        """Returns the features convolved and enlarged bilinearly, corners not aligned."""
        return nnx.remat(Stage._layers)(self, x) if self.remat else self._layers(x)

    def _layers(self, x: Array) -> Array:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        batch, height, width, channels = x.shape
        return jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "bilinear")


class ConvDecoder(nnx.Module):
    """Four stages of convolutions, each twice the size of the one before, and a last convolution.

    A stage has its convolutions of 5×5, each with BatchNorm and ReLU behind it, before it doubles
    the size; the stages have 512, 256, 128 and 64 channels times the width.
    """

    def __init__(
        self,
        inputs: int,
        convolutions: int,
        *,
        width: float = 1.0,
        remat: bool = False,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds a decoder.

        Args:
          inputs: channels of the features.
          convolutions: of each of the four stages.
          width: multiplies the channels of the stages.
          remat: whether each stage is computed again in the backward pass, to save memory.
          dtype: of the computation; the last convolution is float32.
          axis_name: the axis of devices over which BatchNorm is synchronized; None for one device.
          rngs: of the layers, whose kernels are zero until they are drawn.
        """
        widths = [inputs, *(scaled(channels, width) for channels in _WIDTHS)]
        kwargs: dict[str, Any] = {"remat": remat, "dtype": dtype, "axis_name": axis_name}
        self.stages = nnx.List(
            Stage(a, b, convolutions, **kwargs, rngs=rngs) for a, b in itertools.pairwise(widths)
        )
        self.last = Conv5x5(widths[-1], 1, dtype=jnp.float32, rngs=rngs)

    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b 16*h 16*w 2"]:
        """Returns class scores of every location, [real, fake], float32."""
        for stage in self.stages:
            features = stage(features)
        return _class_scores(self.last(features))


class LinearDecoder(nnx.Module):
    """One linear layer for every location, whose logits are enlarged bicubically."""

    def __init__(
        self,
        inputs: int,
        *,
        width: float = 1.0,
        remat: bool = False,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        """inputs: channels of the features. The rest is as in `ConvDecoder`, and has no effect."""
        self.linear = Pointwise(inputs, 1, use_bias=True, dtype=jnp.float32, rngs=rngs)

    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b 16*h 16*w 2"]:
        """Returns class scores of every location, [real, fake], float32."""
        height, width = features.shape[1:3]
        logits = jnp.einsum(
            "ih,jw,bhwc->bijc",
            bicubic(height, ENLARGED * height, antialias=False),
            bicubic(width, ENLARGED * width, antialias=False),
            self.linear(features),
            precision=jax.lax.Precision.HIGHEST,
        )
        return _class_scores(logits)


# By the name that config.model.decoder has: the number is that of all convolutions of the stages.
_DECODERS: Mapping[str, Callable[..., nnx.Module]] = MappingProxyType(
    {
        "linear": LinearDecoder,
        **{f"conv-{n}": functools.partial(ConvDecoder, convolutions=n // 4) for n in (4, 12, 20)},
    }
)
DECODERS = tuple(_DECODERS)


def make_decoder(kind: str, inputs: int, **arguments: Any) -> nnx.Module:
    """Returns a decoder of feature maps [B, h, w, inputs] to class scores [B, 16h, 16w, 2].

    Args:
      kind: one of `DECODERS`.
      inputs: channels of the features.
      **arguments: see `ConvDecoder`.

    Raises:
      ValueError: there is no such decoder.
    """
    if kind not in _DECODERS:
        raise ValueError(f"decoder {kind!r}: choose from {', '.join(DECODERS)}")
    return _DECODERS[kind](inputs, **arguments)


def _class_scores(logits: Float[Array, "b h w 1"]) -> Float[Array, "b h w 2"]:
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
