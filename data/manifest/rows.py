"""The rows of a manifest, one after the other: CSV, JSON lines, or Parquet."""

from __future__ import annotations

import bisect
import contextlib
import csv
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

REQUIRED = ("image", "label")
FILES = ("image", "mask")
FACTS = ("group", "generator", "kind")  # kept with an image
COLUMNS = (*REQUIRED, "mask", *FACTS, "split")
Translate = Callable[[Mapping[str, Any]], Mapping[str, Any]]
_AT_ONCE = 64  # rows of a Parquet file that are in memory, with the images in them


@dataclasses.dataclass(frozen=True)
class Row:
    """A row as the file has it.

    Attributes:
        number: of the row, from 1 on.
        place: where it is, for messages: "line 7", "row 7".
        texts: what its columns say, by their names; columns that are empty there are left out.
        embedded: the bytes of files that lie in the row itself, by their columns, "image" and
            "mask".
    """

    number: int
    place: str
    texts: Mapping[str, str]
    embedded: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def read(path: Path) -> Iterator[Row]:
    """Yields the rows of a manifest, of which few are in memory at a time.

    Args:
        path: a file that ends in .csv, .jsonl or .parquet, or a folder of Parquet files, whose
            rows follow each other in the order of the files' names.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is none of these, is damaged, lacks a column, or has one that is unknown.
    """
    kind = "parquet" if path.is_dir() else path.suffix.lower().removeprefix(".")
    readers = {"csv": _csv, "jsonl": _json_lines, "parquet": parquet}
    if kind not in readers:
        raise ValueError(f"{path}: a manifest ends in .csv, .jsonl or .parquet")
    yield from readers[kind](path)


def _csv(path: Path) -> Iterator[Row]:
    for number, (place, texts) in enumerate(csv_rows(path, _check_columns), start=1):
        yield Row(number, place, texts)


def csv_rows(
    path: Path, check: Callable[[Path, Sequence[str]], None]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields where each row of a CSV file is, and its values that are not empty, by column.

    Args:
        path: the file.
        check: called with the file and its columns before the first row.

    Raises OSError, and ValueError for what is no CSV, or has rows that are shorter or longer.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            columns = next(reader, [])
            check(path, columns)
            line = reader.line_num + 1
            for values in reader:
                if values:  # An empty line is none.
                    if len(values) != len(columns):
                        raise ValueError(
                            f"{path}, line {line}: {len(values)} values in {len(columns)} columns"
                        )
                    pairs = zip(columns, values, strict=True)
                    yield f"line {line}", {column: value for column, value in pairs if value}
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: no CSV in UTF-8 ({error})") from error
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num + 1}: no CSV ({error})") from error


def _json_lines(path: Path) -> Iterator[Row]:
    number = 0
    with path.open("rb") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            number, where = number + 1, f"{path}, line {line}"
            try:
                found = json.loads(text, object_pairs_hook=_once)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: no JSON ({error})") from error
            if not isinstance(found, dict):
                raise ValueError(f"{where}: no object of {', '.join(COLUMNS)}")
            _check_columns(where, list(found), required=())
            texts = {column: _text(where, column, value) for column, value in found.items()}
            yield Row(number, f"line {line}", {name: text for name, text in texts.items() if text})


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _text(where: str, column: str, value: Any) -> str:
    if value is None:
        return ""
    try:
        if isinstance(value, bytes):  # of files that do not say that it is a text
            return value.decode()
        if isinstance(value, str):
            value.encode()
            return value
    except UnicodeError as error:
        raise ValueError(f"{where}: {column} is no text ({error})") from error
    if isinstance(value, float) and math.isnan(value):  # pandas' way to write nothing
        return ""
    if isinstance(value, (bool, int)) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    raise ValueError(f"{where}: {column} is {str(value)[:40]!r}, where a text is expected")


def parquet(path: Path, translated: Translate | None = None) -> Iterator[Row]:
    """Yields the rows of a Parquet file, or of a folder of such files.

    Args:
        path: the file or folder.
        translated: makes of a row with other columns, but for those of `FILES`, one of a manifest.

    Raises OSError and ValueError as `read` does.
    """
    number = 0
    for part in _parts(path):
        if translated is None:
            _check_columns(part.path, part.columns)
        for row, values in enumerate(_values(part), start=part.start):
            number += 1
            where = f"row {row} of {part.path.name}"
            if translated is not None:
                try:
                    values = translated(values)
                except ValueError as error:
                    raise ValueError(f"{part.path}, {where}: {error}") from error
            texts, embedded = {}, {}
            for column, value in values.items():
                name, content = _opened(value) if column in FILES else (value, None)
                texts[column] = _text(f"{part.path}, {where}", column, name)
                if content is not None:
                    embedded[column] = content
            yield Row(number, where, {key: text for key, text in texts.items() if text}, embedded)


class EmbeddedFiles:
    """What lies in the rows of a Parquet manifest, read in order."""

    def __init__(self, path: Path):
        """path: as of `parquet`. Raises as that does."""
        self._parts = list(_parts(path))
        self._ends = list(itertools.accumulate(part.count for part in self._parts))
        self._number = len(self._ends)  # of the row group that is being read: none yet
        self._values: Generator[dict[str, Any]] | None = None  # the rows that come next in it
        self._last = 0  # the row that was read last

    def of(self, row: int) -> dict[str, bytes]:
        """Returns the bytes of files in a row, by their columns.

        Rows that rise are read on; another one begins its row group again.

        row: its number, from 1 on.
        """
        number = bisect.bisect_left(self._ends, row)
        if number != self._number or row <= self._last:
            self.close()
            self._number = number
            self._values = _values(self._parts[number], FILES)
            self._last = self._ends[number] - self._parts[number].count
        values = {}
        for _ in range(row - self._last):
            values = next(self._values)
        self._last = row
        opened = {column: _opened(value)[1] for column, value in values.items()}
        return {column: content for column, content in opened.items() if content is not None}

    def close(self) -> None:
        """Closes the file that is being read."""
        if self._values is not None:
            self._values.close()


@dataclasses.dataclass(frozen=True)
class _Part:
    """A row group of a Parquet file.

    Attributes:
        path: the file.
        columns: their names.
        group: the row group's number.
        start: the number of its first row in the file, from 1 on.
        count: how many rows it has.
    """

    path: Path
    columns: tuple[str, ...]
    group: int
    start: int
    count: int


def _parts(path: Path) -> Iterator[_Part]:
    """Yields what a Parquet manifest consists of, in its order."""
    files = [path]
    if path.is_dir():
        files = sorted(found for found in path.rglob("*") if found.suffix.lower() == ".parquet")
    if not files:
        raise FileNotFoundError(f"{path}: no .parquet files in this folder")
    for file in files:
        with _parquet_errors(file), pq.ParquetFile(file) as opened:
            columns = tuple(opened.schema_arrow.names)
            sizes = [opened.metadata.row_group(n).num_rows for n in range(opened.num_row_groups)]
        start = 1
        for group, count in enumerate(sizes):
            yield _Part(file, columns, group, start, count)
            start += count


def _values(part: _Part, columns: Sequence[str] | None = None) -> Generator[dict[str, Any]]:
    """Yields the rows of a row group, few at a time; of some columns those that it has."""
    with _parquet_errors(part.path), pq.ParquetFile(part.path) as file:
        present = [name for name in part.columns if columns is None or name in columns]
        for batch in file.iter_batches(_AT_ONCE, row_groups=[part.group], columns=present):
            yield from batch.to_pylist()


def _opened(value: Any) -> tuple[Any, bytes | None]:
    """Returns the text of a Parquet value, and the bytes of a file that is embedded in it.

    An image of the `datasets` library is a struct of `bytes` and `path`, either of which may be
    missing.
    """
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return value["path"], value["bytes"]
    return (None, value) if isinstance(value, bytes) else (value, None)


@contextlib.contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise ValueError(f"{path}: no Parquet file, or damaged ({error})") from error


def _check_columns(where: str | Path, columns: Sequence[str], required: Sequence[str] = REQUIRED):
    """Raises ValueError for columns that are unknown, twice there or missing."""
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise ValueError(f"{where}: unknown column {unknown[0]!r}; known are {', '.join(COLUMNS)}")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{where}: two columns of one name")
    if missing := [column for column in required if column not in columns]:
        raise ValueError(f"{where}: no column {missing[0]!r}")
