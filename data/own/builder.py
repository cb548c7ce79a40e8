"""The TFDS builder of a user's own images: of `NAME_real` and `NAME_fake`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool
from PIL import Image
from tqdm import tqdm

from wsdl_data import image_files
from wsdl_data.own.items import KINDS, Item, Items
from wsdl_data.own.masks import Manipulated
from wsdl_data.own.sources import FILE, Making, Place, Sources
from wsdl_data.provenance import Contents, Origin
from wsdl_jax.runtime import threads

_LOG = logging.getLogger(__name__)

_NAME = r"[A-Za-z0-9][\w-]*"
_SHOWN = 5  # faults that are named


@dataclasses.dataclass(eq=False, kw_only=True)
class OwnConfig(tfds.core.BuilderConfig):
    """The real or the fake images of a dataset.

    Attributes:
        source: folder or file that it is made of; None to read what has been made.
        masks: what is manipulated in the masks, see `masks.Manipulated`; "none" without them.
        splits: images of each split; empty to read what has been made.
        facts: names of the further features that its images have, texts.
        bounded: whether `splits` are read from disk, so that there may be any number of images.
        groups: how many groups of images there are, of which none is in two splits; None where
            that is not known.
        made_by: how the source itself was made, where it was made for this: that is kept then,
            and not what `source` and `masks` are.
        making: how the dataset is made; None where its source is not kept.
        places: that say which images there are.
    """

    source: Path | None = None
    masks: str = "none"
    splits: Mapping[str, Items] = dataclasses.field(default_factory=dict)
    facts: tuple[str, ...] = ()
    bounded: bool = False
    groups: int | None = None
    made_by: Origin | None = None
    making: Making | None = None
    places: tuple[Place, ...] = ()

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
        groups = {} if self.groups is None else {"groups": self.groups}
        return Origin(
            {"masks": self.masks if self.has_masks else "none"},
            {"sources": contents.digest()},
            {"source": os.fspath(self.source), **groups, **contents.recorded()},
        )

    def contents(self, sources: Sources | None) -> Contents:
        """Returns the contents of the files that a subset is to be made of, as they are now.

        sources: what the files are added to, one by one; None where that is not kept.

        Raises OSError for a file that cannot be read.
        """
        contents = Contents(bounded=self.bounded)
        if sources is not None:
            sources.watch(self.kind, self.places)
        items = ((split, item) for split, items in self.splits.items() for item in items)
        total = sum(map(len, self.splits.values()))
        silent = not sys.stderr.isatty()
        with contextlib.closing(
            threads.map_ahead(lambda pair: self.add(contents, sources, *pair), items)
        ) as added:
            for _ in tqdm(
                added, f"reading {self.name}", total, unit=" images", leave=False, disable=silent
            ):
                pass
        return contents

    def add(self, contents: Contents, sources: Sources | None, split: str, item: Item) -> None:
        """Adds an image, its mask and what is known of it to what a subset is made of.

        Raises OSError for a file that cannot be read.
        """
        whole = ["whole"] if item.is_whole else []
        known = "\0".join((f"{split}/{item.key}", *item.facts, *whole))
        hashed = contents.add(known, (item.image, item.mask))
        if sources is not None:
            facts = dict(zip(self.facts, item.facts, strict=True))
            sources.add(self.kind, split, item, facts, hashed)


class OwnBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """`NAME_real` and `NAME_fake` of each dataset that a user has named; listed nowhere in code.

    Shard-based for the reason that Dolos is.
    """

    # Images of the build under way, for its progress bar.
    num_examples: int | None = None

    @classmethod
    def config_for(cls, name: str) -> OwnConfig:
        """Returns the config to read a subset that is built. Raises ValueError for an odd name."""
        if not re.fullmatch(rf"{_NAME}_({'|'.join(KINDS)})", name):
            raise ValueError(
                f"{cls.name} has no config {name!r}: it is a name of your choosing and _real or"
                " _fake, as in mine_fake"
            )
        return OwnConfig(name=name)

    @classmethod
    def check_name(cls, name: str) -> None:
        """Raises ValueError for what a dataset cannot be called."""
        if not re.fullmatch(_NAME, name) or name.endswith(tuple(f"_{kind}" for kind in KINDS)):
            raise ValueError(
                "a name is of letters, digits, - and _, and does not end in _real or _fake"
            )

    def shards(self, items: Items) -> Iterable[Iterable[Item]]:
        """Cuts the images of a split into consecutive runs of about `image_files.SHARD_BYTES`."""
        return image_files.shards(items, lambda item: filter(None, item[:2]))

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
            **{fact: tfds.features.Text() for fact in config.facts},
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
        self._faulty = 0
        self._shares = _Shares()
        config = self.builder_config
        self._contents = Contents(bounded=config.bounded)
        self._sources = None if config.making is None else Sources(config.making)
        with self._sources or contextlib.nullcontext():
            self._prepare(dl_manager, download_config)

    def _prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig | None,
    ) -> None:
        config = self.builder_config
        if self._sources is not None:
            self._sources.watch(config.kind, config.places)
        super()._download_and_prepare(dl_manager, download_config)
        if self._faults:
            more = self._faulty - len(self._faults)
            named = "; ".join(self._faults)
            raise ValueError(named + (f"; and {more} more files like these" if more > 0 else ""))
        self._warn_of_masks()
        if self._sources is not None:
            self._sources.save(Path(self.data_path) / FILE, config.kind)
        self.info.metadata.update(config.origin(self._contents).metadata())

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Sequence[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
        del dl_manager  # nothing to download
        splits = self.builder_config.splits
        self.num_examples = sum(map(len, splits.values()))
        return {
            split: [functools.partial(self._examples, split, shard) for shard in self.shards(items)]
            for split, items in splits.items()
        }

    def _examples(self, split: str, shard: Iterable[Item]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the images that are in order; what is wrong with others goes to `self._faults`."""
        config = self.builder_config
        for item, found in threads.map_ahead(functools.partial(self._read, split), shard):
            if isinstance(found, Exception):
                self._faulty += 1
                if len(self._faults) < _SHOWN:
                    self._faults.append(" ".join(str(found).split()))
                continue
            image, mask = found
            example = {
                "image": image,
                "label": config.kind,
                "key": item.key,
                **dict(zip(config.facts, item.facts, strict=True)),
            }
            if mask is not None:
                self._shares.add(item.key, float(mask.mean()))
                example["mask"] = image_files.png(Image.fromarray(mask.astype(np.uint8) * 255))
            yield item.key, example

    def _read(
        self, split: str, item: Item
    ) -> tuple[Item, tuple[bytes, Bool[np.ndarray, "h w"] | None] | ValueError | OSError]:
        config = self.builder_config
        try:
            config.add(self._contents, self._sources, split, item)
            manipulated = Manipulated(config.masks) if config.has_masks else None
            return item, read_item(item, manipulated)
        except (ValueError, OSError) as error:
            return item, error

    def _warn_of_masks(self) -> None:
        shares, config = self._shares, self.builder_config
        if not shares.count:
            return
        name = f"{self.name}/{self.builder_config_name}"
        if (mean := shares.total / shares.count) > 0.5:
            other = {"white": "black", "black": "white"}.get(config.masks)
            _LOG.warning(
                "%s: with --manipulated %s, %.0f%% of an image is manipulated on average%s",
                *(name, config.masks, 100 * mean),
                f"; if that is too much, --manipulated {other} is meant" if other else "",
            )
        if shares.empty:
            _LOG.warning(
                "%s: %d of %d masks mark nothing as manipulated, the first that of %s",
                *(name, shares.empty, shares.count, shares.first_empty),
            )


class _Shares:
    """What is known of the masks that have gone by: which share of their images is manipulated."""

    def __init__(self) -> None:
        self.count, self.total, self.empty, self.first_empty = 0, 0.0, 0, ""

    def add(self, key: str, share: float) -> None:
        """Adds the mask of the image `key`."""
        self.count += 1
        self.total += share
        if not share:
            self.first_empty = self.first_empty or key
            self.empty += 1


def read_item(
    item: Item, manipulated: Manipulated | None
) -> tuple[bytes, Bool[np.ndarray, "h w"] | None]:
    """Reads and checks an image and its mask.

    Args:
        item: the files.
        manipulated: what is manipulated in the mask; None where there are none.

    Returns:
        image: an encoded 8-bit RGB image, see `image_files.read_rgb`.
        mask: True where the image is manipulated; None where `manipulated` is.

    Raises:
        OSError, ValueError: a file cannot be decoded to its end, the sizes differ, or the mask has
            colours.
    """
    encoded, image = image_files.read_rgb(item.image)
    if manipulated is None:
        return encoded, None
    if item.mask is None:
        return encoded, np.full(image.size[::-1], item.is_whole)
    mask = manipulated.read(item.mask)
    image_files.check_size(item.mask, mask.shape[::-1], image.size)
    return encoded, mask
