"""How networks that were trained elsewhere want the values of pixels."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Pixels:
    """Mean and standard deviation that a network's images were normalized with.

    Attributes:
      mean: of red, green and blue, where black is 0 and white 1.
      std: of red, green and blue, on the same scale.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def normalized(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Returns images, which are float32 in [-1, 1], as the network wants them."""
        mean, std = jnp.array(self.mean, jnp.float32), jnp.array(self.std, jnp.float32)
        return (images.astype(jnp.float32) - (2 * mean - 1)) / (2 * std)


AS_THEY_ARE = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # stay in [-1, 1]
CLIP = Pixels((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
