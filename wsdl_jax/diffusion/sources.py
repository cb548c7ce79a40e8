"""The images that fakes are forged from: those of a prepared subset, or of a folder."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Bool
from PIL import Image

from wsdl_data import image_files, provenance
from wsdl_data.image_folder import listing
from wsdl_data.own.items import SHARES
from wsdl_data.provenance import Contents, Origin
from wsdl_data.shapes import SHAPES
from wsdl_jax import inputs
from wsdl_jax.runtime.errors import ConfigError, UserError, in_one_line

OWN = "own"  # the mask policy that takes the subset's masks


@dataclasses.dataclass(frozen=True)
class Source:
    """An image to forge from.

    Attributes:
      key: its name.
      split: "train", "valid" or "test".
      is_real: whether it is a real image, and not a fake.
      read_image: reads it as RGB.
      file: the file that it is; None for an image of a subset.
      read_mask: reads its mask, which may have another size; None where it has none.
      mask_file: the file that the mask is; None for a mask of a subset.
    """

    key: str
    split: str
    is_real: bool
    read_image: Callable[[], Image.Image]
    file: Path | None = None
    read_mask: Callable[[], Bool[np.ndarray, "h w"]] | None = None
    mask_file: Path | None = None

    @property
    def name(self) -> str:
        """Returns the key as the path of a PNG file below a folder, nowhere hidden."""
        parts = [
            "_" + part[1:] if part.startswith(".") else part
            for part in PurePosixPath(self.key.lstrip("/")).parts
        ]
        return "/".join(parts) + ".png"


def read_sources(images: str, data_dir: str | None) -> list[Source]:
    """Lists the images of a prepared subset, or of a folder, split by their names.

    Args:
      images: a subset, DATASET/CONFIG, or a folder.
      data_dir: of the prepared datasets.

    Raises:
      UserError: there are none.
    """
    folder = Path(images).expanduser()
    with in_one_line():
        return list(_of_folder(folder) if folder.is_dir() else _of_subset(images, data_dir))


def _of_folder(folder: Path) -> Iterator[Source]:
    for split, items in listing.images_of(folder).items():
        for item in items:

            def read(path: Path = item.image) -> Image.Image:
                return image_files.read_pixels(path)

            yield Source(item.key, split, True, read, item.image)


def _of_subset(name: str, data_dir: str | None) -> Iterator[Source]:
    if "/" not in name:
        raise UserError(f"{name}: neither a folder nor a prepared subset such as portraits/real")
    inputs.prepare_subsets({name: None}, data_dir, None)
    for split in SHARES:
        try:
            examples = inputs.Examples((name,), split, data_dir)
        except ConfigError:
            if split == "train":
                raise
            continue  # Full fakes, for one, have no test split.
        for index in range(len(examples)):
            record = examples[index]
            key = record["key"].decode().removeprefix(f"{split}/")

            def image(examples: inputs.Examples = examples, index: int = index) -> Image.Image:
                return Image.fromarray(inputs.full_image(examples[index]))

            def mask(
                examples: inputs.Examples = examples, index: int = index
            ) -> Bool[np.ndarray, "h w"]:
                return inputs.full_mask(examples[index]).astype(bool)

            is_real = record["label"] == inputs.REAL
            read_mask = mask if "mask" in record else None
            yield Source(key, split, bool(is_real), image, read_mask=read_mask)


def with_masks(sources: Sequence[Source], folder: Path, *, white: bool) -> list[Source]:
    """Returns the sources with the masks of a folder: files of their names, whatever the ending.

    Args:
      sources: what the masks are for.
      folder: of the masks.
      white: whether what is to be made anew is white in them, or black.

    Raises:
      UserError: a source has no mask, or there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no folder of masks, nor {OWN}, {', '.join(SHAPES)}")
    with in_one_line():
        files = listing.files(folder)
    masks = {file.with_suffix("").as_posix(): folder / file for file in files}
    found = []
    for source in sources:
        name = PurePosixPath(source.key).with_suffix("").as_posix()
        if name not in masks:
            raise UserError(f"{source.key}: no mask of this name in {folder}")

        def mask(path: Path = masks[name]) -> Bool[np.ndarray, "h w"]:
            return (np.asarray(image_files.read_mask(path))[..., 0] >= 128) == white

        found.append(dataclasses.replace(source, read_mask=mask, mask_file=masks[name]))
    return found


def first_of_each_split(sources: Sequence[Source], limit: int | None) -> list[Source]:
    """Returns the first sources of each split, at most `limit` of them; all if that is None."""
    counts: dict[str, int] = {}
    kept = []
    for source in sources:
        counts[source.split] = counts.get(source.split, 0) + 1
        if limit is None or counts[source.split] <= limit:
            kept.append(source)
    return kept


def origin_of(sources: Sequence[Source], images: str, data_dir: str | None) -> Origin:
    """Returns what the images are made of, and their masks where these are files.

    Args:
      sources: at least one, all of one place.
      images: that place, as for `read_sources`.
      data_dir: of the prepared datasets.

    Raises:
      OSError: a file cannot be read.
    """
    masks = Contents()
    for source in sources:
        if source.mask_file is not None:
            masks.add(f"{source.split}/{source.key}", [source.mask_file])
    content = {"masks": masks.digest()} if sources[0].mask_file is not None else {}
    if sources[0].file is None:
        subset = inputs.Examples((images,), "train", data_dir).provenance[images]
        content["sources"] = provenance.digest_of(provenance.identity(subset))
        return Origin({"source": images}, content)
    files = Contents()
    for source in sources:
        files.add(f"{source.split}/{source.key}", [source.file])
    content["sources"] = files.digest()
    recorded = {"source": os.path.abspath(os.path.expanduser(images)), **files.recorded()}
    return Origin({"source": "folder"}, content, recorded)
