"""Small sets of images for the audit: the twenty planted leaks and clean sets of its README."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin
from scipy import ndimage

from wsdl_data.audit.images import Listed, Stored

COUNT = 120  # photographs, and as many fakes
WIDTH, HEIGHT = 72, 64
SPLITS = ("train",) * 8 + ("valid", "test")
# Quantization that no quality of libjpeg gives: steeper for what is high.
LUMA = [min(255, 6 + 3 * (i // 8 + i % 8)) for i in range(64)]
CHROMA = [min(255, 9 + 5 * (i // 8 + i % 8)) for i in range(64)]


@dataclasses.dataclass
class Entry:
    """An image before it is saved.

    Attributes:
        label: 0 real, 1 fake.
        split: that it is in.
        group: photograph that it is, or is made of.
        pixels: uint8 [h, w, 3].
        mask: bool [h, w]; None without one.
        saved: how, by the arguments of Pillow.
    """

    label: int
    split: str
    group: str
    pixels: np.ndarray
    mask: np.ndarray | None
    saved: dict[str, Any] = dataclasses.field(default_factory=lambda: {"format": "PNG"})


class Set:
    """Entries as images to be audited."""

    grouped_by = "as they are made"

    def __init__(self, entries: list[Entry]):
        self.entries = entries

    def __iter__(self) -> Iterator[Listed]:
        for number, entry in enumerate(self.entries):
            place = entry.label, entry.split, entry.group
            read = functools.partial(stored, entry)
            yield Listed(f"image {number}", *place, False, read)


def stored(entry: Entry) -> Stored:
    stream = io.BytesIO()
    Image.fromarray(entry.pixels).save(stream, **entry.saved)
    return Stored(stream.getvalue(), entry.mask)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is photographed, float [h, w, 3], and the noise of the camera, in levels."""

    light: np.ndarray
    noise: float


def scene(rng: np.random.Generator, width: int, height: int) -> Scene:
    """Soft shapes of many colours about a mean of their own, of some contrast and noise."""
    coarse = rng.normal(0, rng.uniform(30, 60), (3, 6, 7)).astype(np.float32)
    resized = [
        Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC)
        for channel in coarse
    ]
    return Scene(rng.normal(128, 16, 3) + np.stack(resized, -1), rng.uniform(2, 6))


def photographed(rng: np.random.Generator, light: np.ndarray, noise: float) -> np.ndarray:
    return as_bytes(light + rng.normal(0, noise, light.shape))


def as_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def region(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A rectangle anywhere, of 9% to 30% of the image."""
    tall, wide = (int(side * rng.uniform(0.3, 0.55)) for side in (height, width))
    top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
    mask = np.zeros((height, width), bool)
    mask[top : top + tall, left : left + wide] = True
    return mask


def remade(
    rng: np.random.Generator, pixels: np.ndarray, seen: Scene, mask: np.ndarray
) -> np.ndarray:
    """A photograph with a region of another scene, whose edge is soft, and noise as elsewhere."""
    there = ndimage.gaussian_filter(mask.astype(float), 2)[..., None] * mask[..., None]
    other = scene(rng, *pixels.shape[1::-1]).light
    mixed = photographed(rng, there * other + (1 - there) * seen.light, seen.noise)
    return np.where(mask[..., None], mixed, pixels)


def clean(
    seed: int,
    *,
    fakes: int = 1,
    sizes: Callable[[np.random.Generator], tuple[int, int]] = lambda rng: (WIDTH, HEIGHT),
    regions: Callable[[np.random.Generator, int, int], np.ndarray] = region,
) -> list[Entry]:
    """Photographs, and of each some fakes with a region made anew."""
    rng = np.random.default_rng(seed)
    entries = []
    for number in range(COUNT):
        seen = scene(rng, *sizes(rng))
        pixels = photographed(rng, seen.light, seen.noise)
        place = SPLITS[number % len(SPLITS)], f"{number:03d}"
        entries.append(Entry(0, *place, pixels, None))
        for _ in range(fakes):
            mask = regions(rng, *pixels.shape[:2])
            entries.append(Entry(1, *place, remade(rng, pixels, seen, mask), mask))
    return entries


def of(entries: list[Entry], label: int) -> list[Entry]:
    return [entry for entry in entries if entry.label == label]


def jpeg(quality: int = 90, **more: Any) -> dict[str, Any]:
    return {"format": "JPEG", "quality": quality, **more}


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Make], tags[ExifTags.Base.Model] = "Maker", "Camera 1"
    return tags


def text(what: str) -> PngImagePlugin.PngInfo:
    note = PngImagePlugin.PngInfo()
    note.add_text("Software", what)
    return note


# ----- Leaks --------------------------------------------------------------------------------------


def saved(real: dict[str, Any], fake: dict[str, Any]) -> list[Entry]:
    entries = clean(1)
    for entry in entries:
        entry.saved = (real, fake)[entry.label]
    return entries


def of_sizes(real: Callable, fake: Callable) -> list[Entry]:
    """Photographs of some sizes, and fakes of others: of photographs of their own."""
    entries = of(clean(1, sizes=real), 0)
    for entry in of(clean(2, sizes=fake), 1):
        entries.append(dataclasses.replace(entry, group=f"other {entry.group}"))
    return entries


def larger() -> list[Entry]:
    def sizes(low: int, high: int) -> Callable:
        return lambda rng: (int(rng.integers(low, high)), int(rng.integers(low, high)))

    return of_sizes(sizes(56, 80), sizes(68, 96))


def multiples() -> list[Entry]:
    def any_size(rng: np.random.Generator) -> tuple[int, int]:
        return int(rng.integers(56, 97)), int(rng.integers(56, 97))

    def of_8(rng: np.random.Generator) -> tuple[int, int]:
        width, height = any_size(rng)
        return width // 8 * 8, height // 8 * 8

    return of_sizes(any_size, of_8)


def changed(label: int, change: Callable[[np.ndarray], np.ndarray]) -> list[Entry]:
    entries = clean(1)
    for entry in of(entries, label):
        entry.pixels = as_bytes(change(entry.pixels.astype(float)))
    return entries


def bluer() -> list[Entry]:
    blues = [entry.pixels[..., 2].mean() for entry in clean(1)]
    return changed(1, lambda pixels: pixels + np.array((0, 0, 1.5 * np.std(blues))))


def flatter() -> list[Entry]:
    return changed(1, lambda pixels: 0.6 * pixels + 0.4 * pixels.mean((0, 1)))


def grey() -> list[Entry]:
    entries = clean(1)
    for number, entry in enumerate(of(entries, 0)):
        if number % 10 < 7:
            entry.pixels = greyed(entry.pixels)
    return entries


def greyed(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(as_bytes(pixels.mean(-1))[..., None], 3, -1)


def framed(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.copy()
    pixels[:4] = pixels[-4:] = 0
    return pixels


def once_jpeg() -> list[Entry]:
    entries = clean(1)
    for entry in of(entries, 0):
        stream = io.BytesIO()
        Image.fromarray(entry.pixels).save(stream, **jpeg(80))
        entry.pixels = np.asarray(Image.open(stream))
    return entries


def again() -> list[Entry]:
    entries = clean(1)
    trained = [entry for entry in of(entries, 0) if entry.split == "train"]
    for number, entry in enumerate(trained[:10]):
        saved = jpeg(90)
        copy = dataclasses.replace(entry, split="test", group=f"again {number}", saved=saved)
        entries.append(copy)
    return entries


def masks(change: Callable[[list[Entry]], None]) -> list[Entry]:
    entries = clean(1)
    change(of(entries, 1))
    return entries


def empty(fakes: list[Entry]) -> None:
    for entry in fakes[::20]:
        entry.mask = np.zeros_like(entry.mask)


def full(fakes: list[Entry]) -> None:
    for entry in fakes[::20]:
        entry.mask = np.ones_like(entry.mask)


def mixed_up(fakes: list[Entry]) -> None:
    chosen = fakes[::4]
    moved = [entry.mask for entry in chosen]
    for entry, mask in zip(chosen, [*moved[1:], moved[0]], strict=True):
        entry.mask = mask


def inverted(fakes: list[Entry]) -> None:
    for entry in fakes:
        entry.mask = ~entry.mask


def one_place(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    top, left = rng.integers(19, 23, 2)
    mask[top : top + 24, left : left + 28] = True
    return mask


PNG = {"format": "PNG"}
# By what has to find it, in the order of the README.
LEAKS: tuple[tuple[str, str, Callable[[], list[Entry]]], ...] = (
    ("format", "format", lambda: saved(jpeg(95), PNG)),
    ("quality", "quantization", lambda: saved(jpeg(85), jpeg(95))),
    ("subsampling", "coding", lambda: saved(jpeg(subsampling=2), jpeg(subsampling=0))),
    (
        "tables",
        "quantization",
        lambda: saved(jpeg(75), {"format": "JPEG", "qtables": [LUMA, CHROMA]}),
    ),
    ("EXIF", "metadata", lambda: saved({**PNG, "exif": exif()}, PNG)),
    ("text", "metadata", lambda: saved(PNG, {**PNG, "pnginfo": text("generator 2")})),
    ("sizes", "size", larger),
    ("multiples of 8", "size", multiples),
    ("PNG level", "coding", lambda: saved(PNG, {**PNG, "compress_level": 1})),
    ("blue", "colour", bluer),
    ("contrast", "contrast", flatter),
    ("grey", "contrast", grey),
    ("border", "border", lambda: changed(1, framed)),
    ("once JPEG", "compressed before", once_jpeg),
    ("near duplicates", "images that are in two splits", again),
    ("empty masks", "masks that are empty", lambda: masks(empty)),
    ("full masks", "masks that are full", lambda: masks(full)),
    ("mixed-up masks", "masks of another image", lambda: masks(mixed_up)),
    ("one place", "masks' place", lambda: clean(1, regions=one_place)),
    ("inverted masks", "masks of more than half of an image", lambda: masks(inverted)),
)

# ----- Clean sets ---------------------------------------------------------------------------------


def by_lot(seed: int, save: Callable[[np.random.Generator], dict[str, Any]]) -> list[Entry]:
    entries, rng = clean(seed), np.random.default_rng(seed + 1000)
    for entry in entries:
        entry.saved = save(rng)
    return entries


def some(seed: int, share: float, change: Callable[[np.ndarray], np.ndarray]) -> list[Entry]:
    """A change of photographs by lot, with the fakes that are made of them."""
    entries, rng = clean(seed), np.random.default_rng(seed + 1000)
    chosen = {entry.group for entry in of(entries, 0) if rng.random() < share}
    for entry in entries:
        if entry.group in chosen:
            entry.pixels = change(entry.pixels)
    return entries


def tagged(rng: np.random.Generator) -> dict[str, Any]:
    return {**PNG, "exif": exif(), "pnginfo": text("editor")} if rng.random() < 0.5 else PNG


def whole(seed: int) -> list[Entry]:
    entries = of(clean(seed), 0)
    for entry in of(clean(seed + 500), 0):
        entries.append(dataclasses.replace(entry, label=1, group=f"other {entry.group}"))
    return entries


def any_sizes(rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(56, 97)), int(rng.integers(56, 97))


CLEAN: dict[str, Callable[[int], list[Entry]]] = {
    "PNG": clean,
    "JPEG": lambda seed: by_lot(seed, lambda rng: jpeg(90)),
    "JPEG of many qualities": lambda seed: by_lot(
        seed, lambda rng: jpeg(int(rng.integers(70, 96)))
    ),
    "PNG and JPEG": lambda seed: by_lot(seed, lambda rng: jpeg() if rng.random() < 0.5 else PNG),
    "sizes": lambda seed: clean(seed, sizes=any_sizes),
    "tags": lambda seed: by_lot(seed, tagged),
    "grey": lambda seed: some(seed, 1 / 3, greyed),
    "borders": lambda seed: some(seed, 1 / 4, framed),
    "whole": whole,
    "three fakes": lambda seed: clean(seed, fakes=3),
}
