"""Predictions against the network itself, Pillow and NumPy; files as users have them."""

import copy
import csv
import html.parser
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import urllib.parse
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from wsdl_jax import methods, predict, runs
from wsdl_jax.evaluate import evaluate
from wsdl_jax.evaluation import verdict
from wsdl_jax.predict import Localizer, Prediction
from wsdl_jax.runtime.errors import UserError

SIZE = 64  # that the network was trained on
Localize = Callable[[list[Image.Image]], tuple[np.ndarray, np.ndarray]]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    """What JPEG leaves nearly as it is."""
    return Image.fromarray(noise(5, 5, seed)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def localizer(trained: epath.Path) -> Localizer:
    return Localizer.load(trained)


@pytest.fixture(scope="module")
def tiler(trained: epath.Path) -> Localizer:
    return Localizer.load(trained, mode="tile", batch=16)


@pytest.fixture(scope="module")
def network(trained: epath.Path) -> Localize:
    """Images, squashed as the config of `trained` says → scores and maps, by the network alone."""
    config, model, *_ = runs.load(trained)
    method = methods.from_config(config)

    def localize(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        small = [image.resize((SIZE, SIZE), Image.Resampling.LANCZOS) for image in images]
        batch = np.stack(small).astype(np.float32) / 127.5 - 1
        found = method.localize(model, jax.numpy.asarray(batch))
        return np.asarray(found.scores), np.asarray(found.maps)

    return localize


def table(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# ----- As Python ----------------------------------------------------------------------------------


def test_maps_at_the_images_own_sizes(localizer, network):
    sizes = [(80, 80), (64, 64), (33, 150), (200, 64), (1, 1), (70, 71), (65, 66), (5, 90), (99, 2)]
    images = [noise(*size, seed) for seed, size in enumerate(sizes)]  # more than a batch
    found = localizer([*images, Image.fromarray(images[0])])
    scores, maps = network([Image.fromarray(image) for image in images])
    assert len(found) == len(images) + 1
    for prediction, size, score, raw in zip(found, sizes, scores, maps, strict=False):
        assert prediction.map.shape == prediction.size == size
        assert prediction.score == prediction.probability == pytest.approx(float(score), abs=1e-5)
        assert prediction.raw == pytest.approx(raw, abs=1e-4)
        large = Image.fromarray(raw).resize(size[::-1], Image.Resampling.BICUBIC)
        assert prediction.map == pytest.approx(np.asarray(large).clip(0, 1), abs=1e-4)
        assert prediction.manipulated_share == np.mean(prediction.map > 0.5)
    assert found[-1].score == found[0].score
    assert localizer([]) == []


def test_compiled_once(localizer):
    for count in (1, 8, 11):
        localizer([noise(20 + count, 30)] * count)
    assert localizer._step._cache_size() == 1


def test_manipulated_share():
    raw = np.zeros((10, 10), np.float32)
    raw[:, 5:] = 1
    prediction = Prediction(3.0, 0.5, "real", raw, (40, 40), (10.0, 10.0))
    assert prediction.manipulated_share == 0.5
    assert prediction.map[:, :15].max() == pytest.approx(0, abs=1e-6)
    assert prediction.map[:, 25:].min() == pytest.approx(1, abs=1e-6)
    # On a map that is 5 columns wide for the image, which ends where the ones begin.
    assert Prediction(0.0, 0.0, "real", raw, (40, 40), (10.0, 4.0)).manipulated_share == 0


def test_verdict(trained, network):
    """By the scores of the real validation images; by probability before those are known."""
    images = [noise(40, 40, seed) for seed in range(6)]
    scores, _ = network([Image.fromarray(image) for image in images])
    config, model, *_ = runs.load(trained)
    at = sorted(scores.tolist())[2]
    margin = np.diff(sorted(scores.tolist())).min() / 2
    localizer = Localizer(config, model, threshold=at + margin)
    assert [p.verdict == "fake" for p in localizer(images)] == (scores > at + margin).tolist()
    localizer = Localizer.load(trained)
    assert localizer.threshold is None
    assert [p.verdict == "fake" for p in localizer(images)] == (scores > 0.5).tolist()


def test_threshold_of_a_run(trained, tmp_path):
    run = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    *_, step, checksum = runs.load(run)
    verdict.save(run, (step, checksum), {}, [0.1 * n for n in range(10)])
    for rate, threshold in ((0.0, 0.9), (0.05, 0.9), (0.1, 0.8), (0.59, 0.4)):
        found = Localizer.load(run, false_positive_rate=rate).threshold
        assert found == pytest.approx(threshold)
    verdict.save(run, (step, checksum + 1), {}, [0.5])  # of a network that was replaced
    assert Localizer.load(run).threshold is None


def test_strips_make_the_map(monkeypatch):
    raw = np.random.default_rng(0).random((9, 7), np.float32)
    prediction = Prediction(0.0, 0.0, "real", raw, (101, 53), (8.25, 6.5))
    whole = prediction.map
    box = (0, 0, 6.5, 8.25)
    large = Image.fromarray(raw).resize((53, 101), Image.Resampling.BICUBIC, box)
    assert whole == pytest.approx(np.asarray(large).clip(0, 1), abs=1e-6)
    monkeypatch.setattr(predict, "_STRIP", 53 * 7)
    assert [len(strip) for strip in prediction.strips()] == [7] * 14 + [3]
    assert prediction.map == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 5), np.uint8), r"image 1 is uint8 \[4, 5\]"),
        (np.zeros((4, 5, 3), np.float32), r"image 1 is float32 \[4, 5, 3\]"),
        (np.zeros((0, 5, 3), np.uint8), r"image 1 is uint8 \[0, 5, 3\]"),
        (Image.new("F", (5, 4)), "32 bits"),
    ],
)
def test_what_is_no_image_is_refused(localizer, image, said):
    with pytest.raises(ValueError, match=said):
        localizer([noise(4, 5), image])


def test_unknown_mode_and_no_run(trained, tmp_path):
    with pytest.raises(UserError, match="mode 'tiles': choose from resize, tile"):
        Localizer.load(trained, mode="tiles")
    with pytest.raises(UserError, match="not a run directory"):
        Localizer.load(tmp_path)


# ----- Tiles --------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.floats(0.01, 300), st.integers(1, 75))
def test_windows_cover_all_and_overlap_by_half(covered, window):
    starts = predict._starts(covered, window)
    assert starts[0] == 0
    assert starts[-1] + window >= covered
    assert starts[-1] + window < max(covered, window) + 1
    assert all(0 < b - a <= max(1, window // 2) for a, b in itertools.pairwise(starts))


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 200), width=st.integers(65, 200), data=st.data())
def test_windows_show_the_image_where_they_are(tiler, height, width, data):
    if data.draw(st.booleans()):
        height, width = width, height
    image = noise(height, width)
    view = tiler.view(Image.fromarray(image))
    pitch = SIZE / view.window
    beyond = ((0, 2 * SIZE), (0, 2 * SIZE), (0, 0))
    padded = np.pad(image, beyond, "symmetric")
    for (row, column), pixels in zip(view.places, view.pixels, strict=True):
        top, left = round(row * pitch), round(column * pitch)
        expected = padded[top : top + SIZE, left : left + SIZE]
        np.testing.assert_array_equal(pixels, expected)


def test_tiles_are_blended(tiler, network):
    image = noise(150, 97, seed=3)
    (found,) = tiler([image])
    # A window has 15 cells of 64/15 pixels; the image has 35.2 × 22.7 of them.
    rows, columns, pitch = (0, 7, 14, 21), (0, 4, 8), SIZE / 15
    falloff = np.sin(np.pi * (np.arange(15) + 0.5) / 15) ** 2
    weights = np.outer(falloff, falloff)
    padded = np.pad(image, ((0, 8), (0, 8), (0, 0)), "symmetric")
    places = list(itertools.product(rows, columns))
    corners = [(round(row * pitch), round(column * pitch)) for row, column in places]
    scores, parts = network(
        [Image.fromarray(padded[y : y + SIZE, x : x + SIZE]) for y, x in corners]
    )
    total, weight = np.zeros((36, 23)), np.zeros((36, 23))
    for (row, column), part in zip(places, parts, strict=True):
        total[row : row + 15, column : column + 15] += weights * part
        weight[row : row + 15, column : column + 15] += weights
    assert found.raw == pytest.approx(total / weight, abs=1e-4)
    assert found.covered == pytest.approx((150 / pitch, 97 / pitch))
    assert found.map.shape == (150, 97)
    assert found.score == pytest.approx(np.mean(scores), abs=1e-5)


def test_small_images_are_not_tiled(tiler, localizer):
    images = [noise(*size) for size in ((64, 64), (10, 64), (64, 3))]
    for tiled, resized in zip(tiler(images), localizer(images), strict=True):
        assert (tiled.score, tiled.size) == (resized.score, resized.size)
        np.testing.assert_array_equal(tiled.raw, resized.raw)


def test_tiles_of_finer_maps(tiler):
    # The maps of Grad-CAM have the image's size: they are averaged to cells of 4 pixels.
    finer = copy.copy(tiler)
    finer._map_size = SIZE
    view = finer.view(Image.fromarray(noise(64, 96)))
    assert (view.window, view.cells, view.places) == (16, (16, 24), [(0, 0), (0, 8)])
    parts = predict._Parts("image", view)
    maps = np.random.default_rng(0).random((2, SIZE, SIZE), np.float32)
    for place, score, part in zip(view.places, np.float32([1, 4]), maps, strict=True):
        assert not parts.complete
        parts.add(place, score, np.float32(0.5), part)
    assert parts.complete
    found = parts.prediction(2.4)
    left, right = maps.reshape(2, 16, 4, 16, 4).mean((2, 4))
    assert found.raw[:, :8] == pytest.approx(left[:, :8], abs=1e-6)
    assert found.raw[:, 16:] == pytest.approx(right[:, 8:], abs=1e-6)
    assert (found.score, found.probability, found.verdict) == (2.5, 0.5, "fake")


# ----- Reading ------------------------------------------------------------------------------------


def limit() -> int:
    return predict.MAX_PIXELS["resize"]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "jpg"])
def test_formats(tmp_path, suffix):
    image, path = smooth(40, 50), epath.Path(tmp_path / f"image.{suffix}")
    image.save(path, lossless=True, quality=100)
    difference = np.abs(np.subtract(predict.read(path, limit()), image, dtype=np.int16))
    assert difference.max() <= (16 if suffix == "jpg" else 0)


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for name in ("image.png", "image.tif"):
        Image.fromarray(values).save(tmp_path / name)
        pixels = np.asarray(predict.read(epath.Path(tmp_path / name), limit()))
        assert pixels.shape == (256, 256, 3)
        assert np.abs(pixels - values[..., None] / 257).max() <= 1
    big_endian = Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(predict.to_rgb(big_endian), pixels)


def test_transparency_is_over_white():
    rgba = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    pixels, alpha = rgba[..., :3].astype(float), rgba[..., 3:] / 255
    expected = pixels * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(predict.to_rgb(Image.fromarray(rgba))) - expected).max() <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    palette.info["transparency"] = 0
    np.testing.assert_array_equal(predict.to_rgb(palette), [[[255, 255, 255], [0, 0, 255]]])


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGB"])
def test_modes(mode):
    image = smooth(20, 30).convert(mode)
    np.testing.assert_array_equal(predict.to_rgb(image), image.convert("RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = noise(20, 30)
    # What a camera stores, by EXIF's table: where the picture's first row and column lie in it.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = epath.Path(tmp_path / "image.png")
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    np.testing.assert_array_equal(predict.read(path, limit()), upright)


def bomb(side: int) -> bytes:
    """A PNG of side × side black pixels, whose data ends early."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(10_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def damaged(folder: Path) -> dict[str, str]:
    """Puts files into a folder that are no images. By name, what is to be said of them."""
    folder.mkdir()
    said = {"empty.png": "empty", "text.jpg": "not a PNG, JPEG, WebP, TIFF or BMP image"}
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not an image")
    for suffix in ("png", "jpg", "bmp", "tif", "webp"):
        path = folder / f"cut.{suffix}"
        Image.fromarray(noise(50, 50)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        said[path.name] = "could not create decoder" if suffix == "webp" else "truncated"
    (folder / "bomb.png").write_bytes(bomb(30_000))
    said["bomb.png"] = "30000×30000 pixels, taken for a decompression bomb"
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tif")
    said["float.tif"] = "32 bits"
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    said["nowhere.png"] = "not a file"
    os.mkfifo(folder / "fifo.png")
    said["fifo.png"] = "not a file"
    image = folder / "anim.gif"
    Image.new("L", (4, 4)).save(image)
    said["anim.gif"] = "not a PNG, JPEG, WebP, TIFF or BMP image"
    return said


# ----- Files in, files out ------------------------------------------------------------------------


def test_equal_to_the_evaluation(trained, dolos_folder, tmp_path):
    run = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate(run)
    folders = [
        dolos_folder / "celebahq/fake/repaint-p2/images/test",
        dolos_folder / "celebahq/real/test",
    ]
    predict.predict(run, list(map(str, folders)), epath.Path(tmp_path / "out"))
    measured, found = table(Path(run)), table(tmp_path / "out")
    results = json.loads((run / "results.json").read_text())
    said = (tmp_path / "out/index.html").read_text()
    assert f"score above {results['threshold']:.4g}, as 5% of real validation images have" in said
    assert [row["file"] for row in found] == [str(f) for d in folders for f in sorted(d.iterdir())]
    for theirs, ours in zip(measured, found, strict=True):
        assert float(ours["score"]) == pytest.approx(float(theirs["score"]), abs=1e-6)
        above = float(theirs["score"]) > results["threshold"]
        assert ours["verdict"] == ("fake" if above else "real")


@pytest.mark.parametrize("mode", predict.MODES)
def test_files_of_an_image(trained, tmp_path, mode):
    image = smooth(150, 97)
    image.save(tmp_path / "photo.png")
    out = tmp_path / "out"
    (row,) = predict.predict(trained, [str(tmp_path / "photo.png")], epath.Path(out), mode=mode)
    (expected,) = Localizer.load(trained, mode=mode, batch=8)([image])
    assert files_in(out) == {
        *("predictions.csv", "index.html", "maps/photo.png.png", "overlays/photo.png.jpg"),
        *("raw/photo.png.npz", "thumbnails/photo.png.jpg"),
    }
    (stored,) = table(out)
    assert list(stored) == ["file", "score", "verdict", "manipulated_share", "error"]
    assert stored["file"] == row.file == str(tmp_path / "photo.png")
    assert float(stored["score"]) == row.score == pytest.approx(expected.score, abs=1e-6)
    assert float(stored["manipulated_share"]) == expected.manipulated_share
    assert (stored["verdict"], stored["error"]) == (expected.verdict, "")
    with Image.open(out / "maps/photo.png.png") as grey:
        assert (grey.mode, grey.size) == ("L", (97, 150))
        assert np.abs(np.asarray(grey) - 255 * expected.map).max() <= 0.51
    with np.load(out / "raw/photo.png.npz") as raw:
        assert raw["map"] == pytest.approx(expected.raw, abs=1e-6)
        assert (*raw["covered"], *raw["size"]) == (*expected.covered, 150, 97)
        assert (raw["score"], raw["probability"]) == (row.score, row.score)
    with Image.open(out / "overlays/photo.png.jpg") as overlay:
        assert overlay.size == (97, 150)


def test_overlays_of_large_images_are_smaller(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "_OVERLAY", 100)
    smooth(300, 150).save(tmp_path / "photo.png")
    predict.predict(trained, [str(tmp_path)], epath.Path(tmp_path / "out"))
    with Image.open(tmp_path / "out/overlays/photo.png.jpg") as overlay:
        assert overlay.size == (50, 100)
    with Image.open(tmp_path / "out/maps/photo.png.png") as grey:
        assert grey.size == (150, 300)


def test_what_cannot_be_read_has_a_row_and_the_rest_is_done(trained, tmp_path):
    said = damaged(tmp_path / "images")
    for name in ("aaa.png", "zzz.png"):
        Image.fromarray(noise(30, 40)).save(tmp_path / "images" / name)
    limits = Image.MAX_IMAGE_PIXELS
    predict.predict(trained, [str(tmp_path / "images")], epath.Path(tmp_path / "out"))
    assert limits == Image.MAX_IMAGE_PIXELS
    rows = {Path(row["file"]).name: row for row in table(tmp_path / "out")}
    assert rows.keys() == said.keys() | {"aaa.png", "zzz.png"}
    for name, reason in said.items():
        assert reason in rows[name]["error"]
        assert rows[name]["score"] == rows[name]["verdict"] == ""
    assert rows["aaa.png"]["score"] == rows["zzz.png"]["score"] != ""
    assert len(list((tmp_path / "out/maps").iterdir())) == 2


def test_tiles_take_larger_images(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "MAX_PIXELS", {"resize": 8_000, "tile": 10_000})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)  # Pillow would refuse twice as many
    for name, width in (("fits", 80), ("large", 90), ("bomb", 101)):
        Image.fromarray(noise(100, width)).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / f"{name}.png") for name in ("fits", "large", "bomb")]
    for mode, readable in (("resize", 1), ("tile", 2)):
        rows = predict.predict(trained, images, epath.Path(tmp_path / mode), mode=mode)
        assert [not row.error for row in rows] == [n < readable for n in range(3)]


class Pixels:
    """Counts the pixels of the images that are decoded at one time, and not yet gone."""

    def __init__(self, patch: pytest.MonkeyPatch, at_decoding: Callable[[], Any] = lambda: None):
        self._lock, self._sizes, self.most = threading.RLock(), [], []
        decode = ImageFile.ImageFile.load

        def counting(image: Image.Image) -> Any:
            if not hasattr(image, "counted"):
                image.counted = True
                with self._lock:
                    self._sizes.append(image.width * image.height)
                    self.most = max(self.most, self._sizes.copy(), key=sum)
                weakref.finalize(image, self._gone, image.width * image.height)
                at_decoding()
            return decode(image)

        patch.setattr(ImageFile.ImageFile, "load", counting)

    def _gone(self, size: int) -> None:
        with self._lock:
            self._sizes.remove(size)


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=20),
    limit=st.integers(1, 10_000),
    cut=st.sets(st.integers(0, 19)),
    mode=st.sampled_from(predict.MODES),
)
def test_pixels_in_flight_are_bounded(
    trained, localizer, tiler, tmp_path_factory, sizes, limit, cut, mode
):
    """And order and results are those of images that are seen one by one."""
    folder = tmp_path_factory.mktemp("images")
    names = [f"{n:02d}.png" for n in range(len(sizes))]
    for n, (name, size) in enumerate(zip(names, sizes, strict=True)):
        Image.fromarray(noise(*size, n)).save(folder / name)
        if n in cut:
            os.truncate(folder / name, 42)  # amid the pixels, after the header
    files = {str(folder / name): name for name in names}
    by_mode = {"resize": localizer, "tile": tiler}[mode]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "_IN_FLIGHT", limit)
        pixels = Pixels(patch)
        rows = predict._localize_files(by_mode, files, epath.Path(folder / "out"))
    assert sum(pixels.most) <= limit or len(pixels.most) == 1 or mode == "tile"
    assert len(pixels.most) <= 2 or mode == "resize"
    assert [row.file for row in rows] == list(files)
    for n, row in enumerate(rows):
        if n in cut:
            assert row.error
        else:
            (alone,) = by_mode([noise(*sizes[n], n)])
            assert (row.error, row.score) == ("", pytest.approx(alone.score, abs=1e-6))


def test_small_images_are_decoded_at_the_same_time(localizer, tmp_path, monkeypatch):
    files = {str(tmp_path / f"{n}.png"): f"{n}.png" for n in range(4)}
    for file in files:
        smooth(30, 40).save(file)
    together = threading.Barrier(len(files), timeout=60)
    pixels = Pixels(monkeypatch, together.wait)
    rows = predict._localize_files(localizer, files, epath.Path(tmp_path / "out"))
    assert [row.error for row in rows] == [""] * len(files)
    assert len(pixels.most) == len(files)


def test_same_names_in_different_places(trained, tmp_path):
    images = {"a/x.png": 1, "b/x.png": 2, "b/c/x.png": 3, "b/x.bmp": 4}
    for name, seed in images.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        smooth(20, 20 + seed, seed).save(tmp_path / name)
    given = [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "b/../b/x.png")]
    rows = predict.predict(trained, given, epath.Path(tmp_path / "out"))
    assert [row.name for row in rows] == ["a/x.png", "b/x.bmp", "b/x.png", "b/c/x.png"]
    for name, seed in images.items():
        with Image.open(tmp_path / f"out/maps/{name}.png") as grey:
            assert grey.size == (20 + seed, 20)


def test_finding_files(tmp_path, monkeypatch):
    names = [
        "b.png",
        "a.png",
        "[1].png",
        ".hidden.png",
        "sub/c.png",
        ".git/d.png",
        "out/maps/a.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    out = epath.Path("out")
    find: Any = lambda *patterns: list(predict.find(patterns, out))  # noqa: E731
    assert find(".") == ["[1].png", "a.png", "b.png", "sub/c.png"]
    assert find("*.png") == ["[1].png", "a.png", "b.png"]
    assert find("b.png", "[ab].png") == ["b.png", "a.png"]
    assert find("[1].png") == ["[1].png"]
    assert find("**/c.png", str(tmp_path / "sub")) == ["sub/c.png"]
    assert predict.find(["sub/c.png"], out) == {"sub/c.png": "c.png"}
    (tmp_path / "nothing").mkdir()
    for pattern in ("c.png", "*.tif"):
        with pytest.raises(
            UserError, match=f"--images {re.escape(pattern)}: there is no such file"
        ):
            find("a.png", pattern)
    with pytest.raises(UserError, match="--images nothing: no files in there"):
        find("nothing")


class Page(html.parser.HTMLParser):
    """Elements, links and text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.cells: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "td":
            self.cells.append("")
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_page_escapes_names_and_links_what_is_there(trained, tmp_path):
    images = tmp_path / "images"
    names = ['<script>alert("x")<', "per%20cent?#.png", "it's & ü.png", "line\nbreak, comma.png"]
    images.mkdir()
    for name in names:
        smooth(30, 40).save(images / name, "PNG")
    smooth(30, 40).save(os.fsencode(images) + b"/\xff.png", "PNG")  # not UTF-8
    (images / "<img src=x>").touch()
    out = tmp_path / "out"
    rows = predict.predict(trained, [str(images)], epath.Path(out))
    page = Page(out / "index.html")
    assert not page.tags & {"script", "link", "iframe"}
    for name in [*names, "<img src=x>"]:
        assert str(images / name) in page.cells
    linked = {urllib.parse.unquote_to_bytes(link) for link in page.links}
    written = {os.fsencode(path) for path in files_in(out)}
    assert linked == written - {b"index.html", b"predictions.csv"}
    assert len(written) == 2 + 4 * 5
    stored = {row["file"] for row in table(out)}
    assert stored == {row.file.replace("\udcff", "\\udcff") for row in rows}


def test_an_output_that_is_there_is_kept(trained, tmp_path):
    smooth(20, 20).save(tmp_path / "a.png")
    images = [str(tmp_path / "a.png")]
    taken = tmp_path / "taken"
    taken.mkdir()
    predict.predict(trained, images, epath.Path(taken))  # empty
    before = files_in(taken)
    for path, told in ((taken, "is there already"), (tmp_path / "a.png", "is a file")):
        with pytest.raises(UserError, match=told):
            predict.predict(trained, images, epath.Path(path))
    assert files_in(taken) == before


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(28, "No space left on device"), UserError, "out cannot be written: .*No space"),
        (UserError("scores are not finite"), UserError, "not finite"),
    ],
)
def test_nothing_is_left_of_what_fails(trained, tmp_path, monkeypatch, error, raised, said):
    for number in range(20):
        smooth(20, 20).save(tmp_path / f"{number}.png")
    calls = iter(range(5))

    def fails(*_: Any) -> None:
        if next(calls, None) is None:
            raise error

    monkeypatch.setattr(predict, "_save_jpeg", fails)
    (tmp_path / ".out.01234567.partial").mkdir()
    (tmp_path / ".out.01234567.partial/stale").touch()  # of a command that was killed
    with pytest.raises(raised, match=said):
        predict.predict(trained, [str(tmp_path)], epath.Path(tmp_path / "out"))
    assert {path.suffix for path in tmp_path.iterdir()} == {".png"}


def test_a_network_without_finite_numbers(trained, tmp_path):
    config, model, *_ = runs.load(trained)
    model.classifier.bias.set_value(model.classifier.bias.get_value() * np.nan)
    with pytest.raises(UserError, match="not finite, first those of 0"):
        Localizer(config, model, batch=8)([noise(20, 20)])


# ----- The command --------------------------------------------------------------------------------


def execute(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-W", "ignore:the load_module"]  # of ml_collections
    command += ["-m", "wsdl_jax.predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_command(trained, tmp_path):
    for name in ("a.png", "b.png"):
        smooth(30, 40).save(tmp_path / name)
    (tmp_path / "empty.png").touch()
    # As a shell expands --images *.png; flags may follow.
    images = [tmp_path / name for name in ("a.png", "b.png", "empty.png")]
    done = execute("--run", trained, "--images", *images, "--out", tmp_path / "out")
    assert done.returncode == 1
    warning, first, last = done.stderr.splitlines()
    assert warning.startswith(f"{trained} was never evaluated")
    assert first.startswith("3 images: ")
    assert last == (
        f"error: 1 of 3 images have no map, first {tmp_path}/empty.png: empty; see "
        f"{tmp_path}/out/predictions.csv"
    )
    assert done.stdout == ""
    assert [row["file"] for row in table(tmp_path / "out")] == list(map(str, images))


def test_command_done(trained, tmp_path):
    smooth(30, 40).save(tmp_path / "a.png")
    arguments = ("--images", tmp_path / "*.png", "--mode", "tile", "--out", tmp_path / "out")
    done = execute("--run", trained, *arguments)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(table(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--out", "o"], 2, "--images"),
        (["--images", "a.png", "--out", "o"], 1, "--images a.png: there is no such file"),
    ],
)
def test_command_refuses(trained, arguments, code, said):
    done = execute("--run", trained, *arguments)
    assert done.returncode == code
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert len(done.stderr.splitlines()) == 1
