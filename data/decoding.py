"""Image files become pixels here, for datasets, prediction and forging."""

import contextlib
import functools
import importlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from etils import epath
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

# Pillow's 8-bit modes without transparency.
_OPAQUE = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
# Those of 16-bit grey, and "I", which is 32 bits wide and mostly holds 16.
_GREY_16 = {"I;16", "I;16B", "I;16L", "I;16N", "I"}
_FIRST = "wsdl_is_first"  # in the `info` of an image
_IEND_CHECKSUM = zlib.crc32(b"IEND").to_bytes(4)


# Formats that Pillow reads with another package, or in some of its builds: how their files begin
# (the first bytes, or the brand after them), and which package it is.
_BRANDS = {
    "HEIF": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
    "AVIF": (b"avif", b"avis"),
}
_JXL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a")


class _RefusedError(ValueError):
    """A file that is refused for a reason that its message gives in full."""


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Makes whatever decoders raise for damaged files a ValueError of one line."""
    try:
        yield
    except _RefusedError:
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, and a dozen more.
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The system's: the file cannot be read.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"unreadable or truncated image ({reason})") from error


@functools.cache
def _register_formats() -> None:
    """Lets Pillow read HEIF and JPEG XL where their packages are installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")  # which registers itself


def _needed(start: bytes) -> str | None:
    """Returns which format a file has that cannot be read here; None where it is another one.

    start: its first bytes, 16 at least.
    """
    found = "JXL" if start.startswith(_JXL) else None
    if start[4:8] == b"ftyp":
        found = next((name for name, brands in _BRANDS.items() if start[8:12] in brands), None)
    return None if found is None or found in Image.OPEN else found


def decode(
    source: bytes | Path | epath.Path,
    *,
    max_pixels: int | None = None,
    formats: Sequence[str] | None = None,
    before_pixels: Callable[[int], None] | None = None,
) -> Image.Image:
    """Returns the pixels of an image file as 8-bit RGB, as of `to_rgb`; see `load`."""
    return to_rgb(load(source, max_pixels=max_pixels, formats=formats, before_pixels=before_pixels))


def load(
    source: bytes | Path | epath.Path,
    *,
    max_pixels: int | None = None,
    formats: Sequence[str] | None = None,
    before_pixels: Callable[[int], None] | None = None,
    checksums: bool = True,
) -> Image.Image:
    """Decodes an image file to its end and returns it in its own mode, not turned.

    What Pillow reads is read, and HEIF and JPEG XL where the packages pillow-heif and
    pillow-jxl-plugin are installed. `is_first` says whether there are further pages or frames.

    Args:
      source: a file or its bytes; of several pages or frames the first is read.
      max_pixels: the most pixels of an image, above which it is taken for a decompression bomb. If
        it is above twice Pillow's own limit, `PIL.Image.MAX_IMAGE_PIXELS`, that must be switched
        off.
      formats: names of the formats that are read, where Pillow knows them; by default all.
      before_pixels: called with the number of pixels as soon as the header says it, before they are
        decoded. An image with transparency counts four times, as `to_rgb` copies it with four
        channels. What this function raises is taken for a fault of the file.
      checksums: whether the checksums of a PNG file are looked at, which decoding alone does not.

    Raises:
      OSError: the file cannot be opened or read.
      ValueError: the file is empty, no image, truncated or damaged, or it has too many pixels. The
        message is the reason, without the file's name.
    """
    # Another library may have switched this on; a truncated image would then pass as grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    _register_formats()
    Image.init()
    known = formats and [name for name in formats if name.upper() in Image.OPEN]
    opened = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with opened as file:
        start = file.read(16)
        if not start:
            raise ValueError("an empty file")
        file.seek(0)
        with _reasons():
            try:
                image = Image.open(file, formats=known)
            except UnidentifiedImageError:
                if needed := _needed(start):
                    raise _RefusedError(
                        f"a {needed} image, which is read with pip install 'wsdl-jax[formats]'"
                    ) from None
                kinds = f"a {', '.join(formats[:-1])} or {formats[-1]}" if formats else "an"
                raise _RefusedError(f"not {kinds} image") from None
            pixels = image.width * image.height
            if max_pixels is not None and pixels > max_pixels:
                raise _RefusedError(
                    f"{image.width}×{image.height} pixels, taken for a decompression bomb: the "
                    f"limit is {max_pixels / 1e6:.0f} megapixels"
                )
            if before_pixels is not None:
                before_pixels(pixels * (4 if image.has_transparency_data else 1))
            if checksums and image.format == "PNG":
                _check_png(image, file)
                image = Image.open(file, formats=known)  # A checked one cannot be decoded.
            image.info[_FIRST] = bool(getattr(image, "is_animated", False))
            image.load()
            image.getexif()  # Reads it while the file is open.
            if image.format == "PNG" and image.mode == "L":
                _scale_transparent_grey(image, file)
    return image


def is_first(image: Image.Image) -> bool:
    """Returns whether an image that was loaded is the first of several pages or frames."""
    return image.info.get(_FIRST, False)


@_reasons()
def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of any mode as 8-bit RGB.

    It is turned as its EXIF orientation says, and what is transparent is laid over white. Of 16-bit
    grey values the higher 8 bits stay, also of 32-bit integers that hold no more; floating-point
    grey values are from 0, black, to 1, white.

    Raises:
      ValueError: grey values are beyond these ranges, or the mode cannot be converted.
    """
    image = upright(image)
    if image.mode in _GREY_16 or image.mode == "F":
        return _grey(image).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow converts this to nothing else.
            image = image.convert("LA")
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode not in _OPAQUE:
        raise _RefusedError(f"pixels of mode {image.mode}, which are not converted to RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def upright(image: Image.Image) -> Image.Image:
    """Returns an image turned as its EXIF orientation says."""
    return image if is_upright(image) else ImageOps.exif_transpose(image)


def is_upright(image: Image.Image) -> bool:
    """Returns whether the EXIF orientation of an image leaves it as it is."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def _check_png(image: Image.Image, file: io.IOBase) -> None:
    """Raises for a chunk of a PNG file whose checksum is wrong, and for a missing end."""
    image.verify()
    # This has stopped before the checksum of the last chunk, without which other readers (OpenCV)
    # refuse the file.
    if file.read(4) != _IEND_CHECKSUM:
        raise ValueError("no end of file")
    file.seek(0)


def _scale_transparent_grey(image: Image.Image, file: io.IOBase) -> None:
    """Scales the transparent grey value of a PNG of 2 or 4 bits as Pillow scales its pixels."""
    value = image.info.get("transparency")
    if isinstance(value, int):
        file.seek(24)
        bits = file.read(1)[0]
        image.info["transparency"] = value * (255 // (2**bits - 1))


def _grey(image: Image.Image) -> Image.Image:
    """Returns a grey image of 16 bits, or of floating-point numbers, as one of 8 bits."""
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):
            raise _RefusedError("floating-point grey values beyond 0 to 1")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if not 0 <= values.min() <= values.max() < 1 << 16:
        raise _RefusedError("grey values beyond 16 bits")
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)
