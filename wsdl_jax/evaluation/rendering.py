"""Renders localization maps: the colour scale, and maps laid over their images."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

# Anchors of a colour scale from 0 to 1 whose lightness rises evenly, readable without colour too.
_SCALE = np.array([(8, 8, 24), (84, 20, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
_OPAQUE = 0.65  # opacity of an overlay's colour where the map is 1


def colour(values: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns values in [0, 1] as colours of the scale, from dark at 0 to light at 1."""
    stops = np.linspace(0, 1, len(_SCALE))
    channels = [np.interp(values, stops, _SCALE[:, c]) for c in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def heat(values: Image.Image) -> Image.Image:
    """Returns a map, given as an 8-bit grey image, in the scale's colours, as a palette image."""
    out = values.copy()
    out.putpalette(colour(np.linspace(0, 1, 256)[None]).tobytes())
    return out


def overlay(image: Image.Image, values: Image.Image) -> Image.Image:
    """Lays a map in colour over an RGB image, more opaque where its values are higher.

    Args:
      image: an RGB image.
      values: the map, as an 8-bit grey image of the same size.
    """
    opacity = values.point([round(_OPAQUE * value) for value in range(256)])
    return Image.composite(heat(values).convert("RGB"), image, opacity)
