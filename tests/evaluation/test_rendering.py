"""The colour scale, and maps laid over images, by their pixels."""

import numpy as np
from PIL import Image

from wsdl_jax.evaluation import rendering


def luminance(colours: np.ndarray) -> np.ndarray:
    """Relative luminance of sRGB values (IEC 61966-2-1)."""
    c = colours / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_colour_scale_gets_lighter_throughout():
    scale = rendering.colour(np.linspace(0, 1, 256)[None])[0]
    assert scale.shape == (256, 3) and scale.dtype == np.uint8
    assert (np.diff(luminance(scale)) >= 0).all()
    assert luminance(scale[0]) < 0.01 and luminance(scale[-1]) > 0.9
    # No value beyond the ends: maps are probabilities.
    np.testing.assert_array_equal(rendering.colour(np.array([[-1.0, 2.0]]))[0], scale[[0, -1]])


def test_overlay_is_denser_where_the_map_is_high():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    values = rng.integers(0, 256, (5, 7)).astype(np.uint8)
    values[0, :3] = 0, 128, 255
    grey = Image.fromarray(values)
    scale = rendering.colour(np.linspace(0, 1, 256)[None])[0]
    np.testing.assert_array_equal(rendering.heat(grey).convert("RGB"), scale[values])
    opacity = 0.65 * values[..., None] / 255
    expected = (1 - opacity) * image + opacity * scale[values]
    out = np.asarray(rendering.overlay(Image.fromarray(image), grey))
    np.testing.assert_allclose(out, expected, atol=1.5)
    np.testing.assert_array_equal(out[0, 0], image[0, 0])
    np.testing.assert_array_equal(np.asarray(grey), values)  # the argument stays as it was
