"""The sheet of examples: images, true masks and localization maps side by side."""

from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from wsdl_jax.evaluation import metrics, rendering

_CELL, _MARGIN, _LABEL = 128, 6, 70  # pixels


class Example(NamedTuple):
    """One image of the sheet.

    Attributes:
      image: pixels.
      mask: the true mask, 1 = manipulated; None for an image without one.
      localization_map: values in [0, 1].
    """

    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"] | None
    localization_map: Float[np.ndarray, "h2 w2"]


def save(examples: list[Example], path: epath.Path) -> None:
    """Writes a PNG with a column per image: image, true mask, map and thresholded map."""
    titles = ("image", "true mask", "map", f"map > {metrics.THRESHOLD}")
    pitch = _CELL + _MARGIN
    size = (_LABEL + len(examples) * pitch, _MARGIN + len(titles) * pitch)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, title in enumerate(titles):
        place = (_MARGIN, _MARGIN + row * pitch + _CELL // 2)
        draw.text(place, title, fill="black", font=ImageFont.load_default(12), anchor="lm")
    for column, example in enumerate(examples):
        height, width = example.image.shape[:2]
        mask = np.zeros((height, width), bool) if example.mask is None else example.mask > 0
        large = metrics.resize_map(example.localization_map, height, width)
        panels = (
            example.image,
            _black_and_white(mask),
            rendering.colour(large.clip(0, 1)),
            _black_and_white(large > metrics.THRESHOLD),
        )
        for row, panel in enumerate(panels):
            image = Image.fromarray(panel).resize((_CELL, _CELL), Image.Resampling.LANCZOS)
            sheet.paste(image, (_LABEL + column * pitch, _MARGIN + row * pitch))
    with path.open("wb") as file:
        sheet.save(file, "PNG", optimize=True)


def _black_and_white(mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a mask as pixels, white where it is true."""
    return np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)
