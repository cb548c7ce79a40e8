"""Groups: images of one origin, such as a photograph and its forgeries, which stay together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from wsdl_data.own.items import Item


class Grouping:
    """To which group an image belongs, by its name."""

    def __init__(self, pattern: str | None = None):
        """Takes a regular expression, which is searched for in the names of images.

        Args:
            pattern: what it finds names the group: its first group in parentheses, or all of it
                where it has none. None for the file's name without folders and ending.

        Raises ValueError for what is no regular expression.
        """
        self.pattern = pattern
        try:
            self._expression = None if pattern is None else re.compile(pattern)
        except re.error as error:
            raise ValueError(f"--group {pattern!r} is no regular expression: {error}") from error

    @property
    def is_given(self) -> bool:
        """Returns whether groups were asked for, and are not only names without an ending."""
        return self._expression is not None

    def count(self, splits: Mapping[str, Iterable[Item]]) -> int:
        """Returns how many groups the images of several splits are of."""
        return len({self.of(item.key) for items in splits.values() for item in items})

    def of(self, key: str) -> str:
        """Returns the group of an image.

        key: its name, with folders and ending.

        Raises ValueError for a name in which the expression is not found.
        """
        if self._expression is None:
            return PurePosixPath(key).stem
        found = self._expression.search(key)
        group = found and (found.group(1) if self._expression.groups else found.group())
        if not group:
            raise ValueError(f"--group {self._expression.pattern!r} names no group of {key}")
        return group
