"""A camera: linear light through an RGGB Bayer sensor, bilinear demosaicing and a gamma curve.

Its two traces are in every real image and a generator does not make them. Each pixel measures one
colour, so demosaicing fills the other two from neighbours: residuals of neighbouring pixels are
correlated, next to no energy is left at the Nyquist frequencies, and the noise variance repeats
every two pixels (1, 1/2, 1/2, 1/4 for red and blue, 1, 1/4 for green).
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, UInt8

from wsdl_data.portraits.scene import GAMMA

# Noise of the sensor at ISO 1, as shares of full scale. The variance at linear light x is
# iso^2 (SHOT x + READ^2): photon noise plus that of the electronics.
SHOT = 2.0e-4
READ = 3.0e-3


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a camera takes an image."""

    exposure: float  # multiplies the light
    iso: float  # multiplies the noise's standard deviation


def draw_settings(rng: np.random.Generator) -> Settings:
    """Draws settings from the prior: exposure 0.8..1.25, iso 1..4, both log-uniform."""
    return Settings(
        exposure=float(np.exp(rng.uniform(np.log(0.8), np.log(1.25)))),
        iso=float(np.exp(rng.uniform(0.0, np.log(4.0)))),
    )


def noise_std(
    light: Float32[np.ndarray, "*shape"], settings: Settings
) -> Float32[np.ndarray, "*shape"]:
    """Returns the standard deviation of one sensor reading at linear light in 0..1."""
    return np.float32(settings.iso) * np.sqrt(np.float32(SHOT) * light + np.float32(READ**2))


def develop(light: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns linear light as an 8-bit image: clipped to 0..1, gamma curve, rounded."""
    return np.rint(255.0 * np.clip(light, 0.0, 1.0) ** np.float32(1.0 / GAMMA)).astype(np.uint8)


def demosaic(mosaic: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 3"]:
    """Demosaics an RGGB mosaic (red at even rows and columns) bilinearly; h and w are even.

    A missing colour is the mean of the nearest pixels that measured it. Mirrored borders (without
    repeating the edge) keep the mosaic's phase.
    """
    height, width = mosaic.shape
    padded = np.pad(mosaic, 1, mode="reflect")
    center = padded[1:-1, 1:-1]
    left, right = padded[1:-1, :-2], padded[1:-1, 2:]
    above, below = padded[:-2, 1:-1], padded[2:, 1:-1]
    across, along = (left + right) * 0.5, (above + below) * 0.5
    diagonal = (padded[:-2, :-2] + padded[:-2, 2:] + padded[2:, :-2] + padded[2:, 2:]) * 0.25
    image = np.empty((height, width, 3), np.float32)
    for color, row in ((0, 0), (2, 1)):  # red is at (0, 0), blue at (1, 1)
        own, other = slice(row, None, 2), slice(1 - row, None, 2)
        image[own, own, color] = center[own, own]
        image[own, other, color] = across[own, other]
        image[other, own, color] = along[other, own]
        image[other, other, color] = diagonal[other, other]
    image[..., 1] = center
    cross = (across + along) * 0.5
    image[0::2, 0::2, 1] = cross[0::2, 0::2]
    image[1::2, 1::2, 1] = cross[1::2, 1::2]
    return image


def capture(
    scene_light: Float32[np.ndarray, "h w 3"], settings: Settings, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the camera's image of linear scene light; h and w are even (whole Bayer cells).

    Raises:
      ValueError: if h or w is odd.
    """
    height, width, _ = scene_light.shape
    if height % 2 or width % 2:
        raise ValueError(f"a Bayer mosaic needs an even height and width, got {height}x{width}")
    mosaic = np.empty((height, width), np.float32)
    mosaic[0::2, 0::2] = scene_light[0::2, 0::2, 0]
    mosaic[0::2, 1::2] = scene_light[0::2, 1::2, 1]
    mosaic[1::2, 0::2] = scene_light[1::2, 0::2, 1]
    mosaic[1::2, 1::2] = scene_light[1::2, 1::2, 2]
    mosaic *= np.float32(settings.exposure)
    noise = rng.standard_normal((height, width), dtype=np.float32)
    return develop(demosaic(mosaic + noise * noise_std(mosaic, settings)))
