"""A classifier with a learned attention mask (Dang et al., 2020, regression-based map)."""

from typing import Any

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
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        """Takes a backbone by its name, see `backbones.trunk`, as which it has further options.

        attended: the stage whose output is masked.
        """
        self.trunk, self.top = backbones.classifying(
            backbone,
            dtype=dtype,
            axis_name=axis_name,
            rngs=rngs,
            **options,
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
