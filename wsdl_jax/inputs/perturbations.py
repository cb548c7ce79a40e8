"""What happens to images on their way: compression, blur, noise, resizing, gamma.

A perturbation changes an image at its own size, as it was decoded and before it is resized for the
network; the mask stays as it is. Pixels are computed in floating point, then rounded and clipped to
8 bits, as a file would hold them. Evaluation applies perturbations one by one and at known
strengths, `augmentation` draws them.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

from wsdl_jax.runtime.errors import ConfigError, UserError

Pixels = UInt8[np.ndarray, "h w 3"]
LONGEST = {"JPEG": 65_500, "WEBP": 16_383}  # pixels a side that a file can have


def jpeg(image: Pixels, quality: float) -> Pixels:
    """Saves an image as JPEG, by Pillow with standard tables, and reads it again.

    Raises UserError for one with a side above `LONGEST`, as `webp` does.
    """
    return _saved(image, "JPEG", quality)


def webp(image: Pixels, quality: float) -> Pixels:
    """Saves an image as lossy WebP, by Pillow, and reads it again."""
    return _saved(image, "WEBP", quality)


def _saved(image: Pixels, file_format: str, quality: float) -> Pixels:
    if max(image.shape[:2]) > LONGEST[file_format]:
        height, width = image.shape[:2]
        raise UserError(
            f"an image of {width}×{height} pixels: {file_format} has at most {LONGEST[file_format]}"
            " a side"
        )
    file = io.BytesIO()
    Image.fromarray(image).save(file, file_format, quality=int(quality))
    return np.asarray(Image.open(file, formats=(file_format,)))


def blur(image: Pixels, sigma: float) -> Pixels:
    """Blurs by a Gaussian of so many pixels, cut off at 4 sigma; edges go on with their pixels."""
    if not sigma:
        return image
    pixels = image.astype(np.float32)
    return _to_8_bits(ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest"))


def noise(image: Pixels, std: float, rng: np.random.Generator) -> Pixels:
    """Adds Gaussian noise, independent in every channel, of a standard deviation out of 255."""
    drawn = rng.standard_normal(image.shape, np.float32)
    return _to_8_bits(image + np.float32(std) * drawn)


def resize(image: Pixels, factor: float) -> Pixels:
    """Scales each side by a factor and brings it back, both by Pillow's bicubic filter."""
    height, width = image.shape[:2]
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    if small == (width, height):
        return image
    bicubic = Image.Resampling.BICUBIC
    return np.asarray(
        Image.fromarray(image).resize(small, bicubic).resize((width, height), bicubic)
    )


def gamma(image: Pixels, exponent: float) -> Pixels:
    """Raises pixels in [0, 1] to the power of an exponent: darker above 1, lighter below."""
    return _to_8_bits(255 * (np.arange(256) / 255) ** exponent).take(image)


def _to_8_bits(values: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    return values.round().clip(0, 255).astype(np.uint8)


def _noise_of_image(image: Pixels, std: float, index: int) -> Pixels:
    # An image has the same noise at every strength, but for the factor.
    return noise(image, std, np.random.default_rng(index))


def _same_for_all(change: Callable[[Pixels, float], Pixels]) -> Callable[..., Pixels]:
    return lambda image, strength, _: change(image, strength)


class Kind(NamedTuple):
    """One way of perturbing.

    Attributes:
      apply: (image, strength, the image's place in its test split) → image of the same shape.
      unit: of the strength, for people.
      identity: the strength that changes nothing, if there is one.
      defaults: strengths, from mild to strong.
      limits: the least and the largest strength.
      is_whole: whether strengths are whole numbers.
    """

    apply: Callable[[Pixels, float, int], Pixels]
    unit: str
    identity: float | None
    defaults: tuple[float, ...]
    limits: tuple[float, float]
    is_whole: bool = False


_SMALL = 1e-3  # what has to be positive is at least this
_QUALITIES = (95, 90, 80, 70, 60, 50, 30)
KINDS = {
    "jpeg": Kind(_same_for_all(jpeg), "JPEG quality", None, _QUALITIES, (1, 100), True),
    "webp": Kind(_same_for_all(webp), "WebP quality", None, _QUALITIES, (1, 100), True),
    "blur": Kind(
        _same_for_all(blur),
        "sigma of the Gaussian, pixels",
        0,
        (0.5, 1, 1.5, 2, 3, 4),
        (0, 100),
    ),
    "noise": Kind(_noise_of_image, "standard deviation, of 255", 0, (1, 2, 5, 10, 20), (0, 255)),
    "resize": Kind(
        _same_for_all(resize), "factor, down and up", 1, (0.9, 0.75, 0.5, 0.35, 0.25), (_SMALL, 1)
    ),
    "gamma": Kind(
        _same_for_all(gamma), "exponent", 1, (0.5, 0.7, 0.85, 1.2, 1.5, 2), (_SMALL, 100)
    ),
}


@dataclass(frozen=True)
class Perturbation:
    """A way in which test images are changed, at one strength.

    Attributes:
      kind: one of `KINDS`.
      strength: in the unit of the kind.
    """

    kind: str
    strength: float

    def __call__(self, image: Pixels, index: int) -> Pixels:
        """Returns an image perturbed.

        index: the image's place in its test split, from which its randomness follows.
        """
        return KINDS[self.kind].apply(image, self.strength, index)

    def __str__(self) -> str:
        return f"{self.kind} {self.strength:g}"


@dataclass(frozen=True)
class Chain:
    """Perturbations one after the other, as an image has several on its way.

    Attributes:
      steps: the first one first.
    """

    steps: tuple[Perturbation, ...]

    def __call__(self, image: Pixels, index: int) -> Pixels:
        """Returns an image perturbed by all steps; `index` is as in `Perturbation`."""
        for step in self.steps:
            image = step(image, index)
        return image

    def __str__(self) -> str:
        return ", ".join(map(str, self.steps))


# What an image may go through without getting worse to the eye; the last as in a social network.
EVERYDAY = tuple(
    Chain(tuple(Perturbation(kind, strength) for kind, strength in steps))
    for steps in (
        *([("jpeg", quality)] for quality in (90.0, 80.0, 70.0, 60.0)),
        [("webp", 80.0)],
        *([("resize", factor)] for factor in (0.75, 0.5)),
        [("blur", 1.0)],
        [("noise", 2.0)],
        *([("gamma", exponent)] for exponent in (0.7, 1.5)),
        [("resize", 0.75), ("jpeg", 75.0)],
    )
)


def series(kind: str, strengths: Sequence[str | int | float] | None) -> list[Perturbation]:
    """Returns a kind at several strengths, by default its own list.

    Raises ConfigError for a strength that is not a number, or none of this kind.
    """
    unit, (least, largest) = KINDS[kind].unit, KINDS[kind].limits
    out = []
    for given in KINDS[kind].defaults if strengths is None else strengths:
        try:
            strength = float(given)
        except ValueError:
            strength = math.nan
        is_whole = KINDS[kind].is_whole
        if not (least <= strength <= largest and (strength.is_integer() or not is_whole)):
            number = "a whole number" if is_whole else "a number"
            raise ConfigError(
                f"{given!r} is no strength of {kind} ({unit}): {number} from {least:g} to "
                f"{largest:g}"
            )
        out.append(Perturbation(kind, strength))
    return out
