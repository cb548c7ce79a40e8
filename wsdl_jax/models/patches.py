"""Patches (Chai et al., 2020): the first stages of a backbone, and a class score a location."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wsdl_jax.models import backbones
from wsdl_jax.models.layers import Dtype, Pointwise
from wsdl_jax.models.outputs import Outputs


class Patches(nnx.Module):
    """A backbone cut after stage `depth`, then a 1×1 convolution with bias to two classes."""

    def __init__(
        self,
        *,
        backbone: str = backbones.XCEPTION,
        depth: int = 2,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        """Takes a backbone by its name, see `backbones.trunk`, as which it has further options."""
        self.trunk = backbones.trunk(
            backbone,
            depth,
            dtype=dtype,
            axis_name=axis_name,
            rngs=rngs,
            **options,
        )
        self.classifier = Pointwise(
            self.trunk.features, 2, use_bias=True, dtype=jnp.float32, rngs=rngs
        )

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Returns the map behind the last stage. Images are float32 in [-1, 1]."""
        return self.trunk(images)

    def decode(self, features: Float[Array, "b h w d"]) -> Outputs:
        """Returns map logits of as many locations as the features have."""
        return Outputs(map_logits=self.classifier(features))

    def __call__(self, images: Float[Array, "b h w c"]) -> Outputs:
        """images: float32 in [-1, 1]. For 299×299 Xception's block 2 gives maps of 37×37."""
        return self.decode(self.features(images))
