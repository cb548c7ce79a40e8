"""A classifier with a learned attention mask (Dang et al., 2020, regression-based map)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wsdl_jax.models import backbones
from wsdl_jax.models.layers import Dtype, SeparableConv
from wsdl_jax.models.outputs import Outputs


class Attention(nnx.Module):
    """A whole backbone with two classes and a mask inserted after stage `attended`."""

    def __init__(
        self,
        *,
        backbone: str = backbones.XCEPTION,
        attended: int = 7,
        width: float = 1.0,
        remat: bool = False,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        lora_rank: int = 0,
        rngs: nnx.Rngs,
    ):
        """Takes the backbone's name, and the stage whose output is masked.

        backbone: one of `backbones.names()`.
        """
        self.trunk, self.top = backbones.classifying(
            backbone,
            width=width,
            remat=remat,
            dtype=dtype,
            axis_name=axis_name,
            lora_rank=lora_rank,
            rngs=rngs,
        )
        self.attended = attended
        self.map = SeparableConv(self.trunk.widths[attended - 1], 1, dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Outputs:
        """images: float32 in [-1, 1]. Of Xception the mask has 19×19 locations for 299×299."""
        features = self.trunk.through(self.trunk.stem(images), 0, self.attended)
        attention = nnx.sigmoid(self.map(features.map).astype(jnp.float32))
        gated = features._replace(map=features.map * attention.astype(features.map.dtype))
        behind = self.trunk.through(gated, self.attended, self.trunk.stages)
        return Outputs(image_logits=self.top(behind), attention=attention[..., 0])
