"""Makes a small Dolos in its authors' layout, with images that can be told apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

# Folder, has masks, splits: as the paper's authors distribute them.
SUBSETS = (
    ("celebahq/real", False, ("train", "valid", "test")),
    ("ffhq/real", False, ("train", "valid")),
    ("celebahq/fake/p2", False, ("train", "valid")),
    ("ffhq/fake/p2", False, ("train", "valid")),
    ("celebahq/fake/repaint-p2", True, ("train", "valid", "test")),
    ("ffhq/fake/repaint-p2", True, ("train", "valid")),
    ("celebahq/fake/repaint-p2-9k", True, ("train", "valid", "test")),
    ("celebahq/fake/ldm", True, ("train", "valid", "test")),
    ("celebahq/fake/lama", True, ("train", "valid", "test")),
    ("celebahq/fake/pluralistic", True, ("train", "valid", "test")),
)
COUNTS = {"train": 6, "valid": 4, "test": 4}


def make_dolos_folder(
    root: Path, counts: Mapping[str, int] = COUNTS, size: int = 256, seed: int = 0
) -> Path:
    """Writes the ten subsets of Dolos below `root`, `counts[split]` images each.

    A real image is a field of colour with the noise of a sensor. In a fake the noise has been
    through a bottleneck of half the size: everywhere, or where its mask is black.

    Args:
        root: the folder that will hold `celebahq/` and `ffhq/`.
        counts: images for each split, in the subsets that have it.
        size: height and width of the images, in pixels.
        seed: of all that is random.

    Returns:
        `root`.
    """
    rng = np.random.default_rng(seed)
    for folder, has_masks, splits in SUBSETS:
        images = root / folder / "images" if has_masks else root / folder
        for split in splits:
            (images / split).mkdir(parents=True)
            if has_masks:
                (root / folder / "masks" / split).mkdir(parents=True)
            for index in range(counts[split]):
                name = f"{index:05d}.png"
                image = _photograph(rng, size)
                if "/fake/" in folder:
                    forged = image.resize((size // 2, size // 2), Image.Resampling.BOX)
                    forged = forged.resize((size, size), Image.Resampling.BICUBIC)
                    mask = _blob(rng, size) if has_masks else None
                    image = forged if mask is None else Image.composite(image, forged, mask)
                    if mask is not None:
                        mask.convert("RGB").save(root / folder / "masks" / split / name)
                image.save(images / split / name, compress_level=1)
    return root


def _photograph(rng: np.random.Generator, size: int) -> Image.Image:
    field = Image.fromarray(rng.integers(40, 216, (4, 4, 3), dtype=np.uint8))
    field = np.asarray(field.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    noisy: UInt8[np.ndarray, "h w 3"] = np.clip(
        field + rng.normal(0, 6, field.shape), 0, 255
    ).astype(np.uint8)
    return Image.fromarray(noisy)


def _blob(rng: np.random.Generator, size: int) -> Image.Image:
    """A mask with the polarity of the files: white is untouched, black manipulated."""
    mask = Image.new("L", (size, size), 255)
    x, y = rng.uniform(0.3, 0.7, 2) * size
    a, b = rng.uniform(0.1, 0.3, 2) * size
    ImageDraw.Draw(mask).ellipse((x - a, y - b, x + a, y + b), fill=0)
    return mask
