"""Self-blended images: training images of which a region is processed anew and laid back.

After Shiohara and Yamasaki (2022), who blend a face with a changed version of itself. What every
generator does to a region, whatever else it leaves there, is that the traces of the camera and of
the file's history are no longer those of the image around it; blur, resampling, noise, shifts and
compression of the region do the same, in many ways, and need no generator.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter
from scipy import ndimage

from wsdl_jax.inputs import perturbations, splicing
from wsdl_jax.inputs.examples import FAKE

Pixels = UInt8[np.ndarray, "h w 3"]

_COUNTS = {1: 0.4, 2: 0.4, 3: 0.2}  # how many of the ways below follow each other, and how often
_FARTHEST = 4.0  # pixels of a shift, either way


def self_blend(example: dict[str, Any], share: float, rng: np.random.Generator) -> dict[str, Any]:
    """Returns a training example of which, with a probability, a region is processed anew.

    The region covers 2 to 60% of the image, with a hard or a soft seam, as in `splicing.splice`; it
    counts as manipulated, and the image as fake.

    Args:
      example: `image` [h, w, 3] uint8 in its own size, `label`, and `region` [h, w]: of every
        pixel whether it is manipulated (uint8), or the share of it that is (float32); NaN where
        that is not known, and nothing is done.
      share: of the images that are changed, in [0, 1].
      rng: from which alone it follows what is done.

    Returns:
      The example with another `image`, `label` and `region`, or as it was, also where no pixel has
      changed.
    """
    if rng.random() >= share or np.isnan(example["region"]).any():
        return example
    image, region = example["image"], example["region"]
    count = rng.choice(list(_COUNTS), p=list(_COUNTS.values()))
    changed = image
    for way in rng.permutation(len(_WAYS))[:count]:
        changed = _WAYS[way](changed, rng)
    mixed, opacity = splicing.laid_in(image, changed, rng)
    if np.array_equal(mixed, image):  # there was nothing to see in that region
        return example
    manipulated = opacity if region.dtype == np.float32 else (opacity > 0.5).astype(region.dtype)
    return {
        **example,
        "image": mixed,
        "label": np.int32(FAKE),
        "region": np.maximum(region, manipulated),
    }


def _blurred(image: Pixels, rng: np.random.Generator) -> Pixels:
    return perturbations.blur(image, rng.uniform(0.3, 2.0))


def _median(image: Pixels, rng: np.random.Generator) -> Pixels:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.MedianFilter(3)))


def _noisy(image: Pixels, rng: np.random.Generator) -> Pixels:
    return perturbations.noise(image, _evenly_in_logarithm(0.5, 6.0, rng), rng)


def _regrained(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Exchanges the noise of an image for as much of another grain, from fine to coarse.

    What a small Gaussian takes away is taken for noise; the new one has its standard deviation in
    each channel, and some of it is common to all channels.
    """
    pixels = image.astype(np.float32)
    sigma = rng.uniform(0.5, 1.2)
    smooth = ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest")
    # A median, so that edges do not count.
    spread = 1.48 * np.median(np.abs(pixels - smooth), axis=(0, 1))
    grain = rng.standard_normal(image.shape, np.float32)
    if rng.random() < 0.5:
        size = rng.uniform(0.3, 0.8)
        grain = ndimage.gaussian_filter(grain, (size, size, 0), mode="wrap")
    common = rng.uniform(0, 1)
    grain = np.sqrt(1 - common) * grain + np.sqrt(common) * grain[..., :1]
    grain *= rng.uniform(0.5, 2.0) * spread / grain.std((0, 1))
    return (smooth + grain).round().clip(0, 255).astype(np.uint8)


def _resampled(image: Pixels, rng: np.random.Generator) -> Pixels:
    return perturbations.resize(image, _evenly_in_logarithm(0.35, 1.6, rng))


def _compressed(image: Pixels, rng: np.random.Generator) -> Pixels:
    return perturbations.jpeg(image, float(rng.integers(60, 95, endpoint=True)))


def _shifted(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Moves an image by up to some pixels; by whole ones half of the time."""
    by = rng.uniform(-_FARTHEST, _FARTHEST, 2)
    if rng.random() < 0.5:
        by = by.round()
    moved = ndimage.shift(image.astype(np.float32), (*by, 0), order=1, mode="mirror")
    return moved.round().astype(np.uint8)


_WAYS: tuple[Callable[[Pixels, np.random.Generator], Pixels], ...] = (
    _blurred,
    _median,
    _noisy,
    _regrained,
    _resampled,
    _compressed,
    _shifted,
)


def _evenly_in_logarithm(least: float, largest: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(least), np.log(largest))))
