"""Images as users have them, whole and damaged, and what has been written of them."""

import csv
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64  # that the network of the run `trained` was trained on


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image of random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    """An image that JPEG leaves nearly as it is."""
    return Image.fromarray(noise(5, 5, seed)).resize((width, height), Image.Resampling.BICUBIC)


NO_IMAGE = "not a PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, HEIF or JXL image"


def table(out: Path) -> list[dict[str, str]]:
    """The rows of predictions.csv in a folder."""
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> set[str]:
    """Paths of all files in a folder, from there."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def bomb(side: int) -> bytes:
    """A PNG of side × side black pixels, whose data ends early."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(10_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def damaged(folder: Path) -> dict[str, str]:
    """Puts files into a folder that are no images; returns the reason of each by its name."""
    folder.mkdir()
    reasons = {"empty.png": "empty", "text.jpg": NO_IMAGE}
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not an image")
    for suffix in ("png", "jpg", "bmp", "tif", "webp"):
        path = folder / f"cut.{suffix}"
        Image.fromarray(noise(50, 50)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        reasons[path.name] = "could not create decoder" if suffix == "webp" else "truncated"
    (folder / "bomb.png").write_bytes(bomb(30_000))
    reasons["bomb.png"] = "30000×30000 pixels, taken for a decompression bomb"
    Image.fromarray(np.full((4, 4), 255, np.float32)).save(folder / "float.tif")
    reasons["float.tif"] = "floating-point grey values beyond 0 to 1"
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    reasons["nowhere.png"] = "not a file"
    os.mkfifo(folder / "fifo.png")
    reasons["fifo.png"] = "not a file"
    Image.new("L", (4, 4)).save(folder / "image.ppm")
    reasons["image.ppm"] = NO_IMAGE
    return reasons
