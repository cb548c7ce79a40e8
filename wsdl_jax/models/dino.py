"""A light convolutional head on a transformer's last tokens, which adapters fit to the task."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wsdl_jax.models import backbones
from wsdl_jax.models.layers import BatchNorm, Conv, Dtype, Pointwise
from wsdl_jax.models.outputs import Outputs
from wsdl_jax.models.xception import scaled

_WIDTHS = (256, 128, 64)  # channels of the projection, and behind each of the convolutions


class ConvHead(nnx.Module):
    """A projection to 256 channels; twice a 3×3 convolution, then twice the size; two classes.

    BatchNorm and ReLU follow the projection and each convolution, which have 128 and 64 channels.
    """

    def __init__(
        self,
        inputs: int,
        *,
        width: float = 1.0,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds a head.

        Args:
          inputs: channels of the features.
          width: multiplies the head's channels.
          dtype: of the computation; the last layer is float32.
          axis_name: the axis of devices over which BatchNorm is synchronized; None for one device.
          rngs: of the layers, whose kernels are zero until they are drawn.
        """
        widths = [scaled(channels, width) for channels in _WIDTHS]
        self.project = Pointwise(inputs, widths[0], dtype=dtype, rngs=rngs)
        self.convs = nnx.List(
            Conv(a, b, padding=1, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(widths)
        )
        self.norms = nnx.List(BatchNorm(channels, axis_name=axis_name) for channels in widths)
        self.classifier = Pointwise(widths[-1], 2, use_bias=True, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 4*h 4*w 2"]:
        """Returns class scores of every location, [real, fake], float32."""
        x = nnx.relu(self.norms[0](self.project(x)))
        for conv, norm in zip(self.convs, self.norms[1:], strict=True):
            x = nnx.relu(norm(conv(x)))
            batch, height, width, channels = x.shape
            x = jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "bilinear")
        return self.classifier(x)


class Dino(nnx.Module):
    """A backbone cut after stage `depth`, with adapters if it is asked for, and a `ConvHead`."""

    def __init__(
        self,
        *,
        backbone: str,
        depth: int,
        width: float = 1.0,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        """Takes a backbone by its name, see `backbones.trunk`, as which it has further options."""
        kwargs: dict[str, Any] = {"dtype": dtype, "axis_name": axis_name, "rngs": rngs}
        self.trunk = backbones.trunk(backbone, depth, width=width, **kwargs, **options)
        self.head = ConvHead(self.trunk.features, width=width, **kwargs)

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Returns what the head sees. Images are float32 in [-1, 1]."""
        return self.trunk(images)

    def decode(self, features: Float[Array, "b h w c"]) -> Outputs:
        """Returns map logits of four times as many locations a side as the features have."""
        return Outputs(map_logits=self.head(features))

    def __call__(self, images: Float[Array, "b h w c"]) -> Outputs:
        """images: float32 in [-1, 1]. Of DINOv2 maps of 64×64 for images of 224×224."""
        return self.decode(self.features(images))
