"""Shapes that are drawn, of a region that is made anew or replaced: boxes, brush strokes, blobs."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

Shape = Callable[[np.random.Generator, int, int], Bool[np.ndarray, "h w"]]
# Share of the image that a drawn shape may cover; what falls outside is drawn again.
MIN_SHARE, MAX_SHARE = 0.02, 0.6
_TRIES = 200


def boxes(
    rng: np.random.Generator, height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
    """Draws one to three rectangles, each with sides of 0.15 to 0.5 of the image's."""
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        tall, wide = np.rint(np.array([height, width]) * rng.uniform(0.15, 0.5, 2)).astype(int)
        top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
        mask[top : top + tall, left : left + wide] = True
    return mask


def strokes(
    rng: np.random.Generator, height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
    """Draws one to four brush strokes: round lines of 4 to 10 turns (after Yu et al., 2019)."""
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    frame, side = np.array([width, height]), min(width, height)
    for _ in range(rng.integers(1, 5)):
        thickness = max(1, round(side * rng.uniform(0.05, 0.12)))
        point = rng.uniform(0, frame, 2)
        angle = rng.uniform(0, 2 * np.pi)
        points = [point]
        for _ in range(rng.integers(4, 11)):
            angle += np.pi + rng.uniform(-0.6, 0.6)  # a brush goes to and fro
            step = side * rng.uniform(0.1, 0.3) * np.array([np.cos(angle), np.sin(angle)])
            point = np.clip(point + step, 0, frame - 1)
            points.append(point)
        draw.line([tuple(point) for point in points], fill=1, width=thickness, joint="curve")
        for x, y in points:
            half = thickness / 2
            draw.ellipse((x - half, y - half, x + half, y + half), fill=1)
    return np.array(canvas)


def blobs(
    rng: np.random.Generator, height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
    """Draws one or several patches with smooth edges, whose share is log-uniform.

    They are where a smooth random field is highest: normal numbers on a grid of 3 to 8 points a
    side, brought to the image's size by a bicubic filter.
    """
    points = int(rng.integers(3, 9))
    field = Image.fromarray(rng.standard_normal((points, points), np.float32))
    field = np.asarray(field.resize((width, height), Image.Resampling.BICUBIC))
    share = np.exp(rng.uniform(np.log(MIN_SHARE), np.log(MAX_SHARE)))
    return field > np.quantile(field, 1 - share)


SHAPES: dict[str, Shape] = {"boxes": boxes, "strokes": strokes, "blobs": blobs}


def draw(
    shape: str, rng: np.random.Generator, height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
    """Draws a region by one of SHAPES, of a share between MIN_SHARE and MAX_SHARE of the image.

    Args:
      shape: its name.
      rng: from which alone the region follows.
      height: of the image, pixels.
      width: of the image, pixels.

    Returns:
      The region. Where no shape of that name has such a share, as strokes in an image much longer
      than wide, it is a blob, and in the smallest images their upper third.
    """
    for name in (shape, "blobs"):
        for _ in range(_TRIES):
            mask = SHAPES[name](rng, height, width)
            if MIN_SHARE <= mask.mean() <= MAX_SHARE:
                return mask
    mask = np.zeros((height, width), bool)
    mask[: -(-height // 3)] = True
    return mask
