"""Trees of fields, such as configs, and what two of them differ by."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields path and value of every field of a tree of mappings; paths have dots."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], show: Callable[[Any], str] = str
) -> list[str]:
    """Returns lines "field: old → new" for everything that two flat mappings differ by.

    Args:
      old, new: values by the paths of their fields.
      show: makes a text of a value; None stands for one that is not there, too.
    """
    return [
        f"{path}: {show(old.get(path))} → {show(new.get(path))}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]
