"""A user's own images as a dataset, under a name of their choosing. See README.md."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from wsdl_data.image_folder import listing
from wsdl_data.own.builder import OwnBuilder, OwnConfig
from wsdl_data.own.groups import Grouping
from wsdl_data.own.sources import Making, places
from wsdl_data.provenance import Origin


class Builder(OwnBuilder):
    """`NAME_real` and `NAME_fake` of each folder or JSON list that a user has named."""

    VERSION = tfds.core.Version("1.2.0")
    # Read where it is prepared, since its source may be gone, and runs were trained on it.
    SUPPORTED_VERSIONS: ClassVar[list[tfds.core.Version]] = [tfds.core.Version("1.1.0")]
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "Initial release.",
        "1.1.0": "A hash of the files is kept with what was made of them; the images are the same.",
        "1.2.0": "What is transparent is laid over white, and floating-point grey is read.",
    }

    @classmethod
    def configs_of(
        cls,
        name: str,
        source: Path,
        masks: str | None,
        grouping: Grouping,
        made_by: Origin | None = None,
    ) -> list[OwnConfig]:
        """Returns what a dataset is built of: a config for each kind of image in its source.

        Args:
            name: letters, digits, "-" and "_".
            source: a folder or a JSON file, see README.md.
            masks: what is manipulated in the masks, see `masks.Manipulated`; "none" to leave masks
                out; None where there are none.
            grouping: which images stay in one split.
            made_by: see `OwnConfig`.

        Raises:
            OSError, ValueError: see `listing.read`; or it is not a name.
        """
        cls.check_name(name)
        source = source.expanduser().absolute()
        wanted = None if masks is None else masks != "none"
        watched = {}
        if made_by is None:  # before they are read, so that what changes meanwhile is noticed
            listed_in = listing.listed_in(source, masks=bool(wanted))
            watched = {kind: places(paths) for kind, paths in listed_in.items()}
        listed = listing.read(source, masks=wanted, grouping=grouping)
        by_group = grouping.is_given or not listing.has_splits(source)
        return [
            OwnConfig(
                name=f"{name}_{kind}",
                source=source,
                masks=masks or "none",
                splits=splits,
                groups=grouping.count(splits) if by_group else None,
                made_by=made_by,
                making=None if made_by else Making(source, masks, grouping.pattern),
                places=watched.get(kind, ()),
            )
            for kind, splits in listed.items()
        ]
