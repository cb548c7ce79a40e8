"""DeCLIP (Smeu et al., 2025): a decoder of the features of a backbone, or of two side by side."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wsdl_jax.models import backbones
from wsdl_jax.models.decoder import make_decoder
from wsdl_jax.models.layers import Dtype
from wsdl_jax.models.outputs import Outputs


class DeCLIP(nnx.Module):
    """A backbone cut after stage `depth`, maybe a second one beside it, and a decoder.

    The map of the second is brought to the size of the first's, bilinearly and without aligned
    corners, and its channels follow the first's.
    """

    def __init__(
        self,
        *,
        backbone: str,
        depth: int,
        decoder: str,
        beside: str | None = None,
        beside_depth: int = 1,
        width: float = 1.0,
        remat: bool = False,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        """Builds a network.

        Args:
          backbone: one of `backbones.names()`.
          depth: the stage of it that is decoded.
          decoder: one of `decoder.DECODERS`.
          beside: the second backbone; None: there is none.
          beside_depth: the stage of it that is decoded.
          width: multiplies the channels of the first backbone and of the decoder.
          remat: whether each block is computed again in the backward pass, to save memory.
          dtype: of the computation.
          axis_name: the axis of devices over which BatchNorm is synchronized; None for one device.
          rngs: of the layers.
          **options: further ones of the first backbone, see `backbones.trunk`.
        """
        kwargs: dict[str, Any] = {
            "remat": remat,
            "dtype": dtype,
            "axis_name": axis_name,
            "rngs": rngs,
        }
        self.trunk = backbones.trunk(backbone, depth, width=width, **kwargs, **options)
        if beside is None:
            self.beside, channels = None, self.trunk.features
        else:
            self.beside = backbones.trunk(beside, beside_depth, **kwargs)
            channels = self.trunk.features + self.beside.features
        self.decoder = make_decoder(decoder, channels, width=width, **kwargs)

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Returns what is decoded. Images are float32 in [-1, 1]."""
        features = self.trunk(images)
        if self.beside is None:
            return features
        second = self.beside(images)
        shape = (*features.shape[:3], second.shape[-1])
        second = jax.image.resize(second, shape, "bilinear", antialias=False)
        return jnp.concatenate([features, second.astype(features.dtype)], axis=-1)

    def decode(self, features: Float[Array, "b h w c"]) -> Outputs:
        """Returns map logits of 16 times as many locations a side as the features have."""
        return Outputs(map_logits=self.decoder(features))

    def __call__(self, images: Float[Array, "b h w c"]) -> Outputs:
        """images: float32 in [-1, 1]. CLIP's ViT-L/14 gives maps of 256×256 for 224×224."""
        return self.decode(self.features(images))
