"""Whether sources of datasets have changed: by content, against hashlib and sets, and by time."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsdl_data import build
from wsdl_data.own import sources
from wsdl_data.own.items import Item
from wsdl_data.own.sources import Making, Sources
from wsdl_data.provenance import Hashed, Origin
from wsdl_jax import evaluate, inputs

SPLITS = ("train", "valid", "test")
OWN = "image_folder/own"


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    noise = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), np.uint8)
    Image.fromarray(noise).save(path, compress_level=0)  # of the same size, whatever the pixels


def save_mask(path: Path, rows: int) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    mask = np.zeros((8, 10), np.uint8)
    mask[:rows] = 255
    Image.fromarray(mask).save(path, compress_level=0)


@contextlib.contextmanager
def own_data(root: Path) -> Iterator[None]:
    """A folder `source` with two images of a kind and split, and `data`, where it is built."""
    for number, split in enumerate(SPLITS):
        for index in range(2):
            save(root / f"source/{split}/real/{index}.png", 10 * number + index)
            save(root / f"source/{split}/fake/{index}.png", 100 + 10 * number + index)
            save_mask(root / f"source/{split}/masks/{index}.png", 1 + index)
    assert command(root) == 0
    yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with own_data(tmp_path):
        return tmp_path


def command(root: Path, *more: str) -> int:
    """The exit status of the build of image_folder/own."""
    where = ["--images", f"{root}/source", "--data_dir", f"{root}/data", "--manipulated", "white"]
    return build.main([OWN, *where, *more])


def check(
    root: Path, capsys: pytest.CaptureFixture[str], name: str = OWN
) -> tuple[int, list[str], str]:
    """The exit status of a check, and what it says, without the dataset's name, and in the end."""
    capsys.readouterr()
    status = build.main([name, "--check", "--data_dir", f"{root}/data"])
    out, err = capsys.readouterr()
    assert err.count("\n") == (status != 0)
    return status, [line.removeprefix(f"{name}: ") for line in out.splitlines()], err


def look(root: Path, name: str = OWN) -> str:
    """What is said when the dataset is used; empty for nothing."""
    subsets = (f"{name}_real", f"{name}_fake", "portraits/real")
    lines = build.changed_sources(subsets, f"{root}/data")
    assert len(lines) <= 1
    return "".join(lines)


def tables(root: Path, name: str = OWN) -> list[Path]:
    return sorted(root.glob(f"data/{name}_*/*/{sources.FILE}"))


def test_what_is_kept_of_each_file(root: Path) -> None:
    fake, _ = tables(root)
    with contextlib.closing(sqlite3.connect(fake)) as kept:
        kept.row_factory = sqlite3.Row
        found = kept.execute("SELECT * FROM images").fetchall()
    images = sorted((root / "source").glob("*/fake/*.png"))
    assert sorted(os.fsdecode(row["name"]) for row in found) == [
        str(path.relative_to(root / "source")) for path in images
    ]
    for row in found:
        assert (row["label"], row["embedded"], row["facts"]) == ("fake", 0, "{}")
        assert row["split"] == os.fsdecode(row["name"]).split("/")[0]
        for what, name in (("image", row["name"]), ("mask", row["mask"])):
            path = root / "source" / os.fsdecode(name)
            assert row[f"{what}_size"] == path.stat().st_size
            assert row[f"{what}_modified"] == path.stat().st_mtime_ns
            assert row[f"{what}_sha256"] == hashlib.sha256(path.read_bytes()).digest()


def test_what_was_touched_is_unchanged_and_then_known(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unchanged = (0, [f"unchanged, 12 images in {root}/source"], "")
    assert look(root) == ""
    assert check(root, capsys) == unchanged
    before = [path.stat().st_ino for path in tables(root)]
    assert check(root, capsys) == unchanged
    assert [path.stat().st_ino for path in tables(root)] == before  # nothing to keep
    (root / "source/train/fake/1.png").touch()
    shutil.copy(root / "source/valid/real/0.png", root / "copy")
    (root / "copy").rename(root / "source/valid/real/0.png")
    assert "(2 changed; first valid/real/0.png)" in look(root)
    assert check(root, capsys) == unchanged
    assert look(root) == ""
    assert [len(list(path.parent.glob(".*"))) for path in tables(root)] == [0, 0]


def again(path: Path, change: Callable[[Path], None]) -> None:
    """Changes a file, and its time so that it is another one on any file system."""
    change(path)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))


def silently(path: Path) -> None:
    """Writes another image of the same size in bytes, and of the same time."""
    before = path.stat()
    save(path, 999)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def remove_pair(root: Path) -> None:
    (root / "test/fake/1.png").unlink()
    (root / "test/masks/1.png").unlink()


def add_pairs(root: Path) -> None:
    for index in range(7):
        save(root / f"test/fake/more/{index}.png", 50 + index)
        save_mask(root / f"test/masks/more/{index}.png", 2)


# What is done to the source → what a check says of it, and a look.
CHANGES = {
    "an image": (
        lambda root: again(root / "train/real/0.png", lambda path: save(path, 999)),
        ["changed: train/real/0.png (image)"],
        "(1 changed; first train/real/0.png)",
    ),
    "an image of the same size and time": (
        lambda root: silently(root / "train/real/0.png"),
        ["changed: train/real/0.png (image)"],
        "",
    ),
    "a mask": (
        lambda root: again(root / "test/masks/0.png", lambda path: save_mask(path, 5)),
        ["changed: test/fake/0.png (mask)"],
        "(1 changed; first test/masks/0.png)",
    ),
    "one removed": (
        lambda root: (root / "valid/real/1.png").unlink(),
        ["removed: valid/real/1.png"],
        "(1 removed; first valid/real/1.png)",
    ),
    "a pair removed": (
        remove_pair,
        ["removed: test/fake/1.png"],
        "(1 removed; first test/fake/1.png)",
    ),
    "seven added in a new folder": (
        add_pairs,
        [*(f"added: test/fake/more/{index}.png" for index in range(5)), "added: and 2 more"],
        # The masks are new files as well.
        "(14 added; first test/fake/more/0.png)",
    ),
    "an odd name": (
        lambda root: save(root / 'test/real/it\'s\n"new".png', 7),
        ["added: 'test/real/it\\'s\\n\"new\".png'"],
        "(1 added; first 'test/real/it\\'s\\n\"new\".png')",
    ),
    "a name that is no Unicode": (
        lambda root: save(root / os.fsdecode(b"test/real/\xff.png"), 7),
        ["added: test/real/\ufffd.png"],
        "(1 added; first test/real/\ufffd.png)",
    ),
    "moved to another split": (
        lambda root: (root / "train/real/1.png").rename(root / "test/real/9.png"),
        ["added: test/real/9.png", "removed: train/real/1.png"],
        "(1 added, 1 removed; first test/real/9.png)",
    ),
    "what a system has left": (
        lambda root: ((root / "test/real/.hidden").mkdir(), (root / "test/fake/Thumbs.db").touch()),
        None,
        "",
    ),
}


@pytest.mark.parametrize(("change", "found", "seen"), CHANGES.values(), ids=CHANGES)
def test_what_has_changed_is_named(
    change: Callable[[Path], object],
    found: list[str] | None,
    seen: str,
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(root / "source")
    said = look(root)
    assert seen in said and bool(said) == bool(seen) and "\n" not in said
    status, lines, error = check(root, capsys)
    if found is None:
        assert (status, error) == (0, "")
        return
    assert (status, lines) == (1, found)
    # What it says to type builds the dataset again, of what is there now.
    _, _, typed = error.partition("to build it again: ")
    removal, _, rebuild = typed.strip().partition(" && ")
    assert removal == f"rm -r {root}/data/{OWN}_real {root}/data/{OWN}_fake"
    for folder in removal.split()[2:]:
        shutil.rmtree(folder)
    assert rebuild.startswith(f"python -m wsdl_data.build {OWN} --images ")
    assert build.main(rebuild.split()[3:]) == 0
    assert check(root, capsys)[0] == 0
    assert look(root) == ""


def test_the_same_build_again_names_what_has_changed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again(root / "source/train/real/0.png", lambda path: save(path, 999))
    before = [path.read_bytes() for path in tables(root)]
    capsys.readouterr()
    assert command(root) == 1
    err = capsys.readouterr().err
    assert "; 1 changed; first train/real/0.png (image)); choose another name, or delete" in err
    assert err.count("\n") == 1
    assert [path.read_bytes() for path in tables(root)] == before


def test_what_cannot_be_built_of_any_more(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "source/test/fake/1.png").unlink()
    status, lines, error = check(root, capsys)
    assert (status, lines) == (1, [])
    assert "1.png: a mask without an image in" in error
    assert "; by size and time 1 removed; first test/fake/1.png\n" in error


@pytest.mark.parametrize("empty", [False, True])
def test_a_source_that_is_gone(
    empty: bool, root: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (root / "source").rename(root / "elsewhere")
    if empty:  # as a disk that is not mounted
        (root / "source").mkdir()
    with caplog.at_level(logging.DEBUG):
        assert look(root) == ""
    assert [record.getMessage() for record in caplog.records if "own" in record.getMessage()] == [
        f"{OWN}: its sources are not at hand"
    ]
    status, _, error = check(root, capsys)
    assert status == 1 and error.startswith(f"error: {OWN}: ")
    assert empty or f"{root}/source, which it was made of, is not there any more" in error
    # The same build with the files where they are now is the same dataset, and knows them.
    (root / "source").rmdir() if empty else None
    (root / "elsewhere").rename(root / "new")
    where = ["--images", f"{root}/new", "--data_dir", f"{root}/data", "--manipulated", "white"]
    assert build.main([OWN, *where]) == 0
    assert check(root, capsys)[:2] == (0, [f"unchanged, 12 images in {root}/new"])


def test_without_permission(capsys: pytest.CaptureFixture[str]) -> None:
    place = Path(tempfile.mkdtemp(prefix="wsdl-jax-tests-"))  # that others can reach
    place.chmod(0o755)
    image, folder = place / "source/train/real/0.png", place / "source/train/real"
    try:
        with own_data(place):
            image.chmod(0)
            for path in tables(place):
                path.parent.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            assert look(place) == ""
            status, _, error = check(place, capsys)
            assert status == 1 and "Permission denied" in error and str(image) in error
        finally:
            if root:
                os.seteuid(0)
        image.chmod(0o644)
        folder.chmod(0)
        if root:
            os.seteuid(65534)
        try:
            assert look(place) == ""
            status, _, error = check(place, capsys)
            assert status == 1 and "Permission denied" in error
        finally:
            if root:
                os.seteuid(0)
        folder.chmod(0o755)
        # Where new times cannot be kept, the dataset is found ready nonetheless.
        image.touch()
        if root:
            os.seteuid(65534)
        try:
            assert check(place, capsys)[0] == 0
            assert "1 changed" in look(place)
        finally:
            if root:
                os.seteuid(0)
    finally:
        for path in place.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(place)


def test_killed_while_it_keeps_new_times(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "source/train/real/0.png").touch()
    before = [path.read_bytes() for path in tables(root)]
    program = (
        "import os, pathlib, signal\n"
        "from wsdl_data import build\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"build.main([{OWN!r}, '--check', '--data_dir', {str(root / 'data')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.read_bytes() for path in tables(root)] == before
    left = [path for table in tables(root) for path in table.parent.glob(".*.partial")]
    assert len(left) == 1 and "1 changed" in look(root)
    assert check(root, capsys)[0] == 0
    assert look(root) == "" and not left[0].exists()


# ----- Datasets that lack it ----------------------------------------------------------------------


def test_one_of_an_earlier_version_learns_it_from_the_same_build(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in tables(root):
        path.unlink()
    assert look(root) == ""
    status, lines, error = check(root, capsys)
    assert (status, lines) == (1, [])
    assert f"an earlier version has built it, {'which did not keep'}" in error
    assert f"with --images {root}/source, compares all" in error
    assert command(root) == 0
    assert check(root, capsys)[0] == 0


@pytest.mark.parametrize("content", [b"", b"no table of SQLite, of any length whatever" * 99])
def test_a_damaged_one(content: bytes, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tables(root)[0]
    damaged.write_bytes(content)
    assert look(root) == ""
    status, _, error = check(root, capsys)
    assert status == 1 and f"{damaged} is damaged (" in error
    assert command(root) == 0
    assert check(root, capsys)[0] == 0


def test_what_was_forged_has_no_sources(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin = Origin({"masks": "white", "generator": "telea"}, {}, {})
    source, data_dir = f"{root}/source", f"{root}/data"
    made = build.own_builders("image_folder/forged", source, "white", data_dir, made_by=origin)
    build.prepare_together(list(made.values()))
    assert look(root, "image_folder/forged") == ""
    status, _, error = check(root, capsys, "image_folder/forged")
    assert status == 1 and "was forged, not made of files that are kept" in error


def test_one_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = check(tmp_path, capsys)
    assert status == 1 and f"not prepared in {tmp_path}/data: run python -m" in error
    assert build.changed_sources([f"{OWN}_fake"], f"{tmp_path}/data") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["portraits", "--check"],
        [OWN, "image_folder/other", "--check"],
        [OWN, "--check", "--images", "source"],
        ["manifest/own", "--check", "--root", "source"],
    ],
)
def test_a_check_goes_alone(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        build.main(arguments)
    assert stop.value.code == 2
    assert "--check goes with one image_folder/NAME or manifest/NAME" in capsys.readouterr().err


# ----- Manifests ----------------------------------------------------------------------------------


def manifest_rows(root: Path) -> list[dict[str, str]]:
    rows = []
    for number, split in enumerate(SPLITS):
        for label in ("real", "fake"):
            name = f"{split}/{label}.png"
            save(root / "images" / name, 10 * number + len(label) + (label == "real"))
            rows.append({"image": name, "label": label, "split": split, "generator": ""})
    return rows


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes a manifest, in Parquet with the images in it."""
    if path.suffix == ".parquet":
        images = path.parent / "images"
        inside = [
            {"bytes": (images / row["image"]).read_bytes(), "path": row["image"]} for row in rows
        ]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        pq.write_table(pa.table({**columns, "image": inside}), path, row_group_size=4)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_manifest_that_was_edited(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, name = manifest_rows(tmp_path), "manifest/own"
    source = tmp_path / f"list.{ending}"
    write(source, rows)
    where = ["--images", str(source), "--root", f"{tmp_path}/images"]
    assert build.main([name, *where, "--data_dir", f"{tmp_path}/data"]) == 0
    assert look(tmp_path, name) == ""
    assert check(tmp_path, capsys, name)[:2] == (0, [f"unchanged, 6 images in {source}"])
    rows[0]["label"], rows[1]["label"] = "fake", "real"
    rows[3]["generator"] = "ldm"
    save(tmp_path / "images/test/real.png", 998)  # in Parquet its bytes are a row's
    save(tmp_path / "images/new.png", 999)
    rows.append({"image": "new.png", "label": "fake", "split": "test", "generator": ""})
    again(source, lambda path: write(path, rows))
    seen = "list.csv" if ending == "csv" else "list.parquet"
    assert f"first ../{seen}" in look(tmp_path, name)
    status, lines, error = check(tmp_path, capsys, name)
    assert (status, lines) == (
        1,
        [
            "changed: test/real.png (image)",
            "changed: train/fake.png (label)",
            "changed: train/real.png (label)",
            "changed: valid/fake.png (generator)",
            "added: new.png",
        ],
    )
    assert f"--images {source} --root {tmp_path}/images --data_dir" in error


def test_rows_that_are_the_same_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of Parquet files, whose rows have images without a path."""
    save(tmp_path / "image.png", 1)
    content, name = (tmp_path / "image.png").read_bytes(), "manifest/own"
    folder = tmp_path / "rows"
    folder.mkdir()

    def write_rows(file: str, count: int) -> None:
        columns = {"image": [content] * count, "label": [0] * count, "split": ["test"] * count}
        pq.write_table(pa.table(columns), folder / file)

    write_rows("a.parquet", 2)
    assert build.main([name, "--images", str(folder), "--data_dir", f"{tmp_path}/data"]) == 0
    assert check(tmp_path, capsys, name)[0] == 0
    write_rows("b.parquet", 1)
    (folder / "notes.txt").write_text("not of the manifest")
    said = build.changed_sources([f"{name}_real"], f"{tmp_path}/data")
    assert len(said) == 1 and "(1 added; first b.parquet)" in said[0]
    assert check(tmp_path, capsys, name)[:2] == (1, ["added: row 3"])


def test_groups_are_found_as_they_were(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--images", f"{root}/source", "--data_dir", f"{root}/data", "--manipulated", "none"]
    for path in (root / "source").glob("*/masks"):
        shutil.rmtree(path)
    for split in SPLITS:
        for kind in ("real", "fake"):
            for path in (root / f"source/{split}/{kind}").iterdir():
                path.rename(path.with_name(f"{split}-{path.name}"))
    expression = "^[a-z]+"
    assert build.main(["image_folder/grouped", *where, "--group", expression]) == 0
    (path, _) = tables(root, "image_folder/grouped")
    assert sources.making_of(path) == Making(root / "source", "none", expression)
    assert check(root, capsys, "image_folder/grouped")[0] == 0


# ----- Any number of files ------------------------------------------------------------------------


KNOWN = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1),
    st.tuples(st.sampled_from(SPLITS), st.integers(0, 2), st.sampled_from(["", "ldm"])),
    max_size=12,
)


@given(before=KNOWN, after=KNOWN, common=KNOWN)
@settings(max_examples=60, deadline=None)
def test_changes_are_those_of_sets(before: dict, after: dict, common: dict) -> None:
    def filled(images: dict) -> Sources:
        found = Sources(Making(Path("/source")))
        for name, (split, content, generator) in images.items():
            hashed = Hashed(content, 0, hashlib.sha256(bytes([content])).hexdigest())
            item = Item(Path("/", os.fsdecode(name.encode())), None, name, (generator,))
            found.add("fake", split, item, {"generator": generator}, [hashed, None])
        return found

    before, after = before | common, after | common
    with tempfile.TemporaryDirectory() as folder, filled(before) as old, filled(after) as new:
        path = Path(folder, "a 'quoted' %20 #name?.sqlite")
        old.save(path, "fake")
        changes = new.changes({"fake": path})
        assert new.is_kept("fake", path) == (before == after)
    both = before.keys() & after.keys()
    assert changes.changed.count == sum(before[name] != after[name] for name in both)
    assert changes.added.count == len(after.keys() - before.keys())
    assert changes.removed.count == len(before.keys() - after.keys())
    assert bool(changes) == (before != after)


def test_a_look_ends_in_time(root: Path) -> None:
    (root / "source/train/real/0.png").unlink()
    assert sources.changes_by_time(tables(root), None).removed.count == 1
    assert not sources.changes_by_time(tables(root), -1.0)


def test_a_look_at_new_folders_ends_in_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = root / "source/train/fake/new"
    new.mkdir()
    for number in range(3 * 1000):
        (new / f"{number}.png").touch()
    assert sources.changes_by_time(tables(root), None).added.count == 3000
    looked, counts = [], sources._counts
    monkeypatch.setattr(sources, "_counts", lambda name: looked.append(name) or counts(name))
    clock = itertools.count()
    monkeypatch.setattr(sources, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    assert not sources.changes_by_time(tables(root), 2.5)
    assert 0 < len(looked) <= 2 * 1000


def test_those_who_use_it_are_warned(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    used = [f"{OWN}_real", f"{OWN}_fake", "portraits/real"]
    inputs.warn_of_changed_sources(used, f"{root}/data")
    assert caplog.messages == []
    again(root / "source/train/real/0.png", lambda path: save(path, 999))
    inputs.warn_of_changed_sources(used, f"{root}/data")
    (said,) = caplog.messages
    assert said.startswith(f"{OWN} was made of files that have changed since, by size and time (1")
    assert f"python -m wsdl_data.build {OWN} --check --data_dir {root}/data compares" in said
    kept = json.loads(next(root.glob("data/*/own_real/*/metadata.json")).read_text())
    assert set(kept["recorded"]) == {"source", "images", "bytes", "newest"}


def test_the_default_directory_is_not_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again(root / "source/train/real/0.png", lambda path: save(path, 999))
    monkeypatch.setattr(build.tfds.core.constants, "DATA_DIR", f"{root}/data")
    assert f"python -m wsdl_data.build {OWN} --check compares" in look(root)
    quoted = root / "a b"
    (root / "data").rename(quoted)
    (said,) = build.changed_sources([f"{OWN}_real"], str(quoted))
    assert f"--check --data_dir '{quoted}' compares" in said


def test_scoring_maps_warns(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(root / "source/train/real/0.png", lambda path: save(path, 999))
    given = {"maps": "maps", "out": "out", "data_dir": f"{root}/data", "scores": None, "run": None}
    given |= {"perturb": None, "strengths": None, "save_maps": False, "exchange": False}
    given |= {"fake": f"{OWN}_fake", "real": f"{OWN}_real"}
    for name, value in given.items():
        flag = types.SimpleNamespace(name=name, value=value)
        monkeypatch.setattr(evaluate, f"_{name.upper()}", flag, raising=False)
    scored = []
    monkeypatch.setattr(evaluate, "evaluate_maps", lambda *of, **more: scored.append(of))
    evaluate._evaluate_maps()
    (said,) = caplog.messages
    assert said.startswith(f"{OWN} was made of files that have changed since")
    assert len(scored) == 1
