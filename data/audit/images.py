"""The images that are audited: of prepared subsets, or of a source that is not prepared yet."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool
from PIL import Image

from wsdl_data import build
from wsdl_data.own import sources
from wsdl_data.own.builder import OwnConfig
from wsdl_data.own.groups import Grouping
from wsdl_data.own.items import KINDS, Item
from wsdl_data.own.masks import Manipulated
from wsdl_jax.runtime.errors import ConfigError, UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """An image and its mask as they are kept.

    Attributes:
        encoded: the bytes of the image's file.
        mask: True where it is manipulated; None where there is no mask.
    """

    encoded: bytes = dataclasses.field(repr=False)
    mask: Bool[np.ndarray, "h w"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """What is known of an image without reading it.

    Attributes:
        name: where it is, for messages: in one line that UTF-8 can have.
        label: 0 real, 1 fake.
        split: "train", "valid" or "test".
        group: images with the same one are of one origin.
        is_whole: whether it is known that all of it was made by a machine.
    """

    name: str
    label: int
    split: str
    group: str
    is_whole: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Listed(Named):
    """An image that can be read.

    Attributes:
        read: returns its file and mask. Raises OSError, or ValueError that names it.
    """

    read: Callable[[], Stored]


@runtime_checkable
class Images(Protocol):
    """Images that can be listed more than once, in the same order.

    Attributes:
        grouped_by: in words, what says which images without a group of their own are of one origin.
    """

    grouped_by: str

    def __iter__(self) -> Iterator[Listed]:
        """Yields them all. Raises UserError for what is not in order."""


class Prepared:
    """The images of prepared subsets of real and of fake images."""

    def __init__(self, real: str, fake: str, data_dir: str | None, grouping: Grouping):
        """Opens the subsets.

        Args:
            real: name of the subset of real images, such as "portraits/real".
            fake: name of that of fake ones.
            data_dir: as of `build.make_builder`.
            grouping: of images of which it is not kept. Where it is not given, that with which a
                subset was built counts.

        Raises:
            ConfigError: a subset is unknown, not prepared, or of the other kind.
            UserError: what is kept of how a subset was built is damaged.
        """
        self._groupings: dict[str, Grouping] = {}
        self._sources: list[tuple[str, int, str, Any]] = []
        for label, name in enumerate((real, fake)):
            try:
                builder = build.make_builder(name, data_dir)
            except ValueError as error:
                raise ConfigError(str(error)) from error
            # A subset that has some of its splits is audited as far as it is there.
            if not builder.data_path.exists():
                raise ConfigError(
                    f"{name} is not prepared in {builder.data_dir}: run {build.command(builder)}"
                )
            if found := build.faults(builder):
                raise ConfigError(
                    f"{name}: {builder.data_dir} is {found}; delete this folder and run"
                    f" {build.command(builder)}"
                )
            self._groupings[name] = grouping if grouping.is_given else _built_with(builder)
            decoders = {
                feature: tfds.decode.SkipDecoding()
                for feature in ("image", "mask")
                if feature in builder.info.features
            }
            for split in builder.info.splits:
                source = builder.as_data_source(split, decoders=decoders)
                self._sources.append((name, label, split, source))
        for name, label, _, source in self._sources:
            if len(source) and (kind := int(_record(name, source, 0)["label"])) != label:
                raise ConfigError(
                    f"{name} holds {KINDS[kind]} images, where {KINDS[label]} ones are audited"
                )
        ways = {subset: _in_words(of) for subset, of in self._groupings.items()}
        if len(set(ways.values())) > 1:
            self.grouped_by = ", ".join(f"of {subset} {way}" for subset, way in ways.items())
        else:
            self.grouped_by = ways[real]

    def __iter__(self) -> Iterator[Listed]:
        """Yields the images, subset by subset.

        Raises UserError for a damaged file, and for a name of which there is no group.
        """
        for name, label, split, source in self._sources:
            for index in range(len(source)):
                record = _record(name, source, index)
                key = record["key"].decode()
                yield Listed(
                    f"{name}, {split} image {sources.shown(record['key'])}",
                    label,
                    split,
                    record.get("group", b"").decode() or _group(self._groupings[name], key, name),
                    record.get("kind", b"") == b"full",
                    functools.partial(_stored, record),
                )


def _built_with(builder: tfds.core.DatasetBuilder) -> Grouping:
    """Returns the grouping that the command had which built a subset, as far as it is kept."""
    path = Path(builder.data_dir) / sources.FILE
    if not path.exists():
        return Grouping()
    try:
        return Grouping(sources.making_of(path).group)
    except (ValueError, TypeError, KeyError, sqlite3.Error) as error:
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())}); delete it, and run the command"
            " that built the dataset again, which writes it anew"
        ) from error


def _in_words(grouping: Grouping) -> str:
    if not grouping.is_given:
        return "by their names without folders and ending"
    return f"by --group {grouping.pattern!r}"


def _group(grouping: Grouping, key: str, name: str) -> str:
    """Returns the group of an image. Raises UserError, with the dataset's name, for none."""
    try:
        return grouping.of(key)
    except ValueError as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error


def _record(name: str, source: Any, index: int) -> Mapping[str, Any]:
    try:
        return source[index]
    except RuntimeError as error:  # of array_record: truncated, or a checksum is wrong
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name} is damaged ({reason}); delete its folder and build again"
        ) from error


def _stored(record: Mapping[str, Any]) -> Stored:
    mask = record.get("mask")
    if mask is not None:
        with Image.open(io.BytesIO(mask)) as image:
            mask = np.asarray(image.convert("L")) > 0
    return Stored(record["image"], mask)


class Source:
    """The images of a source as it is before it is built, in their own files."""

    def __init__(self, name: str, configs: Sequence[OwnConfig], grouping: Grouping):
        """Takes what a dataset would be built of.

        Args:
            name: of the dataset.
            configs: of the kinds of images that the source has.
            grouping: of images of which the source does not say it.
        """
        self._name, self._configs, self._grouping = name, configs, grouping
        self.grouped_by = _in_words(grouping)

    @classmethod
    def of(
        cls, name: str, source: str, masks: str | None, group: str | None, **options: Any
    ) -> Source:
        """Lists a source as the build does, with the same arguments: see `build.own_builders`.

        Raises:
            UserError: the source is not in order.
        """
        dataset, _, own = name.partition("/")
        try:
            grouping = Grouping(group)
            builder = build.builder_class(dataset)
            configs = builder.configs_of(own, Path(source), masks, grouping, **options)
            return cls(name, configs, grouping)
        except (ValueError, OSError, sqlite3.Error) as error:
            raise UserError(f"{name}: {' '.join(str(error).split())}") from error

    def __iter__(self) -> Iterator[Listed]:
        """Yields the images, real ones first. Raises UserError for a name that has no group."""
        for config in self._configs:
            manipulated = Manipulated(config.masks) if config.has_masks else None
            for split, items in config.splits.items():
                for item in items:
                    facts = dict(zip(config.facts, item.facts, strict=True))
                    yield Listed(
                        sources.shown(os.fsencode(str(item.image))),
                        KINDS.index(config.kind),
                        split,
                        facts.get("group") or _group(self._grouping, item.key, self._name),
                        item.is_whole,
                        functools.partial(_of_files, item, manipulated),
                    )


def _of_files(item: Item, manipulated: Manipulated | None) -> Stored:
    encoded = item.image.read_bytes()
    if manipulated is None or item.is_whole or item.mask is None:
        return Stored(encoded, None)
    return Stored(encoded, manipulated.read(item.mask))


def sampled(images: Images, limit: int) -> tuple[Iterator[Listed], dict[int, int]]:
    """Chooses whole groups by a hash of their names, on any machine the same.

    Args:
        images: all.
        limit: about how many of each label are taken; 0 for all.

    Returns:
        The chosen images, in their order, and how many there are of each label before the choice.
    """
    places: dict[int, list[float]] = {0: [], 1: []}
    for listed in images:
        places[listed.label].append(_place(listed.group))
    counts = {label: len(found) for label, found in places.items()}
    ends = {
        label: sorted(found)[limit - 1] if limit and len(found) > limit else 1.0
        for label, found in places.items()
    }
    return (one for one in images if _place(one.group) <= ends[one.label]), counts


def _place(group: str) -> float:
    digest = hashlib.sha256(group.encode(errors="replace")).digest()
    return int.from_bytes(digest[:8]) / 2**64
