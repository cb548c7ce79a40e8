"""Images of a user's own that are listed, and the splits that they fall to."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from wsdl_data.image_files import File

KINDS = ("real", "fake")
# Shares of the images in each split, where the source has none of its own.
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}


class Item(NamedTuple):
    """An image that is listed, with what is known of it.

    Attributes:
        image: its file.
        mask: the file of its mask; None where it has none.
        key: the name that it keeps.
        facts: values of the further features that the dataset has, in their order.
        is_whole: whether all of it counts as manipulated, without a mask.
    """

    image: File
    mask: File | None
    key: str
    facts: tuple[str, ...] = ()
    is_whole: bool = False


@runtime_checkable
class Items(Protocol):
    """Any number of images, in memory or not."""

    def __len__(self) -> int:
        """Returns how many there are."""

    def __iter__(self) -> Iterator[Item]:
        """Yields them, in the same order each time."""


def split_of(group: str) -> str:
    """Returns the split of all images of a group, by a hash of its name, here and anywhere."""
    digest = hashlib.sha256(os.fsencode(group)).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    end = 0.0
    for split, size in SHARES.items():
        end += size
        if share < end:
            return split
    return split  # the shares' sum may be a rounding below 1


def none_in(place: Path, split: str, kind: str, count: int, *, has_groups: bool) -> ValueError:
    """Returns the error of a source of which no image falls to a split.

    Args:
        place: the source.
        split: the empty one.
        kind: of the images, "real", "fake" or another word.
        count: how many there are.
        has_groups: whether groups were asked for.
    """
    by = "group" if has_groups else "name"
    return ValueError(
        f"{place}: of {count} {kind} images none falls to the {split} split by its {by}; add"
        " images, or say which split each one is in"
    )
