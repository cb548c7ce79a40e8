"""Changes training images at random, as images are changed on their way to whoever looks at them.

Compression, scaling, blur, noise, gamma, colour, crops and boxes that cover a part are drawn image
by image and applied in random order, to real and fake images alike: the label is never seen. They
happen at the image's own size, before it is resized for the network, and are the functions of
`perturbations` where evaluation has the same change.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ml_collections
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from wsdl_jax.inputs import perturbations

Pixels = UInt8[np.ndarray, "h w 3"]
# Of every pixel: 1 where it is manipulated (uint8), or the share of it that is (float32).
Target = UInt8[np.ndarray, "h w"] | Float[np.ndarray, "h w"]
_Changed = UInt8[np.ndarray, "h2 w2"] | Float[np.ndarray, "h2 w2"]
_Pair = tuple[UInt8[np.ndarray, "h2 w2 3"], _Changed | None]

_LEAST_SIDE = 32  # pixels: what is smaller is neither scaled down nor cropped any further
_BROUGHT_BACK = 0.5  # share of the scaled images that get their former size again
# How images are scaled where people do it.
_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images: how often, and how strong.

    The fields are those of `config.augment`, see `configuration.fields`: what is named like a
    change is the probability that an image has it, in [0, 1], and what ends in `_range` the least
    and the largest strength that is drawn.
    """

    jpeg: float
    webp: float
    again: float
    quality_range: tuple[int, int]
    scale: float
    scale_range: tuple[float, float]
    blur: float
    blur_range: tuple[float, float]
    noise: float
    noise_range: tuple[float, float]
    gamma: float
    gamma_range: tuple[float, float]
    colour: float
    colour_range: tuple[float, float]
    crop: float
    crop_range: tuple[float, float]
    cut_out: float
    cut_out_range: tuple[float, float]

    @classmethod
    def of(cls, augment: ml_collections.ConfigDict) -> "Augmentation":
        """Returns the augmentation of `config.augment`, whose values have been validated."""
        return cls(**augment.to_dict())

    @property
    def is_off(self) -> bool:
        """Returns whether no image is ever changed."""
        return not any(probability for _, probability in self._changes())

    def __call__(self, image: Pixels, target: Target | None, rng: np.random.Generator) -> _Pair:
        """Returns an image and its target, changed at random; the arguments stay as they are.

        Args:
          image: at its own size.
          target: what is to be found in it, of every pixel; None where that is not known. Scaling
            and crops are applied to it, and a box that covers a part sets it to 0, since what
            covers it was not generated. All else leaves it as it is.
          rng: from which alone it follows what is done.

        Returns:
          The image, of the same or another size, and the target of the same size as the image.
        """
        drawn = [change for change, probability in self._changes() if rng.random() < probability]
        if (self._jpeg in drawn or self._webp in drawn) and rng.random() < self.again:
            # Again, not at once: something may happen in between.
            drawn.append(self._jpeg if rng.random() * self._compressed < self.jpeg else self._webp)
        pair = image, target
        for place in rng.permutation(len(drawn)):
            pair = drawn[place](*pair, rng)
        return pair

    @property
    def _compressed(self) -> float:
        return self.jpeg + self.webp

    def _changes(self) -> tuple[tuple[Callable[..., _Pair], float], ...]:
        """Returns each change with its probability; `again` follows from the first two."""
        return (
            (self._jpeg, self.jpeg),
            (self._webp, self.webp),
            (self._scale, self.scale),
            (self._blur, self.blur),
            (self._noise, self.noise),
            (self._gamma, self.gamma),
            (self._colour, self.colour),
            (self._crop, self.crop),
            (self._cut_out, self.cut_out),
        )

    def _jpeg(self, image: Pixels, target: Target | None, rng: np.random.Generator) -> _Pair:
        return perturbations.jpeg(image, self._quality(rng)), target

    def _webp(self, image: Pixels, target: Target | None, rng: np.random.Generator) -> _Pair:
        if max(image.shape[:2]) > perturbations.LONGEST["WEBP"]:
            return self._jpeg(image, target, rng)
        return perturbations.webp(image, self._quality(rng)), target

    def _quality(self, rng: np.random.Generator) -> float:
        return float(rng.integers(*self.quality_range, endpoint=True))

    def _blur(self, image: Pixels, target: Target | None, rng: np.random.Generator) -> _Pair:
        return perturbations.blur(image, rng.uniform(*self.blur_range)), target

    def _noise(self, image: Pixels, target: Target | None, rng: np.random.Generator) -> _Pair:
        return perturbations.noise(image, rng.uniform(*self.noise_range), rng), target

    def _gamma(self, image: Pixels, target: Target | None, rng: np.random.Generator) -> _Pair:
        # Evenly in the logarithm: as often twice as dark as twice as light.
        exponent = float(np.exp(rng.uniform(*np.log(self.gamma_range))))
        return perturbations.gamma(image, exponent), target

    def _colour(self, image: Pixels, target: Target | None, rng: np.random.Generator) -> _Pair:
        """Draws factors of contrast, of saturation and of each channel, and a shift of brightness.

        Contrast is around mid grey. All are one affine map of a pixel, so that it is rounded once.
        """
        least, largest = self.colour_range
        change = rng.uniform(least, largest, 6) * rng.choice((-1, 1), 6)
        contrast, saturation = 1 + change[:2]
        grey = np.broadcast_to(_LUMINANCE, (3, 3))
        matrix = contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
        matrix *= 1 + change[2:5, None] / 2  # a colour cast is noticed sooner
        shift = 127.5 * (1 - contrast) + 255 * change[5] / 2
        rows = np.column_stack([matrix, np.full(3, shift)])
        changed = Image.fromarray(image).convert("RGB", tuple(rows.ravel().tolist()))
        return np.asarray(changed), target

    def _scale(self, image: Pixels, target: Target | None, rng: np.random.Generator) -> _Pair:
        """Draws one factor for both sides, the filters, and whether the former size comes back."""
        height, width = image.shape[:2]
        factor = rng.uniform(*self.scale_range)
        forth, back = (_FILTERS[n] for n in rng.integers(len(_FILTERS), size=2))
        is_brought_back = rng.random() < _BROUGHT_BACK
        size = tuple(_side(length, factor) for length in (width, height))
        if size == (width, height):
            return image, target
        scaled = Image.fromarray(image).resize(size, forth)
        if is_brought_back:
            return np.asarray(scaled.resize((width, height), back)), target
        if target is not None:
            whole = target.dtype == np.uint8
            resample = Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR
            target = np.asarray(Image.fromarray(target).resize(size, resample))
        return np.asarray(scaled), target

    def _crop(self, image: Pixels, target: Target | None, rng: np.random.Generator) -> _Pair:
        """Draws one share for both sides, and the place, of a part that is not scaled."""
        factor = rng.uniform(*self.crop_range)
        part = _box(image, tuple(_side(length, factor) for length in image.shape[:2]), rng)
        return image[part], None if target is None else target[part]

    def _cut_out(self, image: Pixels, target: Target | None, rng: np.random.Generator) -> _Pair:
        """Draws the sides, the place and the colour of a box that covers a part of the image."""
        shares = rng.uniform(*self.cut_out_range, 2)
        rows, columns = np.ceil(shares * image.shape[:2]).astype(int).tolist()
        part = _box(image, (rows, columns), rng)
        image = image.copy()
        image[part] = rng.integers(0, 256, 3)
        if target is not None:
            target = target.copy()
            target[part] = 0
        return image, target


def _side(length: int, factor: float) -> int:
    return max(min(length, _LEAST_SIDE), round(length * factor))


def _box(image: Pixels, sides: tuple[int, int], rng: np.random.Generator) -> tuple[slice, slice]:
    """Returns a part of an image, of that many rows and columns, at a random place."""
    rows, columns = sides
    top = int(rng.integers(image.shape[0] - rows + 1))
    left = int(rng.integers(image.shape[1] - columns + 1))
    return slice(top, top + rows), slice(left, left + columns)
