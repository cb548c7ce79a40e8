"""Patches (Chai et al., 2020): the first blocks of Xception, and a class score a location."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wsdl_jax.models.layers import Dtype, Pointwise
from wsdl_jax.models.outputs import Outputs
from wsdl_jax.models.xception import Trunk


class Patches(nnx.Module):
    """Xception cut after block `depth`, then a 1×1 convolution with bias to two classes."""

    def __init__(
        self,
        *,
        depth: int = 2,
        width: float = 1.0,
        remat: bool = False,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.trunk = Trunk(
            depth, width=width, remat=remat, dtype=dtype, axis_name=axis_name, rngs=rngs
        )
        self.classifier = Pointwise(
            self.trunk.features, 2, use_bias=True, dtype=jnp.float32, rngs=rngs
        )

    def __call__(self, images: Float[Array, "b h w 3"]) -> Outputs:
        """images: float32 in [-1, 1]. Maps of 37×37 for images of 299×299 and depth 2."""
        return Outputs(map_logits=self.classifier(self.trunk(images)))
