"""Where a localization can be trusted: how far maps of one image, moved and scaled, agree.

What is manipulated in an image does not depend on whether it is flipped, moved by some pixels or a
little larger; what a network says of it may. So each image is looked at in several ways, and the
maps are brought back to where they belong.

A view as a whole may look more or less like a fake than the image: interpolation takes grain away,
and a shift by one pixel moves the pattern of a camera's colour filters. Where in it the traces are
is what counts, and so in each view as many locations are called manipulated as in the image, those
of the highest probability.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wsdl_jax.methods import Localization


class _View(NamedTuple):
    """One way of looking at an image.

    Attributes:
      flip: whether it is mirrored, left to right.
      scale: by which it is enlarged about its centre.
      down, right: pixels by which it is moved then.
    """

    flip: Bool[Array, "..."]
    scale: Float[Array, "..."]
    down: Float[Array, "..."]
    right: Float[Array, "..."]


# Not by multiples of the eight pixels of a JPEG block, nor of the strides of networks.
_VIEWS = (
    (True, 1.0, 0, 0),
    (False, 1.0, 3, 5),
    (False, 1.0, -5, 2),
    (False, 0.9, 0, 0),
    (True, 1.1, 2, -3),
)
_BEYOND = 0.1  # of a side: how far outside an image views look, where it is seen mirrored


def checked(
    localize: Callable[[Any, Float[Array, "b h w 3"]], Localization], cut: float
) -> Callable[[Any, Float[Array, "b h w 3"]], Localization]:
    """Returns a `localize` whose localizations have `agreement`.

    Args:
      localize: of a method, see `Method`.
      cut: the probability above which a location is called manipulated.

    Returns:
      The same, with `agreement` [B, h, w] in [0, 1]: the share of the views of an image, flipped,
      moved by a few pixels and scaled by a tenth, in which a location is called manipulated or not
      as in `maps`. A view in which a location is not seen does not count. Where nothing in an image
      is called manipulated, or all of it, all views agree.
    """
    views = _View(*map(jnp.asarray, zip(*_VIEWS, strict=True)))

    def localize_and_check(model: Any, images: Float[Array, "b h w 3"]) -> Localization:
        found = localize(model, images)

        def look(view: _View) -> tuple[Array, Array]:
            maps = localize(model, _seen(images, view)).maps
            seen = _back(jnp.ones_like(maps), view, images.shape[1]) > 0.99
            called = _highest(_back(maps, view, images.shape[1]), seen, found.maps > cut)
            return seen & (called == (found.maps > cut)), seen

        # One after the other, by one program: memory is that of one view.
        same, seen = jax.lax.map(look, views)
        counts = seen.sum(0)
        agreement = jnp.where(counts > 0, same.sum(0) / jnp.maximum(counts, 1), 0.0)
        return found._replace(agreement=agreement.astype(jnp.float32))

    return localize_and_check


def _seen(images: Float[Array, "b h w 3"], view: _View) -> Float[Array, "b h w 3"]:
    """Returns images as they are seen; beyond their borders they are mirrored."""
    sides = images.shape[1:3]
    beyond = [int(_BEYOND * side) + 1 for side in sides]
    padded = jnp.pad(images, ((0, 0), *((b, b) for b in beyond), (0, 0)), "symmetric")
    padded = jnp.where(view.flip, padded[:, :, ::-1], padded)
    scale = jnp.stack([view.scale, view.scale])
    # A place p of the padded image comes to scale · (p − beyond − centre) + centre + move.
    centre = jnp.asarray(sides) / 2
    move = jnp.stack([view.down, view.right]) + centre
    translation = move - scale * (jnp.asarray(beyond) + centre)
    seen = jax.image.scale_and_translate(
        padded, images.shape, (1, 2), scale, translation, "lanczos3", antialias=True
    )
    return seen.clip(-1, 1)


def _highest(
    maps: Float[Array, "b h w"], seen: Bool[Array, "b h w"], called: Bool[Array, "b h w"]
) -> Bool[Array, "b h w"]:
    """Returns where maps are highest: at as many of the locations that are seen as are called.

    Where several are as high as the last of them, either all of these are or none, whichever is
    nearer to as many.
    """
    flat = jnp.where(seen, maps, -jnp.inf).reshape(len(maps), -1)
    count = (called & seen).sum((1, 2))
    ordered = jnp.sort(flat, axis=1, descending=True)
    last = jnp.take_along_axis(ordered, jnp.maximum(count - 1, 0)[:, None], axis=1)
    with_ties, without = seen & (maps >= last[:, :, None]), seen & (maps > last[:, :, None])
    too_many, too_few = with_ties.sum((1, 2)) - count, count - without.sum((1, 2))
    takes_ties = (too_many <= too_few) & (count > 0)
    return jnp.where(takes_ties[:, None, None], with_ties, without)


def _back(maps: Float[Array, "b h w"], view: _View, pixels: int) -> Float[Array, "b h w"]:
    """Returns maps of what was seen, where it is in the images; 0 where nothing is.

    pixels: a side of the images, which are square.
    """
    sides = jnp.asarray(maps.shape[1:])
    scale = 1 / jnp.stack([view.scale, view.scale])
    centre, move = sides / 2, jnp.stack([view.down, view.right]) * sides / pixels
    translation = centre - scale * (centre + move)
    back = jax.image.scale_and_translate(
        maps, maps.shape, (1, 2), scale, translation, "linear", antialias=False
    )
    return jnp.where(view.flip, back[:, :, ::-1], back)
