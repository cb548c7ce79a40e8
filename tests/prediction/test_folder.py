"""What is written of a user's images, and what is left of what fails."""

import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import damaged, files_in, noise, smooth, table
from PIL import Image, ImageFile

from wsdl_jax.evaluation import evaluate
from wsdl_jax.prediction import folder
from wsdl_jax.prediction.localizer import MODES, Localizer
from wsdl_jax.runtime.errors import UserError


def test_equal_to_the_evaluation(trained, dolos_folder, tmp_path):
    run = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate(run)
    folders = [
        dolos_folder / "celebahq/fake/repaint-p2/images/test",
        dolos_folder / "celebahq/real/test",
    ]
    folder.predict(run, list(map(str, folders)), epath.Path(tmp_path / "out"))
    measured, found = table(Path(run)), table(tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text()
    known = json.loads((run / "real_scores.json").read_text())["scores"]
    rule = f"called fake: what at most 5% of real images score, by {len(known)} like the training"
    assert rule in page
    assert [row["file"] for row in found] == [str(f) for d in folders for f in sorted(d.iterdir())]
    for theirs, ours in zip(measured, found, strict=True):
        assert float(ours["score"]) == pytest.approx(float(theirs["score"]), abs=1e-6)
        as_high = sum(one >= float(ours["score"]) for one in known)
        assert float(ours["p_value"]) == (1 + as_high) / (1 + len(known))


@pytest.mark.parametrize("mode", MODES)
def test_files_of_an_image(trained, tmp_path, mode, cut_amid):
    image = smooth(150, 97)
    cut_amid(image, mode)
    image.save(tmp_path / "photo.png")
    out = tmp_path / "out"
    (row,) = folder.predict(trained, [str(tmp_path / "photo.png")], epath.Path(out), mode=mode)
    trust = mode == "resize"  # by default
    (expected,) = Localizer.load(trained, mode=mode, batch=8, trust=trust)([image])
    assert files_in(out) == {
        *("predictions.csv", "index.html", "evidence.jsonl"),
        *("maps/photo.png.png", "overlays/photo.png.jpg", "raw/photo.png.npz"),
        *("thumbnails/photo.png.jpg", *(["trust/photo.png.png"] if trust else [])),
    }
    (stored,) = table(out)
    columns = "file score verdict p_value manipulated_share reason error note"
    assert list(stored) == columns.split()
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
        assert ("agreement" in raw) == trust
    with Image.open(out / "overlays/photo.png.jpg") as overlay:
        assert overlay.size == (97, 150)
    if trust:
        with Image.open(out / "trust/photo.png.png") as grey:
            assert np.abs(np.asarray(grey) - 255 * expected.trust).max() <= 0.51
    else:
        with pytest.raises(ValueError, match="trust=True"):
            _ = expected.trust


def test_overlays_of_large_images_are_smaller(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_OVERLAY_SIDE", 100)
    smooth(300, 150).save(tmp_path / "photo.png")
    folder.predict(trained, [str(tmp_path)], epath.Path(tmp_path / "out"))
    with Image.open(tmp_path / "out/overlays/photo.png.jpg") as overlay:
        assert overlay.size == (50, 100)
    with Image.open(tmp_path / "out/maps/photo.png.png") as grey:
        assert grey.size == (150, 300)


def test_what_cannot_be_read_has_a_row_and_the_rest_is_done(trained, tmp_path):
    reasons = damaged(tmp_path / "images")
    for name in ("aaa.png", "zzz.png"):
        Image.fromarray(noise(30, 40)).save(tmp_path / "images" / name)
    limits = Image.MAX_IMAGE_PIXELS
    folder.predict(trained, [str(tmp_path / "images")], epath.Path(tmp_path / "out"))
    assert limits == Image.MAX_IMAGE_PIXELS
    rows = {Path(row["file"]).name: row for row in table(tmp_path / "out")}
    assert rows.keys() == reasons.keys() | {"aaa.png", "zzz.png"}
    for name, reason in reasons.items():
        assert reason in rows[name]["error"]
        assert rows[name]["score"] == rows[name]["verdict"] == ""
    assert rows["aaa.png"]["score"] == rows["zzz.png"]["score"] != ""
    assert len(list((tmp_path / "out/maps").iterdir())) == 2


def test_tiles_take_larger_images(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MAX_PIXELS", {"resize": 8_000, "tile": 10_000})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)  # Pillow would refuse twice as many
    for name, width in (("fits", 80), ("large", 90), ("bomb", 101)):
        Image.fromarray(noise(100, width)).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / f"{name}.png") for name in ("fits", "large", "bomb")]
    for mode, readable in (("resize", 1), ("tile", 2)):
        rows = folder.predict(trained, images, epath.Path(tmp_path / mode), mode=mode)
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
    mode=st.sampled_from(MODES),
)
def test_pixels_in_flight_are_bounded(
    trained, localizer, tiler, tmp_path_factory, sizes, limit, cut, mode
):
    """And order and results are those of images that are seen one by one."""
    work = tmp_path_factory.mktemp("images")
    names = [f"{n:02d}.png" for n in range(len(sizes))]
    for n, (name, size) in enumerate(zip(names, sizes, strict=True)):
        Image.fromarray(noise(*size, n)).save(work / name)
        if n in cut:
            os.truncate(work / name, 42)  # amid the pixels, after the header
    files = {str(work / name): name for name in names}
    by_mode = {"resize": localizer, "tile": tiler}[mode]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "_PIXELS_IN_MEMORY", limit)
        pixels = Pixels(patch)
        rows = folder._localize_files(by_mode, files, epath.Path(work / "out"))
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
    rows = folder._localize_files(localizer, files, epath.Path(tmp_path / "out"))
    assert [row.error for row in rows] == [""] * len(files)
    assert len(pixels.most) == len(files)


def test_same_names_in_different_places(trained, tmp_path):
    images = {"a/x.png": 1, "b/x.png": 2, "b/c/x.png": 3, "b/x.bmp": 4}
    for name, seed in images.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        smooth(20, 20 + seed, seed).save(tmp_path / name)
    given = [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "b/../b/x.png")]
    rows = folder.predict(trained, given, epath.Path(tmp_path / "out"))
    assert [row.name for row in rows] == ["a/x.png", "b/x.bmp", "b/x.png", "b/c/x.png"]
    for name, seed in images.items():
        with Image.open(tmp_path / f"out/maps/{name}.png") as grey:
            assert grey.size == (20 + seed, 20)


def test_an_output_that_is_there_is_kept(trained, tmp_path):
    smooth(20, 20).save(tmp_path / "a.png")
    images = [str(tmp_path / "a.png")]
    taken = tmp_path / "taken"
    taken.mkdir()
    folder.predict(trained, images, epath.Path(taken))  # empty
    before = files_in(taken)
    for path, message in ((taken, "is there already"), (tmp_path / "a.png", "is a file")):
        with pytest.raises(UserError, match=message):
            folder.predict(trained, images, epath.Path(path))
    assert files_in(taken) == before


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(28, "No space left on device"), UserError, "out cannot be written: .*No space"),
        (UserError("scores are not finite"), UserError, "not finite"),
    ],
)
def test_nothing_is_left_of_what_fails(trained, tmp_path, monkeypatch, error, raised, message):
    for number in range(20):
        smooth(20, 20).save(tmp_path / f"{number}.png")
    calls = iter(range(5))

    def fails(*_: Any) -> None:
        if next(calls, None) is None:
            raise error

    monkeypatch.setattr(folder, "_save_jpeg", fails)
    (tmp_path / ".out.01234567.partial").mkdir()
    (tmp_path / ".out.01234567.partial/stale").touch()  # of a command that was killed
    with pytest.raises(raised, match=message):
        folder.predict(trained, [str(tmp_path)], epath.Path(tmp_path / "out"))
    assert {path.suffix for path in tmp_path.iterdir()} == {".png"}
