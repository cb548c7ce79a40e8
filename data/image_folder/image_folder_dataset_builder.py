"""A user's own images as a dataset, under a name of their choosing. See README.md."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool
from PIL import Image

from wsdl_data import image_files
from wsdl_data.image_folder import listing
from wsdl_data.image_folder.listing import KINDS, Item
from wsdl_data.provenance import Contents, Origin
from wsdl_jax.runtime import threads

_LOG = logging.getLogger(__name__)

_NAME = r"[A-Za-z0-9][\w-]*"
_COLOURED = 32  # between the channels of a pixel: more than a JPEG file makes of grey
_SHOWN = 5  # faults that are named


@dataclasses.dataclass(eq=False, kw_only=True)
class ImageFolderConfig(tfds.core.BuilderConfig):
    """The real or the fake images of a dataset.

    Attributes:
        source: folder or JSON file that it is made of; None to read what has been made.
        masks: "white" or "black", what is manipulated in the masks; "none" without them.
        splits: images of each split; empty to read what has been made.
        made_by: how the source itself was made, where it was made for this: that is kept then,
            and not what `source` and `masks` are.
    """

    source: Path | None = None
    masks: str = "none"
    splits: dict[str, list[Item]] = dataclasses.field(default_factory=dict)
    made_by: Origin | None = None

    @property
    def kind(self) -> str:
        """Returns what its images are, "real" or "fake"."""
        return self.name.rpartition("_")[2]

    @property
    def has_masks(self) -> bool:
        """Returns whether its images are stored with masks."""
        return self.kind == "fake" and self.masks != "none"

    def origin(self, contents: Contents) -> Origin:
        """Returns what is kept with a subset that is made of files with these contents."""
        if self.made_by is not None:
            return self.made_by
        return Origin(
            {"masks": self.masks if self.has_masks else "none"},
            {"sources": contents.digest()},
            {"source": os.fspath(self.source), **contents.recorded()},
        )

    def contents(self) -> Contents:
        """Returns the contents of the files that a subset is to be made of, as they are now.

        Raises OSError for a file that cannot be read.
        """
        contents = Contents()
        items = [(split, item) for split, items in self.splits.items() for item in items]
        for _ in threads.map_ahead(lambda pair: add(contents, *pair), items):
            pass
        return contents


def add(contents: Contents, split: str, item: Item) -> None:
    """Adds an image and its mask to the contents of a subset."""
    contents.add(f"{split}/{item.key}", (item.image, item.mask))


class Builder(tfds.core.ShardBasedBuilder):
    """`NAME_real` and `NAME_fake` of each dataset that a user has named; listed nowhere in code.

    Shard-based for the reason that Dolos is.
    """

    VERSION = tfds.core.Version("1.2.0")
    # Read where it is prepared, since its source may be gone, and runs were trained on it.
    SUPPORTED_VERSIONS: ClassVar[list[tfds.core.Version]] = [tfds.core.Version("1.1.0")]
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "Initial release.",
        "1.1.0": "A hash of the files is kept with what was made of them; the images are the same.",
        "1.2.0": "What is transparent is laid over white, and floating-point grey is read.",
    }

    # Images of the build under way, for its progress bar.
    num_examples: int | None = None

    @classmethod
    def config_for(cls, name: str) -> ImageFolderConfig:
        """Returns the config to read a subset that is built. Raises ValueError for an odd name."""
        if not re.fullmatch(rf"{_NAME}_({'|'.join(KINDS)})", name):
            raise ValueError(
                f"image_folder has no config {name!r}: it is a name of your choosing and _real or"
                " _fake, as in mine_fake"
            )
        return ImageFolderConfig(name=name)

    @classmethod
    def check_name(cls, name: str) -> None:
        """Raises ValueError for what a dataset cannot be called."""
        if not re.fullmatch(_NAME, name) or name.endswith(tuple(f"_{kind}" for kind in KINDS)):
            raise ValueError(
                "a name is of letters, digits, - and _, and does not end in _real or _fake"
            )

    @classmethod
    def configs_of(
        cls, name: str, source: Path, masks: str | None, made_by: Origin | None = None
    ) -> list[ImageFolderConfig]:
        """Returns what a dataset is built of: a config for each kind of image in its source.

        Args:
            name: letters, digits, "-" and "_".
            source: a folder or a JSON file, see README.md.
            masks: "white" or "black", what is manipulated in the masks; "none" to leave masks out;
                None where there are none.
            made_by: see `ImageFolderConfig`.

        Raises:
            OSError, ValueError: see `listing.read`; or it is not a name.
        """
        cls.check_name(name)
        source = source.expanduser().absolute()
        listed = listing.read(source, masks=None if masks is None else masks != "none")
        return [
            ImageFolderConfig(
                name=f"{name}_{kind}",
                source=source,
                masks=masks or "none",
                splits=splits,
                made_by=made_by,
            )
            for kind, splits in listed.items()
        ]

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        described = self.data_path / "features.json"
        if not config.splits and described.exists():
            features = tfds.features.FeatureConnector.from_config(self.data_dir)
            return self.dataset_info_from_configs(features=features)
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=list(KINDS)),
            "key": tfds.features.Text(),
        }
        if config.has_masks:
            features["mask"] = tfds.features.Image(
                shape=(None, None, 1), dtype=np.uint8, encoding_format="png"
            )
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict() if config.splits else None,  # when it is built
        )

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig | None = None,
    ) -> None:
        self._faults: list[str] = []
        self._shares: dict[str, float] = {}
        self._contents = Contents()
        super()._download_and_prepare(dl_manager, download_config)
        if self._faults:
            more = len(self._faults) - _SHOWN
            named = "; ".join(self._faults[:_SHOWN])
            raise ValueError(named + (f"; and {more} more files like these" if more > 0 else ""))
        self._warn_of_masks()
        self.info.metadata.update(self.builder_config.origin(self._contents).metadata())

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Sequence[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
        del dl_manager  # nothing to download
        splits = self.builder_config.splits
        self.num_examples = sum(map(len, splits.values()))
        return {
            split: [
                functools.partial(self._examples, split, shard)
                for shard in image_files.shards(items, lambda item: filter(None, item[:2]))
            ]
            for split, items in splits.items()
        }

    def _examples(self, split: str, shard: Sequence[Item]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the images that are in order; what is wrong with others goes to `self._faults`."""
        read = functools.partial(self._read, split)
        for item, found in zip(shard, threads.map_ahead(read, shard), strict=True):
            if isinstance(found, Exception):
                self._faults.append(str(found))
                continue
            image, mask = found
            example = {
                "image": image,
                "label": self.builder_config.kind,
                "key": item.key,
            }
            if mask is not None:
                self._shares[item.key] = float(mask.mean())
                example["mask"] = image_files.png(Image.fromarray(mask.astype(np.uint8) * 255))
            yield item.key, example

    def _read(
        self, split: str, item: Item
    ) -> tuple[bytes, Bool[np.ndarray, "h w"] | None] | ValueError | OSError:
        try:
            add(self._contents, split, item)
            return read_item(item, white=self.builder_config.masks == "white")
        except (ValueError, OSError) as error:
            return error

    def _warn_of_masks(self) -> None:
        shares = self._shares
        if not shares:
            return
        name, config = f"{self.name}/{self.builder_config_name}", self.builder_config
        if (mean := np.mean(list(shares.values()))) > 0.5:
            _LOG.warning(
                "%s: with --masks %s, %.0f%% of an image is manipulated on average; if that is too"
                " much, --masks %s is meant",
                *(name, config.masks, 100 * mean),
                "black" if config.masks == "white" else "white",
            )
        if empty := [key for key, share in shares.items() if not share]:
            _LOG.warning(
                "%s: %d of %d masks mark nothing as manipulated, the first that of %s",
                *(name, len(empty), len(shares), empty[0]),
            )


def read_item(item: Item, *, white: bool) -> tuple[bytes, Bool[np.ndarray, "h w"] | None]:
    """Reads and checks an image and its mask.

    Args:
        item: the files.
        white: whether what is manipulated is white in the mask, and not black.

    Returns:
        image: an encoded 8-bit RGB image, see `image_files.read_rgb`.
        mask: True where the image is manipulated: the side of mid-grey (128) that `white` says.
            None if the item has no mask.

    Raises:
        OSError, ValueError: a file cannot be decoded to its end, the sizes differ, or the mask has
            colours.
    """
    encoded, mask = image_files.read_pair(item.image, item.mask)
    if mask is None:
        return encoded, None
    pixels = np.asarray(mask).astype(np.int16)
    if np.ptp(pixels, axis=-1).max() > _COLOURED:
        raise ValueError(f"{item.mask}: the mask has colours, where black and white are expected")
    grey = pixels[..., 0]
    if grey.max() == 1 and item.mask.suffix.lower() not in (".jpg", ".jpeg"):
        grey = grey * 255  # A mask of the values 0 and 1; in a JPEG they would be noise.
    return encoded, (grey >= 128) == white
