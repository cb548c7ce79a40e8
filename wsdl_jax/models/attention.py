"""Xception with a learned attention mask (Dang et al., 2020, regression-based map)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wsdl_jax.models.layers import Dtype, SeparableConv
from wsdl_jax.models.outputs import Outputs
from wsdl_jax.models.xception import Top, Trunk

ATTENDED_BLOCK = 7  # the mask is read from this block's output and multiplies it


class Attention(nnx.Module):
    """The whole Xception with two classes and a mask inserted after block 7."""

    def __init__(
        self,
        *,
        width: float = 1.0,
        remat: bool = False,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"width": width, "dtype": dtype, "axis_name": axis_name}
        self.trunk = Trunk(12, remat=remat, **kwargs, rngs=rngs)
        attended = self.trunk.blocks[ATTENDED_BLOCK - 1].convs[-1].pointwise.out_features
        self.map = SeparableConv(attended, 1, dtype=dtype, rngs=rngs)
        self.top = Top(self.trunk.features, **kwargs, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Outputs:
        """images: float32 in [-1, 1]. The mask has 19×19 locations for images of 299×299."""
        x = self.trunk.stem(images)
        for block in self.trunk.blocks[:ATTENDED_BLOCK]:
            x = block(x)
        attention = nnx.sigmoid(self.map(x).astype(jnp.float32))
        x = x * attention.astype(x.dtype)
        for block in self.trunk.blocks[ATTENDED_BLOCK:]:
            x = block(x)
        return Outputs(image_logits=self.top(x), attention=attention[..., 0])
