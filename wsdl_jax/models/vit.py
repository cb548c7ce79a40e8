"""Vision transformers (Dosovitskiy et al., 2021): CLIP's, DINOv2's, and a small one of our own."""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from wsdl_jax.models import pixels
from wsdl_jax.models.backbone import Backbone, Features
from wsdl_jax.models.interpolation import bicubic
from wsdl_jax.models.layers import BatchNorm, Conv, Dtype, Pointwise, attention
from wsdl_jax.models.xception import scaled

INITIAL_LAYER_SCALE = 1e-5  # as DINOv2's training begins


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x·σ(1.702·x), the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x·Φ(x) (Hendrycks and Gimpel, 2016), with Φ as the error function gives it."""
    return jax.nn.gelu(x, approximate=False)


@dataclass(frozen=True)
class Form:
    """What tells one vision transformer from another.

    Attributes:
      width: channels of a token.
      blocks: how many there are.
      heads: of the attention in each block.
      patch: pixels a side of the patch that becomes a token.
      grid: patches a side that learnt positions are for, interpolated for other images; None: the
        positions are sines and cosines, for any number of patches.
      pixels: how images are normalized.
      activation: between the two linear layers of a block.
      epsilon: of all layer normalizations.
      class_token: whether a class token goes before the patches.
      convolutions: channels of the convolutions of stride 2 that make embeddings of patches (Xiao
        et al., 2021); empty where one linear layer does.
      pre_norm: whether embeddings are normalized before the first block; patches then have no bias.
      layer_scale: whether what a branch of a block adds is scaled by channel (Touvron et al.,
        2021).
    """

    width: int
    blocks: int
    heads: int
    patch: int
    grid: int | None
    pixels: pixels.Pixels
    activation: Callable[[Array], Array]
    epsilon: float
    class_token: bool = True
    convolutions: tuple[int, ...] = ()
    pre_norm: bool = False
    layer_scale: bool = False


_DINOV2 = functools.partial(
    Form,
    patch=14,
    grid=37,  # of its last epochs' 518 pixels
    pixels=pixels.IMAGENET,
    activation=exact_gelu,
    epsilon=1e-6,
    layer_scale=True,
)
FORMS: Mapping[str, Form] = MappingProxyType(  # by the names of backbones
    {
        "clip_vit_l14": Form(
            width=1024,
            blocks=24,
            heads=16,
            patch=14,
            grid=16,
            pixels=pixels.CLIP,
            activation=quick_gelu,
            epsilon=1e-5,
            pre_norm=True,
        ),
        "dinov2_s14": _DINOV2(width=384, blocks=12, heads=6),
        "dinov2_b14": _DINOV2(width=768, blocks=12, heads=12),
        "dinov2_l14": _DINOV2(width=1024, blocks=24, heads=16),
        "vit_tiny": Form(
            width=128,
            blocks=6,
            heads=2,
            patch=8,
            grid=None,
            pixels=pixels.AS_THEY_ARE,
            activation=exact_gelu,
            epsilon=1e-6,
            class_token=False,
            convolutions=(32, 64, 128),
        ),
    }
)


def sines_and_cosines(rows: int, columns: int, width: int) -> np.ndarray:
    """Returns positions [rows, columns, width], float32, that are not learnt (Chen et al., 2021).

    A quarter of the channels each has the sines and the cosines of the column and of the row, at
    wavelengths from 2π to 20,000π patches. `width` is a multiple of 4.
    """
    frequencies = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    found = np.zeros((rows, columns, width), np.float32)
    quarters = np.split(found, 4, axis=-1)
    for index, places in enumerate((np.arange(columns)[None, :], np.arange(rows)[:, None])):
        angles = places[..., None] * frequencies
        quarters[2 * index][...], quarters[2 * index + 1][...] = np.sin(angles), np.cos(angles)
    return found


class PatchEmbedding(nnx.Module):
    """A convolution of patches that do not overlap."""

    def __init__(self, patch: int, width: int, *, use_bias: bool, dtype: Dtype):
        self.kernel = nnx.Param(jnp.zeros((patch, patch, 3, width)))
        self.bias = nnx.Param(jnp.zeros(width)) if use_bias else None
        self.patch, self.dtype = patch, dtype

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """Returns a token for each patch, in `dtype`."""
        batch, height, width, _ = images.shape
        side = self.patch
        rows, columns = height // side, width // side
        x = images.reshape(batch, rows, side, columns, side, 3).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch * rows * columns, -1).astype(self.dtype)
        kernel = self.kernel[...]
        x = x @ kernel.reshape(-1, kernel.shape[-1]).astype(self.dtype)
        if self.bias is not None:
            x = x + self.bias[...].astype(self.dtype)
        return x.reshape(batch, rows, columns, -1)


class ConvolutionalStem(nnx.Module):
    """Convolutions 3×3 of stride 2 with BatchNorm and ReLU, then a linear layer.

    After Xiao et al. (2021). What tells a generated image is in differences of neighbouring pixels,
    which a linear layer of whole patches learns late.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        features: int,
        *,
        dtype: Dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        """widths: channels behind each convolution. features: those of a token."""
        self.convs = nnx.List(
            Conv(a, b, stride=2, padding=1, dtype=dtype, rngs=rngs)
            for a, b in itertools.pairwise((3, *widths))
        )
        self.norms = nnx.List(BatchNorm(b, axis_name=axis_name) for b in widths)
        self.linear = Pointwise(widths[-1], features, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """Returns a token for each patch, in the computation's type."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.linear(x)


def _linear(inputs: int, outputs: int, rank: int, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer, beside which an adapter of a rank stands; none for 0."""
    kwargs: dict[str, Any] = {
        "kernel_init": nnx.initializers.zeros_init(),
        "dtype": dtype,
        "rngs": rngs,
    }
    if not rank:
        return nnx.Linear(inputs, outputs, **kwargs)
    # The product of its matrices is 0 at first, and not scaled: alpha is the rank.
    first = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return nnx.LoRALinear(
        inputs, outputs, lora_rank=rank, lora_dtype=dtype, a_initializer=first, **kwargs
    )


def _norm(width: int, epsilon: float, dtype: Dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # Flax's fast variance, E[x²] − E[x]², loses all digits where the mean is large.
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """Self-attention and two linear layers, each behind a LayerNorm and around a shortcut."""

    def __init__(
        self, form: Form, width: int, *, lora_rank: int, remat: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        """lora_rank: of the adapters of queries and values (Hu et al., 2022); 0: there are none."""
        self.norm1 = _norm(width, form.epsilon, dtype, rngs)
        self.query = _linear(width, width, lora_rank, dtype, rngs)
        self.key = _linear(width, width, 0, dtype, rngs)
        self.value = _linear(width, width, lora_rank, dtype, rngs)
        self.out = _linear(width, width, 0, dtype, rngs)
        self.norm2 = _norm(width, form.epsilon, dtype, rngs)
        self.up = _linear(width, 4 * width, 0, dtype, rngs)
        self.down = _linear(4 * width, width, 0, dtype, rngs)
        scale = jnp.full(width, INITIAL_LAYER_SCALE)
        self.attention_scale = nnx.Param(scale) if form.layer_scale else None
        self.mlp_scale = nnx.Param(scale) if form.layer_scale else None
        self.form, self.remat = form, remat

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """Returns the tokens behind the block."""
        return nnx.remat(Block._layers)(self, x) if self.remat else self._layers(x)

    def _layers(self, x: Array) -> Array:
        # Tokens of all images as one matrix: on a CPU, kernels' gradients are then twice as fast.
        batch, tokens, channels = x.shape
        x = x.reshape(-1, channels)
        heads = (batch, tokens, self.form.heads, -1)
        normed = self.norm1(x)
        query, key, value = (
            layer(normed).reshape(heads) for layer in (self.query, self.key, self.value)
        )
        attended = self.out(attention(query, key, value).reshape(x.shape))
        x = x + self._scaled(attended, self.attention_scale)
        hidden = self.form.activation(self.up(self.norm2(x)))
        x = x + self._scaled(self.down(hidden), self.mlp_scale)
        return x.reshape(batch, tokens, channels)

    @staticmethod
    def _scaled(x: Array, scale: nnx.Variable | None) -> Array:
        return x if scale is None else x * scale[...].astype(x.dtype)


class ViT(Backbone):
    """The first `depth` blocks of a vision transformer; each is a stage.

    Any image goes whose sides are multiples of the patch. The map of a stage is what its block
    gives for the patches, without the last normalization; `Features.tokens` are the class token,
    where there is one, and the registers (Darcet et al., 2024).

    Learnt positions are interpolated as `transformers` does it for the same network: bicubically to
    the number of patches, and antialiased for DINOv2 with registers alone. (DINOv2's own code
    scales the grid of those without registers by a tenth of a patch more.)
    """

    def __init__(
        self,
        depth: int,
        *,
        form: Form,
        registers: int = 0,
        width: float = 1.0,
        lora_rank: int = 0,
        remat: bool = False,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds a network whose kernels are zero, to be initialized or read from a file.

        Args:
          depth: how many blocks, from 1.
          form: which transformer it is.
          registers: how many register tokens follow the class token.
          width: by which channels are multiplied, of networks that have no published file.
          lora_rank: of the adapters (Hu et al., 2022) of queries and values; 0: there are none.
          remat: whether each block is computed again in the backward pass, to save memory.
          dtype: of the computation; parameters are float32.
          axis_name: of the axis that devices are on, over which BatchNorm averages, if any.
          rngs: of the adapters' initial values.

        Raises:
          ValueError: there is no such block.
        """
        if not 1 <= depth <= form.blocks:
            raise ValueError(f"this ViT has blocks 1 to {form.blocks}, not {depth}")
        channels = form.heads * scaled(form.width // form.heads, width)
        self.form, self.width, self.dtype = form, width, dtype
        self.widths = (channels,) * depth
        if form.convolutions:
            self.patches = ConvolutionalStem(
                tuple(scaled(c, width) for c in form.convolutions),
                channels,
                dtype=dtype,
                axis_name=axis_name,
                rngs=rngs,
            )
        else:
            self.patches = PatchEmbedding(
                form.patch, channels, use_bias=not form.pre_norm, dtype=dtype
            )
        self.class_token = nnx.Param(jnp.zeros(channels)) if form.class_token else None
        self.registers = nnx.Param(jnp.zeros((registers, channels))) if registers else None
        # The first is the class token's.
        places = form.class_token + form.grid**2 if form.grid else 0
        self.positions = nnx.Param(jnp.zeros((places, channels))) if places else None
        self.pre_norm = _norm(channels, form.epsilon, dtype, rngs) if form.pre_norm else None
        self.blocks = nnx.List(
            Block(form, channels, lora_rank=lora_rank, remat=remat, dtype=dtype, rngs=rngs)
            for _ in range(depth)
        )

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Returns "layer0" for the first block, as DeCLIP has it, and so on."""
        return tuple(f"layer{block}" for block in range(self.stages))

    def stem(self, images: Float[Array, "b h w 3"]) -> Features:
        """Returns the embeddings that go into the first block.

        Images are float32 in [-1, 1]. Raises ValueError where the patch divides no side.
        """
        height, width = images.shape[1:3]
        side = self.form.patch
        if not height or not width or height % side or width % side:
            raise ValueError(
                f"images of {height}×{width} pixels; this ViT takes sides that are multiples of "
                f"{side}"
            )
        rows, columns = height // side, width // side
        x = self.patches(self.form.pixels.normalized(images))
        x = x + self._positions(rows, columns).astype(x.dtype)
        tokens = None
        if self.class_token is not None:
            first = self.class_token[...]
            if self.positions is not None:
                first = first + self.positions[0]
            tokens = first[None]
        if self.registers is not None:
            tokens = jnp.concatenate([tokens, self.registers[...]])
        if tokens is not None:
            tokens = jnp.broadcast_to(tokens.astype(x.dtype), (x.shape[0], *tokens.shape))
        if self.pre_norm is not None:
            x, tokens = self.pre_norm(x), self.pre_norm(tokens)
        return Features(x, tokens)

    def _positions(self, rows: int, columns: int) -> Array:
        """Positions [rows, columns, c] of patches, float32."""
        if self.positions is None:
            return jnp.asarray(sines_and_cosines(rows, columns, self.features))
        grid = self.form.grid
        learnt = self.positions[-(grid**2) :].reshape(grid, grid, -1)
        if (rows, columns) == (grid, grid):
            return learnt
        matrices = (bicubic(grid, new, self.registers is not None) for new in (rows, columns))
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("ri,cj,ijd->rcd", *matrices, learnt, precision=highest)

    def through(self, features: Features, start: int, stop: int) -> Features:
        """Returns what is behind block `stop`, from what is behind block `start`; 0: embeddings."""
        batch, *_, channels = features.map.shape
        x = features.map.reshape(batch, -1, channels)
        before = 0
        if features.tokens is not None:
            before = features.tokens.shape[1]
            x = jnp.concatenate([features.tokens, x], axis=1)
        for block in self.blocks[start:stop]:
            x = block(x)
        tokens = None if features.tokens is None else x[:, :before]
        return Features(x[:, before:].reshape(features.map.shape), tokens)


class Top(nnx.Module):
    """What follows the last block: LayerNorm; class token, if any, and mean of patches; linear."""

    def __init__(
        self,
        features: int,
        *,
        form: Form,
        width: float = 1.0,
        dtype: Dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        """features: channels of a token. It is small: float32, whatever the backbone's dtype is."""
        self.norm = _norm(features, form.epsilon, jnp.float32, rngs)
        self.linear = nnx.Linear(
            features * (1 + form.class_token),
            2,
            kernel_init=nnx.initializers.zeros_init(),
            rngs=rngs,
        )
        self.class_token = form.class_token

    def __call__(self, features: Features) -> Float[Array, "b 2"]:
        """Returns the image logits of the features behind the last block."""
        pooled = self.norm(features.map.astype(jnp.float32)).mean((1, 2))
        if self.class_token:
            first = self.norm(features.tokens[:, 0].astype(jnp.float32))
            pooled = jnp.concatenate([first, pooled], axis=-1)
        return self.linear(pooled)
