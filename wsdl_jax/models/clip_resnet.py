"""CLIP's ResNet-50 (Radford et al., 2021, section 2.4), without its attention pool."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wsdl_jax.models import pixels
from wsdl_jax.models.backbone import Backbone, Features
from wsdl_jax.models.layers import BatchNorm, Conv, Dtype, Pointwise

NAME = "clip_rn50"
BLOCKS = (3, 4, 6, 3)  # of stages 1 to 4
SMALLEST_IMAGE = 32  # pixels: stage 4 has one location for them
STEM = 64  # channels before stage 1
_EXPANSION = 4  # a block gives this many times the channels of its 3×3 convolution


def mean_pool_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Returns means of 2×2 locations; of an odd side, the last row or column is left out."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class Bottleneck(nnx.Module):
    """Convolutions 1×1, 3×3 and 1×1, with BatchNorm behind each, around a shortcut.

    Where others have a stride, locations are averaged: behind the 3×3 convolution, and in the
    shortcut (antialiasing as in Zhang, 2019).
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        pool: bool,
        remat: bool,
        dtype: Dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        """width: channels of the 3×3 convolution; the block gives four times as many."""
        outputs = width * _EXPANSION
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.convs = nnx.List(
            [
                Pointwise(inputs, width, **kwargs),
                Conv(width, width, padding=1, **kwargs),
                Pointwise(width, outputs, **kwargs),
            ]
        )
        self.norms = nnx.List(BatchNorm(c, axis_name=axis_name) for c in (width, width, outputs))
        self.pool, self.remat = pool, remat
        if pool or inputs != outputs:
            self.shortcut = Pointwise(inputs, outputs, **kwargs)
            self.shortcut_norm = BatchNorm(outputs, axis_name=axis_name)
        else:
            self.shortcut = self.shortcut_norm = None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Returns the features behind the block."""
        return nnx.remat(Bottleneck._layers)(self, x) if self.remat else self._layers(x)

    def _layers(self, x: Array) -> Array:
        shortcut = mean_pool_2x2(x) if self.pool else x
        if self.shortcut is not None:
            shortcut = self.shortcut_norm(self.shortcut(shortcut))
        for conv, norm in zip(self.convs[:2], self.norms[:2], strict=True):
            x = nnx.relu(norm(conv(x)))
        if self.pool:
            x = mean_pool_2x2(x)
        return nnx.relu(self.norms[2](self.convs[2](x)) + shortcut)


class ModifiedResNet(Backbone):
    """The stem and the first `depth` of the four stages of CLIP's ResNet-50.

    For images of 224×224 the stages have 56, 28, 14 and 7 locations a side.
    """

    def __init__(
        self,
        depth: int,
        *,
        remat: bool = False,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds a network whose kernels are zero, to be initialized or read from a file.

        Args:
          depth: how many stages, 1 to 4.
          remat: whether each block is computed again in the backward pass, to save memory.
          dtype: of the computation; parameters are float32.
          axis_name: of the axis that devices are on, over which BatchNorm averages.
          rngs: of layers that want one.

        Raises:
          ValueError: there is no such stage.
        """
        if not 1 <= depth <= len(BLOCKS):
            raise ValueError(f"CLIP's ResNet-50 has stages 1 to {len(BLOCKS)}, not {depth}")
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        half = STEM // 2
        self.convs = nnx.List(
            [
                Conv(3, half, stride=2, padding=1, **kwargs),
                Conv(half, half, padding=1, **kwargs),
                Conv(half, STEM, padding=1, **kwargs),
            ]
        )
        self.norms = nnx.List(BatchNorm(c, axis_name=axis_name) for c in (half, half, STEM))
        self.widths = tuple(STEM * 2**stage * _EXPANSION for stage in range(depth))
        layers, inputs = [], STEM
        for stage, blocks in enumerate(BLOCKS[:depth]):
            width = STEM * 2**stage
            found = []
            for number in range(blocks):
                pool = stage > 0 and number == 0
                found.append(
                    Bottleneck(inputs, width, pool=pool, remat=remat, axis_name=axis_name, **kwargs)
                )
                inputs = width * _EXPANSION
            layers.append(nnx.List(found))
        self.layers = nnx.List(layers)

    def stem(self, images: Float[Array, "b h w 3"]) -> Features:
        """Returns what three convolutions and a mean of 2×2 give.

        Images are float32 in [-1, 1]. Raises ValueError for images under 32 pixels a side.
        """
        height, width = images.shape[1:3]
        if min(height, width) < SMALLEST_IMAGE:
            raise ValueError(
                f"images of {height}×{width} pixels; CLIP's ResNet-50 takes {SMALLEST_IMAGE} and "
                "more"
            )
        x = pixels.CLIP.normalized(images)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return Features(mean_pool_2x2(x))

    def through(self, features: Features, start: int, stop: int) -> Features:
        """Returns what is behind stage `stop`, from what is behind stage `start`; 0 is the stem."""
        x = features.map
        for layer in self.layers[start:stop]:
            for block in layer:
                x = block(x)
        return Features(x)


class Top(nnx.Module):
    """What follows stage 4, instead of CLIP's attention pool: the mean of locations, linear."""

    def __init__(self, features: int, *, dtype: Dtype, axis_name: str | None, rngs: nnx.Rngs):
        """features: channels behind the last stage. The layer is float32, whatever `dtype` is."""
        self.linear = nnx.Linear(features, 2, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, features: Features) -> Float[Array, "b 2"]:
        """Returns the image logits of the features behind the last stage."""
        return self.linear(features.map.astype(jnp.float32).mean((1, 2)))
