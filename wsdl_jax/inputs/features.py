"""Features of images that were computed once, in files beside the prepared datasets."""

import contextlib
import functools
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from wsdl_data import provenance
from wsdl_jax.runtime.errors import UserError, reason
from wsdl_jax.runtime.storage import read_json, remove_abandoned, write_whole

FORMAT = 1
IMAGES = 64  # of a file
FOLDER = "features"  # of a folder of prepared datasets
_FACTS = "features.json"
DTYPE = np.dtype(jnp.bfloat16)
_OPEN = 256  # files that a process has mapped at a time, each with a descriptor of the system's


class KeptFeatures:
    """Features [h, w, c] bfloat16 of all images of one split of a subset, on a disk.

    They lie in DATA_DIR/features/KEY, where KEY is a hash of everything that they depend on, which
    features.json spells out. Of every `IMAGES` images there is a file, which is there as a whole or
    not at all: computing goes on where it was stopped, and processes that compute the same features
    write the same. Each image has a checksum of its encoded bytes and one of its features.

    Attributes:
      folder: where the files are.
      images: how many images there are.
      shape: (h, w, c) of the features of one.
    """

    def __init__(
        self,
        data_dir: str | None,
        facts: Mapping[str, Any],
        images: int,
        shape: tuple[int, int, int],
    ):
        """Opens what there is, if anything.

        Args:
          data_dir: the prepared datasets; None: ~/tensorflow_datasets.
          facts: everything that the features depend on, as JSON can hold it.
          images: how many images there are.
          shape: of the features of one.
        """
        self._facts = {**facts, "format": FORMAT, "images": images, "shape": list(shape)}
        root = Path(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR))
        self.folder = root / FOLDER / provenance.digest_of(self._facts)[:32]
        self.images, self.shape = images, tuple(shape)
        self._record = np.dtype(
            [("image", "<u4"), ("checksum", "<u4"), ("features", "<u2", self.shape)]
        )

    @property
    def image_bytes(self) -> int:
        """Returns how many bytes an image takes on the disk."""
        return self._record.itemsize

    @property
    def files(self) -> int:
        """Returns of how many files there are to be."""
        return -(-self.images // IMAGES)

    def places(self, number: int) -> range:
        """Returns which images a file is of."""
        return range(number * IMAGES, min((number + 1) * IMAGES, self.images))

    def missing(self) -> list[int]:
        """Returns the numbers of the files that are not there yet, or not as long as they are.

        Raises UserError for a folder that cannot be looked into.
        """
        return [number for number in range(self.files) if not self._is_there(number)]

    def _is_there(self, number: int) -> bool:
        path = self._path(number)
        try:
            return path.stat().st_size == self._size(number)
        except (FileNotFoundError, NotADirectoryError):  # of which `begin` says more
            return False
        except OSError as error:
            raise _unreadable(path, error) from error

    def _size(self, number: int) -> int:
        """Returns how many bytes a file has, as NumPy writes it."""
        images, stream = len(self.places(number)), io.BytesIO()
        facts = {
            "descr": np.lib.format.dtype_to_descr(self._record),
            "fortran_order": False,
            "shape": (images,),
        }
        np.lib.format.write_array_header_1_0(stream, facts)
        return stream.tell() + images * self._record.itemsize

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Raises UserError, in one line, where the block cannot write into the folder."""
        try:
            yield
        except OSError as error:
            why = error.strerror or reason(error)
            raise UserError(
                f"features cannot be written to {self.folder} ({why}): "
                "--config.data.features=none trains without"
            ) from error

    def begin(self) -> None:
        """Makes the folder, with what its features depend on.

        Raises UserError if it cannot be written.
        """
        with self.writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            facts = json.dumps(self._facts, indent=2, sort_keys=True) + "\n"
            write_whole(epath.Path(self.folder / _FACTS), facts)

    def write(self, number: int, encoded: list[bytes], features: np.ndarray) -> None:
        """Writes a file into the folder, which `begin` has made.

        Args:
          number: of the file.
          encoded: the image files of its images, in order.
          features: [n, h, w, c] bfloat16.

        Raises:
          UserError: it cannot be written.
        """
        records = np.empty(len(self.places(number)), self._record)
        records["image"] = [zlib.crc32(image) for image in encoded]
        records["features"] = features.astype(DTYPE).view(np.uint16)
        records["checksum"] = [zlib.crc32(one) for one in records["features"]]
        stream = io.BytesIO()
        np.save(stream, records)
        with self.writing():
            write_whole(epath.Path(self._path(number)), stream.getvalue())

    def remove_abandoned(self) -> None:
        """Removes what killed processes have left half-written."""
        if self.folder.is_dir():
            remove_abandoned(self.folder)

    def check(self) -> None:
        """Raises UserError unless what is there is of these features, as far as it says so."""
        path = self.folder / _FACTS
        if path.exists() and read_json(path) != json.loads(json.dumps(self._facts)):
            raise UserError(f"{path} says other than what {self.folder.name} stands for: delete it")

    def read(self, place: int, encoded: bytes) -> np.ndarray:
        """Returns the features of an image, [h, w, c] bfloat16.

        Args:
          place: of the image in its split.
          encoded: its image file.

        Raises:
          UserError: the file of features is damaged, of other images, gone, or cannot be read.
        """
        number, row = divmod(place, IMAGES)
        path = self._path(number)
        record = _mapped(path, self._record, len(self.places(number)))[row]
        if record["image"] != zlib.crc32(encoded):
            raise UserError(f"{path} is of other images than there are: delete {self.folder}")
        features = np.array(record["features"])
        if record["checksum"] != zlib.crc32(features):
            raise _damaged(path)
        return features.view(DTYPE)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}-of-{self.files:06d}.npy"


@functools.lru_cache(maxsize=_OPEN)
def _mapped(path: Path, record: np.dtype, images: int) -> np.ndarray:
    """Returns the records [images] of a file, which stay on the disk until they are read."""
    try:
        records = np.lib.format.open_memmap(path, mode="r")
        if (records.dtype, records.shape) != (record, (images,)):
            raise ValueError(f"{records.dtype} {records.shape}")
    except FileNotFoundError as error:
        raise UserError(f"{path} is gone: the same command computes it again") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, EOFError) as error:
        raise _damaged(path) from error
    return records


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged: delete it, and it is computed again")


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read: {error.strerror or reason(error)}")
