"""Generators: each makes an 8-bit image out of a clean rendering, and leaves its own trace.

A generator is one function of GENERATORS, `(linear light, camera settings, rng) -> image`; add one
by writing the function and its entry. A generator imitates what a camera shows, noise included
(the grain has the noise's dependence on light, and scales with the image's own ISO), but not how
a sensor comes by it. All that it leaves is local: grain and resampling, not content or colour.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8

from wsdl_data.portraits.camera import Settings, develop, noise_std

Generator = Callable[
    [Float32[np.ndarray, "h w 3"], Settings, np.random.Generator], UInt8[np.ndarray, "h w 3"]
]

# Standard deviation of the grain relative to that of one sensor reading. Chosen so that an
# image's PNG is as large as the camera's, which it would otherwise give away (see README.md).
REGRAIN_STRENGTH = 0.4
UPSAMPLE_STRENGTH = 1.42
# How much more the even rows and columns get out of `upsample` than the odd ones.
UPSAMPLE_OVERLAP = 0.012


def regrain(
    scene_light: Float32[np.ndarray, "h w 3"], settings: Settings, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Adds white grain, drawn for each pixel and channel, as a pixel-space sampler leaves it.

    Without a mosaic there is nothing to interpolate: the grain reaches up to the Nyquist
    frequencies, and neither neighbours nor channels are correlated.
    """
    light = scene_light * np.float32(settings.exposure)
    grain = rng.standard_normal(light.shape, dtype=np.float32)
    return develop(light + np.float32(REGRAIN_STRENGTH) * noise_std(light, settings) * grain)


def _halve(plane: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h2 w2 c"]:
    """Halves the rows: (1, 2, 1) / 4 around each even one, so that nothing moves."""
    padded = np.pad(plane, ((1, 1), (0, 0), (0, 0)), mode="reflect")
    return 0.25 * (padded[:-2:2] + 2.0 * padded[1:-1:2] + padded[2::2])


def _double(plane: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h2 w2 c"]:
    """Doubles the rows by a transposed convolution of stride 2 with the kernel (1, 2, 1) / 2.

    Even rows get one tap and odd rows two: an uneven overlap, made visible as a gain.
    """
    padded = np.pad(plane, ((0, 1), (0, 0), (0, 0)), mode="edge")
    doubled = np.empty((2 * plane.shape[0], *plane.shape[1:]), np.float32)
    doubled[0::2] = plane * np.float32(1.0 + UPSAMPLE_OVERLAP)
    doubled[1::2] = (padded[:-1] + padded[1:]) * np.float32((1.0 - UPSAMPLE_OVERLAP) / 2.0)
    return doubled


def upsample(
    scene_light: Float32[np.ndarray, "h w 3"], settings: Settings, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Brings content and grain of half the resolution up as a decoder's last layer does.

    Known of transposed convolutions: a weak pattern of period two in the mean (the kernel
    overlaps itself unevenly) and grain whose spectrum is an image of the coarse grid's. Half of
    the grain's variance is common to the channels, which are made of the same features.
    """
    light = scene_light * np.float32(settings.exposure)
    coarse = _halve(_halve(light).swapaxes(0, 1)).swapaxes(0, 1)
    grain = rng.standard_normal(coarse.shape, dtype=np.float32)
    grain += rng.standard_normal((*coarse.shape[:2], 1), dtype=np.float32)
    grain *= np.float32(UPSAMPLE_STRENGTH / np.sqrt(2.0))
    coarse = coarse + noise_std(coarse, settings) * grain
    return develop(_double(_double(coarse).swapaxes(0, 1)).swapaxes(0, 1))


GENERATORS: dict[str, Generator] = {"regrain": regrain, "upsample": upsample}
