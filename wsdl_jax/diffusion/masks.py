"""Masks that are drawn, of the part of an image that is made anew: boxes and brush strokes."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

Policy = Callable[[np.random.Generator, int], Bool[np.ndarray, "s s"]]
# Share of the image that a drawn mask may cover; what falls outside is drawn again.
MIN_SHARE, MAX_SHARE = 0.02, 0.6


def boxes(rng: np.random.Generator, size: int) -> Bool[np.ndarray, "{size} {size}"]:
    """Draws one to three rectangles, each with sides of 0.15 to 0.5 of the image's."""
    mask = np.zeros((size, size), bool)
    for _ in range(rng.integers(1, 4)):
        height, width = np.rint(size * rng.uniform(0.15, 0.5, 2)).astype(int)
        top, left = rng.integers(size - height + 1), rng.integers(size - width + 1)
        mask[top : top + height, left : left + width] = True
    return mask


def strokes(rng: np.random.Generator, size: int) -> Bool[np.ndarray, "{size} {size}"]:
    """Draws one to four brush strokes: round lines of 4 to 10 turns (after Yu et al., 2019)."""
    canvas = Image.new("1", (size, size))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 5)):
        width = max(1, round(size * rng.uniform(0.05, 0.12)))
        point = rng.uniform(0, size, 2)
        angle = rng.uniform(0, 2 * np.pi)
        points = [point]
        for _ in range(rng.integers(4, 11)):
            angle += np.pi + rng.uniform(-0.6, 0.6)  # a brush goes to and fro
            step = size * rng.uniform(0.1, 0.3) * np.array([np.cos(angle), np.sin(angle)])
            point = np.clip(point + step, 0, size - 1)
            points.append(point)
        draw.line([tuple(point) for point in points], fill=1, width=width, joint="curve")
        for x, y in points:
            half = width / 2
            draw.ellipse((x - half, y - half, x + half, y + half), fill=1)
    return np.array(canvas)


POLICIES: dict[str, Policy] = {"boxes": boxes, "strokes": strokes}


def draw(policy: str, rng: np.random.Generator, size: int) -> Bool[np.ndarray, "{size} {size}"]:
    """Draws a mask by a policy of POLICIES, of a share between MIN_SHARE and MAX_SHARE."""
    while True:
        mask = POLICIES[policy](rng, size)
        if MIN_SHARE <= mask.mean() <= MAX_SHARE:
            return mask
