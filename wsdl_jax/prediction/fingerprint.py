"""The fingerprint of a file: which bytes were looked at."""

import hashlib
from typing import NamedTuple

from etils import epath

from wsdl_jax.prediction import content_credentials

_PIECE = 2**20  # bytes


class Fingerprint(NamedTuple):
    """What is known of a file's bytes.

    Attributes:
      sha256: of all of them, in hexadecimal digits.
      size: their number.
      has_credentials: whether there seem to be Content Credentials among them.
    """

    sha256: str
    size: int
    has_credentials: bool


def of(path: epath.Path) -> Fingerprint:
    """Returns the fingerprint of a file of any size. Raises OSError."""
    digest, search, size = hashlib.sha256(), content_credentials.Search(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            search.add(piece)
            size += len(piece)
    return Fingerprint(digest.hexdigest(), size, search.found)
