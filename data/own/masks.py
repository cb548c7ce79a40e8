"""What is manipulated in the mask files of a user."""

from __future__ import annotations

import dataclasses
import io
import re
import zipfile
import zlib

import numpy as np
from jaxtyping import Bool

from wsdl_data import image_files
from wsdl_data.image_files import File

_GREEN = 100  # of 255: a JPEG file has noise in what is red
_ARRAYS = (".npy", ".npz")


@dataclasses.dataclass(frozen=True)
class Manipulated:
    """Which values of a mask say that a pixel is manipulated.

    Attributes:
        name: "white" and "black" are the sides of mid-grey (128 of 255; 32768 where values are
            above 255), where a mask of 0 and 1 is one of black and white; "above:N" are the values
            above N, as the file has them; "green" are pixels whose green is above 100 of 255, of a
            mask of red and green.
    """

    name: str

    def __post_init__(self) -> None:
        """Raises ValueError for another name."""
        if not re.fullmatch(r"white|black|green|above:[0-9]+(\.[0-9]+)?", self.name):
            raise ValueError(f"{self.name!r}: choose white, black, green or above:N, N a number")

    def read(self, file: File) -> Bool[np.ndarray, "h w"]:
        """Returns a mask, True where its image is manipulated.

        Raises:
            OSError: the file cannot be read.
            ValueError: it cannot be decoded to its end, or has colours; the message names it.
        """
        if self.name == "green":
            return np.asarray(image_files.read_mask(file))[..., 1] > _GREEN
        if self.name.startswith("above:"):
            return _values(file, grey=False) > float(self.name.removeprefix("above:"))
        values = _values(file, grey=True)
        # In a JPEG the values 0 and 1 would be noise.
        is_binary = values.max() <= 1 and file.suffix.lower() not in (".jpg", ".jpeg")
        grey = 0.5 if is_binary else 128 if values.max() < 256 else 1 << 15
        return (values >= grey) == (self.name == "white")


def _values(file: File, *, grey: bool) -> np.ndarray:
    """Returns the values of a mask [h, w] as its file has them.

    grey: whether an image with colours is refused.
    """
    if file.suffix.lower() not in _ARRAYS:
        return image_files.read_mask_values(file, grey=grey)
    try:
        found = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            if len(found.files) != 1:
                raise ValueError(f"{len(found.files)} arrays, where one is expected")
            found = found[found.files[0]]
        values = np.squeeze(found)
        if values.ndim != 2 or not values.size or values.dtype.kind not in "buif":
            raise ValueError(f"an array {found.dtype}{list(found.shape)}, where a mask is expected")
        if not np.isfinite(values).all():
            raise ValueError("the mask has values that are no numbers")
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from error
    return values
