"""Localization maps as files: kept after an evaluation, and read from any system's folder."""

import csv
import dataclasses
import hashlib
import io
import lzma
import math
import os
import pathlib
import struct
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float
from PIL import Image

from wsdl_jax import inputs
from wsdl_jax.evaluation import measures
from wsdl_jax.runtime import storage
from wsdl_jax.runtime.errors import UserError, reason

SIDES = ("fake", "real")  # folders of maps, and labels of a table of scores
_LONGEST = 200  # bytes of a name
BATCH_PIXELS = 2**24  # of maps that are read at a time
# Of files that are damaged, encrypted, packed in a way that Python does not know, or far too large.
_DAMAGED = (
    *(ValueError, TypeError, EOFError, SyntaxError, OverflowError, RuntimeError, KeyError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, Image.DecompressionBombError),
)
_SUFFIXES = (".npz", ".npy", ".png")
_GREY = {"1": 1, "L": 255, "I;16": 65535, "I;16B": 65535, "I;16L": 65535, "I": 65535}


def file_name(key: str) -> str:
    """Returns the name, without its suffix, of the file of an image's map.

    Whatever the key has in it, the name is that of a file in one folder, and no two are alike:
    other characters than letters, digits and "_.-~" are written as in URLs. A name that would be
    too long is the key's SHA-256.
    """
    name = urllib.parse.quote(key, safe="")
    return name if len(name) <= _LONGEST else hashlib.sha256(key.encode()).hexdigest()


def save(
    folder: pathlib.Path,
    side: str,
    subset: str,
    key: str,
    localization_map: Float[np.ndarray, "h w"],
    score: float,
    probability: float,
) -> None:
    """Writes what a network has found in an image to a file of its own, with nothing lost.

    It is FOLDER/SIDE/NAME.npz or, where the side is of several sets, whose images may have the same
    keys, FOLDER/SIDE/SET/NAME.npz.

    Args:
      folder: where the sides' folders are.
      side: "fake" or "real".
      subset: the name of the image's set, of which SET is the `file_name`, where the side is of
        several; "" where it is of one.
      key: of the image, see `file_name`.
      localization_map: the map as the network gives it, float32.
      score: the image's score.
      probability: the probability of being fake.

    Raises:
      UserError: there is a map of this image already.
    """
    path = folder / side / (file_name(subset) if subset else "") / f"{file_name(key)}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            np.savez_compressed(file, map=localization_map, score=score, probability=probability)
    except FileExistsError as error:
        raise UserError(
            f"{key} is the key of two {side} images: their maps cannot be kept apart"
        ) from error


@dataclasses.dataclass(frozen=True)
class Found:
    """What a file of a map has.

    Attributes:
      localization_map: probabilities of having been manipulated, float32 in [0, 1], of any size.
      score: the image's score; None where the file has none.
      probability: the probability of being fake; None likewise.
    """

    localization_map: Float[np.ndarray, "h w"]
    score: float | None = None
    probability: float | None = None


def read(path: pathlib.Path) -> Found:
    """Returns the map of a file, and the score that it may have.

    PNG files are grey, of 8 bits (255 = surely manipulated) or 16 (65,535). Arrays of NumPy have
    two axes, or a third of length 1, and probabilities in them; an .npz file has them as `map` or
    as its only array, and may have a `score` and a `probability`.

    Raises:
      UserError: anything else, in one line that names the file.
    """
    try:
        if path.suffix.lower() == ".png":
            return Found(_checked(_grey(path)))
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return Found(_checked(loaded))
            arrays = {name: loaded[name] for name in loaded.files}
        if "map" not in arrays and len(arrays) != 1:
            raise ValueError(f"it has {', '.join(sorted(arrays)) or 'nothing'}, and no array 'map'")
        values = _checked(arrays["map"] if "map" in arrays else next(iter(arrays.values())))
        score, probability = (_number(arrays, name) for name in ("score", "probability"))
        return Found(values, score, probability)
    except OSError as error:
        what = reason(error) if error.errno is not None else f"{path} cannot be read: {error}"
        raise UserError(what) from error
    except MemoryError as error:
        raise UserError(f"{path} cannot be read: there is not enough memory for it") from error
    except _DAMAGED as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read: {text}") from error


def _grey(path: pathlib.Path) -> Float[np.ndarray, "h w"]:
    with Image.open(path, formats=("PNG",)) as image:
        if image.mode not in _GREY:
            raise ValueError(f"it is of mode {image.mode}, where grey of 8 or 16 bits is needed")
        return np.asarray(image).astype(np.float64) / _GREY[image.mode]


def _checked(values: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Returns an array as a map of float32. Raises ValueError for one that is none."""
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values.squeeze(0 if values.shape[0] == 1 else -1)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "fiub":
        shape = " × ".join(map(str, values.shape))
        raise ValueError(f"an array of {shape or 'no'} {values.dtype} is no map")
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise ValueError(f"its values are between {low:g} and {high:g}, not in [0, 1]")
    return values.astype(np.float32)


def _number(arrays: Mapping[str, np.ndarray], name: str) -> float | None:
    if name not in arrays:
        return None
    value = float(arrays[name])  # TypeError for more than one
    if not math.isfinite(value):
        raise ValueError(f"its {name} is {value}")
    return value


def folder_of(folder: epath.Path, side: str, subset: str, *, several: bool) -> pathlib.Path:
    """Returns the folder that has the maps of a set: FOLDER/SIDE/SET, or FOLDER/SIDE.

    Args:
      folder: of the maps.
      side: "fake" or "real".
      subset: the name of the set, of which SET is the `file_name`.
      several: whether the side is of several sets, which have a folder each then. The maps of one
        set are in a folder of its own where there is such a one.
    """
    of_side = pathlib.Path(folder / side)
    of_set = of_side / file_name(subset)
    return of_set if several or of_set.is_dir() else of_side


def files_of(root: pathlib.Path, side: str, keys: Iterable[str]) -> dict[str, pathlib.Path]:
    """Returns the file of each image's map, in a folder or below.

    An image's map is the file with the name that `save` gives it, else one whose path is the
    image's key, with the key's own suffix or without it, else one with the same stem.

    Args:
      root: the folder, see `folder_of`.
      side: "fake" or "real".
      keys: of all images of the side, or of one of its sets.

    Raises:
      UserError: no such folder, an image without a map, with two, or two with the same one.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder: the maps of {side} images belong there")
    by_path: dict[str, list[pathlib.Path]] = {}
    by_stem: dict[str, list[pathlib.Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            name = path.relative_to(root).as_posix().removesuffix(path.suffix)
            by_path.setdefault(name, []).append(path)
            by_stem.setdefault(path.stem, []).append(path)
    found: dict[str, pathlib.Path] = {}
    owners: dict[pathlib.Path, str] = {}
    for key in keys:
        bare = os.path.splitext(key)[0]
        stem = os.path.basename(bare)
        candidates = (by_path.get(name) for name in (file_name(key), key, bare))
        paths = next((of for of in candidates if of), None) or by_stem.get(stem)
        if not paths:
            raise UserError(f"{root} has no map of {key}: no {file_name(key)}.npz, nor {bare}.png")
        if len(paths) > 1:
            raise UserError(f"{key} has two maps: {paths[0]} and {paths[1]}")
        if paths[0] in owners:
            raise UserError(f"{paths[0]} is of {key} and of {owners[paths[0]]}: name maps by keys")
        if key in found:
            raise UserError(f"{key} is the key of two {side} images: maps cannot be told apart")
        found[key] = paths[0]
        owners[paths[0]] = key
    return found


@dataclasses.dataclass(frozen=True)
class Score:
    """What a table says of an image.

    Attributes:
      score: higher = more likely fake.
      probability: of being fake.
    """

    score: float
    probability: float


@dataclasses.dataclass(frozen=True)
class Row:
    """What the scores of a table are told apart by.

    Attributes:
      side: "fake" or "real".
      subset: the name of the image's set; "" where the table does not say it.
      key: of the image.
    """

    side: str
    subset: str
    key: str

    def __str__(self) -> str:
        of = f" of {self.subset}" if self.subset else ""
        return f"{self.side} {self.key}{of}"


def read_scores(path: epath.Path) -> dict[Row, Score]:
    """Returns the scores of a CSV file, by side, set and key.

    It has columns `label` ("fake" or "real"), `key`, `score` and, unless all scores are in [0, 1],
    `probability`, as the predictions.csv of a run has; and `set`, the name of the image's set,
    where images of several sets have the same key.

    Raises:
      UserError: anything else, in one line that names the line of the file.
    """
    text = storage.read_text(path).removeprefix("\ufeff")  # spreadsheets begin files with it
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = {"label", "key", "score"} - {*(reader.fieldnames or ())}
    if missing:
        raise UserError(f"{path} has no column {sorted(missing)[0]!r}")
    found: dict[Row, Score] = {}
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if row["label"] not in SIDES:
                raise UserError(f"{where}: the label is {row['label']!r}, not fake or real")
            place = Row(row["label"], row.get("set") or "", row["key"])
            if place in found:
                raise UserError(f"{where}: {place} is there twice")
            found[place] = _score(row, where)
    except csv.Error as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return found


def _score(row: Mapping[str, Any], where: str) -> Score:
    score = row["score"]
    text = row.get("probability")
    try:
        values = float(score), float(score if text is None else text)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
    if not math.isfinite(values[0]) or not 0 <= values[1] <= 1:
        what = f"a score of {score}" if text is None else f"score {score}, probability {text}"
        raise UserError(
            f"{where}: {what}, where scores are finite and probabilities in [0, 1]; scores outside "
            "of it need a column 'probability'"
        )
    return Score(*values)


class Reader:
    """The maps of a folder and the scores that go with them, image by image."""

    def __init__(
        self, folder: epath.Path, sides: Mapping[str, inputs.Examples], scores: epath.Path | None
    ):
        """Finds the file of each image; see `folder_of`, `files_of` and `read_scores`.

        Args:
          folder: of the maps.
          sides: the images.
          scores: a table of scores; None where files have scores, or none is known.
        """
        self._images = {
            side: [Row(side, source.subset(n), measures.key(source, n)) for n in range(len(source))]
            for side, source in sides.items()
        }
        self._scores = None if scores is None else _scores_of(self._images, scores)
        self._files: dict[Row, pathlib.Path] = {}
        for side, images in self._images.items():
            keys: dict[str, list[str]] = {}
            for image in images:
                keys.setdefault(image.subset, []).append(image.key)
            for subset, of_set in keys.items():
                root = folder_of(folder, side, subset, several=len(sides[side].sizes) > 1)
                files = files_of(root, side, of_set)
                self._files |= {Row(side, subset, key): path for key, path in files.items()}
        self._first: tuple[pathlib.Path, bool] | None = None  # whether files have scores

    def found(self, side: str, index: int) -> Found:
        """Returns the map of an image, with a score and a probability.

        They are the table's, else the file's, else both are the map's maximum.

        Raises:
          UserError: a file that cannot be read, or that has no score where others have one.
        """
        image = self._images[side][index]
        path = self._files[image]
        found = read(path)
        if self._scores is not None:
            return dataclasses.replace(found, **dataclasses.asdict(self._scores[image]))
        has_score = found.score is not None
        if self._first is None:
            self._first = path, has_score
        if has_score != self._first[1]:
            one, other = (path, self._first[0]) if has_score else (self._first[0], path)
            raise UserError(
                f"{one} has a score and {other} has none: give all of them, or --scores"
            )
        if not has_score:
            highest = float(found.localization_map.max())
            return dataclasses.replace(found, score=highest, probability=highest)
        probability = found.score if found.probability is None else found.probability
        if not 0 <= probability <= 1:
            raise UserError(f"{path}: the probability {probability:g} is not in [0, 1]")
        return dataclasses.replace(found, probability=probability)

    def in_batches(
        self, side: str, size: int, progress: Callable[[range], Iterable[int]]
    ) -> Iterator[tuple[list[int], list[Found]]]:
        """Yields the indices of images of a side with what is found in them, in order.

        Args:
          side: "fake" or "real".
          size: how many at a time, or fewer, where their maps have `BATCH_PIXELS` together.
          progress: yields what it is given, and shows how far that is.
        """
        indices, found, pixels = [], [], 0
        for index in progress(range(len(self._images[side]))):
            indices.append(index)
            found.append(self.found(side, index))
            pixels += found[-1].localization_map.size
            if len(indices) == size or pixels >= BATCH_PIXELS:
                yield indices, found
                indices, found, pixels = [], [], 0
        if indices:
            yield indices, found


def _scores_of(images: Mapping[str, Sequence[Row]], path: epath.Path) -> dict[Row, Score]:
    """Returns the score of each image.

    Raises:
      UserError: a table without one, or whose rows do not say which of two images they are of.
    """
    scores = read_scores(path)
    found: dict[Row, Score] = {}
    for of_side in images.values():
        sets: dict[str, str] = {}
        for image in of_side:
            row = image if image in scores else dataclasses.replace(image, subset="")
            if row not in scores:
                raise UserError(f"{path} has no row of {image}")
            if not row.subset and sets.setdefault(image.key, image.subset) != image.subset:
                raise UserError(
                    f"{path}: {row} is in {sets[image.key]} and in {image.subset}: a column 'set' "
                    "has to tell them apart"
                )
            found[image] = scores[row]
    return found
