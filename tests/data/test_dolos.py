"""Dolos: what is read from the authors' folder, against Pillow, and what is refused."""

from __future__ import annotations

import io
import logging
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from dolos_folder import COUNTS, SUBSETS, make_dolos_folder
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from wsdl_data import build, image_files
from wsdl_data.dolos import dolos_dataset_builder as dolos

# The table of the specification, written out once more: name, images, masks, counts.
TABLE = {
    "celebahq_real": ("celebahq/real", None, (9_000, 900, 900)),
    "ffhq_real": ("ffhq/real", None, (9_000, 900)),
    "celebahq_p2": ("celebahq/fake/p2", None, (9_000, 1_000)),
    "ffhq_p2": ("ffhq/fake/p2", None, (9_000, 1_000)),
    "celebahq_repaint_p2": (
        "celebahq/fake/repaint-p2/images",
        "celebahq/fake/repaint-p2/masks",
        (30_000, 3_000, 8_500),
    ),
    "ffhq_repaint_p2": (
        "ffhq/fake/repaint-p2/images",
        "ffhq/fake/repaint-p2/masks",
        (30_000, 3_000),
    ),
    "celebahq_repaint_p2_9k": (
        "celebahq/fake/repaint-p2-9k/images",
        "celebahq/fake/repaint-p2-9k/masks",
        (9_000, 900, 900),
    ),
    "celebahq_ldm": (
        "celebahq/fake/ldm/images",
        "celebahq/fake/ldm/masks",
        (9_000, 900, 900),
    ),
    "celebahq_lama": (
        "celebahq/fake/lama/images",
        "celebahq/fake/lama/masks",
        (9_000, 900, 900),
    ),
    "celebahq_pluralistic": (
        "celebahq/fake/pluralistic/images",
        "celebahq/fake/pluralistic/masks",
        (9_000, 900, 900),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dolos_folder(tmp_path_factory.mktemp("dolos") / "wacv_data")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A Dolos of its own for each test that damages it."""
    return make_dolos_folder(tmp_path / "dolos", {"train": 3, "valid": 2, "test": 2}, size=16)


def prepare(name: str, manual_dir: Path, data_dir: Path) -> tfds.core.DatasetBuilder:
    builder = build.make_builder(f"dolos/{name}", os.fspath(data_dir))
    build.prepare(builder, os.fspath(manual_dir))
    return builder


def png(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def test_configs_are_the_table_of_the_paper() -> None:
    found = {
        name: (config.images, config.masks, tuple(config.counts.values()))
        for name, config in dolos.Builder.builder_configs.items()
    }
    assert found == TABLE
    for name, config in dolos.Builder.builder_configs.items():
        assert config.label == ("real" if name.endswith("real") else "fake")
        assert list(config.counts) == ["train", "valid", "test"][: len(config.counts)]


def test_the_made_folder_has_the_layout_of_the_table() -> None:
    made = {
        (f"{folder}/images" if masks else folder, f"{folder}/masks" if masks else None, len(splits))
        for folder, masks, splits in SUBSETS
    }
    assert made == {(images, masks, len(counts)) for images, masks, counts in TABLE.values()}


@pytest.mark.parametrize("name", TABLE)
def test_every_subset_holds_its_files(name: str, folder: Path, tmp_path: Path) -> None:
    images, masks, counts = TABLE[name]
    # One level down: the folder given is the one that contains the unpacked one.
    builder = prepare(name, folder.parent, tmp_path)
    splits = ("train", "valid", "test")[: len(counts)]
    assert list(builder.info.splits) == list(splits)
    assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    assert builder.info.features["label"].names == ["real", "fake"]

    for split in splits:
        assert builder.info.splits[split].num_examples == COUNTS[split]
        decoded = builder.as_data_source(split)
        raw = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        files = sorted((folder / images / split).iterdir())
        assert [found["key"].decode() for found in raw] == [file.name for file in files]
        for file, found, stored in zip(files, decoded, raw, strict=True):
            assert set(found) == {"image", "label", "key"} | ({"mask"} if masks else set())
            assert stored["image"] == file.read_bytes()
            with Image.open(file) as image:
                np.testing.assert_array_equal(found["image"], np.asarray(image))
            assert found["label"] == (0 if name.endswith("real") else 1)
            if masks:
                with Image.open(folder / masks / split / file.name) as mask:
                    red = np.asarray(mask)[..., :1]
                np.testing.assert_array_equal(found["mask"], 255 - red)
                assert found["mask"].dtype == np.uint8
                assert set(np.unique(found["mask"])) == {0, 255}


def test_a_mask_is_inverted_and_only_its_first_channel_counts(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    Image.new("RGB", (7, 5)).save(tmp_path / "image.png")
    _, stored = dolos.read_pair(dolos.Pair(tmp_path / "image.png", tmp_path / "mask.png"))
    with Image.open(io.BytesIO(stored)) as mask:
        assert (mask.format, mask.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(mask), 255 - pixels[..., 0])


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"]),
    suffix=st.sampled_from([".png", ".tif"]),
)
def test_images_become_rgb_of_the_same_pixels(
    width: int, height: int, mode: str, suffix: str
) -> None:
    colours = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(colours, "RGBA" if mode != "CMYK" else "CMYK").convert(mode)
    if mode == "CMYK":
        suffix = ".tif"  # PNG has no such mode.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        image.save(path)
        encoded, mask = dolos.read_pair(dolos.Pair(path, None))
        assert mask is None
        assert (encoded == path.read_bytes()) == (mode == "RGB" and suffix == ".png")
        with Image.open(path) as file:  # a TIFF does not keep the transparency of a palette
            rgba = np.asarray(file.convert("RGBA")).astype(float)
    with Image.open(io.BytesIO(encoded)) as stored:
        assert (stored.format, stored.mode, stored.size) == ("PNG", "RGB", (width, height))
        assert "transparency" not in stored.info
        over_white = 255 - (255 - rgba[..., :3]) * rgba[..., 3:] / 255
        opaque = rgba[..., 3].min() == 255  # which a palette need not be
        assert np.abs(np.asarray(stored) - over_white).max() <= (0 if opaque else 1)


def test_a_jpeg_is_kept_and_its_mask_may_be_a_png(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 8), (9, 99, 200)).save(tmp_path / "images" / "a.jpg")
    Image.new("L", (8, 8), 255).save(tmp_path / "masks" / "a.png")
    (found,) = dolos.pair(tmp_path / "images", tmp_path / "masks")
    encoded, mask = dolos.read_pair(found)
    assert encoded == (tmp_path / "images" / "a.jpg").read_bytes()
    assert np.asarray(Image.open(io.BytesIO(mask))).max() == 0


def test_a_transparent_colour_and_16_bits_do_not_reach_the_reader(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    (tmp_path / "t.png").write_bytes(png(Image.fromarray(pixels), transparency=(1, 2, 3)))
    # Pillow does not write 16-bit colour: a PNG by hand, each sample the 8-bit one twice.
    rows = b"".join(b"\0" + np.repeat(row.reshape(-1), 2).tobytes() for row in pixels)
    header = b"\0\0\0\4\0\0\0\4\x10\2\0\0\0"
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    (tmp_path / "16.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            len(data).to_bytes(4) + tag + data + zlib.crc32(tag + data).to_bytes(4)
            for tag, data in chunks
        )
    )
    for name in ("t.png", "16.png"):
        encoded, _ = dolos.read_pair(dolos.Pair(tmp_path / name, None))
        assert encoded[24] == 8
        with Image.open(io.BytesIO(encoded)) as stored:
            assert stored.mode == "RGB" and "transparency" not in stored.info
            np.testing.assert_array_equal(np.asarray(stored), pixels)


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.9999)  # Only the checksum of the last chunk: Pillow reads this, OpenCV does not.
def test_a_png_cut_anywhere_is_refused(share: float) -> None:
    whole = png(Image.effect_noise((24, 24), 60).convert("RGB"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.png"
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"cut\.png: ") as caught:
            dolos.read_pair(dolos.Pair(path, None))
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    flipped = bytearray(png(image))
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "flipped.png").write_bytes(flipped)
    image.save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-200])
    (tmp_path / "text.png").write_text("<html>404</html>")
    (tmp_path / "empty.png").touch()
    for name, reason in (
        ("flipped.png", "unreadable or truncated image"),
        ("cut.jpg", "unreadable or truncated image"),
        ("text.png", "not an image"),
        ("empty.png", "an empty file"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {reason}"):
            dolos.read_pair(dolos.Pair(tmp_path / name, None))


def test_a_folder_is_listed_in_order_and_without_what_systems_leave(tmp_path: Path) -> None:
    names = ["b.png", "10.png", "9.png", "A.jpg"]
    for name in [*names, ".DS_Store", "._9.png", "Thumbs.db", "desktop.ini"]:
        (tmp_path / name).touch()
    (tmp_path / ".cache").mkdir()
    found = [paths.image.name for paths in dolos.pair(tmp_path, None)]
    assert found == sorted(names) == ["10.png", "9.png", "A.jpg", "b.png"]


def test_shards_cut_a_split_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = []
    for index in range(10):
        path = tmp_path / f"{index}.png"
        path.write_bytes(b"x" * 10)
        pairs.append(dolos.Pair(path, path))
    monkeypatch.setattr(image_files, "SHARD_BYTES", 60)
    shards = image_files.shards(pairs, dolos._paths)
    assert [len(shard) for shard in shards] == [3, 3, 3, 1]
    assert [paths for shard in shards for paths in shard] == pairs


def test_several_shards_read_back_in_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "SHARD_BYTES", 1)
    builder = prepare("ffhq_repaint_p2", folder, tmp_path)
    assert len(builder.info.splits["train"].filepaths) == COUNTS["train"]
    keys = [found["key"] for found in builder.as_data_source("train")]
    assert keys == [b"%05d.png" % index for index in range(COUNTS["train"])]


def test_another_count_than_the_papers_is_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepare("ffhq_p2", folder, tmp_path)
    assert caplog.messages == [
        f"{folder}/ffhq/fake/p2: 6 train, 4 valid images, "
        "where the paper has 9000 train, 1000 valid"
    ]


def test_masks_without_image_and_jpeg_masks_are_warnings(
    small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    masks = small / "celebahq/fake/ldm/masks/valid"
    Image.new("L", (16, 16)).save(masks / "extra.jpg")
    with caplog.at_level(logging.WARNING):
        builder = prepare("celebahq_ldm", small, tmp_path / "out")
    assert builder.info.splits["valid"].num_examples == 2
    assert f"{masks}: 1 masks without an image are left out, extra.jpg first" in caplog.messages
    assert any(message.startswith(f"{masks}: 1 masks are JPEG") for message in caplog.messages)


LDM = "celebahq/fake/ldm"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / LDM / "images/valid").rename(root / "x"), "no such folder of images"),
        (lambda root: (root / LDM / "masks/test").rename(root / "x"), "no such folder of masks"),
        (
            lambda root: [path.unlink() for path in (root / LDM / "images/test").iterdir()],
            f"{LDM}/images/test: no images in this folder",
        ),
        (
            lambda root: (root / LDM / "masks/valid/00001.png").unlink(),
            f"{LDM}/images/valid/00001.png: no mask",
        ),
        (
            lambda root: (root / LDM / "images/train/more").mkdir(),
            f"{LDM}/images/train/more: not a file",
        ),
        (
            lambda root: (root / LDM / "images/train/00000.jpg").touch(),
            f"{LDM}/images/train/00000.png: 00000.jpg beside it has the same stem",
        ),
        (
            lambda root: os.truncate(root / LDM / "images/test/00001.png", 400),
            f"{LDM}/images/test/00001.png: unreadable or truncated image",
        ),
        (
            lambda root: os.truncate(root / LDM / "masks/valid/00000.png", 60),
            f"{LDM}/masks/valid/00000.png: unreadable or truncated image",
        ),
        (
            lambda root: Image.new("L", (16, 17)).save(root / LDM / "masks/train/00002.png"),
            f"{LDM}/masks/train/00002.png: the mask is 16x17, its image 16x16",
        ),
        (
            lambda root: (root / LDM / "images/valid/notes.txt").write_text("hello"),
            f"{LDM}/images/valid/notes.txt: no mask",
        ),
        (lambda root: (root / "celebahq").rename(root / "x"), "no folder celebahq/: tried "),
    ],
)
def test_faults_stop_the_build_and_leave_nothing(
    damage: object, message: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What another library may have asked of Pillow is no excuse for a truncated image.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    damage(small)
    builder = build.make_builder("dolos/celebahq_ldm", os.fspath(tmp_path / "out"))
    with pytest.raises(build.BuildError) as caught:
        build.prepare(builder, os.fspath(small))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("dolos/celebahq_ldm: ")
    assert not build.is_prepared(builder)
    left = [path.name for path in (tmp_path / "out/dolos/celebahq_ldm").iterdir()]
    assert left == [".build.lock"]


def test_the_root_is_found_one_level_down_and_only_if_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        dolos.find_root(tmp_path, "ffhq")
    assert f"tried {tmp_path}/ffhq and {tmp_path}/*/ffhq" in str(caught.value)
    (tmp_path / "a/ffhq").mkdir(parents=True)
    assert dolos.find_root(tmp_path, "ffhq") == tmp_path / "a"
    assert dolos.find_root(tmp_path / "a", "ffhq") == tmp_path / "a"
    (tmp_path / "b/ffhq").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"{tmp_path}/a, {tmp_path}/b"):
        dolos.find_root(tmp_path, "ffhq")
