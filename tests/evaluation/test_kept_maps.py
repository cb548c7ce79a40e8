"""Maps that are kept have the figures that the run had; those of others are read or refused."""

import csv
import io
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsdl_jax import inputs, runs
from wsdl_jax.evaluation import (
    evaluate,
    evaluate_maps,
    figures,
    intervals,
    kept_maps,
    measures,
    results,
)
from wsdl_jax.evaluation.kept_maps import Row
from wsdl_jax.runtime import storage
from wsdl_jax.runtime.errors import ConfigError, UserError

FAKE, REAL = "dolos/celebahq_repaint_p2", "dolos/celebahq_real"
OTHER = "dolos/celebahq_repaint_p2_9k"  # whose test images have the keys of the former
NEEDS_A_RUN = ("verdicts", "threshold", "map_threshold", "iou_fitted", "real_above", "fake_above")


@pytest.fixture(scope="module")
def run(evaluated: epath.Path, tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """An evaluated run that has kept its maps."""
    copy = epath.Path(shutil.copytree(evaluated, tmp_path_factory.mktemp("kept") / "run"))
    evaluate(copy, save_maps=True)
    return copy


def stored(folder: epath.Path | Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def scored(run: epath.Path, maps: Path, out: Path, **arguments: Any) -> dict[str, Any]:
    data_dir = runs.load_config(run).data.dir
    where = {"fake": FAKE, "real": REAL, "data_dir": data_dir}
    return evaluate_maps(epath.Path(maps), epath.Path(out), **where, **arguments)


def test_kept_maps_have_the_same_figures(run, evaluated, tmp_path):
    assert stored(run) == {**stored(evaluated), "maps": stored(run)["maps"]}
    assert stored(evaluated)["maps"] is None and len(stored(run)["maps"]) == 64
    names = [path.name for path in sorted((run / "maps/fake").iterdir())]
    assert names == [f"{n:05d}.png.npz" for n in range(11)]
    found = scored(run, Path(run / "maps"), tmp_path / "out")
    assert found == results.read(epath.Path(tmp_path / "out/results.json"))
    expected = stored(run)
    for name, value in expected.items():
        if name in NEEDS_A_RUN or name in ("checkpoint", "weights", "image_f1_verdict", "maps"):
            assert found[name] is None
        elif name == "intervals":
            value["figures"]["iou_fitted"] = None
            assert found[name] == value
        elif name != "predictions":  # which has the IoU at the fitted threshold as well
            assert found[name] == value, name
    tables = []
    for folder in (run, tmp_path / "out"):
        with (folder / "predictions.csv").open() as file:
            tables.append([{**row, "iou_fitted": ""} for row in csv.DictReader(file)])
    assert [row["f1"] for row in tables[0]] == [row["f1"] for row in tables[1]]
    assert (tmp_path / "out/examples.png").read_bytes() == (run / "examples.png").read_bytes()


def test_maps_of_several_sets_with_the_same_keys(run, tmp_path):
    """None is lost, each has the score of its own, and images of one key are drawn together."""
    several = epath.Path(shutil.copytree(run, tmp_path / "run"))
    expected = evaluate(several, fake=f"{FAKE},{OTHER}", save_maps=True)
    (folder,) = (path.parent for path in (several / "evaluations").glob("*/results.json"))
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    keys = {
        name: [row["key"] for row in rows if row["set"] == name] for name in (FAKE, OTHER, REAL)
    }
    assert {*keys[FAKE]} & {*keys[OTHER]}
    assert results.read(epath.Path(folder / "results.json")) == expected
    for name in (FAKE, OTHER):
        files = (folder / "maps/fake" / name.replace("/", "%2F")).iterdir()
        assert {path.name for path in files} == {f"{key}.npz" for key in keys[name]}
    assert expected["intervals"]["drawn"] == {"fake": "key", "real": "image"}
    ious = {"iou_lg": np.array([float(row["iou_lg"]) for row in rows if row["iou_lg"]])}
    units = np.unique(keys[FAKE] + keys[OTHER], return_inverse=True)[1]
    ends = intervals.of_means(ious, units)["iou_lg"]
    found = expected["intervals"]["figures"]["iou_lg"]
    assert (found["low"], found["high"]) == pytest.approx((100 * ends.low, 100 * ends.high))
    assert "over keys and images, bootstrap" in (folder / "results.txt").read_text()

    where = {"real": REAL, "data_dir": runs.load_config(run).data.dir}
    scores = epath.Path(folder / "predictions.csv")
    for table in (None, scores):
        found = evaluate_maps(
            epath.Path(folder / "maps"),
            epath.Path(tmp_path / "out"),
            fake=f"{FAKE}, {OTHER}",
            scores=table,
            **where,
        )
        for name in ("test_fake", "iou_lg", "f1", "pixel_auc", "ap", "auc", "image_f1", "data"):
            assert found[name] == expected[name], name
        of_sets = found["parts"]["set"]
        assert of_sets[OTHER]["iou_lg"] == expected["parts"]["set"][OTHER]["iou_lg"]
    maps, out = epath.Path(folder / "maps"), epath.Path(tmp_path / "alone")
    alone = evaluate_maps(maps, out, fake=FAKE, scores=scores, **where)
    assert alone["iou_lg"] == stored(run)["iou_lg"] and alone["auc"] == stored(run)["auc"]

    without = [
        {name: row[name] for name in ("key", "label", "score", "probability")} for row in rows
    ]
    table = tmp_path / "without.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*without[0]])
        writer.writeheader()
        writer.writerows({(row["label"], row["key"]): row for row in without}.values())
    for arguments, error, message in (
        ({"scores": epath.Path(table)}, UserError, "a column 'set' has to tell them apart"),
        ({"maps": run / "maps"}, UserError, "repaint_p2 is no folder: the maps of fake images"),
        ({"fake": f"{FAKE},{FAKE}"}, ConfigError, "is there twice"),
        ({"fake": f"{FAKE},"}, ConfigError, "one is empty"),
    ):
        given = {"maps": maps, "out": out, "fake": f"{FAKE},{OTHER}", **where, **arguments}
        with pytest.raises(error, match=message) as told:
            evaluate_maps(**given)
        assert "\n" not in str(told.value)


def test_a_map_is_not_written_twice(tmp_path):
    arguments = tmp_path, "fake", "", "a", np.zeros((2, 2), np.float32), 0.5, 0.5
    kept_maps.save(*arguments)
    with pytest.raises(UserError, match="a is the key of two fake images"):
        kept_maps.save(*arguments)


def test_large_maps_are_read_few_at_a_time(run, monkeypatch):
    data_dir = runs.load_config(run).data.dir
    source = inputs.Examples((FAKE,), "test", data_dir)
    reader = kept_maps.Reader(epath.Path(run / "maps"), {"fake": source}, None)
    size = reader.found("fake", 0).localization_map.size
    for pixels, expected in ((10**9, [4, 4, 3]), (3 * size, [3, 3, 3, 2]), (1, [1] * 11)):
        monkeypatch.setattr(kept_maps, "BATCH_PIXELS", pixels)
        batches = list(reader.in_batches("fake", 4, iter))
        assert [len(found) for _, found in batches] == expected
        assert [index for indices, _ in batches for index in indices] == list(range(11))


def test_large_maps_are_measured_one_by_one(run, tmp_path, monkeypatch):
    lock, under_way, most = threading.Lock(), [], []
    measure = measures.measure

    def slow(index: int, *args: Any, **kwargs: Any) -> measures.ImageMeasures:
        with lock:
            under_way.append(index)
            most.append(len(under_way))
        time.sleep(0.01)
        with lock:
            under_way.remove(index)
        return measure(index, *args, **kwargs)

    monkeypatch.setattr(measures, "measure", slow)
    monkeypatch.setattr(kept_maps, "BATCH_PIXELS", 10**9)
    monkeypatch.setattr(figures, "_PIXELS", 1)
    found = scored(run, Path(run / "maps"), tmp_path / "out")
    # Reals, which have no masks, take no memory to measure.
    assert most[:11] == [1] * 11 and found["iou_lg"] == stored(run)["iou_lg"]


def test_maps_are_replaced_and_nobodys_files_are(run, tmp_path):
    other = epath.Path(shutil.copytree(run, tmp_path / "other"))
    evaluate(other)  # without maps: those that are there are not vouched for any more
    assert stored(other)["maps"] is None and (other / "maps/fake").exists()
    evaluate(other, save_maps=True)
    assert stored(other) == stored(run)
    (other / "maps/mine.txt").write_text("mine")
    before = (other / "results.json").read_bytes()
    with pytest.raises(UserError, match=r"mine\.txt is not of the maps"):
        evaluate(other, save_maps=True)
    assert (other / "maps/mine.txt").exists() and (other / "results.json").read_bytes() == before


def test_maps_of_another_system(run, tmp_path):
    """Of any size and kind of file, by key or stem, with a table of scores or without."""
    maps = tmp_path / "maps"
    for side in ("fake", "real"):
        (maps / side / "below").mkdir(parents=True)
        for place, path in enumerate(sorted(Path(run / "maps" / side).iterdir())):
            values = kept_maps.read(path).localization_map
            stem = path.name.removesuffix(".png.npz")
            if place % 3 == 0:
                Image.fromarray((values * 65535).round().astype(np.uint16)).save(
                    maps / side / f"{stem}.png"
                )
            elif place % 3 == 1:
                np.save(maps / side / f"below/{stem}.npy", np.kron(values, np.ones((3, 5)))[None])
            else:
                np.savez(maps / side / f"{stem}.png.npz", prediction=values)
    found = scored(run, maps, tmp_path / "out")
    ours = stored(run)
    assert found["iou_sm"] == pytest.approx(ours["iou_sm"], abs=2)
    assert found["pixel_auc"] == pytest.approx(ours["pixel_auc"], abs=2)
    with (tmp_path / "out/predictions.csv").open() as file:
        for place, row in enumerate(csv.DictReader(file)):
            side, number = row["label"], place if row["label"] == "fake" else place - 11
            path = sorted(Path(run / "maps" / side).iterdir())[number]
            highest = kept_maps.read(path).localization_map.max()
            assert row["score"] == row["probability"]
            assert float(row["score"]) == pytest.approx(highest, abs=1e-5)
    by_table = scored(run, maps, tmp_path / "with", scores=run / "predictions.csv")
    for name in ("ap", "auc", "balanced_accuracy", "image_f1"):
        assert by_table[name] == ours[name]
    again = scored(run, maps, tmp_path / "with", scores=run / "predictions.csv")
    assert again == by_table
    shutil.rmtree(maps / "real/below")
    with pytest.raises(UserError, match=r"real has no map of 0\d+\.png: no .*\.npz, nor") as told:
        scored(run, maps, tmp_path / "none")
    assert "\n" not in str(told.value) and not (tmp_path / "none").exists()


def test_the_command(run, tmp_path):
    command = [sys.executable, "-m", "wsdl_jax.evaluate", "--maps", run / "maps", "--fake", FAKE]
    command += ["--real", REAL, "--data_dir", runs.load_config(run).data.dir]
    done = subprocess.run(
        [*command, "--out", tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert stored(tmp_path / "out")["iou_lg"] == stored(run)["iou_lg"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: --out is missing, which --maps needs"


KEYS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300)


@given(KEYS | st.sampled_from(["..", "../../x", "/etc/x", "a/b", "a\\b", "a%2Fb", "q\"'\n"]), KEYS)
def test_names_stay_in_their_folder_and_apart(key, other):
    name = kept_maps.file_name(key)
    path = Path("folder") / f"{name}.npz"
    assert path.parent == Path("folder") and len(path.name) < 255
    assert path.name.isascii() and path.name.isprintable() and "/" not in name
    assert (name == kept_maps.file_name(other)) == (key == other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.full((3, 3), np.nan), "values that are not finite"),
        (np.full((3, 3), 1.5), r"between 1\.5 and 1\.5, not in \[0, 1\]"),
        (np.full((3, 3), 255, np.uint8), r"between 255 and 255, not in \[0, 1\]"),
        (np.zeros((3, 3, 3)), "3 × 3 × 3 float64 is no map"),
        (np.zeros((0, 3)), "0 × 3 float64 is no map"),
        (np.array(["a"]), "is no map"),
        (np.array([{}]), "cannot be read"),
    ],
)
def test_arrays_that_are_no_maps(content, message, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, content)
    with pytest.raises(UserError, match=message) as told:
        kept_maps.read(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_files_that_are_no_maps(tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "rgb.png")
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    np.savez(tmp_path / "score.npz", map=np.zeros((2, 2)), score=np.nan)
    for name in ("half.png", "half.npz", "half.npy"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no more of it")
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match="cannot be read") as told:
            kept_maps.read(path)
        assert str(path) in str(told.value) and "\n" not in str(told.value)
    with pytest.raises(UserError, match="No such file"):
        kept_maps.read(tmp_path / "none.npy")


def changed(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def test_files_that_are_damaged_in_other_ways(tmp_path, monkeypatch):
    """By bad bytes, a method of packing nobody knows, a password, or sizes beyond all bounds."""
    packed = io.BytesIO()
    np.savez_compressed(packed, map=np.zeros((64, 64)))
    content = packed.getvalue()
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    begin = local + 30 + int.from_bytes(content[local + 26 : local + 28], "little")
    begin += int.from_bytes(content[local + 28 : local + 30], "little")
    (tmp_path / "byte.npz").write_bytes(changed(content, begin, b"\xff" * 8))
    for name, offset, value in (("packing", 10, b"\x63\x00"), ("password", 8, b"\x01\x00")):
        other = changed(content, local + offset - 2, value)
        (tmp_path / f"{name}.npz").write_bytes(changed(other, central + offset, value))
    header = io.BytesIO()
    facts = {"descr": "<f8", "fortran_order": False, "shape": (2**40, 8)}
    np.lib.format.write_array_header_1_0(header, facts)
    (tmp_path / "huge.npy").write_bytes(header.getvalue() + bytes(64))
    Image.new("L", (40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    said = {}
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match="cannot be read: ") as told:
            kept_maps.read(path)
        assert str(path) in str(told.value) and "\n" not in str(told.value)
        said[path.name] = str(told.value.__cause__.__class__.__name__)
    assert said == {
        "byte.npz": "error",  # of zlib
        "packing.npz": "NotImplementedError",
        "password.npz": "RuntimeError",
        "huge.npy": "MemoryError",
        "bomb.png": "DecompressionBombError",
    }


def test_grey_files_are_read_as_fractions(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(grey > 99).save(tmp_path / "1.png")
    for name in ("8.png", "16.png"):
        found = kept_maps.read(tmp_path / name)
        np.testing.assert_allclose(found.localization_map, grey / 255, rtol=1e-6)
    np.testing.assert_array_equal(kept_maps.read(tmp_path / "1.png").localization_map, grey > 99)


def test_which_file_is_of_which_image(tmp_path):
    (tmp_path / "fake/a").mkdir(parents=True)
    for name in ("a/1.png", "2.npy", "2.jpg", "b%2F3.npz", "notes.txt"):
        (tmp_path / "fake" / name).touch()
    found = kept_maps.files_of(tmp_path / "fake", "fake", ["a/1.jpg", "2.png", "b/3"])
    assert [path.name for path in found.values()] == ["1.png", "2.npy", "b%2F3.npz"]
    for keys, message in (
        (["a/1.jpg", "b/1.jpg"], r"1\.png is of b/1\.jpg and of a/1\.jpg"),
        (["a/1.jpg", "a/1.jpg"], "a/1.jpg"),
        (["4"], "has no map of 4"),
    ):
        with pytest.raises(UserError, match=message):
            kept_maps.files_of(tmp_path / "fake", "fake", keys)
    (tmp_path / "fake/2.png").touch()
    with pytest.raises(UserError, match=r"2\.png has two maps: .*2\.npy and .*2\.png"):
        kept_maps.files_of(tmp_path / "fake", "fake", ["2.png"])
    with pytest.raises(UserError, match=r"real is no folder: the maps of real images"):
        kept_maps.files_of(tmp_path / "real", "real", [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,score\n1,0.5\n", "no column 'label'"),
        ("label,key,score\nfalse,1,0.5\n", "line 2: the label is 'false'"),
        ("label,key,score\nfake,1,0.5\nfake,1,0.5\n", "line 3: fake 1 is there twice"),
        ("label,key,score\nfake,1,high\n", "line 2: could not convert"),
        ("label,key,score\nfake,1,2\n", "line 2: a score of 2, .*need a column 'probability'"),
        ("label,key,score\nfake,1,nan\n", "line 2: a score of nan"),
        ("label,key,score,probability\nfake,1,7,1.5\n", "line 2: score 7, probability 1.5"),
    ],
)
def test_tables_that_are_no_scores(text, message, tmp_path):
    path = epath.Path(tmp_path / "scores.csv")
    storage.write_whole(path, text)
    with pytest.raises(UserError, match=message) as told:
        kept_maps.read_scores(path)
    assert "\n" not in str(told.value)


def test_logits_with_probabilities_are_scores(tmp_path):
    path = epath.Path(tmp_path / "scores.csv")
    storage.write_whole(path, "label,key,score,probability\nfake,a,7,0.9\nreal,a,-3,0.1\n")
    found = kept_maps.read_scores(path)
    assert found[Row("fake", "", "a")] == kept_maps.Score(7.0, 0.9)
    assert found[Row("real", "", "a")] == kept_maps.Score(-3.0, 0.1)


def test_a_spreadsheets_table_is_read(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("label,key,score,set\nfake,é,0.5,s\nreal,a,0,\n", encoding="utf-8-sig")
    found = kept_maps.read_scores(epath.Path(path))
    expected = {Row("fake", "s", "é"): 0.5, Row("real", "", "a"): 0.0}
    assert {row: score.score for row, score in found.items()} == expected
