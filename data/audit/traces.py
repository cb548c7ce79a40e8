"""What can be seen of an image without looking at what it shows: one group of traces a probe.

A trace is a number, or a mark that an image has or has not. They are of the file as it is kept
and of the crudest statistics of its pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageStat, JpegImagePlugin
from scipy import fft

_FLAT = 8  # levels of 255 within which a border is of one colour, also after JPEG compression
_MOST = 1024  # pixels a side, of an image's middle, in which blocks of JPEG are looked for
_GONE = 0.15  # share of waves that are gone, from which on an image is taken for once compressed
_FEW = 0.05  # share of waves that are there, below which it is not said how many are gone
_TABLES = 2  # of quantization, of which an image has one for luma and one for chroma
_VALUE = 40  # characters of a tag's value that are told apart
_TEXTS = ("Software", "Make", "Model", "parameters")  # tags and texts whose values count


@dataclasses.dataclass(frozen=True)
class Traces:
    """What a probe sees of an image.

    Attributes:
        numbers: by their names; what an image has not is left out.
        marks: that the image has.
    """

    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    marks: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, eq=False)
class File:
    """An image's file, decoded.

    Attributes:
        encoded: its bytes.
        image: as Pillow has opened it, with what it knows of the file.
        pixels: 8-bit RGB, upright.
    """

    encoded: bytes = dataclasses.field(repr=False)
    image: Image.Image
    pixels: Image.Image


@dataclasses.dataclass(frozen=True)
class Probe:
    """A way to tell the label without the content.

    Attributes:
        name: of the probe.
        look: returns what it sees of a file.
        advice: what to do about a leak.
    """

    name: str
    look: Callable[[File], Traces]
    advice: str


# ----- The file -----------------------------------------------------------------------------------


def _format(file: File) -> Traces:
    image = file.image
    marks = {str(image.format), f"pixels of mode {image.mode}"}
    if image.format == "PNG":
        marks.add(f"{file.encoded[24]} bits")
    if image.format == "WEBP":
        marks.add(f"WebP {file.encoded[12:16].decode('latin-1').strip()}")
    if getattr(image, "is_animated", False):
        marks.add("several frames")
    return Traces({}, frozenset(marks))


def _coding(file: File) -> Traces:
    """Returns how an encoder has written a file, but for its strength and what it has added."""
    image, numbers, marks = file.image, {}, set()
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        names = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
        sampling = JpegImagePlugin.get_sampling(image)
        marks.add(f"colours {names.get(sampling, 'of another sampling')}")
        segments = [segment for segment in _jpeg_segments(file.encoded) if not segment.is_added]
        marks.add(f"segments {' '.join(f'{segment.marker:X}' for segment in segments)}")
        numbers["bytes of Huffman tables"] = float(
            sum(segment.size for segment in segments if segment.marker == 0xC4)
        )
        if image.info.get("progressive"):
            marks.add("progressive")
    if image.format == "PNG":
        data = [chunk for chunk in _png_chunks(file.encoded) if chunk.kind == "IDAT"]
        if data and data[0].size > 1:
            marks.add(f"zlib level {file.encoded[data[0].start + 1] >> 6} of 3")
        if len(data) > 1:  # else it is the length of the image
            numbers["bytes of a chunk"] = float(data[0].size)
        if image.info.get("interlace"):
            marks.add("interlaced")
    return Traces(numbers, frozenset(marks))


def _quantization(file: File) -> Traces:
    if not isinstance(file.image, JpegImagePlugin.JpegImageFile):
        return Traces()
    tables = sorted(file.image.quantization.items())[:_TABLES]
    return _of_tables(tuple((number, tuple(table)) for number, table in tables))


# Files of one program and quality share it, which 130 numbers an image would fill the memory with.
@functools.lru_cache(maxsize=4096)
def _of_tables(tables: tuple[tuple[int, tuple[int, ...]], ...]) -> Traces:
    numbers, marks = {}, set()
    for number, table in tables:
        values = np.asarray(table, float)
        numbers[f"mean of table {number}"] = float(values.mean())
        digest = hashlib.sha256(values.tobytes()).hexdigest()[:8]
        marks.add(f"table {number} is {digest}")
        numbers |= {f"table {number}, value {i}": float(v) for i, v in enumerate(values)}
    return Traces(numbers, frozenset(marks))


def _metadata(file: File) -> Traces:
    image, marks = file.image, set()
    tags = image.getexif()
    names = {ExifTags.TAGS.get(tag, str(tag)): value for tag, value in tags.items()}
    marks |= {f"EXIF {name}" for name in names}
    texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    marks |= {f"text {key}" for key in texts}
    for where, found in (("EXIF", names), ("text", texts)):
        marks |= {f"{where} {n} {str(found[n])[:_VALUE]!r}" for n in _TEXTS if n in found}
    if profile := image.info.get("icc_profile"):
        marks.add(f"colour profile {hashlib.sha256(profile).hexdigest()[:8]}")
    if image.info.get("xmp"):
        marks.add("XMP")
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        added = [segment for segment in _jpeg_segments(file.encoded) if segment.is_added]
        marks |= {f"segment {segment.name}" for segment in added}
    if image.format == "PNG":
        marks |= {
            f"chunk {chunk.kind}"
            for chunk in _png_chunks(file.encoded)
            if chunk.kind[:1].islower()  # what a reader may pass over
        }
    numbers = {"EXIF tags": float(len(names))}
    if (density := image.info.get("dpi")) is not None:
        numbers["dots per inch"] = float(density[0])
    return Traces(numbers, frozenset(marks))


def _size(file: File) -> Traces:
    width, height = file.image.size
    numbers = {
        "width": float(width),
        "height": float(height),
        "pixels": float(width * height),
        "width / height": width / height,
    }
    marks = {f"sides are multiples of {n}" for n in (8, 64) if not (width % n or height % n)}
    return Traces(numbers, frozenset(marks))


def _bytes(file: File) -> Traces:
    width, height = file.image.size
    return Traces({"bytes per pixel": len(file.encoded) / (width * height)})


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A part of a JPEG file before its pixels: its marker, bytes and the name that it begins with.

    `is_added` says whether it belongs to an application, or is a comment.
    """

    marker: int
    size: int
    name: str

    @property
    def is_added(self) -> bool:
        return 0xE0 <= self.marker <= 0xEF or self.marker == 0xFE


def _jpeg_segments(encoded: bytes) -> Iterator[_Segment]:
    """Yields the segments up to the first scan, see ITU-T T.81, annex B."""
    at = 2
    while at + 4 <= len(encoded):
        if encoded[at] != 0xFF:
            return
        marker = encoded[at + 1]
        if marker == 0xFF:  # a byte that fills up
            at += 1
            continue
        (size,) = struct.unpack_from(">H", encoded, at + 2)
        begin = encoded[at + 4 : at + 4 + min(size - 2, 12)].split(b"\0")[0]
        kind = "comment" if marker == 0xFE else f"APP{marker & 15}"
        text = "" if marker == 0xFE else begin.decode("latin-1")
        name = f"{kind} {text}".strip() if text.isprintable() else kind
        yield _Segment(marker, size, name)
        if marker == 0xDA:
            return
        at += 2 + size


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """A chunk of a PNG file: its type, where its data start, and their bytes."""

    kind: str
    start: int
    size: int


def _png_chunks(encoded: bytes) -> Iterator[_Chunk]:
    at = 8
    while at + 8 <= len(encoded):
        size, kind = struct.unpack_from(">I4s", encoded, at)
        yield _Chunk(kind.decode("latin-1"), at + 8, size)
        at += 12 + size


# ----- The pixels ---------------------------------------------------------------------------------


def _colour(file: File) -> Traces:
    means = ImageStat.Stat(file.pixels).mean
    numbers = dict(zip(("mean red", "mean green", "mean blue"), map(float, means), strict=True))
    brightness = sum(means) / 3
    numbers["mean brightness"] = brightness
    numbers["mean red − brightness"] = means[0] - brightness
    numbers["mean blue − brightness"] = means[2] - brightness
    return Traces(numbers)


def _contrast(file: File) -> Traces:
    deviations = ImageStat.Stat(file.pixels).stddev
    histogram = np.reshape(file.pixels.histogram(), (3, 256)).sum(0)
    saturation = ImageStat.Stat(file.pixels.convert("HSV")).mean[1]
    total = histogram.sum()
    numbers = {
        "contrast": float(np.mean(deviations)),
        "saturation": float(saturation),
        "share of black": float(histogram[0] / total),
        "share of white": float(histogram[-1] / total),
    }
    return Traces(numbers, frozenset({"grey"} if saturation == 0 else ()))


def _border(file: File) -> Traces:
    values = np.asarray(file.pixels)
    sides = {"top": values, "bottom": values[::-1]}
    turned = values.swapaxes(0, 1)
    sides |= {"left": turned, "right": turned[::-1]}
    numbers = {f"border at the {name}": _flat(rows) for name, rows in sides.items()}
    return Traces(numbers)


def _flat(rows: UInt8[np.ndarray, "h w 3"]) -> float:
    """Returns the share of the first rows that are of the colour of the first pixel."""
    first = rows[0, 0].astype(np.int16)
    for index, row in enumerate(rows):
        if np.abs(row - first).max() > _FLAT:
            return index / len(rows)
    return 1.0


def _compressed_before(file: File) -> Traces:
    """Returns what an earlier compression has left in a file that is stored without loss now.

    In one that is compressed now it would be this compression, of which other probes see more.
    """
    if not _is_lossless(file):
        return Traces()
    width, height = file.pixels.size
    left, top = (max(0, side - _MOST) // 2 // 8 * 8 for side in (width, height))
    box = left, top, min(width, left + _MOST), min(height, top + _MOST)
    found = zeros_of_jpeg(np.asarray(file.pixels.convert("L").crop(box), np.float32))
    names = ("low", "middle", "high")
    # Below, it is chance, of which images with little noise have less.
    found = found if found.max() >= _GONE else np.zeros(len(names))
    return Traces({f"{name} waves gone": float(v) for name, v in zip(names, found, strict=True)})


def _is_lossless(file: File) -> bool:
    kind = file.image.format
    return kind in ("PNG", "BMP", "GIF", "PPM") or (
        kind == "WEBP" and file.encoded[12:16] == b"VP8L"
    )


def zeros_of_jpeg(grey: Float[np.ndarray, "h w"]) -> Float[np.ndarray, " 3"]:
    """Returns how many more waves are missing in the blocks of JPEG than in blocks between them.

    JPEG rounds the coefficients of the cosine transform of each block of 8×8 pixels, most of them
    to zero, which pixels show as long as they are not scaled or moved. Blocks that are moved by
    four pixels each way share all else with those, such as blur, noise and flat colour. The blocks
    at the image's edges are left out: cameras and networks are different there.

    Args:
        grey: the image, in levels, with its upper left corner on a corner of blocks.

    Returns:
        Of low, middle and high frequencies how many of the coefficients that are not below one
        level in moved blocks are so in the blocks, from 0, none, to 1; negative where there are
        more. It is zero for fewer than 24 rows or columns, and where there are hardly any.
    """
    height, width = (side // 8 * 8 - 8 for side in grey.shape)
    if min(height, width) <= 8:
        return np.zeros(3)
    moved = np.mean(
        [
            _small(_blocks(grey[8 + down : height + down, 8 + right : width + right]))
            for down in (-4, 4)
            for right in (-4, 4)
        ],
        axis=0,
    )
    more = _small(_blocks(grey[8:height, 8:width])) - moved
    there = 1 - moved
    return np.where(there >= _FEW, more / np.maximum(there, _FEW), 0.0)


def _blocks(grey: np.ndarray) -> np.ndarray:
    height, width = grey.shape
    cut = grey.reshape(height // 8, 8, width // 8, 8)
    return fft.dctn(cut, axes=(1, 3), norm="ortho")


def _small(waves: np.ndarray) -> Float[np.ndarray, " 3"]:
    shares = (np.abs(waves) < 1).mean((0, 2))
    order = np.add.outer(np.arange(8), np.arange(8))
    bands = ((1, 4), (5, 8), (9, 14))
    return np.array([shares[(order >= low) & (order <= high)].mean() for low, high in bands])


PROBES: Sequence[Probe] = (
    Probe("format", _format, "save all images in one format and mode"),
    Probe("coding", _coding, "save all images by one program with the same options"),
    Probe("quantization", _quantization, "compress all images alike, or none"),
    Probe("metadata", _metadata, "remove EXIF, profiles and texts from all images"),
    Probe("size", _size, "scale or crop real images and fakes by the same rule"),
    Probe("bytes", _bytes, "save all alike; if it stays, it is what the images show, or noise"),
    Probe("colour", _colour, "choose real images of what the fakes show, or augment colours"),
    Probe("contrast", _contrast, "bring contrast, saturation and grey images to the same shares"),
    Probe("border", _border, "cut borders off"),
    Probe(
        "compressed before",
        _compressed_before,
        "compress fakes as the real images once were, or scale all of them",
    ),
)
