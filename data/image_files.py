"""Image files as the datasets take them: decoded to the end, checked, encoded, cut into shards."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from etils import epath
from PIL import ExifTags, Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from wsdl_jax.runtime import storage

# Input bytes per ArrayRecord file. TFDS keeps a shard's examples until the shard is closed, so this
# also bounds the memory of a build.
SHARD_BYTES = 64 << 20
_NOT_IMAGES = {"thumbs.db", "desktop.ini"}
# Pillow's 8-bit modes, those of 16-bit grey, and "I", which is 32 bits wide and mostly holds 16.
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"}
_GREY_16 = {"I;16", "I;16B", "I;16L", "I;16N", "I"}

_PNG_END = b"IEND" + zlib.crc32(b"IEND").to_bytes(4)

_Item = TypeVar("_Item")


def is_left_by_a_system(path: Path) -> bool:
    """Whether a file or folder is hidden or one that file managers leave, and not an image."""
    return path.name.startswith(".") or path.name.lower() in _NOT_IMAGES


def read_rgb(path: Path) -> tuple[bytes, Image.Image]:
    """Reads and checks an image.

    Returns:
        An encoded 8-bit RGB image and its pixels: the file's own bytes if it is a PNG or a JPEG of
        that kind and upright, else a PNG of its pixels as RGB, turned as its EXIF orientation says.
        Transparency is dropped, and of 16 bits the higher 8 stay.

    Raises:
        ValueError: the file cannot be decoded to its end, or its pixels have more than 16 bits.
    """
    encoded, image, turned = _decode(path)
    # The reader decodes to three 8-bit channels only if the file has them: Pillow calls a 16-bit
    # PNG and one with a transparent colour RGB, too. Byte 24 of a PNG is its bit depth.
    plain = image.format == "JPEG" or (image.format == "PNG" and encoded[24] == 8)
    if plain and image.mode == "RGB" and "transparency" not in image.info and not turned:
        return encoded, image
    pixels = _upright_rgb(path, image)
    return png(pixels), pixels


def read_pixels(path: Path) -> Image.Image:
    """The pixels of an image as 8-bit RGB, as of `read_rgb`. Raises ValueError, too."""
    _, image, _ = _decode(path)
    return _upright_rgb(path, image)


def read_pair(path: Path, mask: Path | None) -> tuple[bytes, Image.Image | None]:
    """Reads and checks an image and its mask.

    Returns:
        The image as of `read_rgb`, encoded, and the mask as of `read_pixels`, if there is one.

    Raises:
        ValueError: as `read_rgb`, or the sizes differ.
    """
    encoded, image = read_rgb(path)
    if mask is None:
        return encoded, None
    pixels = read_pixels(mask)
    if pixels.size != image.size:
        raise ValueError(
            f"{mask}: the mask is {pixels.width}x{pixels.height},"
            f" its image {image.width}x{image.height}"
        )
    return encoded, pixels


def png(image: Image.Image) -> bytes:
    """The image as a PNG, without what else the file that it came from has said of it."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def check_replaceable(out: epath.Path, made_by: str) -> None:
    """Raises ValueError where something is in the way that `save_sheet` has not made."""
    if not out.exists():
        return
    try:
        with out.open("rb") as file, Image.open(file) as image:
            earlier = image.info.get("Software") == made_by
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        earlier = False
    if not earlier:
        raise ValueError(f"{out} is there and is no picture of {made_by}: choose another file")


def save_sheet(image: Image.Image, out: epath.Path, made_by: str, **options: Any) -> None:
    """Writes a picture as a PNG file, in the place of one that the same program has made.

    Args:
        image: the picture.
        out: the file, which is there as a whole or as it was before.
        made_by: the program, whose name is kept in the file.
        options: of Pillow's PNG files.

    Raises:
        OSError: the file cannot be written.
        ValueError: something else is there.
    """
    check_replaceable(out, made_by)
    note = PngImagePlugin.PngInfo()
    note.add_text("Software", made_by)
    stream = io.BytesIO()
    image.save(stream, "PNG", pnginfo=note, **options)
    storage.write_whole(out, stream.getvalue())


def shards(items: Sequence[_Item], files: Callable[[_Item], Iterable[Path]]) -> list[list[_Item]]:
    """Cuts a split into consecutive runs of about `SHARD_BYTES`; `files` are those of an item."""
    runs, size = [[]], 0
    for item in items:
        if size >= SHARD_BYTES:
            runs.append([])
            size = 0
        runs[-1].append(item)
        size += sum(path.stat().st_size for path in files(item))
    return runs


def _decode(path: Path) -> tuple[bytes, Image.Image, bool]:
    """The bytes of an image file, its image decoded to the end, and whether it is to be turned."""
    # Another library may have switched this on; a truncated image would then pass as grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    encoded = path.read_bytes()
    try:
        # `verify` checks a PNG's checksums, which decoding alone does not, but not that of its last
        # chunk, without which other readers (OpenCV) refuse the file.
        with Image.open(io.BytesIO(encoded)) as image:
            image.verify()
        image = Image.open(io.BytesIO(encoded))
        image.load()
        if image.format == "PNG" and _PNG_END not in encoded:
            raise ValueError("no end of file")
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except UnidentifiedImageError:
        raise ValueError(f"{path}: {'not an image' if encoded else 'an empty file'}") from None
    except Exception as error:  # Pillow's decoders raise a dozen types for damaged files.
        raise ValueError(f"{path}: unreadable or truncated image ({error})") from error
    return encoded, image, turned


def _upright_rgb(path: Path, image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode in _GREY_16:
        values = np.asarray(image)
        if not 0 <= values.min() <= values.max() < 1 << 16:
            raise ValueError(f"{path}: grey values beyond 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode not in _MODES:
        raise ValueError(f"{path}: pixels of mode {image.mode}, where 8 or 16 bits are expected")
    image.info.pop("transparency", None)  # Or it would be written into the copy.
    return image.convert("RGB")
