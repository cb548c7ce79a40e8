"""A manifest's images on disk, checked and split, so that no number of rows fills the memory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import sqlite3
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from wsdl_data import image_files
from wsdl_data.image_files import Embedded, File
from wsdl_data.manifest import rows
from wsdl_data.manifest.rows import Row
from wsdl_data.own.groups import Grouping
from wsdl_data.own.items import KINDS, SHARES, Item, none_in, split_of

_LABELS = {"real": "real", "fake": "fake", "0": "real", "1": "fake"}
_MAKINGS = ("full", "spliced", "regenerated")  # what the column `kind` may say of a fake
# Other names of splits.
_SPLITS = {"training": "train", "val": "valid", "validation": "valid", "testing": "test"}
# Of an image: where its row is; whether its split is given; paths of image and mask, or none; what
# is the same for the same file; which of the two lie in the row itself, as bits; whether it has no
# mask; its group, by a column and after all; bytes of its files.
_COLUMNS = (
    *("place TEXT", "label TEXT", "split TEXT", "given INTEGER", "image TEXT", "mask TEXT"),
    *("file TEXT", "embedded INTEGER", "bare INTEGER", "own TEXT", "generator TEXT", "making TEXT"),
    *("grouped TEXT", "size INTEGER"),
)
_SHOWN = 5  # faults that are named
_AT_ONCE = 10_000  # rows that are written to disk together


class Table:
    """The images that a manifest lists.

    They lie in a file of SQLite that the system removes as soon as nobody has it open.
    """

    def __init__(
        self,
        source: Path,
        *,
        root: Path | None,
        masks: bool | None,
        grouping: Grouping,
        read: Callable[[Path], Iterable[Row]] = rows.read,
    ):
        """Reads a manifest to its end.

        Args:
            source: the manifest, see `rows.read`.
            root: the folder that images and masks lie in, to which their paths are relative; None
                for the manifest's own.
            masks: whether masks are read; None if that was left open, which is refused where there
                are any.
            grouping: which images stay in one split where no column says it.
            read: reads the rows of the source.

        Raises:
            OSError: the manifest cannot be read.
            ValueError: rows are not in order; the message names the first ones.
        """
        self.source, self.grouping, self._masks = source, grouping, masks
        folder = source if source.is_dir() else source.parent
        self._root = Path(os.path.abspath(folder if root is None else root.expanduser()))
        self._given: set[bool] = set()  # whether rows have a split of their own
        self._has_masks = False
        self._grouped: set[bool] = set()  # whether rows have a group of their own
        self._embedded: rows.EmbeddedFiles | None = None
        self._faults: list[str] = []
        self._faulty = 0
        self._tables = sqlite3.connect("", check_same_thread=False)  # a file without a name
        self._open = contextlib.ExitStack()
        self._open.callback(self._tables.close)
        weakref.finalize(self, self._open.close)
        self._tables.execute(
            f"CREATE TABLE images (number INTEGER PRIMARY KEY, {', '.join(_COLUMNS)})"
        )
        self._fill(read(source))
        self._raise_faults()
        self._check()

    # ----- What it holds ---------------------------------------------------------------------

    @property
    def has_masks(self) -> bool:
        """Returns whether some fakes have a mask that is read."""
        return self._has_masks

    @property
    def has_groups(self) -> bool:
        """Returns whether groups were given, and are not only names without an ending."""
        return True in self._grouped or self.grouping.is_given

    @property
    def by_group(self) -> bool:
        """Returns whether no group is in two splits."""
        return self.has_groups or True not in self._given

    def images(self, label: str) -> dict[str, Rows]:
        """Returns the images of a label, by the splits that have some."""
        found = {split: Rows(self, label, split) for split in SHARES}
        return {split: images for split, images in found.items() if len(images)}

    def groups(self, label: str) -> int:
        """Returns how many groups the images of a label are of."""
        query = "SELECT COUNT(DISTINCT grouped) FROM images WHERE label = ?"
        return self._tables.execute(query, (label,)).fetchone()[0]

    def select(self, columns: str, label: str, split: str, numbers: range) -> sqlite3.Cursor:
        """Returns columns of the images of a label and split, in the order of their rows.

        numbers: of the rows, those among them that are wanted.
        """
        return self._tables.cursor().execute(
            f"SELECT {columns} FROM images WHERE label = ? AND split = ?"
            " AND number >= ? AND number < ? ORDER BY number",
            (label, split, numbers.start, numbers.stop),
        )

    def embedded(self, row: int) -> dict[str, bytes]:
        """Returns the bytes of the files that lie in a row itself, by their columns."""
        if self._embedded is None:
            self._embedded = rows.EmbeddedFiles(self.source)
            self._open.callback(self._embedded.close)
        return self._embedded.of(row)

    def path(self, name: str) -> Path:
        """Returns the file of a name in a row."""
        return self._root / name

    # ----- How it is filled ------------------------------------------------------------------

    def _fill(self, found: Iterable[Row]) -> None:
        waiting = []
        for row in found:
            try:
                waiting.append(self._values(row))
            except (ValueError, OSError) as error:
                self._fault(f"{row.place}: {' '.join(str(error).split())}")
            if len(waiting) == _AT_ONCE:
                self._insert(waiting)
                waiting = []
        self._insert(waiting)
        self._tables.execute("CREATE INDEX by_label ON images (label, split, number)")

    def _insert(self, values: Sequence[tuple]) -> None:
        marks = ", ".join("?" * (1 + len(_COLUMNS)))
        self._tables.executemany(f"INSERT INTO images VALUES ({marks})", values)

    def _values(self, row: Row) -> tuple:
        texts = row.texts
        label = _LABELS.get(texts.get("label", "").lower())
        if label is None:
            raise ValueError(f"label {texts.get('label', '')!r} is none of {', '.join(_LABELS)}")
        making = texts.get("kind", "")
        if making and (label == "real" or making not in _MAKINGS):
            raise ValueError(
                f"kind {making!r} of a {label} image; of a fake it is {', '.join(_MAKINGS)}, or"
                " nothing"
            )
        split = texts.get("split", "")
        split = _SPLITS.get(split, split)
        if split and split not in SHARES:
            raise ValueError(f"split {split!r} is none of {', '.join(SHARES)}")
        self._given.add(bool(split))
        inside = sum(1 << place for place, name in enumerate(rows.FILES) if name in row.embedded)
        has_mask = bool(texts.get("mask") or inside & 2)
        if has_mask and label == "real":
            raise ValueError("a real image with a mask")
        if has_mask and self._masks is None:
            raise ValueError(
                "has a mask: say what is manipulated in masks, --manipulated white, black or"
                " above:N, or leave them out, none"
            )
        if not self._masks:
            has_mask, inside = False, inside & 1
        self._has_masks |= has_mask
        size, names, file = 0, [], ""
        for column in ("image", "mask") if has_mask else ("image",):
            name = texts.get(column, "")
            if column in row.embedded:
                size += len(row.embedded[column])
            elif name:
                name = self._inside(name)
                found = _file(self._root / name)
                size += found.st_size
                file = file or f"{found.st_dev}:{found.st_ino}"
            names.append(name)
        image, mask = (*names, "")[:2]
        if not image and not inside & 1:
            raise ValueError("no image")
        if inside & 1:
            file = hashlib.sha256(row.embedded["image"]).hexdigest()
        group = texts.get("group", "")
        if not image and not group and (not split or self.grouping.is_given):
            raise ValueError("an image without a path needs a group, or a split")
        self._grouped.add(bool(group))
        key = image or f"row {row.number}"
        grouped = group or self.grouping.of(key)
        return (
            *(row.number, row.place, label, split or split_of(grouped), bool(split)),
            *(image or None, mask or None, file, inside, not has_mask, group),
            *(texts.get("generator", ""), making, grouped, size),
        )

    def _inside(self, name: str) -> str:
        """Returns a path relative to the root. Raises ValueError for one that leaves it."""
        if "\0" in name:
            raise ValueError(f"{name!r} is no path")
        whole = os.path.normpath(self._root / name)
        if not Path(whole).is_relative_to(self._root) or whole == str(self._root):
            raise ValueError(
                f"{name} leaves {self._root}: with --root FOLDER another one is said that all"
                " images are in"
            )
        return os.path.relpath(whole, self._root)

    def _fault(self, text: str) -> None:
        self._faulty += 1
        if len(self._faults) < _SHOWN:
            self._faults.append(text)

    def _raise_faults(self) -> None:
        if self._faults:
            more = self._faulty - len(self._faults)
            named = "; ".join(self._faults)
            raise ValueError(
                f"{self.source}, {named}" + (f"; and {more} more rows like these" if more else "")
            )

    # ----- What rows say together ------------------------------------------------------------

    def _check(self) -> None:
        """Raises ValueError for rows that do not go together."""
        self._check_pairs()
        query = "SELECT label, COUNT(*) FROM images GROUP BY label"
        labels = dict(self._tables.execute(query))
        if not labels:
            raise ValueError(f"{self.source}: no rows in it")
        if self._masks and not self._has_masks:
            raise ValueError(f"{self.source}: no row has a mask; leave out --manipulated")
        bare = self._first("bare AND making != 'full' AND label = 'fake'")
        if self._has_masks and bare:
            what = "a fake without a mask, which others have: give it one, or the kind full"
            raise self._error(bare, what)
        if self._given == {True, False}:
            raise self._error(self._first("NOT given"), "no split, which others have")
        if True not in self._given:
            for label, split in itertools.product(filter(labels.get, KINDS), SHARES):
                if not len(Rows(self, label, split)):
                    how = {"has_groups": self.has_groups}
                    raise none_in(self.source, split, label, labels[label], **how)

    def _check_pairs(self) -> None:
        """Raises ValueError for an image that is there twice, and a group in two given splits."""
        for where, count, what in (
            ("NOT embedded & 1", "COUNT(*)", "is there twice"),
            ("embedded & 1", "COUNT(DISTINCT label || split)", "is there otherwise"),
        ):
            if twice := self._pair(where, "file", count):
                _, first, last = twice
                name = self._named(last)
                raise self._error(last, f"{name} {what}, first in {self._place(first)}")
        if self._grouped == {True, False}:
            raise self._error(self._first("own = ''"), "no group, which others have")
        if True in self._grouped and self.grouping.is_given:
            raise ValueError(f"{self.source}: it says the groups itself; leave out --group")
        apart = self.has_groups and self._pair("given", "grouped", "COUNT(DISTINCT split)")
        if apart:
            group, first, last = apart
            raise ValueError(
                f"{self.source}: group {group} is in two splits, see {self._place(first)} and"
                f" {self._place(last)}"
            )

    def _pair(self, where: str, column: str, count: str) -> tuple[str, int, int] | None:
        query = (
            f"SELECT {column}, MIN(number), MAX(number) FROM images WHERE {where}"
            f" GROUP BY {column} HAVING {count} > 1 ORDER BY 2 LIMIT 1"
        )
        return self._tables.execute(query).fetchone()

    def _first(self, where: str) -> int | None:
        query = f"SELECT MIN(number) FROM images WHERE {where}"
        return self._tables.execute(query).fetchone()[0]

    def _named(self, number: int) -> str:
        query = "SELECT COALESCE(image, 'an image') FROM images WHERE number = ?"
        return self._tables.execute(query, (number,)).fetchone()[0]

    def _place(self, number: int) -> str:
        query = "SELECT place FROM images WHERE number = ?"
        return self._tables.execute(query, (number,)).fetchone()[0]

    def _error(self, number: int, text: str) -> ValueError:
        return ValueError(f"{self.source}, {self._place(number)}: {text}")


def _file(path: Path) -> os.stat_result:
    """Returns what the system says of a file.

    Raises OSError, or FileNotFoundError where there is none.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no file {path}") from None
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(f"no file {path}, but something else of that name")
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Images of one label and split of a table, in the order of its rows.

    Attributes:
        table: the table.
        label: "real" or "fake".
        split: "train", "valid" or "test".
        numbers: between which rows.
    """

    table: Table
    label: str
    split: str
    numbers: range = range(1 << 62)

    def __len__(self) -> int:
        return self._select("COUNT(*)").fetchone()[0]

    def __iter__(self) -> Iterator[Item]:
        columns = "number, image, mask, embedded, own, generator, making"
        for number, image, mask, embedded, *facts in self._select(columns):
            found = self.table.embedded(number) if embedded else {}
            key = image or f"row {number}"
            files: list[File | None] = []
            for place, (column, name) in enumerate(zip(rows.FILES, (image, mask), strict=True)):
                if embedded >> place & 1:
                    name = name or f"the {column} of row {number}"
                    files.append(Embedded(name, found[column], self.table.source))
                else:
                    files.append(self.table.path(name) if name else None)
            yield Item(*files, key, tuple(facts), is_whole=facts[-1] == "full")

    def shards(self) -> list[Rows]:
        """Cuts the images into consecutive runs of about `image_files.SHARD_BYTES`."""
        starts, size = [], image_files.SHARD_BYTES
        for number, more in self._select("number, size"):
            if size >= image_files.SHARD_BYTES:
                starts.append(number)
                size = 0
            size += more
        ends = [*starts[1:], self.numbers.stop]
        spans = map(range, starts, ends)
        return [dataclasses.replace(self, numbers=span) for span in spans]

    def _select(self, columns: str) -> sqlite3.Cursor:
        return self.table.select(columns, self.label, self.split, self.numbers)
