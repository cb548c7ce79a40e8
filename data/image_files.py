"""Image files as the datasets take them: checked, encoded and cut into shards."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from etils import epath
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin

from wsdl_data import decoding
from wsdl_jax.runtime import storage

# Input bytes per ArrayRecord file. TFDS keeps a shard's examples until the shard is closed, so this
# also bounds the memory of a build.
SHARD_BYTES = 64 << 20
_COLOURED = 32  # between the channels of a pixel: more than a JPEG file makes of grey
_NOT_IMAGES = {"thumbs.db", "desktop.ini"}

_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """A file that lies in another one, to be read as a `Path` is.

    Attributes:
        name: of the file, as messages have it.
        content: its bytes.
        within: the other file.
    """

    name: str
    content: bytes = dataclasses.field(repr=False)
    within: Path

    @property
    def suffix(self) -> str:
        """Returns the ending of its name, with the dot; empty where it has none."""
        return Path(self.name).suffix

    def read_bytes(self) -> bytes:
        """Returns its bytes."""
        return self.content

    def stat(self) -> os.stat_result:
        """Returns what the system says of the file that it lies in. Raises OSError."""
        return self.within.stat()

    def __str__(self) -> str:
        return f"{self.name} in {self.within}"


File = Path | Embedded


def is_left_by_a_system(path: Path) -> bool:
    """Returns whether a file or folder is hidden or left by a file manager, and so no image."""
    return path.name.startswith(".") or path.name.lower() in _NOT_IMAGES


def read_rgb(path: File) -> tuple[bytes, Image.Image]:
    """Reads and checks an image.

    Returns:
        An encoded 8-bit RGB image and its pixels: the file's own bytes if it is a PNG or a JPEG of
        that kind and upright, else a PNG of its pixels as `decoding.to_rgb` converts them.

    Raises:
        OSError: the file cannot be read.
        ValueError: it cannot be decoded to its end, or not converted; the message names it.
    """
    encoded = path.read_bytes()
    with _named(path):
        image = decoding.load(encoded)
        pixels = decoding.to_rgb(image)
    # The reader decodes to three 8-bit channels only if the file has them: Pillow calls a 16-bit
    # PNG and one with a transparent colour RGB, too. Byte 24 of a PNG is its bit depth.
    is_plain = image.format == "JPEG" or (image.format == "PNG" and encoded[24] == 8)
    is_rgb = image.mode == "RGB" and not image.has_transparency_data
    if is_plain and is_rgb and decoding.is_upright(image):
        return encoded, pixels
    return png(pixels), pixels


def read_pixels(path: Path) -> Image.Image:
    """Returns the pixels of an image as 8-bit RGB. Raises as `read_rgb` does."""
    with _named(path):
        return decoding.decode(path)


def read_mask(path: File) -> Image.Image:
    """Returns the pixels of a mask as 8-bit RGB.

    Raises as `read_rgb` does, and ValueError for a mask that is transparent in parts: laid over one
    colour or another it would say that all or nothing is manipulated.
    """
    with _named(path):
        return decoding.to_rgb(_opaque(decoding.load(path.read_bytes())))


def read_mask_values(path: File, *, grey: bool) -> np.ndarray:
    """Returns the values of a mask [h, w] as its file has them; of colours the highest channel.

    The values of a palette are its colours where these are grey, and their numbers where not.

    Args:
        path: the file.
        grey: whether a mask with colours is refused.

    Raises as `read_mask` does.
    """
    with _named(path):
        mask = decoding.upright(_opaque(decoding.load(path.read_bytes())))
        if grey:
            pixels = np.asarray(decoding.to_rgb(mask)).astype(np.int16)
            if np.ptp(pixels, axis=-1).max() > _COLOURED:
                raise ValueError("the mask has colours, where black and white are expected")
        if mask.mode in ("P", "PA"):
            colours = np.asarray(mask.convert("RGB"))
            is_grey = (colours == colours[..., :1]).all()
            return colours[..., 0] if is_grey else np.asarray(mask.convert("P"))
        values = np.asarray(
            mask.convert({"RGBA": "RGB", "LA": "L", "1": "L"}.get(mask.mode, mask.mode))
        )
        return values.max(-1) if values.ndim == 3 else values


def _opaque(mask: Image.Image) -> Image.Image:
    """Returns a mask. Raises ValueError for one that is transparent in parts."""
    if mask.has_transparency_data and mask.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        raise ValueError("the mask is transparent in parts: save it in black and white alone")
    return mask


def read_pair(path: File, mask: File | None) -> tuple[bytes, Image.Image | None]:
    """Reads and checks an image and its mask.

    Returns:
        The image as of `read_rgb`, encoded, and the mask as of `read_mask`, if there is one.

    Raises:
        ValueError: as `read_rgb`, or the sizes differ.
    """
    encoded, image = read_rgb(path)
    if mask is None:
        return encoded, None
    pixels = read_mask(mask)
    check_size(mask, pixels.size, image.size)
    return encoded, pixels


def check_size(mask: File, size: tuple[int, int], of_image: tuple[int, int]) -> None:
    """Raises ValueError, naming it, for a mask of another width or height than its image's."""
    if size != of_image:
        raise ValueError(
            f"{mask}: the mask is {size[0]}x{size[1]}, its image {of_image[0]}x{of_image[1]}"
        )


# What brings an image that was turned by its EXIF orientation back to how it is stored, and again.
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_LEFT_RIGHT),
    3: (Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_180),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.FLIP_TOP_BOTTOM),
    5: (Image.Transpose.TRANSPOSE, Image.Transpose.TRANSPOSE),
    6: (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
    7: (Image.Transpose.TRANSVERSE, Image.Transpose.TRANSVERSE),
    8: (Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_90),
}


def compressed_as(image: Image.Image, path: Path) -> Image.Image:
    """Returns the pixels of an image after it was saved as the JPEG file `path` was.

    The tables of quantization and the subsampling of colour are the file's, in the direction in
    which it is stored. Where `path` is no JPEG file the image is returned as it is.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no image; the message names it.
    """
    with _named(path), path.open("rb") as opened:
        try:
            file = Image.open(opened)
        except Image.UnidentifiedImageError as error:
            raise ValueError("no image") from error
        if not isinstance(file, JpegImagePlugin.JpegImageFile):  # of which MPO is a kind
            return image
        options = {"qtables": file.quantization}
        if (subsampling := JpegImagePlugin.get_sampling(file)) >= 0:
            options["subsampling"] = subsampling
        turn = _TURNS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    stream = io.BytesIO()
    (image.transpose(turn[0]) if turn else image).save(stream, "JPEG", **options)
    saved = Image.open(stream).convert("RGB")
    return saved.transpose(turn[1]) if turn else saved


def png(image: Image.Image) -> bytes:
    """Returns the image as a PNG file, with its pixels and its colour profile alone."""
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


@contextlib.contextmanager
def _named(path: File) -> Iterator[None]:
    """Puts the file's name before the reason for which it is refused."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
