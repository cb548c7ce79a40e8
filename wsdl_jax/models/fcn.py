"""The fully-supervised form of Grad-CAM's network: a backbone's first stages and an FCN head."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wsdl_jax.models import backbones
from wsdl_jax.models.layers import BatchNorm, Conv, Dropout, Dtype, Pointwise
from wsdl_jax.models.outputs import Outputs


class FCN(nnx.Module):
    """A backbone to stage `depth`; 3×3 convolution to a quarter of the channels, BatchNorm, ReLU,
    dropout 0.1, then a 1×1 convolution with bias to two classes (Long et al., 2015)."""

    def __init__(
        self,
        *,
        backbone: str = backbones.XCEPTION,
        depth: int = 11,
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
        features = self.trunk.features
        hidden = features // 4
        self.conv = Conv(features, hidden, padding=1, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(hidden, axis_name=axis_name)
        self.dropout = Dropout(0.1)
        self.classifier = Pointwise(hidden, 2, use_bias=True, dtype=jnp.float32, rngs=rngs)

    def features(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Returns the map behind the last stage. Images are float32 in [-1, 1]."""
        return self.trunk(images)

    def decode(self, features: Float[Array, "b h w d"]) -> Outputs:
        """Returns map logits of as many locations as the features have."""
        x = nnx.relu(self.norm(self.conv(features)))
        return Outputs(map_logits=self.classifier(self.dropout(x)))

    def __call__(self, images: Float[Array, "b h w c"]) -> Outputs:
        """images: float32 in [-1, 1]. Of Xception's block 11 maps of 19×19 for 299×299."""
        return self.decode(self.features(images))
