"""What prepared data was made of, and how: kept with it, and compared wherever it is used again.

Two subsets are the same data if version, split sizes, recipe and contents are; where the sources
were on which disk, and when they were written, is recorded and not compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from wsdl_data.image_files import File
from wsdl_jax.runtime import differences as trees

FILE = "metadata.json"  # TFDS's, in the folder of a subset
_HASH = "sha256"


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a subset is made.

    Attributes:
        recipe: every setting that its images depend on.
        content: SHA-256 of what goes in, by what it is: "sources", "forger", …
        recorded: where that was, how much and of when; never compared.
    """

    recipe: Mapping[str, Any]
    content: Mapping[str, str] = dataclasses.field(default_factory=dict)
    recorded: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """Returns it as it is kept with a subset."""
        return {field.name: dict(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Hashed:
    """A file as it was read.

    Attributes:
        size: its bytes.
        modified: when it was changed last, in nanoseconds since 1970.
        sha256: of its content, in hexadecimal digits.
    """

    size: int
    modified: int
    sha256: str


class Contents:
    """The files that a dataset is made of, hashed one after the other, in any order and thread."""

    def __init__(self, *, bounded: bool = False):
        """Begins without files.

        bounded: whether the memory that is needed does not grow with the files. Their hash is
            another one then: the sum, modulo 2²⁵⁶, of those of each image's name and contents.
        """
        self._digests: dict[str, str] | None = None if bounded else {}
        self._sum, self._images = 0, 0
        self._bytes, self._newest = 0, 0.0
        self._lock = threading.Lock()

    def add(self, name: str, paths: Iterable[File | None]) -> list[Hashed | None]:
        """Hashes the files of an image and what else belongs to it, under the image's name.

        Returns each file as it was read, and None where there is none.

        Raises OSError for a file that cannot be read.
        """
        digest, size, newest = hashlib.new(_HASH), 0, 0.0
        files: list[Hashed | None] = []
        for path in paths:
            # Before it is read: a later change has a later time.
            stat = None if path is None else path.stat()
            content = b"" if path is None else path.read_bytes()
            digest.update(len(content).to_bytes(8) + content)
            if stat is None:
                files.append(None)
                continue
            size += len(content)
            newest = max(newest, stat.st_mtime)
            sha256 = hashlib.new(_HASH, content).hexdigest()
            files.append(Hashed(len(content), stat.st_mtime_ns, sha256))
        with self._lock:
            self._images += 1
            if self._digests is None:
                one = int(digest_of([name, digest.hexdigest()]), 16)
                self._sum = (self._sum + one) % 2**256
            else:
                self._digests[name] = digest.hexdigest()
            self._bytes += size
            self._newest = max(self._newest, newest)
        return files

    def digest(self) -> str:
        """Returns the hash of all names and contents."""
        if self._digests is None:
            return f"{self._sum:064x}"
        return digest_of(sorted(self._digests.items()))

    def recorded(self) -> dict[str, Any]:
        """Returns how many images there are, their bytes, and the time of the newest file."""
        return {"images": self._images, "bytes": self._bytes, "newest": self._newest}


def digest_of(content: Any) -> str:
    """Returns the SHA-256 of anything that JSON can hold."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.new(_HASH, text.encode()).hexdigest()


def digest_of_file(path: epath.PathLike) -> str:
    """Returns the SHA-256 of a file that fits into memory. Raises OSError."""
    return hashlib.new(_HASH, epath.Path(path).read_bytes()).hexdigest()


def split_sizes(builder: tfds.core.DatasetBuilder) -> dict[str, int]:
    """Returns the images of all splits that a subset can have, made or not, by their names.

    It is empty for a dataset whose splits are not built one by one.
    """
    return dict(getattr(builder, "split_sizes", {}))


def of(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    """Returns version, split sizes and `Origin` of a prepared subset.

    The sizes are of all splits that it can have: a split that is added later makes no other data.

    Raises OSError or ValueError where its description cannot be read.
    """
    path = Path(builder.data_dir) / FILE
    try:
        kept = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete this folder and build again"
        ) from error
    present = {name: split.num_examples for name, split in builder.info.splits.items()}
    return {
        "version": str(builder.version),
        "splits": split_sizes(builder) | present,
        **{field.name: kept.get(field.name, {}) for field in dataclasses.fields(Origin)},
    }


def identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a provenance that is compared."""
    return {key: value for key, value in provenance.items() if key != "recorded"}


def digests(provenances: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns a hash of what is compared of each of several subsets, by their names."""
    return {name: digest_of(identity(kept)) for name, kept in provenances.items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns "field: old → new" for everything that two provenances differ by."""
    before, after = (dict(trees.leaves(identity(kept))) for kept in (old, new))
    return trees.differences(before, after, _short)


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text  # of a hash enough to tell it from another
