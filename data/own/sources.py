"""What a user's dataset was made of, file by file, and what of that has changed since.

Beside its description each subset keeps a table of SQLite: size, time and SHA-256 of every image
and mask, what is known of each image, and how the dataset is made. It is only ever put there as a
whole, so that it can be read while another process puts a newer one in its place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsdl_data import image_files
from wsdl_data.image_files import Embedded
from wsdl_data.own.items import Item
from wsdl_data.provenance import Hashed
from wsdl_jax.runtime import storage

FILE = "sources.sqlite"  # in the folder of a subset
_SHOWN = 5  # files of a kind of change that are named
_AT_ONCE = 1000  # rows that are written, or looked at, together

# Of an image: its path from where the dataset's paths begin, or what stands for it where it lies in
# another file; which of image and mask do, as bits; what is known of it; its file and its mask's.
_COLUMNS = (
    *("label TEXT", "split TEXT", "name BLOB", "embedded INTEGER", "facts TEXT"),
    *("image_size INTEGER", "image_modified INTEGER", "image_sha256 BLOB"),
    *("mask BLOB", "mask_size INTEGER", "mask_modified INTEGER", "mask_sha256 BLOB"),
)
_COMPARED = "name, label, split, facts, image_sha256, mask_sha256"
_PLACES = (
    *("label TEXT", "path BLOB", "is_folder INTEGER", "ending TEXT"),
    *("size INTEGER", "modified INTEGER"),
)
_TABLES = {"making": ("text TEXT",), "places": _PLACES, "images": _COLUMNS}
_WHAT = ("label", "split", "image_sha256", "mask_sha256")


@dataclasses.dataclass(frozen=True)
class Making:
    """How a dataset is made, as the command that builds it is told.

    Attributes:
        source: the absolute path of the folder or file that it is made of.
        masks: what is manipulated in the masks; None where that was not said.
        group: a regular expression of groups; None where there was none.
        root: the absolute path of the folder that a manifest's paths begin in; None for its own.
        layout: of `manifest.layouts`; None for none.
    """

    source: Path
    masks: str | None = None
    group: str | None = None
    root: Path | None = None
    layout: str | None = None

    @property
    def base(self) -> Path:
        """Returns the folder that paths of images begin in."""
        if self.root is not None:
            return self.root
        return self.source if self.source.is_dir() else self.source.parent

    def command(self, name: str, data_dir: str | None) -> str:
        """Returns the command that builds a dataset in this way.

        Args:
            name: of the dataset.
            data_dir: of the prepared datasets; None for the default.
        """
        given = {
            **{"--images": self.source, "--manipulated": self.masks, "--group": self.group},
            **{"--layout": self.layout, "--root": self.root, "--data_dir": data_dir},
        }
        words = ["python", "-m", "wsdl_data.build", name]
        for flag, value in given.items():
            words += [] if value is None else [flag, os.fspath(value)]
        return shlex.join(words)

    def text(self) -> str:
        """Returns it as JSON, which holds paths that are no valid Unicode as well."""
        return json.dumps(dataclasses.asdict(self), default=os.fspath)

    @classmethod
    def of(cls, text: str) -> Making:
        """Returns what `text` has made a text of."""
        fields = json.loads(text)
        root = fields["root"] and Path(fields["root"])
        return cls(**{**fields, "source": Path(fields["source"]), "root": root})


@dataclasses.dataclass(frozen=True)
class Place:
    """A file or folder that says which images there are, as it was before it was read.

    Attributes:
        path: where it is.
        is_folder: whether new files in it are new images.
        ending: of the names that count in a folder; empty for all but what systems leave.
        size: bytes of a file.
        modified: when it was changed, in nanoseconds.
    """

    path: Path
    is_folder: bool
    ending: str
    size: int
    modified: int


def places(paths: Iterable[Path], ending: str = "") -> tuple[Place, ...]:
    """Returns files as places, and folders with all folders below them.

    Args:
        paths: files and folders.
        ending: in lower case, of the files below folders that say which images there are, which are
            places as well; empty where it is the folders that say it.

    Raises OSError for what is not there.
    """
    found = []
    for path in paths:
        below = [(path, True)] if path.is_dir() else [(path, False)]
        for folder, names, files in os.walk(path):
            names[:] = sorted(n for n in names if not image_files.is_left_by_a_system(Path(n)))
            below += [(Path(folder, name), True) for name in names]
            if ending:
                chosen = (name for name in sorted(files) if name.lower().endswith(ending))
                below += [(Path(folder, name), False) for name in chosen]
        for place, is_folder in below:
            stat = place.stat()
            size = 0 if is_folder else stat.st_size
            found.append(Place(place, is_folder, ending, size, stat.st_mtime_ns))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Found:
    """Files of one kind of change.

    Attributes:
        count: how many there are.
        first: the names of the first few.
    """

    count: int = 0
    first: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Changes:
    """What is otherwise than when a dataset was made.

    Attributes:
        changed: images that are there with another content, mask, label or else.
        added: images that were not there.
        removed: images that are not there any more.
    """

    changed: Found = Found()
    added: Found = Found()
    removed: Found = Found()

    def __bool__(self) -> bool:
        return any(found.count for _, found in self.kinds())

    def kinds(self) -> list[tuple[str, Found]]:
        """Returns "changed", "added" and "removed" with what was found of each."""
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]

    def summary(self) -> str:
        """Returns how many of each kind there are, and the first of them; empty without any."""
        counts = [f"{found.count} {kind}" for kind, found in self.kinds() if found.count]
        first = next((found.first[0] for _, found in self.kinds() if found.count), "")
        return f"{', '.join(counts)}; first {first}" if counts else ""

    def lines(self) -> list[str]:
        """Returns a line for each file that is named, and one for the rest of each kind."""
        lines = []
        for kind, found in self.kinds():
            lines += [f"{kind}: {name}" for name in found.first]
            if (more := found.count - len(found.first)) > 0:
                lines.append(f"{kind}: and {more} more")
        return lines


class Sources:
    """What a dataset is made of, in a file that the system removes when nobody has it open."""

    def __init__(self, making: Making):
        """Begins without images.

        making: how the dataset is made.
        """
        self.making = making
        self._base = os.fspath(making.base)
        self._waiting: list[tuple] = []
        self._lock = threading.Lock()
        # A file without a name; whatever is compared with it is only read.
        self._tables = sqlite3.connect("", uri=True, check_same_thread=False, isolation_level=None)
        self._close = weakref.finalize(self, self._tables.close)
        _create(self._tables, "main")
        self._tables.execute("INSERT INTO making VALUES (?)", (making.text(),))

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def watch(self, label: str, watched: Sequence[Place]) -> None:
        """Adds the places that say which images of a label there are, "real" or "fake"."""
        values = [
            (label, os.fsencode(p.path), p.is_folder, p.ending, p.size, p.modified) for p in watched
        ]
        self._tables.executemany(f"INSERT INTO places VALUES {_marks(_PLACES)}", values)

    def add(
        self,
        label: str,
        split: str,
        item: Item,
        facts: Mapping[str, str],
        hashed: Sequence[Hashed | None],
    ) -> None:
        """Adds an image, in any order and thread.

        Args:
            label: "real" or "fake".
            split: that it is in.
            item: its files.
            facts: what is known of it, by name.
            hashed: its file, and that of its mask if it has one.
        """
        image, mask = hashed
        inside = [isinstance(file, Embedded) for file in (item.image, item.mask)]
        name = item.key.encode() if inside[0] else self._name(item.image)
        of_mask = None if item.mask is None or inside[1] else self._name(item.mask)
        row = (
            *(label, split, name, inside[0] + 2 * inside[1], json.dumps(facts, sort_keys=True)),
            *(*_of(image), of_mask, *_of(mask)),
        )
        with self._lock:
            self._waiting.append(row)
            if len(self._waiting) >= _AT_ONCE:
                self._write()

    def _name(self, path: Path) -> bytes:
        return os.fsencode(os.path.relpath(path, self._base))

    def _write(self) -> None:
        self._tables.executemany(f"INSERT INTO images VALUES {_marks(_COLUMNS)}", self._waiting)
        self._waiting = []

    def count(self) -> int:
        """Returns how many images there are."""
        with self._lock:
            self._write()
        return self._tables.execute("SELECT COUNT(*) FROM images").fetchone()[0]

    def save(self, path: Path, label: str) -> None:
        """Writes the images of a label to a file, which is there as a whole or as it was before.

        Raises OSError or sqlite3.Error.
        """
        self.count()
        with storage.staging_folder(path) as stage:
            made = stage / FILE
            with _attached(self._tables, {"made": made.as_uri()}):
                _create(self._tables, "made")
                for table in _TABLES:
                    where = "" if table == "making" else " WHERE label = ?"
                    order = " ORDER BY split, name" if table == "images" else ""
                    self._tables.execute(
                        f"INSERT INTO made.{table} SELECT * FROM {table}{where}{order}",
                        (label,) if where else (),
                    )
            with made.open("rb") as file:
                os.fsync(file.fileno())
            made.replace(path)

    def changes(self, kept: Mapping[str, Path]) -> Changes:
        """Compares contents, and what is known of the images, with what was kept.

        kept: the files that `save` has written for each label.

        Raises sqlite3.Error for a file that is damaged.
        """
        self.count()
        with self._compared_with(kept):
            for name, one, other in (("gone", "kept", "images"), ("come", "images", "kept")):
                # Rows that are the same are counted: a manifest may have one picture twice.
                self._tables.execute(
                    f"CREATE TEMP TABLE {name} AS "
                    f"SELECT {_COMPARED}, COUNT(*) AS times FROM {one} GROUP BY {_COMPARED} EXCEPT "
                    f"SELECT {_COMPARED}, COUNT(*) AS times FROM {other} GROUP BY {_COMPARED}"
                )
                self._tables.execute(f"CREATE INDEX temp.{name}_by_name ON {name} (name)")
            try:
                return Changes(
                    changed=self._found("gone", "IN", "come", self._what),
                    added=self._found("come", "NOT IN", "gone"),
                    removed=self._found("gone", "NOT IN", "come"),
                )
            finally:
                self._tables.execute("DROP TABLE temp.gone")
                self._tables.execute("DROP TABLE temp.come")

    def is_kept(self, label: str, path: Path) -> bool:
        """Returns whether a file has the images of a label, their times and places as they are.

        Raises sqlite3.Error for a file that is damaged.
        """
        self.count()
        with self._compared_with({label: path}):
            for table in _TABLES:
                where = "" if table == "making" else f" WHERE label = '{label}'"
                one, other = f"SELECT * FROM main.{table}{where}", f"SELECT * FROM k0.{table}"
                for query in (f"{one} EXCEPT {other}", f"{other} EXCEPT {one}"):
                    if self._tables.execute(f"{query} LIMIT 1").fetchone():
                        return False
        return True

    @contextlib.contextmanager
    def _compared_with(self, kept: Mapping[str, Path]) -> Iterator[None]:
        names = {f"k{number}": _read_only(path) for number, path in enumerate(kept.values())}
        with _attached(self._tables, names):
            every = " UNION ALL ".join(f"SELECT * FROM {name}.images" for name in names)
            self._tables.execute(f"CREATE TEMP VIEW kept AS {every}")
            try:
                yield
            finally:
                self._tables.execute("DROP VIEW kept")

    def _found(self, one: str, among: str, other: str, what: Any = None) -> Found:
        where = f"WHERE name {among} (SELECT name FROM {other})"
        query = f"SELECT COUNT(DISTINCT name) FROM {one} {where}"
        count = self._tables.execute(query).fetchone()[0]
        query = f"SELECT DISTINCT name FROM {one} {where} ORDER BY name LIMIT {_SHOWN}"
        names = [name for (name,) in self._tables.execute(query).fetchall()]
        return Found(count, tuple(shown(name) + (what(name) if what else "") for name in names))

    def _what(self, name: bytes) -> str:
        """Returns in parentheses what of an image has changed."""
        columns = (*_WHAT, "facts")
        before, after = (
            self._tables.execute(
                f"SELECT {', '.join(columns)} FROM {table} WHERE name = ?", (name,)
            ).fetchone()
            for table in ("gone", "come")
        )
        pairs = zip(_WHAT, before, after, strict=False)
        found = [column.removesuffix("_sha256") for column, old, new in pairs if old != new]
        old, new = json.loads(before[-1]), json.loads(after[-1])
        found += [
            fact for fact in sorted(old.keys() | new.keys()) if old.get(fact) != new.get(fact)
        ]
        return f" ({', '.join(found)})" if found else ""


class _Names:
    """Names that are counted, and the first of which are kept."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, name: bytes) -> None:
        """Counts a name."""
        self.count += 1
        if len(self._first) < _SHOWN:
            self._first.append(shown(name))

    def found(self) -> Found:
        """Returns what has been counted."""
        return Found(self.count, tuple(self._first))


def making_of(path: Path) -> Making:
    """Returns how the dataset of a file that `Sources.save` has written is made.

    Raises sqlite3.Error, or another error of a text, for a file that is damaged.
    """
    with contextlib.closing(sqlite3.connect(_read_only(path), uri=True)) as tables:
        tables.execute("SELECT name FROM images").fetchone()
        return _making(tables)


def _making(tables: sqlite3.Connection) -> Making:
    found = tables.execute("SELECT text FROM making").fetchone()
    if found is None:
        raise ValueError("it does not say how the dataset is made")
    return Making.of(found[0])


def changes_by_time(kept: Iterable[Path], seconds: float | None) -> Changes | None:
    """Compares sizes and times of files with what was kept of them; reads none of them.

    Args:
        kept: files that `Sources.save` has written for subsets of one dataset.
        seconds: after which no more files and folders are looked at; None for no end. Added images
            are found only where all of them have been looked at.

    Returns:
        What is otherwise; None where the source is not there. A list of images that has changed
        counts as one of them.

    Raises:
        OSError: a file or folder may not be looked at.
        sqlite3.Error, or another error of a text: what was kept is damaged.
    """
    look = _Look(None if seconds is None else time.monotonic() + seconds)
    for path in kept:
        with contextlib.closing(sqlite3.connect(_read_only(path), uri=True)) as tables:
            making = _making(tables)
            if not making.source.exists():
                return None
            look.at(tables, os.fsencode(making.base))
    return look.changes()


class _Look:
    """What is seen of files without reading them."""

    def __init__(self, end: float | None):
        """end: the time of `time.monotonic` at which it ends; None for no end."""
        self._end, self._is_over = end, False
        self._looked = 0
        self._changed, self._added, self._removed = _Names(), _Names(), _Names()
        self._lists: set[bytes] = set()  # that have changed; those of real and fake are the same

    def changes(self) -> Changes | None:
        """Returns what is otherwise; None where no image is there, as on a disk not mounted."""
        if self._looked and self._removed.count == self._looked:
            return None
        return Changes(self._changed.found(), self._added.found(), self._removed.found())

    def at(self, tables: sqlite3.Connection, base: bytes) -> None:
        """Looks at the files of a subset.

        Args:
            tables: what was kept of it.
            base: the folder that its paths begin in.
        """
        unknown = self._new_files(tables, base)
        query = (
            "SELECT name, embedded, image_size, image_modified, mask, mask_size, mask_modified"
            " FROM images"
        )
        for number, row in enumerate(tables.execute(query)):
            if self._is_late(number):
                return
            name, embedded, size, modified, mask, mask_size, mask_modified = row
            image = None if embedded & 1 else name
            files = [(image, (size, modified)), (mask, (mask_size, mask_modified))]
            present = [(file, before) for file, before in files if file is not None]
            unknown -= {file for file, _ in present}
            self._compare(base, present)
        for file in sorted(unknown):
            self._added.add(file)

    def _is_late(self, number: int) -> bool:
        """Returns whether the look is over; the clock is asked once in `_AT_ONCE` numbers."""
        if self._end is not None and number % _AT_ONCE == 0:
            self._is_over |= time.monotonic() > self._end
        return self._is_over

    def _compare(self, base: bytes, files: Sequence[tuple[bytes, tuple[int, int]]]) -> None:
        """Compares the files of an image, with the size and time that each had."""
        self._looked += bool(files)
        for file, before in files:
            try:
                stat = os.stat(os.path.join(base, file))
            except (FileNotFoundError, NotADirectoryError):
                self._removed.add(file)
                return
            if (stat.st_size, stat.st_mtime_ns) != before:
                self._changed.add(file)
                return

    def _new_files(self, tables: sqlite3.Connection, base: bytes) -> set[bytes]:
        """Returns the files in folders that have changed, relative to `base`; some may be known.

        Lists that have changed are counted.
        """
        query = "SELECT path, is_folder, ending, size, modified FROM places"
        places = tables.execute(query).fetchall()
        known = {path for path, *_ in places}
        found: set[bytes] = set()
        for number, (path, is_folder, ending, size, modified) in enumerate(places):
            if self._is_late(number):
                return set()
            try:
                stat = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue  # the files in it are missing, too
            if is_folder and stat.st_mtime_ns != modified:
                found |= self._files_below(path, base, known, ending.encode())
            elif not is_folder and (stat.st_size, stat.st_mtime_ns) != (size, modified):
                if path not in self._lists:
                    self._changed.add(os.path.relpath(path, base))
                self._lists.add(path)
        return {name for name in found if os.path.join(base, name) not in known}

    def _files_below(
        self, folder: bytes, base: bytes, known: set[bytes], ending: bytes
    ) -> set[bytes]:
        """Returns the files in a folder and in new ones below it, relative to `base`.

        Those that have been found by then, where the look is over.

        Args:
            folder: the folder.
            base: what the names are relative to.
            known: folders that are not gone into.
            ending: of the names that count.
        """
        found: set[bytes] = set()
        folders, number = [folder], 0
        while folders:
            parent = folders.pop()
            inside = os.path.relpath(parent, base)
            # A folder that has gone since, or may not be read, has no new images.
            with contextlib.suppress(OSError), os.scandir(parent) as entries:
                for entry in entries:
                    if self._is_late(number):
                        return found
                    number += 1
                    if not _counts(entry.name):
                        continue
                    if entry.is_dir():
                        if not entry.is_symlink() and entry.path not in known:
                            folders.append(entry.path)
                    elif entry.name.lower().endswith(ending):
                        found.add(os.path.normpath(os.path.join(inside, entry.name)))
        return found


def _counts(name: bytes) -> bool:
    return not image_files.is_left_by_a_system(Path(os.fsdecode(name)))


def shown(name: bytes) -> str:
    """Returns a file's name in one line: in quotes, with escapes, if it has characters for that."""
    text = name.decode(errors="replace")
    return text if text.isprintable() else repr(text)


def _of(hashed: Hashed | None) -> tuple[int | None, int | None, bytes | None]:
    if hashed is None:
        return None, None, None
    return hashed.size, hashed.modified, bytes.fromhex(hashed.sha256)


def _marks(columns: Sequence[str]) -> str:
    return f"({', '.join('?' * len(columns))})"


def _create(tables: sqlite3.Connection, where: str) -> None:
    tables.execute(f"PRAGMA {where}.journal_mode = OFF")  # nobody else has this file yet
    for name, columns in _TABLES.items():
        tables.execute(f"CREATE TABLE {where}.{name} ({', '.join(columns)})")


def _read_only(path: Path) -> str:
    """Returns a file as SQLite's URL: without locks, since it is never changed in its place."""
    return f"{Path(os.path.abspath(path)).as_uri()}?mode=ro&immutable=1"


@contextlib.contextmanager
def _attached(tables: sqlite3.Connection, files: Mapping[str, str]) -> Iterator[None]:
    attached = []
    try:
        for name, url in files.items():
            tables.execute(f"ATTACH ? AS {name}", (url,))
            attached.append(name)
        yield
    finally:
        for name in attached:
            tables.execute(f"DETACH {name}")
