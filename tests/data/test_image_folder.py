"""A dataset of one's own: what is read from each layout, against Pillow; what is refused; training.

Images are told apart by their first pixel.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from wsdl_data import build, provenance
from wsdl_data.own import items
from wsdl_data.own.groups import Grouping
from wsdl_jax.evaluation import robustness
from wsdl_jax.reporting.page import report

REPOSITORY = Path(__file__).parents[2]
SPLITS = ("train", "valid", "test")
COUNT = 40  # images of a kind: enough for every split by hash
SIZE = (70, 64)  # width, height: not the network's


def make_images(folder: Path, count: int, seed: int, size: tuple[int, int] = SIZE) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        noise = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{index:02d}.png", compress_level=1)


def make_masks(
    folder: Path, count: int, seed: int, size: tuple[int, int] = SIZE, ending: str = ""
) -> None:
    """White rectangles of at most a third of the image."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        mask = np.zeros(size[::-1], np.uint8)
        top, left = rng.integers(0, 30, 2)
        mask[top : top + 30, left : left + 30] = 255
        Image.fromarray(mask).save(folder / f"{index:02d}{ending}.png")


def plain(root: Path, count: int = COUNT) -> Path:
    """real/, fake/ and masks/, white = manipulated."""
    make_images(root / "real", count, 1)
    make_images(root / "fake", count, 2)
    make_masks(root / "masks", count, 3)
    return root


def by_split(root: Path) -> Path:
    for number, split in enumerate(SPLITS):
        make_images(root / split / "real", 2 + number, 10 + number)
        make_images(root / split / "fake", 3, 20 + number)
        make_masks(root / split / "masks", 3, 30 + number)
    (root / "valid").rename(root / "val")
    return root


def casia(root: Path) -> Path:
    make_images(root / "Au", COUNT, 1)
    make_images(root / "Tp", COUNT, 2)
    make_masks(root / "Gt", COUNT, 3, ending="_gt")
    return root


def json_list(root: Path) -> Path:
    """The list of the images of a CASIA folder, one of them by its absolute path."""
    casia(root / "images")
    names = [f"{index:02d}" for index in range(COUNT)]
    entries = [[f"images/Au/{name}.png", "Negative"] for name in names]
    entries += [[f"images/Tp/{name}.png", f"images/Gt/{name}_gt.png"] for name in names]
    entries[-1] = [str(root / path) for path in entries[-1]]
    (root / "list.json").write_text(json.dumps(entries))
    return root / "list.json"


def json_by_split(root: Path) -> Path:
    """A list of each split."""
    json_list(root)
    entries = json.loads((root / "list.json").read_text())
    (root / "list.json").unlink()
    for number, split in enumerate(SPLITS):
        (root / f"{split}.json").write_text(json.dumps(entries[number::3]))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain folder. To be read only."""
    return plain(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def prepared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with image_folder/mine, and image_folder/bare, without masks."""
    root = tmp_path_factory.mktemp("prepared")
    assert command("mine", folder, root, "white") == 0
    assert command("bare", folder, root, "none") == 0
    return root


def command(name: str, source: Path, data_dir: Path, masks: str | None = None) -> int:
    """The build command's exit status."""
    chosen = [] if masks is None else ["--manipulated", masks]
    where = ["--images", os.fspath(source), "--data_dir", os.fspath(data_dir)]
    return build.main([f"image_folder/{name}", *where, *chosen])


def read(data_dir: Path, subset: str) -> dict[str, list[dict]]:
    """The decoded examples of a subset, by split."""
    builder = build.make_builder(f"image_folder/{subset}", os.fspath(data_dir))
    assert build.is_prepared(builder)
    return {split: list(builder.as_data_source(split)) for split in builder.info.splits}


def array(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def hashed(path: Path) -> str:
    """The split of an image as README.md has it, in integers."""
    number = int(hashlib.sha256(path.stem.encode()).hexdigest()[:16], 16)
    tenths = number * 10 // 2**64
    return "train" if tenths < 8 else "valid" if tenths == 8 else "test"


def split_of(path: Path) -> str:
    """The split of an image where nothing else is said."""
    return items.split_of(Grouping().of(path.as_posix()))


def contents(folder: Path) -> set[str]:
    """What is in a data directory, but for locks and TFDS's own folders."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.endswith(".build.lock")}


# ----- Layouts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [plain, by_split, casia, json_list, json_by_split])
@pytest.mark.parametrize("colour", ["white", "black"])
def test_every_layout_holds_its_files(
    make: Callable[[Path], Path], colour: str, tmp_path: Path
) -> None:
    root = tmp_path / "source"
    source = make(root)
    if colour == "black":
        for path in [*root.rglob("masks/*"), *root.rglob("Gt/*")]:
            Image.fromarray(255 - array(path)).save(path)
    assert command("own", source, tmp_path / "data", colour) == 0
    for kind, folders in (("real", ("real", "Au")), ("fake", ("fake", "Tp"))):
        files = sorted(path for name in folders for path in root.rglob(f"{name}/*.png"))
        expected = {split: [] for split in SPLITS}
        for path in files:
            expected[placed(make, root, path)].append(path)
        found = read(tmp_path / "data", f"own_{kind}")
        assert list(found) == list(SPLITS)
        for split, examples in found.items():
            assert len(examples) == len(expected[split]) > 0
            for path, example in zip(expected[split], examples, strict=True):
                assert path.as_posix().endswith(example["key"].decode())
                assert example["label"] == ("real", "fake").index(kind)
                np.testing.assert_array_equal(example["image"], array(path))
                assert ("mask" in example) == (kind == "fake")
                if kind == "fake":
                    (mask,) = (
                        candidate
                        for candidate in path.parent.parent.rglob(f"{path.stem}*.png")
                        if candidate.parent.name in ("masks", "Gt")
                    )
                    manipulated = array(mask) == (255 if colour == "white" else 0)
                    np.testing.assert_array_equal(example["mask"][..., 0], manipulated * 255)


def placed(make: Callable[[Path], Path], root: Path, path: Path) -> str:
    """The split in which an image of a made source belongs."""
    if make is by_split:
        return {"val": "valid"}.get(name := path.relative_to(root).parts[0], name)
    if make is json_by_split:
        return SPLITS[(int(path.stem) + (COUNT if path.parent.name == "Tp" else 0)) % 3]
    return hashed(path)


def test_without_masks_and_with_them_left_out(
    folder: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = read(prepared, "bare_fake")
    masked = read(prepared, "mine_fake")
    assert set(bare["test"][0]) == {"image", "label", "key"}
    assert [e["key"] for e in bare["train"]] == [e["key"] for e in masked["train"]]

    (tmp_path / "unmasked").mkdir()
    for kind in ("real", "fake"):
        (tmp_path / "unmasked" / kind).symlink_to(folder / kind)
    assert command("no", tmp_path / "unmasked", tmp_path / "data") == 0
    assert "train" in capsys.readouterr().out
    assert len(read(tmp_path / "data", "no_fake")["train"]) == len(bare["train"])


def test_one_kind_alone_and_folders_below(tmp_path: Path) -> None:
    make_images(tmp_path / "source/fake/a", COUNT, 1)
    make_images(tmp_path / "source/fake/b/c", COUNT, 2)
    make_masks(tmp_path / "source/masks/a", COUNT, 3, ending="_mask")
    make_masks(tmp_path / "source/masks/b/c", COUNT, 4)
    for name in (".DS_Store", "b/Thumbs.db", "b/c/._00.png", ".hidden/00.png"):
        path = tmp_path / "source/fake" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert command("fakes", tmp_path / "source", tmp_path / "data", "white") == 0
    keys = {
        e["key"].decode() for split in read(tmp_path / "data", "fakes_fake").values() for e in split
    }
    names = [f"{index:02d}.png" for index in range(COUNT)]
    assert keys == {f"{below}/{name}" for below in ("a", "b/c") for name in names}
    assert not (tmp_path / "data/image_folder/fakes_real").exists()


# ----- Splits by hash --------------------------------------------------------------------------


def test_splits_by_hash_have_their_shares() -> None:
    names = [Path(f"folder/photo {index}.jpg") for index in range(20_000)]
    counts = Counter(map(split_of, names))
    assert sum(items.SHARES.values()) == pytest.approx(1)
    for split, share in items.SHARES.items():
        deviation = (len(names) * share * (1 - share)) ** 0.5
        assert abs(counts[split] - len(names) * share) < 4 * deviation


@settings(max_examples=60, deadline=None)
@given(st.from_regex(r"[^/\0.\ud800-\udfff]{1,20}", fullmatch=True))
def test_a_split_depends_on_the_name_alone(name: str) -> None:
    split = split_of(Path("real") / f"{name}.jpg")
    assert split == hashed(Path(name)) == split_of(Path("a/b") / f"{name}.png")


# ----- Masks -----------------------------------------------------------------------------------


def one_mask(tmp_path: Path, mask: Image.Image, name: str = "00.png", **options: object) -> Path:
    """A source whose only test image has this mask."""
    for split in SPLITS:
        make_images(tmp_path / "source" / split / "fake", 1, 1, mask.size)
        (tmp_path / "source" / split / "masks").mkdir()
        mask.save(tmp_path / "source" / split / "masks" / name, **options)
    return tmp_path / "source"


def ramp(mode: str) -> Image.Image:
    """All grey values."""
    return Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert(mode)


@pytest.mark.parametrize("colour", ["white", "black"])
@pytest.mark.parametrize(
    "mask",
    [
        *(ramp(mode) for mode in ("L", "RGB", "RGBA", "LA", "P")),
        Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257),
        ramp("L").point(lambda value: 255 * (value >= 128)).convert("1"),
        ramp("L").point(lambda value: value >= 128),
    ],
    ids=["L", "RGB", "RGBA", "LA", "P", "16 bits", "1 bit", "0 and 1"],
)
def test_a_mask_of_any_mode_is_cut_at_mid_grey(
    mask: Image.Image, colour: str, tmp_path: Path
) -> None:
    assert command("own", one_mask(tmp_path, mask), tmp_path / "data", colour) == 0
    (example,) = read(tmp_path / "data", "own_fake")["test"]
    white = (np.arange(256) >= 128).reshape(16, 16)
    np.testing.assert_array_equal(
        example["mask"][..., 0], 255 * (white if colour == "white" else ~white)
    )


def test_a_probable_mix_up_is_one_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert command("wrong", folder, tmp_path, "black") == 0
    share = 1 - np.mean([array(path) > 0 for path in (folder / "masks").iterdir()])
    assert caplog.messages == [
        f"image_folder/wrong_fake: with --manipulated black, {100 * share:.0f}% of an image is"
        " manipulated on average; if that is too much, --manipulated white is meant"
    ]
    caplog.clear()
    assert command("right", folder, tmp_path, "white") == 0
    assert caplog.messages == []


def test_masks_that_mark_nothing_are_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = plain(tmp_path / "source")
    Image.new("L", SIZE).save(root / "masks/07.png")
    Image.new("L", SIZE, 100).save(root / "masks/08.png")
    assert command("own", root, tmp_path / "data", "white") == 0
    (message,) = caplog.messages
    assert f"2 of {COUNT} masks mark nothing as manipulated, the first that of 0" in message


# ----- Faults ----------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, 90)


def write(path: Path, text: str) -> None:
    path.write_text(text)


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()


FAULTS = {
    "another size": (
        lambda root: Image.new("L", (64, 70)).save(root / "masks/03.png"),
        "masks/03.png: the mask is 64x70, its image 70x64",
    ),
    "a truncated fake": (
        lambda root: cut(root / "fake/04.png"),
        "fake/04.png: unreadable or trunc",
    ),
    "a truncated mask": (lambda root: cut(root / "masks/04.png"), "masks/04.png: unreadable or tr"),
    "not an image": (lambda root: write(root / "real/notes.txt", "x"), "real/notes.txt: not an im"),
    "an empty file": (lambda root: write(root / "real/00.png", ""), "real/00.png: an empty file"),
    "no mask": (
        lambda root: remove(root / f"masks/{i}.png" for i in (11, 12, 13)),
        "fake/11.png: no mask in SOURCE/masks (and 2 more)",
    ),
    "no image": (
        lambda root: (root / "fake/05.png").unlink(),
        "masks/05.png: a mask without an image in SOURCE/fake",
    ),
    "two masks": (
        lambda root: shutil.copy(root / "masks/05.png", root / "masks/05.bmp"),
        "masks/05.png: 05.bmp has the same name, but for its ending",
    ),
    "two images": (
        lambda root: shutil.copy(root / "fake/05.png", root / "fake/05.bmp"),
        "fake/05.png: has the same mask as SOURCE/fake/05.bmp",
    ),
    "a coloured mask": (
        lambda root: Image.new("RGB", SIZE, (255, 0, 0)).save(root / "masks/06.png"),
        "masks/06.png: the mask has colours, where black and white are expected",
    ),
    "no masks": (lambda root: shutil.rmtree(root / "masks"), "SOURCE: no folder masks/ (or Gt/)"),
    "no fakes": (
        lambda root: [shutil.rmtree(root / name) for name in ("fake", "masks")],
        "SOURCE: no fake images that could have masks; leave out --manipulated",
    ),
    "an empty folder": (
        lambda root: remove((root / "real").iterdir()),
        "SOURCE/real: no images in this folder",
    ),
    "no folders": (
        lambda root: [shutil.rmtree(path) for path in root.iterdir()],
        "SOURCE: neither real/ nor fake/ in it",
    ),
    "nothing": (shutil.rmtree, "SOURCE: neither a folder nor a JSON file"),
    "both names": (lambda root: (root / "Au").mkdir(), "SOURCE: both Au and real; one must go"),
    "few images": (
        lambda root: remove(path for path in root.rglob("*.png") if path.stem > "02"),
        "SOURCE: of 3 real images none falls to the",
    ),
    "splits and none": (
        lambda root: (root / "train").mkdir(),
        "SOURCE/real: beside train, which split",
    ),
    "splits inside": (
        lambda root: (root / "real/test").mkdir(),
        "SOURCE/real/test: splits are outermost: test/real, not real/test",
    ),
    "a linked folder": (
        lambda root: (root / "real/more").symlink_to(root / "fake"),
        "SOURCE/real/more: a link to a folder, which is not followed",
    ),
}


@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_are_one_line_and_leave_nothing(
    damage: Callable[[Path], object],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = plain(tmp_path / "source")
    damage(root)
    assert command("own", root, tmp_path / "data", "white") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("error: image_folder/own")
    assert message.replace("SOURCE", str(root)) in err and str(root) in err
    assert contents(tmp_path / "data") == set()


def test_all_faults_of_the_files_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsdl_data import image_files

    monkeypatch.setattr(image_files, "SHARD_BYTES", 1)  # a shard for each image
    root = plain(tmp_path / "source")
    for index in range(7):
        cut(root / f"fake/{index:02d}.png")
    assert command("own", root, tmp_path / "data", "white") == 1
    err = capsys.readouterr().err
    assert err.count("unreadable or truncated") == 5 and "; and 2 more files like these\n" in err
    assert contents(tmp_path / "data") == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not a JSON file"),
        ("{}", 'not a list of [image, mask or "Negative"]'),
        ("[]", "no images in it"),
        ('[["a.png"]]', "entry 1 is not [image, mask"),
        ('[["Au/00.png", null]]', "entry 1 is not [image, mask"),
        ('[["Au/00.png", "Negative"], ["Au/00.png", "Negative"]]', "entry 2: Au/00.png is listed"),
        ('[["Tp/00.png", "Gt/00.png"]]', "no file SOURCE/Gt/00.png"),
        ('[["Tp/xx.png", "Gt/00_gt.png"], ["Au/zz.png", "Negative"]]', "xx.png (and 1 more)"),
    ],
)
def test_faults_of_a_list(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = casia(tmp_path / "source")
    (root / "list.json").write_text(text)
    assert command("own", root / "list.json", tmp_path / "data", "white") == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: image_folder/own: {root / 'list.json'}: ")
    assert message.replace("SOURCE", str(root)) in err and err.count("\n") == 1


def test_an_image_in_two_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = json_by_split(tmp_path / "source")
    entries = json.loads((root / "test.json").read_text())
    (root / "test.json").write_text(json.dumps([*entries, ["./images/Au/00.png", "Negative"]]))
    assert command("own", root, tmp_path / "data", "white") == 1
    err = capsys.readouterr().err
    assert "is listed twice, as ./images/Au/00.png and as images/Au/00.png" in err


@pytest.mark.parametrize("make", [plain, json_list])
def test_polarity_is_never_guessed(
    make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path / "source")
    assert command("own", source, tmp_path / "data") == 1
    err = capsys.readouterr().err
    assert "say what is manipulated in them, --manipulated white, black or above:N" in err
    assert contents(tmp_path / "data") == set()


# ----- Names -----------------------------------------------------------------------------------


def test_several_live_side_by_side_and_without_their_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = tmp_path / "data"
    first, second = plain(tmp_path / "first"), by_split(tmp_path / "second")
    assert command("one", first, data_dir, "white") == 0
    assert command("a-2_b", second, data_dir, "white") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].removeprefix("image_folder/") for line in lines] == [
        *("one_real", "one_fake", "a-2_b_real", "a-2_b_fake")
    ]
    assert lines[2].startswith("image_folder/a-2_b_real: 2 train, 3 valid, 4 test images in ")
    before = contents(data_dir)
    assert command("one", first, data_dir, "white") == 0  # again
    assert [" already in " in line for line in capsys.readouterr().out.splitlines()] == [True] * 2
    # So does the same command with the same files elsewhere.
    moved = shutil.copytree(first, tmp_path / "moved")
    assert command("one", moved, data_dir, "white") == 0
    capsys.readouterr()
    Image.new("RGB", (70, 64)).save(sorted((moved / "real").iterdir())[0])
    for other, masks, told in (
        (second, "white", "content.sources: "),
        (moved, "white", "content.sources: "),
        (first, "black", "recipe.masks: white → black"),
        (first, "none", "content.sources: "),
    ):
        assert command("one", other, data_dir, masks) == 1
        err = capsys.readouterr().err
        assert f"one: is there already, made of {first} otherwise ({told}" in err
    shutil.rmtree(first)
    shutil.rmtree(second)
    assert contents(data_dir) == before
    assert len(read(data_dir, "a-2_b_fake")["train"]) == 3
    example = read(data_dir, "one_fake")["test"][0]
    assert set(example) == {"image", "label", "key", "mask"}
    assert build.main(["--list", "--data_dir", str(data_dir)]) == 0
    listed = [line for line in capsys.readouterr().out.split() if "image_folder" in line]
    assert listed == [
        f"image_folder/{name}" for name in ("a-2_b_fake", "a-2_b_real", "one_fake", "one_real")
    ]


@pytest.mark.parametrize("name", ["", "mine_fake", "a/b", "../x", "a b", "-x"])
def test_odd_names_are_refused(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(name, folder, tmp_path / "data", "white") == 1
    assert "a name is of letters, digits, - and _" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_what_is_not_prepared_says_how_to_build_it(tmp_path: Path) -> None:
    builder = build.make_builder("image_folder/mine_fake", str(tmp_path))
    assert not build.is_prepared(builder)
    how = r"run python -m wsdl_data\.build image_folder/mine --images SOURCE --manipulated white\|"
    with pytest.raises(build.BuildError, match=rf"^image_folder/mine_fake: not prepared .*{how}"):
        build.prepare(builder)
    assert contents(tmp_path) == set()
    for name in ("mine", "_fake", "mine_fakes", "a/b_fake"):
        with pytest.raises(ValueError, match=r"as in mine_fake"):
            build.make_builder(f"image_folder/{name}", str(tmp_path))


def test_one_of_the_version_before_is_read_until_it_is_built_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("mine", folder, tmp_path, "white") == 0
    new = read(tmp_path, "mine_fake")
    for path in tmp_path.glob("image_folder/mine_*/1.2.0"):
        info = path.rename(path.with_name("1.1.0")) / "dataset_info.json"
        described = json.loads(info.read_text())
        del described["releaseNotes"]["1.2.0"]
        info.write_text(json.dumps({**described, "version": "1.1.0"}))

    def prepared_version() -> str:
        builder = build.make_builder("image_folder/mine_fake", str(tmp_path))
        assert build.is_prepared(builder)
        return provenance.of(builder)["version"]

    assert prepared_version() == "1.1.0"
    old = read(tmp_path, "mine_fake")
    assert {split: len(examples) for split, examples in old.items()} == {
        split: len(examples) for split, examples in new.items()
    }
    capsys.readouterr()
    assert build.main(["--list", "--data_dir", str(tmp_path)]) == 0
    assert "image_folder/mine_fake" in capsys.readouterr().out.split()
    assert command("mine", folder, tmp_path, "black") == 1
    assert command("mine", folder, tmp_path, "white") == 0
    assert prepared_version() == "1.2.0"


def test_a_damaged_one_is_refused_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("mine", folder, tmp_path, "white") == 0
    (shard,) = tmp_path.glob("image_folder/mine_fake/*/*valid.array_record*")
    shard.unlink()
    capsys.readouterr()
    builder = build.make_builder("image_folder/mine_fake", str(tmp_path))
    with pytest.raises(build.BuildError, match=rf"damaged \({shard.name} is missing\)"):
        build.prepare(builder)
    assert command("mine", folder, tmp_path, "white") == 1
    assert f"damaged ({shard.name} is missing)" in capsys.readouterr().err
    assert build.is_prepared(build.make_builder("image_folder/mine_real", str(tmp_path)))


# ----- Training --------------------------------------------------------------------------------


def train(run: Path, method: str, variant: str, fields: dict) -> subprocess.CompletedProcess[str]:
    """The command for two steps, on one device."""
    # Compilation takes most of the time of such short runs.
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": ""}
    fields = {**fields, "train.epochs": 1, "model.depth": 1}
    return subprocess.run(
        [
            *(sys.executable, "-W", "error", "-W", "ignore:the load_module"),
            *("-m", "wsdl_jax.main", "--workdir", str(run)),
            *("--config", f"configs/{method}.py:{variant}"),
            *(f"--config.{field}={value}" for field, value in fields.items()),
        ],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("method", "setup"), [("patches", "c"), ("attention", "b")])
def test_methods_train_and_are_tested_on_it(
    method: str, setup: str, shrunk: dict, prepared: Path, tmp_path: Path
) -> None:
    run, fields = tmp_path / "run", {**shrunk, "data.dir": prepared}
    done = train(run, method, f"setup={setup},source=image_folder/mine", fields)
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert len(losses) == 2 and np.isfinite(losses).all()
    results = json.loads((run / "results.json").read_text())
    test = read(prepared, "mine_fake")["test"]
    share = np.mean([(example["mask"] > 0).mean() for example in test])
    assert results["manipulated_share"] == pytest.approx(100 * share)
    assert results["fake_images"] == len(test)
    assert results["test_real"] == "image_folder/mine_real"


@pytest.mark.slow
def test_training_and_evaluation_say_once_that_a_source_has_changed(
    shrunk: dict, tmp_path: Path
) -> None:
    source, data_dir = plain(tmp_path / "source"), tmp_path / "data"
    assert command("mine", source, data_dir, "white") == 0
    shutil.copy(source / "fake/01.png", source / "fake/02.png")
    run, fields = tmp_path / "run", {**shrunk, "data.dir": data_dir}
    done = train(run, "patches", "setup=c,source=image_folder/mine", fields)
    assert done.returncode == 0, done.stderr
    said = "image_folder/mine was made of files that have changed since"
    assert done.stderr.count(said) == 1
    evaluated = subprocess.run(
        [sys.executable, "-m", "wsdl_jax.evaluate", "--run", run],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert evaluated.stderr.count(said) == 1


@pytest.mark.slow
def test_without_masks_there_is_detection_alone(
    shrunk: dict, prepared: Path, tmp_path: Path
) -> None:
    run, fields = tmp_path / "run", {**shrunk, "data.dir": prepared}
    done = train(run, "grad_cam", "setup=a,source=image_folder/bare", fields)
    assert done.returncode == 0, done.stderr
    results = json.loads((run / "results.json").read_text())
    assert results["iou_lg"] is results["manipulated_share"] is results["pixel_ap"] is None
    assert results["pixel_images"] == 0
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = {
        side: [float(row["score"]) for row in rows if row["label"] == side]
        for side in ("fake", "real")
    }
    labels = np.repeat([0, 1], [len(scores["real"]), len(scores["fake"])])
    auc = roc_auc_score(labels, [*scores["real"], *scores["fake"]])
    assert results["auc"] == pytest.approx(100 * auc)
    assert {row["iou_lg"] for row in rows} == {row["manipulated_share"] for row in rows} == {""}
    text = (run / "results.txt").read_text()
    assert "image_folder/bare_fake, without masks" in text and "iou_lg" not in text
    stored = robustness(epath.Path(run), "gamma", [2])
    assert stored["points"][0]["iou_lg"] is None and stored["points"][0]["auc"] is not None
    report([epath.Path(run)], epath.Path(run / "report"))
    page = (run / "report/index.html").read_text()
    assert "without masks" in page and "no mask</div>" in page
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert "ap after gamma" in titles
    assert not [title for title in titles if "IoU" in title or "iou" in title]


def test_setup_c_without_masks_is_one_line_before_anything_is_written(
    real_config: Callable, prepared: Path, tmp_path: Path
) -> None:
    from wsdl_jax import training
    from wsdl_jax.runtime.errors import ConfigError

    config = real_config("patches", "setup=c,source=image_folder/bare", {"data.dir": str(prepared)})
    with pytest.raises(ConfigError, match=r"^image_folder/bare_fake has no masks: setup c learns"):
        training.train(config, epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_fakes_with_masks_are_not_spliced(
    real_config: Callable, prepared: Path, tmp_path: Path
) -> None:
    from wsdl_jax import training
    from wsdl_jax.runtime.errors import ConfigError

    variant = "source=image_folder/mine,splice=0.7"
    config = real_config("patches", variant, {"data.dir": str(prepared)})
    with pytest.raises(ConfigError, match=r"splice = 0\.7: image_folder/mine_fake has masks"):
        training.train(config, epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
