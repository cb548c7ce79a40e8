"""Splices real and fake images: training images of which it is known which part is fake.

After CutMix (Yun et al., 2019), with irregular regions and a target for every location. Nothing is
needed but the image labels: a whole fake is fake everywhere and a real image nowhere, and so a
composite of the two has a mask that nobody had to draw.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from scipy import ndimage

from wsdl_data import shapes
from wsdl_jax.inputs.examples import FAKE, REAL

# How often each shape is drawn.
_SHAPES = {"blobs": 0.6, "strokes": 0.2, "boxes": 0.2}
_FEATHERED = 0.5  # share of the seams that are soft
_SOFTEST = 0.02  # the largest sigma of a soft seam, of the shorter side; at least a pixel
_GRID = 8  # pixels: crops are cut along the blocks of JPEG files


def splice(
    example: dict[str, Any],
    partner: Callable[[int, np.random.Generator], dict[str, Any]],
    share: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Returns a training example in which, with a probability, a region is of another image.

    Of a fake, all but a region becomes real: the region covers 2 to 60% of the image. So that a
    seam by itself says little, real images get a region of other real images with the same
    probability, and fakes that stay fake a region of other fakes. Shape and softness of the seams
    do not depend on the label. (A fake has two chances of a seam, a real image one: with 0.7, 91%
    of the fakes and 70% of the real images have one.) Where sizes differ, both images are cut to
    the smaller height and width, at a random place, in their own resolution.

    Args:
      example: `image` [h, w, 3] uint8 in its own size, and `label`, 0 real or 1 fake.
      partner: (label, rng) → an example of that label, drawn from the whole training set.
      share: of the fakes that are spliced, in [0, 1].
      rng: from which alone it follows what is done.

    Returns:
      The example with `image`, and `region` [h, w] float32, the share of each pixel that is fake.
    """
    image, label = example["image"], int(example["label"])
    other = label
    if label == FAKE and rng.random() < share:
        other = REAL
    if other == label and rng.random() >= share:
        return {**example, "region": np.full(image.shape[:2], label, np.float32)}
    image, patch = _of_one_size(image, partner(other, rng)["image"], rng)
    if other != label:  # the fake is the region, the real image is what surrounds it
        image, patch = patch, image
    mixed, opacity = laid_in(image, patch, rng)
    region = opacity if other != label else np.full_like(opacity, label)
    return {**example, "image": mixed, "region": region}


def laid_in(
    image: UInt8[np.ndarray, "h w 3"], patch: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "h w"]]:
    """Draws a region with a hard or a soft seam, and lays that part of a patch into an image.

    Args:
      image: what stays around the region.
      patch: of the same size.
      rng: from which alone the region follows.

    Returns:
      The mixed image, and the patch's share of each pixel: 1 inside the region, 0 outside.
    """
    opacity = _opacity(*image.shape[:2], rng)
    mixed = image + opacity[..., None] * (patch.astype(np.float32) - image)
    return mixed.round().astype(np.uint8), opacity


def _opacity(
    height: int, width: int, rng: np.random.Generator
) -> Float32[np.ndarray, "{height} {width}"]:
    """Draws a region with a hard or a soft seam: 1 inside, 0 outside."""
    shape = rng.choice(list(_SHAPES), p=list(_SHAPES.values()))
    opacity = shapes.draw(shape, rng, height, width).astype(np.float32)
    if rng.random() < _FEATHERED:
        sigma = rng.uniform(0.5, max(1.0, _SOFTEST * min(height, width)))
        opacity = ndimage.gaussian_filter(opacity, sigma, mode="nearest")
    return opacity


def _of_one_size(
    one: UInt8[np.ndarray, "h1 w1 3"], two: UInt8[np.ndarray, "h2 w2 3"], rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]:
    """Cuts two images to the smaller height and width."""
    if one.shape == two.shape:
        return one, two
    size = min(one.shape[0], two.shape[0]), min(one.shape[1], two.shape[1])
    return _cut(one, size, rng), _cut(two, size, rng)


def _cut(
    image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    (height, width), (rows, columns) = image.shape[:2], size
    top = _GRID * int(rng.integers((height - rows) // _GRID + 1))
    left = _GRID * int(rng.integers((width - columns) // _GRID + 1))
    return image[top : top + rows, left : left + columns]


def shares(region: Float[np.ndarray, "h w"], size: int) -> Float32[np.ndarray, "{size} {size}"]:
    """Returns the mean of a region over each of size × size locations, which tile the image.

    A pixel on the border between two locations counts for each by the part that lies in it.
    """
    rows, columns = (_averaging(length, size) for length in region.shape)
    return (rows @ region @ columns.T).astype(np.float32)


def _averaging(length: int, size: int) -> Float32[np.ndarray, "{size} {length}"]:
    """Returns the matrix that averages over `size` equal parts of a length."""
    edges = np.linspace(0, length, size + 1)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * (size / length)).astype(np.float32)
