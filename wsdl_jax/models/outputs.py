"""What every network returns."""

from typing import NamedTuple

from jaxtyping import Array, Float


class Outputs(NamedTuple):
    """Outputs of a network for B images; None where a network has no such output.

    Attributes:
      image_logits: class scores of whole images, [real, fake].
      map_logits: class scores of every location, [real, fake].
      attention: the learned mask, in (0, 1); 1 = manipulated.
    """

    image_logits: Float[Array, "b 2"] | None = None
    map_logits: Float[Array, "b h w 2"] | None = None
    attention: Float[Array, "b h w"] | None = None
