"""A classifier of whole images on any backbone."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wsdl_jax.models import backbones
from wsdl_jax.models.backbone import Features
from wsdl_jax.models.layers import Dtype
from wsdl_jax.models.outputs import Outputs


class ImageClassifier(nnx.Module):
    """A whole backbone with two classes, in two halves: explanations are read at their seam."""

    def __init__(
        self,
        *,
        backbone: str = backbones.XCEPTION,
        dtype: Dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        """Takes a backbone by its name, see `backbones.trunk`, as which it has further options."""
        self.trunk, self.top = backbones.classifying(
            backbone,
            dtype=dtype,
            axis_name=axis_name,
            rngs=rngs,
            **options,
        )

    def lower(self, images: Float[Array, "b h w 3"], stage: int) -> Features:
        """Returns what is behind a stage of the backbone, the first of which is 1."""
        return self.trunk.through(self.trunk.stem(images), 0, stage)

    def upper(self, features: Features, stage: int) -> Float[Array, "b 2"]:
        """Returns image logits from what is behind a stage."""
        return self.top(self.trunk.through(features, stage, self.trunk.stages))

    def __call__(self, images: Float[Array, "b h w 3"]) -> Outputs:
        """images: float32 in [-1, 1]."""
        stages = self.trunk.stages
        return Outputs(image_logits=self.upper(self.lower(images, stages), stages))
