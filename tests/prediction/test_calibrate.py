"""Calibration on real images of one's own: what is kept, what is refused, what follows from it."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from made_images import smooth, table
from PIL import Image

from wsdl_jax import runs
from wsdl_jax.evaluation import calibration
from wsdl_jax.prediction import fingerprint, folder
from wsdl_jax.runtime.errors import UserError

COUNT = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 different images, of which one is there twice."""
    path = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        smooth(40 + number, 60, number).save(path / f"{number:02d}.png")
    shutil.copy(path / "00.png", path / "again.png")
    return path


@pytest.fixture
def run(trained, tmp_path) -> epath.Path:
    return epath.Path(shutil.copytree(trained, tmp_path / "run"))


def test_own_real_images(run, photos, tmp_path):
    before = epath.Path(tmp_path / "before")
    folder.predict(run, [str(photos)], before)
    scores = {row["file"]: float(row["score"]) for row in table(Path(before))}
    made = folder.calibrate(run, [str(photos)])
    kept = calibration.load_own(run / "calibration.json", tuple(runs.load(run)[2:]))
    assert kept.digest() == made.digest() and kept.images == COUNT
    different = [score for file, score in scores.items() if not file.endswith("again.png")]
    assert kept.real["clean"] == pytest.approx(sorted(different), abs=1e-6)
    files = {fingerprint.of(epath.Path(path)).sha256 for path in photos.iterdir()}
    assert set(kept.files) == files and len(kept.files) == COUNT
    assert (kept.source, kept.fake) == (f"the images of {photos}", ())
    # From now on images are judged by these.
    out = epath.Path(tmp_path / "out")
    strange = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(strange).save(tmp_path / "strange.png")
    folder.predict(run, [str(photos), str(tmp_path / "strange.png")], out)
    *known, unknown = sorted(table(Path(out)), key=lambda row: "strange" in row["file"])
    for row in known:
        as_high = sum(score >= float(row["score"]) - 1e-9 for score in kept.real["clean"])
        assert float(row["p_value"]) == pytest.approx((1 + as_high) / (1 + COUNT), abs=0.041)
    assert unknown["verdict"] == "unsure"
    assert unknown["reason"] == f"unlike the images of {photos}"
    assert sum(row["reason"].startswith("unlike") for row in known) <= 3  # of 12 that tell it
    with (out / "evidence.jsonl").open() as file:
        records = [json.loads(line) for line in file]
    assert len(records) == COUNT + 2
    for record, row in zip(records, table(Path(out)), strict=True):
        taken = fingerprint.of(epath.Path(row["file"]))
        assert (record["sha256"], record["bytes"]) == taken[:2]
        assert record["verdict"] == row["verdict"] and record["c2pa"] is None
        assert record["score"] == float(row["score"])
        (of,) = record["calibrations"]
        assert of == {
            "of": kept.source,
            "real_images": COUNT,
            "known_fakes": 0,
            "sha256": kept.digest(),
        }
        assert record["weights_sha256"] == runs.weights_digest(runs.load(run).model)
    assert f"{COUNT} like the images of" in (out / "index.html").read_text()


def test_what_cannot_be_calibrated_on(run, photos, tmp_path):
    before = {path.name for path in run.iterdir()}
    few = tmp_path / "few"
    few.mkdir()
    for path in list(photos.iterdir())[:5]:
        shutil.copy(path, few)
    with pytest.raises(UserError, match=rf"--calibrate {few}: \d different files, where 20 are"):
        folder.calibrate(run, [str(few)])
    with pytest.raises(UserError, match="--calibrate nowhere: there is no such file"):
        folder.calibrate(run, ["nowhere"])
    damaged = tmp_path / "damaged"
    shutil.copytree(photos, damaged)
    (damaged / "07.png").write_bytes((photos / "07.png").read_bytes()[:200])
    with pytest.raises(UserError, match=rf"--calibrate {damaged}: {damaged}/07.png: "):
        folder.calibrate(run, [str(damaged)])
    assert {path.name for path in run.iterdir()} == before
    (damaged / "07.png").unlink()
    os.mkfifo(damaged / "pipe")  # which would be waited for
    with pytest.raises(UserError, match=rf"{damaged}/pipe: not a file"):
        folder.calibrate(run, [str(damaged)])
    with pytest.raises(UserError, match="there is no folder"):  # before what takes long
        folder.calibrate(run, [str(photos)], epath.Path(tmp_path / "nowhere/c.json"))
    taken = epath.Path(tmp_path / "mine.json")
    taken.write_text("mine")
    with pytest.raises(UserError, match=r"mine.json is there already: delete it, or"):
        folder.calibrate(run, [str(photos)], taken)
    assert taken.read_text() == "mine"


def test_a_folder_with_a_name_of_another_encoding(run, photos, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    shutil.copytree(photos, odd)
    folder.calibrate(run, [odd])
    strange = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(strange).save(tmp_path / "strange.png")
    folder.predict(run, [str(tmp_path / "strange.png")], epath.Path(tmp_path / "out"))
    (row,) = table(tmp_path / "out")
    assert row["reason"].endswith("/caf\\udce9")


def test_a_file_that_changes_while_it_is_looked_at(run, photos, tmp_path, monkeypatch):
    """Of the same size, so that nothing but its bytes tells."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("03.png", "05.png"):
        shutil.copy(photos / name, mine)
    smooth(43, 60, 99).save(tmp_path / "other.png")
    write = folder._write

    def late(file: str, *arguments: Any) -> Any:
        if file.endswith("03.png"):
            shutil.copy(tmp_path / "other.png", file)
        return write(file, *arguments)

    monkeypatch.setattr(folder, "_write", late)
    changed, same = folder.predict(run, [str(mine)], epath.Path(tmp_path / "out"))
    assert changed.error == "the file has changed while it was looked at"
    assert same.score is not None


def test_tiles_are_calibrated_by_themselves(run, photos, tmp_path):
    path = epath.Path(tmp_path / "c.json")
    folder.calibrate(run, [str(photos)], path, mode="tile")
    image, out = str(photos / "03.png"), epath.Path(tmp_path / "out")
    with pytest.raises(UserError, match="is of --mode tile: calibrate with --mode resize as well"):
        folder.predict(run, [image], out, calibration=path)
    assert not out.exists()
    folder.predict(run, [image], out, calibration=path, mode="tile", trust=True)
    (row,) = table(Path(out))
    assert float(row["p_value"]) > 0


@pytest.mark.parametrize(
    ("rate", "has_likeness", "warnings"),
    [
        (0.05, True, []),
        (0.001, True, ["24 real images are too few for a false-positive rate of 0.001"]),
        (0.05, False, ["which images are unlike own images is not known"]),
    ],
)
def test_what_verdicts_lack_is_said(run, photos, tmp_path, caplog, rate, has_likeness, warnings):
    path = epath.Path(tmp_path / "c.json")
    made = folder.calibrate(run, [str(photos)], path)
    path.unlink()
    network = tuple(runs.load(run)[2:])
    kept = dataclasses.replace(
        made, source="own images", likeness=made.likeness if has_likeness else None
    )
    calibration.save_own(path, network, kept)
    caplog.clear()
    out = epath.Path(tmp_path / "out")
    images = [str(photos / "03.png")]
    folder.predict(run, images, out, calibration=path, false_positive_rate=rate, trust=False)
    assert len(caplog.messages) == len(warnings)
    for message, start in zip(caplog.messages, warnings, strict=True):
        assert message.startswith(start)
    assert not (out / "trust").exists()
