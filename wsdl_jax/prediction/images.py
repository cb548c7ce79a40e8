"""A user's image files: finding and reading them."""

import contextlib
import glob
import os
import warnings
from collections.abc import Callable, Iterator, Sequence

from etils import epath
from PIL import Image

from wsdl_data import decoding
from wsdl_jax.runtime.errors import UserError

FORMATS = ("PNG", "JPEG", "WebP", "TIFF", "BMP", "GIF", "AVIF", "HEIF", "JXL")


def find(patterns: Sequence[str], out: epath.Path, flag: str = "--images") -> dict[str, str]:
    """Finds the files that paths of files, folders and patterns stand for, each once, in order.

    A folder is searched to the bottom; hidden files and folders in it are left out, and so is
    `out`.

    Returns:
      By path, as given or found, a name for the files that are made of the image. It is the path
      from the folder that all files have in common, so that no two are alike.

    Raises:
      UserError: a path that is not there or cannot be listed, or nothing is left.
    """
    found: dict[str, str] = {}  # by absolute path
    for pattern in patterns:
        path = epath.Path(pattern)
        if path.exists():
            matches = [pattern]
        elif "://" in pattern:
            matches = sorted(map(str, path.parent.glob(path.name)))
        else:
            matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise UserError(f"{flag} {pattern}: there is no such file")
        for match in matches:
            folder = epath.Path(match).is_dir()
            for file in _files_of(epath.Path(match), out) if folder else [match]:
                found.setdefault(_absolute(file), file)
    if not found:
        raise UserError(f"{flag} {' '.join(patterns)}: no files in there")
    root = os.path.commonpath([os.path.dirname(path) for path in found])
    return {file: os.path.relpath(path, root) for path, file in found.items()}


def _absolute(path: str) -> str:
    return f"/{path.replace('://', '/')}" if "://" in path else os.path.abspath(path)


def _files_of(folder: epath.Path, out: epath.Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise UserError(f"{folder} cannot be listed: {error}") from error

    for parent, folders, files in folder.walk(on_error=fail):
        shown = [name for name in folders if not name.startswith(".")]
        # In place: this decides where the walk goes on.
        folders[:] = sorted(n for n in shown if _absolute(str(parent / n)) != _absolute(str(out)))
        yield from (str(parent / name) for name in sorted(files) if not name.startswith("."))


def read(
    path: epath.Path, max_pixels: int, reserve: Callable[[int], None] | None = None
) -> tuple[Image.Image, bool]:
    """Reads the image of a file as 8-bit RGB, see `wsdl_data.decoding`; of several the first.

    Args:
      path: of the file.
      max_pixels: more are taken for a decompression bomb. Pillow's own limit is to be switched off,
        see `pillow_without_its_limit`.
      reserve: called once the file's header has told the image's size, before it is decoded, with
        the number of pixels that decoding takes.

    Returns:
      The image, and whether there are several.

    Raises:
      ValueError: the file is no image of `FORMATS`, is damaged, or has too many pixels. The text is
        the reason, without the file's name.
    """
    check_file(path)
    try:
        options = {"max_pixels": max_pixels, "formats": FORMATS, "before_pixels": reserve}
        image = decoding.load(path, **options)
        return decoding.to_rgb(image), decoding.is_first(image)
    except OSError as error:
        raise ValueError(error.strerror or " ".join(str(error).split())) from error


def check_file(path: epath.Path) -> None:
    """Raises ValueError for what is no file."""
    # etils takes a pipe for a file, and opening one would wait for its writer.
    if not (path.is_file() if "://" in str(path) else os.path.isfile(path)):
        raise ValueError("not a file")


@contextlib.contextmanager
def pillow_without_its_limit() -> Iterator[None]:
    """Switches off Pillow's limit of pixels, as `read` has its own, and its warnings.

    They are about parts of a file, like a broken EXIF block, without which an image can be shown.
    """
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
