"""What one evaluation shows to people: a table of text and a sheet of pictures."""

from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from wsdl_jax.evaluation import metrics

# Anchors of a colour scale from 0 to 1 whose lightness rises evenly, readable without colour too.
_SCALE = np.array([(8, 8, 24), (84, 20, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
_OPAQUE = 0.65  # of the colour of an overlay, where the map is 1
_CELL, _MARGIN, _LABEL = 128, 6, 70  # pixels


class Example(NamedTuple):
    """One image of the sheet.

    Attributes:
      key: the image's name.
      image: pixels.
      mask: 1 = manipulated; None for a real image.
      localization_map: in [0, 1].
    """

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"] | None
    localization_map: Float[np.ndarray, "h2 w2"]


def colour(values: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Values in [0, 1] on the colour scale, dark = 0."""
    stops = np.linspace(0, 1, len(_SCALE))
    channels = [np.interp(values, stops, _SCALE[:, c]) for c in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def heat(values: Image.Image) -> Image.Image:
    """A map as 8-bit grey → the same on the colour scale, with a palette."""
    out = values.copy()
    out.putpalette(colour(np.linspace(0, 1, 256)[None]).tobytes())
    return out


def overlay(image: Image.Image, values: Image.Image) -> Image.Image:
    """An RGB image with a map (8-bit grey, same size) over it, in colour, denser where high."""
    opacity = values.point([round(_OPAQUE * value) for value in range(256)])
    return Image.composite(heat(values).convert("RGB"), image, opacity)


def save_sheet(examples: list[Example], path: epath.Path) -> None:
    """Writes a PNG with a column an image: image, true mask, localization map, thresholded map."""
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
            colour(large.clip(0, 1)),
            _black_and_white(large > metrics.THRESHOLD),
        )
        for row, panel in enumerate(panels):
            image = Image.fromarray(panel).resize((_CELL, _CELL), Image.Resampling.LANCZOS)
            sheet.paste(image, (_LABEL + column * pitch, _MARGIN + row * pitch))
    with path.open("wb") as file:
        sheet.save(file, "PNG", optimize=True)


def _black_and_white(mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)


def figure(value: float | None) -> str:
    """A figure × 100 as text, "–" where there is none."""
    return "–" if value is None else f"{value:.1f}"


def masks(results: dict) -> str:
    """How much of the fake images is manipulated, in words."""
    share = results["manipulated_share"]
    return "without masks" if share is None else f"{share:.1f}% manipulated"


def text_table(results: dict, title: str) -> str:
    """The results as a table of fixed-width text; figures × 100, "–" where there is none."""
    columns = metrics.LOCALIZATION
    width = 2 + max(map(len, columns))
    tested = f"{results['fake_images']} images of {results['test_fake']}"
    lines = [f"{title}: {tested}, {masks(results)}"]
    if results["manipulated_share"] is not None:
        lines.append(f"{'localization':<14}" + "".join(f"{name:>{width}}" for name in columns))
        for name, figures in {"this run": results, **results["trivial"]}.items():
            cells = (f"{figure(figures[column]):>{width}}" for column in columns)
            lines.append(f"{name:<14}" + "".join(cells))
        if results["pixel_images"] < results["fake_images"]:
            lines.append(
                f"pixel_auc and pixel_ap: over the {results['pixel_images']} images whose mask has "
                "both classes"
            )
    lines += [
        f"detection, against {results['real_images']} images of {results['test_real']}:",
        f"  ap {results['ap']:.1f} ± {results['ap_2sd']:.1f}, auc {results['auc']:.1f}, "
        f"balanced_accuracy {results['balanced_accuracy']:.1f}",
    ]
    if results["threshold"] is not None:
        lines.append(
            f"  called fake, score above {results['threshold']:.4g}: {results['fake_above']:.1f}% "
            f"of the fake images, {results['real_above']:.1f}% of the real ones"
        )
    return "\n".join(lines) + "\n"
