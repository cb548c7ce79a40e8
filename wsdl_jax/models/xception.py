"""Xception (Chollet, 2017) as the published experiments have it."""

import itertools
import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wsdl_jax.models.backbone import Backbone, Features
from wsdl_jax.models.layers import BatchNorm, Conv, Dtype, Pointwise, SeparableConv, max_pool_3x3

BLOCKS = 12
SMALLEST_IMAGE = 64  # pixels: below this the last blocks see a single location
_ENTRY_WIDTHS = (128, 256, 728)  # of blocks 1 to 3; blocks 4 to 11 keep the last


def scaled(channels: int, width: float) -> int:
    """Returns channels times the width, in steps of 8 and at least 8; exact for width 1."""
    return channels if width == 1 else max(8, 8 * math.ceil(channels * width / 8))


class Block(nnx.Module):
    """Separable convolutions with BatchNorm behind each, around a shortcut."""

    def __init__(
        self,
        widths: tuple[int, ...],
        *,
        pool: bool,
        leading_relu: bool = True,
        remat: bool = False,
        dtype: Dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        """widths: channels that go into the block, then those behind each of its convolutions."""
        self.convs = nnx.List(
            SeparableConv(a, b, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(widths)
        )
        self.norms = nnx.List(BatchNorm(b, axis_name=axis_name) for b in widths[1:])
        self.pool = pool
        self.leading_relu = leading_relu
        self.remat = remat
        if pool or widths[0] != widths[-1]:
            self.shortcut = Pointwise(
                widths[0], widths[-1], stride=2 if pool else 1, dtype=dtype, rngs=rngs
            )
            self.shortcut_norm = BatchNorm(widths[-1], axis_name=axis_name)
        else:
            self.shortcut = self.shortcut_norm = None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Returns the features behind the block, with its shortcut added."""
        return nnx.remat(Block._layers)(self, x) if self.remat else self._layers(x)

    def _layers(self, x: Array) -> Array:
        shortcut = x
        if self.shortcut is not None:
            shortcut = self.shortcut_norm(self.shortcut(x))
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if index or self.leading_relu:
                x = nnx.relu(x)
            x = norm(conv(x))
        if self.pool:
            x = max_pool_3x3(x)
        return x + shortcut


class Trunk(Backbone):
    """Stem and the first `depth` of Xception's twelve blocks, which are its stages.

    For images of 299×299 the outputs have 74 (block 1), 37 (block 2), 19 (blocks 3 to 11) and
    10 (block 12) locations a side.
    """

    def __init__(
        self,
        depth: int,
        *,
        width: float = 1.0,
        remat: bool = False,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        """remat: whether each block is computed again in the backward pass, to save memory.

        Raises ValueError for a depth outside 1 to 12.
        """
        if not 1 <= depth <= BLOCKS:
            raise ValueError(f"Xception has blocks 1 to {BLOCKS}, not {depth}")
        kwargs: dict[str, Any] = {"dtype": dtype, "axis_name": axis_name, "rngs": rngs}
        self.width = width
        stem = scaled(32, width), scaled(64, width)
        self.conv1 = Conv(3, stem[0], stride=2, dtype=dtype, rngs=rngs)
        self.norm1 = BatchNorm(stem[0], axis_name=axis_name)
        self.conv2 = Conv(stem[0], stem[1], dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(stem[1], axis_name=axis_name)
        entry = [scaled(c, width) for c in _ENTRY_WIDTHS]
        middle = entry[-1]
        last = scaled(1024, width)
        # Channels into a block, and behind each of its convolutions. Block 12 grows at its second
        # convolution, the entry blocks at their first.
        widths = [(a, b, b) for a, b in itertools.pairwise([stem[1], *entry])]
        widths += [(middle,) * 4] * 8 + [(middle, middle, last)]
        self.blocks = nnx.List(
            Block(
                channels,
                pool=number in (1, 2, 3, 12),
                leading_relu=number > 1,
                remat=remat,
                **kwargs,
            )
            for number, channels in enumerate(widths[:depth], start=1)
        )
        self.widths = tuple(channels[-1] for channels in widths[:depth])

    def stem(self, images: Float[Array, "b h w 3"]) -> Features:
        """Applies the first two convolutions, with BatchNorm and ReLU.

        Raises ValueError for images under 64 pixels a side.
        """
        if min(images.shape[1:3]) < SMALLEST_IMAGE:
            height, width = images.shape[1:3]
            raise ValueError(
                f"images of {height}×{width} pixels; Xception takes {SMALLEST_IMAGE} and more"
            )
        x = nnx.relu(self.norm1(self.conv1(images)))
        return Features(nnx.relu(self.norm2(self.conv2(x))))

    def through(self, features: Features, start: int, stop: int) -> Features:
        """Applies the blocks start + 1 to stop."""
        x = features.map
        for block in self.blocks[start:stop]:
            x = block(x)
        return Features(x)


class Top(nnx.Module):
    """What follows block 12: two separable convolutions, global average pool, linear."""

    def __init__(
        self,
        features: int,
        *,
        width: float = 1.0,
        dtype: Dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        widths = scaled(1536, width), scaled(2048, width)
        self.conv3 = SeparableConv(features, widths[0], dtype=dtype, rngs=rngs)
        self.norm3 = BatchNorm(widths[0], axis_name=axis_name)
        self.conv4 = SeparableConv(widths[0], widths[1], dtype=dtype, rngs=rngs)
        self.norm4 = BatchNorm(widths[1], axis_name=axis_name)
        self.linear = nnx.Linear(widths[1], 2, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, features: Features) -> Float[Array, "b 2"]:
        """Returns the image logits of the features behind the last block."""
        x = nnx.relu(self.norm3(self.conv3(features.map)))
        x = nnx.relu(self.norm4(self.conv4(x)))
        return self.linear(x.astype(jnp.float32).mean((1, 2)))
