"""A seeded mutator of files: of bytes, and of what is known of a format."""

import csv
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

_STRANGE = (
    *(None, True, -1, 0, 1.5, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**63, 10**400),
    *("", "x", "é" * 3000, "../../x", "/", "\x00", [], {}, [[]], {"x": []}, [1, "x", None]),
)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """A file's bytes with one to three faults."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(_OF_BYTES)(content, rng)
    return content


def mutate_png(content: bytes, rng: random.Random) -> bytes:
    """Of a PNG, or of any other image: half of the time its header."""
    if not content.startswith(b"\x89PNG") or rng.random() < 0.5:
        return mutate(content, rng)
    header = bytearray(content[12:29])  # IHDR and its fields
    if rng.random() < 0.6:
        place = rng.choice((4, 8))  # width or height
        sizes = (0, 1, 7, 65_535, 20_000_000, 2**31 - 1, 2**32 - 1)
        header[place : place + 4] = struct.pack(">I", rng.choice(sizes))
    else:
        header[rng.randrange(12, 17)] = rng.choice((0, 1, 2, 3, 4, 6, 16, 255))
    return content[:12] + bytes(header) + struct.pack(">I", zlib.crc32(header)) + content[33:]


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Of a JSON file: three times of four as JSON, which stays JSON."""
    if rng.random() < 0.25:
        return mutate(content, rng)
    tree = json.loads(content)
    if rng.random() < 0.05:
        return b"[" * 100_000
    if rng.random() < 0.05:
        return json.dumps(rng.choice(_STRANGE)).encode()
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change(tree, rng)
    return json.dumps(tree).encode()


def mutate_json_lines(content: bytes, rng: random.Random) -> bytes:
    """Of a file with an object a line."""
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = mutate_json(lines[place], rng)
    return b"\n".join(lines) + b"\n"


def mutate_csv(content: bytes, rng: random.Random) -> bytes:
    """Of a table: three times of four a cell, a row or a column."""
    if rng.random() < 0.25:
        return mutate(content, rng)
    rows = list(csv.reader(io.StringIO(content.decode())))
    for _ in range(rng.choice((1, 1, 2, 4))):
        row = rng.choice(rows)
        kind = rng.randrange(4)
        if kind == 0 and row:
            row[rng.randrange(len(row))] = str(rng.choice(_STRANGE))
        elif kind == 1 and row:
            row.pop(rng.randrange(len(row)))
        elif kind == 2:
            row.append("1")
        elif len(rows) > 1:
            rows.remove(row)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Of a safetensors file: two times of three its header, whose length then fits."""
    if rng.random() < 0.34:
        return mutate(content, rng)
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.15:
        wrong = rng.choice((0, 1, length - 1, length + 1, len(content), 2**40, 2**64 - 1))
        return struct.pack("<Q", wrong) + header + data
    tree = json.loads(header)
    if "__metadata__" in tree and "config" in tree["__metadata__"] and rng.random() < 0.4:
        config = mutate_json(tree["__metadata__"]["config"].encode(), rng)
        tree["__metadata__"]["config"] = config.decode(errors="replace")
    else:
        one = tree[rng.choice(sorted(tree))]
        kind = rng.randrange(5)
        if "dtype" in one and kind == 0:
            one["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "X"))
        elif "shape" in one and kind == 1:
            one["shape"] = rng.choice(
                ([], [0], [2**31] * 3, [2**62, 2**62], [-1], one["shape"] * 2)
            )
        elif "data_offsets" in one and kind == 2:
            one["data_offsets"] = rng.choice(([0, 0], [8, 4], [0, 2**60], [0, len(data)], [-4, 0]))
        else:
            _change(tree, rng)
    header = json.dumps(tree).encode()
    return struct.pack("<Q", len(header)) + header + data


# ----- Bytes --------------------------------------------------------------------------------------


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _empty(content: bytes, rng: random.Random) -> bytes:
    return b""


def _zeros(content: bytes, rng: random.Random) -> bytes:
    start, count = _stretch(content, rng)
    return content[:start] + bytes(count) + content[start + count :]


def _duplicate(content: bytes, rng: random.Random) -> bytes:
    start, count = _stretch(content, rng)
    return content[: start + count] + content[start:]


def _remove(content: bytes, rng: random.Random) -> bytes:
    start, count = _stretch(content, rng)
    return content[:start] + content[start + count :]


def _header(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if changed:
            changed[rng.randrange(min(64, len(changed)))] = rng.choice((0, 1, 127, 128, 255))
    return bytes(changed)


def _noise(content: bytes, rng: random.Random) -> bytes:
    start, count = _stretch(content, rng)
    return content[:start] + rng.randbytes(count) + content[start + count :]


def _stretch(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, rng.randint(0, min(len(content) - start, 4096))


_OF_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _flip, _truncate, _truncate, _empty, _zeros, _duplicate, _remove, _header, _noise),
)


# ----- Trees --------------------------------------------------------------------------------------


def _change(tree: Any, rng: random.Random) -> None:
    """Changes, removes, renames or adds one thing somewhere in a tree of JSON."""
    holder = tree
    while True:
        places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not places:
            return
        place = rng.choice(places)
        inside = holder[place]
        if not (isinstance(inside, dict | list) and inside and rng.random() < 0.8):
            break
        holder = inside
    kind = rng.randrange(6)
    if kind == 0:
        del holder[place]
    elif kind == 1 and isinstance(holder, dict):
        holder[f"{place}x"] = holder.pop(place)
    elif kind == 2 and isinstance(inside, int | float | str):
        holder[place] = str(inside) if isinstance(inside, int | float) else len(inside)
    elif kind == 3 and isinstance(inside, int | float):
        holder[place] = rng.choice((-inside, inside * 1_000_003, inside + 0.5, 10**30))
    else:
        holder[place] = rng.choice(_STRANGE)
