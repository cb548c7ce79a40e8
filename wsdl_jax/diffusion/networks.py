"""The forger's networks: a compact U-Net that predicts noise, and a small autoencoder; all NHWC."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float

_GROUPS = 8  # of GroupNorm; channel counts are multiples of it


def time_features(t: Float[Array, "b"], width: int) -> Float[Array, "b {width}"]:
    """Returns sines and cosines of a time in [0, 1], as of a position 0..1000 in a Transformer.

    Vaswani et al. (2017), with the frequencies 1 to 1/10000.
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / half)
    angles = 1000 * t[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _conv(inputs: int, outputs: int, kernel: int, rngs: nnx.Rngs, *, stride: int = 1) -> nnx.Conv:
    return nnx.Conv(inputs, outputs, (kernel, kernel), strides=stride, rngs=rngs)


def _zero_conv(inputs: int, outputs: int, kernel: int, rngs: nnx.Rngs) -> nnx.Conv:
    """Returns a convolution that starts as zero, so that a residual block starts as identity."""
    zeros = nnx.initializers.zeros_init()
    return nnx.Conv(inputs, outputs, (kernel, kernel), kernel_init=zeros, rngs=rngs)


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=_GROUPS, rngs=rngs)


class ResidualBlock(nnx.Module):
    """GroupNorm, SiLU and 3×3 convolution, twice, added to the input; the time is added between."""

    def __init__(self, inputs: int, outputs: int, time: int | None, *, rngs: nnx.Rngs):
        self.norm1 = _norm(inputs, rngs)
        self.conv1 = _conv(inputs, outputs, 3, rngs)
        self.time = nnx.Linear(time, outputs, rngs=rngs) if time else None
        self.norm2 = _norm(outputs, rngs)
        self.conv2 = _zero_conv(outputs, outputs, 3, rngs)
        self.shortcut = _conv(inputs, outputs, 1, rngs) if inputs != outputs else None

    def __call__(
        self, x: Float[Array, "b h w i"], time: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h w o"]:
        """Returns the block's output for features and, if it has one, the time's features."""
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        if self.time is not None:
            y += self.time(time)[:, None, None]
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class Attention(nnx.Module):
    """Self-attention over all places, added to the input."""

    def __init__(self, channels: int, *, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norm = _norm(channels, rngs)
        self.query_key_value = nnx.Linear(channels, 3 * channels, rngs=rngs)
        zeros = nnx.initializers.zeros_init()
        self.out = nnx.Linear(channels, channels, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the features, each place with what it attends to added."""
        batch, height, width, channels = x.shape
        parts = self.query_key_value(self.norm(x))
        parts = parts.reshape(batch, height * width, 3, self.heads, channels // self.heads)
        query, key, value = (parts[:, :, i] for i in range(3))
        attended = jax.nn.dot_product_attention(query, key, value)
        return x + self.out(attended.reshape(x.shape))


def to_patches(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 c2"]:
    """Moves space to depth: every patch × patch pixels become the channels of one place."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // patch, width // patch, -1)


def from_patches(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b h2 w2 c2"]:
    """Moves depth to space, the inverse of `to_patches`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, patch, patch, channels // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * patch, width * patch, -1)


def _double(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class UNet(nnx.Module):
    """(noisy images, times in [0, 1]) → what tells the noise in them, see `process.denoiser`.

    One residual block a level on the way down and up, attention from `attention` levels below the
    top. Height and width are multiples of patch · 2^(levels - 1).
    """

    def __init__(
        self,
        *,
        channels: int,
        widths: tuple[int, ...],
        patch: int,
        attention: int,
        rngs: nnx.Rngs,
    ):
        """Makes the network with new weights.

        Args:
          channels: of the images.
          widths: channels at each level, from the top; multiples of 8.
          patch: pixels a side that are one place of the top level.
          attention: first level that has attention; 0 is the top.
          rngs: for the initial weights.
        """
        self.patch = patch
        self.features = widths[0] * 2
        time = widths[-1]
        self.time1 = nnx.Linear(self.features, time, rngs=rngs)
        self.time2 = nnx.Linear(time, time, rngs=rngs)
        self.enter = _conv(channels * patch**2, widths[0], 3, rngs)

        def attend(level: int) -> Attention | None:
            return Attention(widths[level], heads=4, rngs=rngs) if level >= attention else None

        levels = range(len(widths))
        before = (widths[0], *widths)
        self.down = nnx.List(ResidualBlock(before[i], widths[i], time, rngs=rngs) for i in levels)
        self.down_attention = nnx.List(attend(i) for i in levels)
        self.smaller = nnx.List(_conv(w, w, 3, rngs, stride=2) for w in widths[:-1])
        self.up = nnx.List(ResidualBlock(2 * widths[i], widths[i], time, rngs=rngs) for i in levels)
        self.up_attention = nnx.List(attend(i) for i in levels)
        self.larger = nnx.List(_conv(widths[i + 1], widths[i], 1, rngs) for i in levels[:-1])
        self.norm = _norm(widths[0], rngs)
        self.leave = _zero_conv(widths[0], channels * patch**2, 3, rngs)

    def __call__(self, x: Float[Array, "b h w c"], t: Float[Array, "b"]) -> Float[Array, "b h w c"]:
        """Returns what tells the noise in images, of the images' shape, at times in [0, 1]."""
        time = self.time2(jax.nn.silu(self.time1(time_features(t, self.features))))
        time = jax.nn.silu(time)
        x = self.enter(to_patches(x, self.patch))
        skips = []
        for level, block in enumerate(self.down):
            if level:
                x = self.smaller[level - 1](x)
            x = block(x, time)
            if self.down_attention[level] is not None:
                x = self.down_attention[level](x)
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = self.up[level](jnp.concatenate([x, skips[level]], axis=-1), time)
            if self.up_attention[level] is not None:
                x = self.up_attention[level](x)
            if level:
                x = _double(self.larger[level - 1](x))
        return from_patches(self.leave(jax.nn.silu(self.norm(x))), self.patch)


class Autoencoder(nnx.Module):
    """Images ↔ latents of a quarter of their height and width, by a normal distribution each.

    Kingma and Welling (2014); weak regularization as in Rombach et al. (2022).
    """

    def __init__(self, *, channels: int, widths: tuple[int, int], rngs: nnx.Rngs):
        """Makes both networks with new weights.

        Args:
          channels: of the latents.
          widths: channels at half and at a quarter of the images' size; multiples of 8.
          rngs: for the initial weights.
        """
        large, small = widths
        self.encoder = nnx.Sequential(
            _conv(12, large, 3, rngs),
            ResidualBlock(large, large, None, rngs=rngs),
            _conv(large, small, 3, rngs, stride=2),
            ResidualBlock(small, small, None, rngs=rngs),
            _norm(small, rngs),
            jax.nn.silu,
            _conv(small, 2 * channels, 3, rngs),
        )
        self.decoder = nnx.Sequential(
            _conv(channels, small, 3, rngs),
            ResidualBlock(small, small, None, rngs=rngs),
            _double,
            _conv(small, large, 3, rngs),
            ResidualBlock(large, large, None, rngs=rngs),
            _norm(large, rngs),
            jax.nn.silu,
            _conv(large, 12, 3, rngs),
        )

    def encode(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b h4 w4 c"], Float[Array, "b h4 w4 c"]]:
        """Returns mean and logarithm of the variance of the latents."""
        mean, log_variance = jnp.split(self.encoder(to_patches(images, 2)), 2, axis=-1)
        return mean, jnp.clip(log_variance, -20, 10)

    def decode(self, latents: Float[Array, "b h4 w4 c"]) -> Float[Array, "b h w 3"]:
        """Returns images, every pixel of which the decoder has made."""
        return from_patches(self.decoder(latents), 2)


def make_unet(config: ml_collections.ConfigDict, rngs: nnx.Rngs) -> UNet:
    """Returns the U-Net of a config, for images or for latents, with new weights."""
    channels = config.autoencoder.channels if config.part == "latent" else 3
    return UNet(channels=channels, rngs=rngs, **config.network)


def make_autoencoder(config: ml_collections.ConfigDict, rngs: nnx.Rngs) -> Autoencoder:
    """Returns the autoencoder of a config, with new weights."""
    autoencoder = config.autoencoder
    return Autoencoder(channels=autoencoder.channels, widths=autoencoder.widths, rngs=rngs)


def structures(config: ml_collections.ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns the networks that a config's part consists of, without weights.

    Returns:
      By name, "unet" and "autoencoder", the graph of a network and its state, which has shapes in
      place of arrays.
    """
    makers = {
        "pixel": {"unet": make_unet},
        "autoencoder": {"autoencoder": make_autoencoder},
        "latent": {"unet": make_unet, "autoencoder": make_autoencoder},
    }[config.part]
    return {
        name: nnx.split(nnx.eval_shape(lambda make=make: make(config, nnx.Rngs(0))))
        for name, make in makers.items()
    }
