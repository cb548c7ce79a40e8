"""A user's own images as a dataset, listed in a file. See README.md."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from wsdl_data.manifest import rows
from wsdl_data.manifest.layouts import LAYOUTS
from wsdl_data.manifest.table import Table
from wsdl_data.own.builder import OwnBuilder, OwnConfig
from wsdl_data.own.groups import Grouping
from wsdl_data.own.items import KINDS, Item, Items
from wsdl_data.own.sources import Making, places


class Builder(OwnBuilder):
    """`NAME_real` and `NAME_fake` of each manifest that a user has named."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Initial release."}

    @classmethod
    def configs_of(
        cls,
        name: str,
        source: Path,
        masks: str | None,
        grouping: Grouping,
        root: Path | None = None,
        layout: str | None = None,
    ) -> list[OwnConfig]:
        """Returns what a dataset is built of: a config for each kind of image in its manifest.

        Args:
            name: letters, digits, "-" and "_".
            source: a manifest, see README.md.
            masks: what is manipulated in the masks, see `masks.Manipulated`; "none" to leave masks
                out; None where there are none.
            grouping: which images stay in one split, where no column says it.
            root: the folder that images and masks lie in; None for the manifest's own.
            layout: the source is not a manifest, but a download of this one of `LAYOUTS`.

        Raises:
            OSError, ValueError: see `Table`; or it is not a name.
        """
        cls.check_name(name)
        source = source.expanduser().absolute()
        read = rows.read
        if layout is not None:
            masks = masks or LAYOUTS[layout].manipulated
            read = LAYOUTS[layout].read
        wanted = None if masks is None else masks != "none"
        root = None if root is None else Path(os.path.abspath(root.expanduser()))
        # Before they are read, so that what changes meanwhile is noticed.
        watched = places([source], ".parquet") if source.exists() else ()
        table = Table(source, root=root, masks=wanted, grouping=grouping, read=read)
        return [
            OwnConfig(
                name=f"{name}_{kind}",
                source=source,
                masks=masks if masks and table.has_masks else "none",
                splits=images,
                facts=rows.FACTS,
                bounded=True,
                making=Making(source, masks, grouping.pattern, root, layout),
                places=watched,
                groups=table.groups(kind) if table.by_group else None,
            )
            for kind in KINDS
            if (images := table.images(kind))
        ]

    def shards(self, items: Items) -> Iterable[Iterable[Item]]:
        """Cuts the images of a split into consecutive runs of about `image_files.SHARD_BYTES`."""
        return items.shards()
