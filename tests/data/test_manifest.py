"""Images that a manifest lists: what is read of each format, which splits they fall to, and faults.

Images are told apart by their pixels, which are noise.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsdl_data import build, image_files
from wsdl_data.manifest import rows
from wsdl_data.manifest.table import Table
from wsdl_data.own.groups import Grouping
from wsdl_data.own.items import split_of
from wsdl_data.own.masks import Manipulated

COUNT = 40  # photographs: enough for every split by hash
GENERATORS = ("ldm", "sd")
SPLITS = ("train", "valid", "test")


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(values).save(path, compress_level=1)


def make(root: Path, count: int = COUNT) -> list[dict[str, Any]]:
    """Photographs, and of each a forgery by either generator; returns the manifest's rows."""
    rng, made = np.random.default_rng(0), []
    for index in range(count):
        group = f"photo {index}"
        save(root / f"real/{index}.png", rng.integers(0, 256, (20, 30, 3), np.uint8))
        made.append({"image": f"real/{index}.png", "label": "real", "group": group})
        for generator in GENERATORS:
            image, mask = f"{generator}/{index}.png", f"masks/{generator}_{index}.png"
            save(root / image, rng.integers(0, 256, (20, 30, 3), np.uint8))
            region = np.zeros((20, 30), np.uint8)
            region[index % 10 :, 3:9] = 255
            save(root / mask, region)
            more = {"group": group, "generator": generator, "kind": "spliced"}
            made.append({"image": image, "label": "fake", "mask": mask, **more})
    return made


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    """Writes rows as their file's ending says; in Parquet the files lie in the rows."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(k for row in made for k in row)))
            writer.writeheader()
            writer.writerows(made)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, made)) + "\n")
    else:
        root = path.parent
        inside = [
            {
                **row,
                "image": {"bytes": (root / row["image"]).read_bytes(), "path": row["image"]},
                "mask": (root / row["mask"]).read_bytes() if "mask" in row else None,
                "label": int(row["label"] == "fake"),
            }
            for row in made
        ]
        columns = {key: [row.get(key) for row in inside] for key in rows.COLUMNS if key != "split"}
        pq.write_table(pa.table(columns), path, row_group_size=17)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs and forgeries, with their manifest in three formats. To be read only."""
    root = tmp_path_factory.mktemp("manifest")
    made = make(root)
    for ending in ("csv", "jsonl", "parquet"):
        write(root / f"list.{ending}", made)
    return root


def command(source: Path, data_dir: Path, *more: str, masks: str | None = "white") -> int:
    """The build command's exit status, for manifest/own."""
    chosen = [] if masks is None else ["--manipulated", masks]
    where = ["--images", os.fspath(source), "--data_dir", os.fspath(data_dir)]
    return build.main(["manifest/own", *where, *chosen, *more])


def read(data_dir: Path, kind: str) -> dict[str, list[dict]]:
    """The decoded examples of manifest/own, by split."""
    builder = build.make_builder(f"manifest/own_{kind}", os.fspath(data_dir))
    assert build.is_prepared(builder)
    return {split: list(builder.as_data_source(split)) for split in builder.info.splits}


def array(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def kept(data_dir: Path) -> set[str]:
    """The files of a data directory, but for locks."""
    found = (path for path in data_dir.rglob("*") if path.is_file())
    return {path.name for path in found if path.name != ".build.lock"}


# ----- What is read --------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_format_holds_its_files(
    ending: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_files, "SHARD_BYTES", 20_000)  # several shards
    assert command(folder / f"list.{ending}", tmp_path) == 0
    assert f"of {COUNT} groups in" in capsys.readouterr().out
    homes: dict[bytes, set[str]] = {}
    for kind, count in (("real", COUNT), ("fake", COUNT * len(GENERATORS))):
        found = read(tmp_path, kind)
        assert list(found) == list(SPLITS) and sum(map(len, found.values())) == count
        for split, examples in found.items():
            for example in examples:
                key = example["key"].decode()
                np.testing.assert_array_equal(example["image"], array(folder / key))
                assert example["label"] == ("real", "fake").index(kind)
                homes.setdefault(example["group"], set()).add(split)
                index = Path(key).stem
                assert example["group"].decode() == f"photo {index}"
                if kind == "real":
                    assert "mask" not in example and example["generator"] == b""
                    continue
                generator = example["generator"].decode()
                assert key == f"{generator}/{index}.png" and example["kind"] == b"spliced"
                mask = array(folder / f"masks/{generator}_{index}.png")
                np.testing.assert_array_equal(example["mask"][..., 0], mask)
    assert len(homes) == COUNT
    for group, splits in homes.items():
        assert splits == {split_of(group.decode())}

    assert command(folder / f"list.{ending}", tmp_path) == 0
    assert capsys.readouterr().out.count("already") == 2
    assert command(folder / f"list.{ending}", tmp_path, masks="none") == 1
    assert "made of" in capsys.readouterr().err


def test_splits_of_its_own_are_kept(tmp_path: Path) -> None:
    made = make(tmp_path, 6)
    names = ("train", "val", "validation", "test", "train", "test")
    for row in made:
        row["split"] = names[int(row["group"].split()[1])]
    assert command(write(tmp_path / "list.csv", made), tmp_path / "data") == 0
    found = read(tmp_path / "data", "fake")
    assert {split: len(examples) for split, examples in found.items()} == {
        split: 2 * len(GENERATORS) for split in SPLITS
    }


def test_one_group_is_in_one_split_by_an_expression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(tmp_path)
    for row in made:
        del row["group"]
        row["image"] = os.path.relpath(
            (tmp_path / row["image"]).rename(
                tmp_path / f"{row.get('generator', 'real')}-{Path(row['image']).stem}-x.png"
            ),
            tmp_path,
        )
    source = write(tmp_path / "list.jsonl", made)
    assert command(source, tmp_path / "data", "--group", r"(\d+)-x") == 0
    assert f"of {COUNT} groups in" in capsys.readouterr().out
    for split, examples in read(tmp_path / "data", "fake").items():
        for example in examples:
            assert split_of(example["key"].decode().split("-")[1]) == split
    for expression, message in (
        ("nothing", "--group 'nothing' names no group of real-0-x.png"),
        ("(", "--group '(' is no regular expression"),
    ):
        assert command(source, tmp_path / "other", "--group", expression) == 1
        assert message in capsys.readouterr().err


def test_whole_fakes_need_no_mask(tmp_path: Path) -> None:
    made = make(tmp_path)
    for row in made:
        if row.get("generator") == "sd":
            row |= {"kind": "full", "mask": ""}
    assert command(write(tmp_path / "list.csv", made), tmp_path / "data") == 0
    for examples in read(tmp_path / "data", "fake").values():
        for example in examples:
            assert (example["mask"] == 255).all() == (example["generator"] == b"sd")


def test_paths_are_relative_to_the_root_that_is_named(folder: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "elsewhere.csv", make(tmp_path / "unused"))
    assert command(source, tmp_path / "data", "--root", os.fspath(folder)) == 0
    assert len(read(tmp_path / "data", "real")["train"]) > 0


LABELS = np.arange(12, dtype=np.uint16).reshape(3, 4) * 100  # 0 to 1100


@pytest.mark.parametrize(
    ("name", "values", "manipulated", "expected"),
    [
        ("mask.npy", LABELS, "above:250", LABELS > 250),
        ("mask.npz", LABELS > 500, "white", LABELS > 500),
        ("mask.npz", (LABELS > 500).astype(np.float32)[..., None], "black", LABELS <= 500),
        ("mask.png", LABELS, "above:250", LABELS > 250),
        ("mask.png", (LABELS // 100).astype(np.uint8), "above:0", LABELS > 0),
        ("mask.png", (LABELS > 500).astype(np.uint8), "white", LABELS > 500),
        ("mask.png", LABELS // 600 * 255, "white", LABELS >= 600),
        ("mask.png", (LABELS // 600).astype(np.uint16), "black", LABELS < 600),
        ("mask.png", LABELS // 600 * 65535, "white", LABELS >= 600),
        ("mask.png", np.stack([LABELS // 100] * 3, -1).astype(np.uint8), "above:4.5", LABELS > 450),
    ],
)
def test_masks_of_any_kind(
    name: str, values: np.ndarray, manipulated: str, expected: np.ndarray, tmp_path: Path
) -> None:
    save(tmp_path / "a.png", np.zeros((3, 4, 3), np.uint8))
    if name.endswith(".npy"):
        np.save(tmp_path / name, values)
    elif name.endswith(".npz"):
        np.savez_compressed(tmp_path / name, mask=values)
    else:
        Image.fromarray(values).save(tmp_path / name)
    row = {"image": "a.png", "label": "fake", "mask": name, "split": "test"}
    source = write(tmp_path / "list.csv", [row])
    assert command(source, tmp_path / "data", masks=manipulated) == 0
    (example,) = read(tmp_path / "data", "fake")["test"]
    np.testing.assert_array_equal(example["mask"][..., 0], expected * 255)


@pytest.mark.parametrize("kind", ["grey", "coloured"])
def test_masks_with_a_palette(kind: str, tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 1], [2, 0, 1]], np.uint8)
    colours = (
        [(255,) * 3, (0,) * 3, (10,) * 3]
        if kind == "grey"
        else [(0,) * 3, (128, 0, 0), (0, 128, 0)]
    )
    mask = Image.fromarray(numbers).convert("P")
    mask.putdata(numbers.ravel().tolist())
    mask.putpalette([value for colour in colours for value in colour])
    mask.save(tmp_path / "mask.png")
    found = Manipulated("above:0").read(tmp_path / "mask.png")
    expected = np.array(colours)[numbers, 0] if kind == "grey" else numbers
    np.testing.assert_array_equal(found, expected > 0)


def test_transparent_masks_are_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "mask.png")
    for name in ("white", "above:0", "green"):
        with pytest.raises(ValueError, match=r"mask\.png: the mask is transparent in parts"):
            Manipulated(name).read(tmp_path / "mask.png")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=4))
def test_any_text_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "list.csv"
    made = [{"image": text, "label": "real", "group": "g"} for text in texts]
    write(path, [{"image": "first", "label": "real", "group": ""}, *made])
    found = [row.texts.get("image", "") for row in rows.read(path)]
    assert found == ["first", *texts]
    lines = path.with_suffix(".jsonl")
    write(lines, made)
    assert [row.texts.get("image", "") for row in rows.read(lines)] == texts


def test_names_with_newlines_and_quotes(tmp_path: Path) -> None:
    name = 'a "quoted", name\nof two lines.png'
    save(tmp_path / name, np.zeros((16, 16, 3), np.uint8))
    source = write(tmp_path / "list.csv", [{"image": name, "label": "0", "split": "test"}])
    assert command(source, tmp_path / "data", masks=None) == 0
    assert read(tmp_path / "data", "real")["test"][0]["key"].decode() == name


# ----- Faults ----------------------------------------------------------------------------------


def row(**changed: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Changes the second row, a fake."""
    return lambda made: [made[0], {**made[1], **changed}, *made[2:]]


FAULTS = {
    "a missing image": (row(image="no.png"), "line 3: no file ROOT/no.png\n"),
    "a folder": (row(image="real"), "line 3: no file ROOT/real, but something else"),
    "a missing mask": (row(mask="no.png"), "line 3: no file ROOT/no.png\n"),
    "an unknown column": (row(colour="red"), "unknown column 'colour'; known are image, label"),
    "an unknown label": (row(label="forged"), "line 3: label 'forged' is none of real, fake"),
    "no label": (row(label=""), "line 3: label '' is none of"),
    "an unknown kind": (row(kind="swap"), "line 3: kind 'swap' of a fake image; of a fake it is"),
    "a real image of a kind": (row(label="real", mask=""), "kind 'spliced' of a real image"),
    "a real image with a mask": (row(label="real", kind=""), "line 3: a real image with a mask"),
    "no image": (row(image=""), "line 3: no image"),
    "a path that leaves": (row(image="../a.png"), "line 3: ../a.png leaves ROOT: with --root"),
    "another that leaves": (row(image="/etc/a.png"), "line 3: /etc/a.png leaves ROOT"),
    "an unknown split": (row(split="dev"), "line 3: split 'dev' is none of train, valid, test"),
    "some have splits": (row(split="test"), "line 2: no split, which others have"),
    "an image twice": (
        row(image="real/../real/0.png"),
        "line 3: real/0.png is there twice, first in line 2",
    ),
    "no mask": (row(mask=""), "line 3: a fake without a mask, which others have"),
    "some have groups": (row(group=""), "line 3: no group, which others have"),
    "a mask of another size": (
        lambda made: save(Path(made[0]["root"]) / "masks/ldm_0.png", np.zeros((9, 9), np.uint8)),
        "ROOT/masks/ldm_0.png: the mask is 9x9, its image 30x20",
    ),
    "too few": (
        lambda made: made[:2],
        "of 1 real images none falls to the valid split by its group",
    ),
    "no rows": (lambda _: [], "no column 'image'"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_are_one_line_and_leave_nothing(
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]] | None],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "source"
    made = make(root, 12)
    made[0]["root"] = root
    changed = change(made)
    del made[0]["root"]
    for kept_row in changed or made:
        kept_row.pop("root", None)
    source = write(root / "list.csv", made if changed is None else changed)
    assert command(source, tmp_path / "data") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: manifest/own")
    assert message.replace("ROOT", str(root)) in err
    assert kept(tmp_path / "data") == set()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_same_file_by_another_name(
    link: Callable[[Path, Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(tmp_path, 12)
    link(tmp_path / "ldm/3.png", tmp_path / "other.png")
    made.append({"image": "other.png", "label": "real", "group": "another"})
    assert command(write(tmp_path / "list.csv", made), tmp_path / "data") == 1
    assert "line 38: other.png is there twice, first in line 12" in capsys.readouterr().err


def parquet(path: Path, count: int = 60, **columns: Any) -> Path:
    """A table of images of their own, real and fake in turns."""
    rng, encoded = np.random.default_rng(0), []
    for _ in range(count):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(stream, "PNG")
        encoded.append(stream.getvalue())
    labels = [number % 2 for number in range(count)]
    pq.write_table(pa.table({"image": encoded, "label": labels, **columns}), path)
    return path


def test_texts_that_a_parquet_file_has_as_bytes(tmp_path: Path) -> None:
    groups = pa.array([f"g{number // 2}".encode() for number in range(60)], pa.binary())
    source = parquet(tmp_path / "list.parquet", group=groups)
    assert command(source, tmp_path / "data", masks=None) == 0
    for kind in ("real", "fake"):
        for split, examples in read(tmp_path / "data", kind).items():
            assert {split_of(example["group"].decode()) for example in examples} == {split}


def test_embedded_images_that_could_leak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = parquet(tmp_path / "list.parquet")
    assert command(source, tmp_path / "data", masks=None) == 1
    assert "row 1 of list.parquet: an image without a path needs a group" in capsys.readouterr().err
    table = pq.read_table(source)
    twice = pa.concat_tables([table, table.slice(0, 1)])
    split = pa.array([*["train"] * 60, "test"])
    pq.write_table(twice.append_column("split", split), tmp_path / "twice.parquet")
    assert command(tmp_path / "twice.parquet", tmp_path / "data", masks=None) == 1
    err = capsys.readouterr().err
    assert "row 61 of twice.parquet: an image is there otherwise, first in row 1 of" in err


def test_groups_are_said_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(folder / "list.csv", tmp_path, "--group", "(.*)") == 1
    assert "it says the groups itself; leave out --group" in capsys.readouterr().err


def test_masks_that_are_left_out_need_not_be_there(tmp_path: Path) -> None:
    made = make(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        path.unlink()
    assert command(write(tmp_path / "list.csv", made), tmp_path / "data", masks="none") == 0


def test_rows_of_many_shards_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = parquet(tmp_path / "list.parquet", split=pa.array(["train"] * 60))
    monkeypatch.setattr(image_files, "SHARD_BYTES", 1)  # a shard for each image
    values, decoded = rows._values, []

    def counted(*arguments: Any):
        for value in values(*arguments):
            decoded.append(value)
            yield value

    monkeypatch.setattr(rows, "_values", counted)
    assert command(source, tmp_path / "data", masks=None) == 0
    assert len(decoded) <= 3 * 60  # once to be listed, and once for each label


def test_a_decompression_bomb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "list.csv", make(tmp_path))
    save(tmp_path / "ldm/0.png", np.zeros((100, 100, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000)
    assert command(source, tmp_path / "data") == 1
    err = capsys.readouterr().err
    assert "ldm/0.png: unreadable or truncated image (Image size (10000 pixels) exceeds" in err
    assert kept(tmp_path / "data") == set()


def test_a_group_in_two_given_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make(tmp_path, 6)
    for number, found in enumerate(made):
        found["split"] = "test" if number == 4 else "train"
    assert command(write(tmp_path / "list.csv", made), tmp_path / "data") == 1
    assert "group photo 1 is in two splits, see line 5 and line 7" in capsys.readouterr().err


def test_masks_of_which_nothing_was_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(folder / "list.csv", tmp_path, masks=None) == 1
    err = capsys.readouterr().err
    assert "line 3: has a mask: say what is manipulated in masks, --manipulated white" in err
    assert f"; and {COUNT * len(GENERATORS) - 5} more rows like these\n" in err
    assert command(folder / "list.csv", tmp_path, masks="none") == 0
    assert all("mask" not in e for examples in read(tmp_path, "fake").values() for e in examples)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", b"image,label\n", "a manifest ends in .csv, .jsonl or .parquet"),
        ("list.csv", b"", "no column 'image'"),
        ("list.csv", b"image,label,image\n", "two columns of one name"),
        ("list.csv", b"image,label\na.png\n", "line 2: 1 values in 2 columns"),
        ("list.csv", b'image,label\n"a.png,real\n', "no CSV (unexpected end of data)"),
        ("list.csv", b"image,label\n\xff,real\n", "no CSV in UTF-8 ('utf-8' codec"),
        ("list.csv", b"image,label\n\n", "no rows in it"),
        ("list.jsonl", b"{", "line 1: no JSON"),
        ("list.jsonl", b"[]", "line 1: no object of image, label"),
        ("list.jsonl", b'\n{"image": ["a"], "label": 0}', "line 2: image is \"['a']\", where a"),
        ("list.jsonl", b'{"picture": "a"}', "line 1: unknown column 'picture'"),
        ("list.parquet", b"PAR1", "no Parquet file, or damaged"),
    ],
)
def test_damaged_manifests(
    name: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert command(tmp_path / name, tmp_path / "data", masks=None) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and str(tmp_path / name) in err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((4, 4)), "b": np.zeros((4, 4))}, "2 arrays, where one is expected"),
        ({"a": np.zeros((4, 4, 3))}, "an array float64[4, 4, 3], where a mask is expected"),
        ({"a": np.full((4, 4), np.nan)}, "the mask has values that are no numbers"),
        ({"a": np.array([[{}]])}, "Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_are_no_masks(
    arrays: dict[str, np.ndarray],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    np.savez(tmp_path / "mask.npz", **arrays)
    row = {"image": "a.png", "label": "fake", "mask": "mask.npz", "split": "test"}
    assert command(write(tmp_path / "list.csv", [row]), tmp_path / "data") == 1
    assert f"{tmp_path / 'mask.npz'}: {message}" in capsys.readouterr().err


# ----- Any number of rows ------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for count in (20_000, 80_000):
        path = tmp_path / f"{count}.parquet"
        columns = {
            "image": [f"{n}".encode() for n in range(count)],
            "label": [n % 2 for n in range(count)],
            "group": [f"group {n // 5}" for n in range(count)],
        }
        pq.write_table(pa.table(columns), path, row_group_size=10_000)
        del columns
        tracemalloc.start()
        table = Table(path, root=None, masks=None, grouping=Grouping())
        images = table.images("fake")
        assert sum(map(len, images.values())) == count // 2
        assert table.groups("fake") == count // 5
        read_again = sum(int(item.image.read_bytes()) % 2 == 1 for item in images["test"])
        assert read_again == len(images["test"])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
