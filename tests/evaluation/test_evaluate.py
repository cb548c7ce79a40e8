"""results.json against the maps themselves, by NumPy, Pillow and scikit-learn alone."""

import collections
import csv
import io
import json
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from PIL import Image
from scipy import ndimage
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    precision_recall_curve,
    roc_auc_score,
)

from wsdl_data import provenance
from wsdl_jax import configuration, inputs, methods, runs
from wsdl_jax.evaluation import (
    evaluate,
    everyday_robustness,
    likeness,
    map_threshold,
    robustness,
    verdict,
)
from wsdl_jax.evaluation.verdict import ANSWERS
from wsdl_jax.inputs import perturbations
from wsdl_jax.prediction.folder import predict
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runtime import locks
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.parallel import Parallel

FAKE, REAL = "dolos/celebahq_repaint_p2", "dolos/celebahq_real"
FOLDERS = {
    FAKE: "celebahq/fake/repaint-p2/images/test",
    "dolos/celebahq_repaint_p2_9k": "celebahq/fake/repaint-p2-9k/images/test",
    REAL: "celebahq/real/test",
}


def images(folder: Path) -> jax.Array:
    """Network input, as the recipe has it, of all images of a folder."""
    resized = [
        Image.open(path).resize((64, 64), Image.Resampling.LANCZOS)
        for path in sorted(folder.iterdir())
    ]
    return jnp.asarray(np.stack(resized).astype(np.float32) / 127.5 - 1)


def load(run: epath.Path, step: int | None = None) -> tuple[methods.Method, Any, Any]:
    """Method, network and state of a checkpoint, the best one by default; no mesh."""
    config = configuration.load((run / "config.json").read_text())
    model = methods.build(config, None)
    checkpoints = Checkpoints(run, keep_best=config.train.keep_best)
    like = runs.initial_state(model, config.train)
    state = checkpoints.restore(checkpoints.best() if step is None else step, like)
    checkpoints.close()
    nnx.update(model, *jax.tree.map(jnp.asarray, (state["params"], state["stats"])))
    model.eval()
    return methods.from_config(config), model, state


@pytest.fixture(scope="module")
def run(evaluated: epath.Path, tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """A trained run, evaluated on its own test subsets."""
    return epath.Path(shutil.copytree(evaluated, tmp_path_factory.mktemp("evaluate") / "run"))


@pytest.fixture(scope="module")
def predicted(run: epath.Path, dolos_folder: Path) -> dict[str, tuple[list, list, list]]:
    """Of each subset its test files, and their scores and maps, without pipeline and mesh."""
    method, model, _ = load(run)
    out = {}
    for name, folder in FOLDERS.items():
        localized = method.localize(model, images(dolos_folder / folder))
        files = sorted((dolos_folder / folder).iterdir())
        out[name] = files, list(np.asarray(localized.scores)), list(np.asarray(localized.maps))
    return out


def true_mask(image: Path) -> Image.Image:
    """1 = manipulated."""
    disk = np.asarray(Image.open(str(image).replace("/images/", "/masks/")))[..., 0]
    return Image.fromarray((disk != 255).astype(np.uint8))


def best_f1(want: np.ndarray, values: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(want.ravel(), values.ravel())
    return (2 * precision * recall / np.maximum(precision + recall, 1e-300)).max()


def mean(values: list[float]) -> float | None:
    """× 100, of what is known; None where nothing is, as results.json has it."""
    known = [value for value in values if not np.isnan(value)]
    return 100 * float(np.mean(known)) if known else None


def figures(localization_map: np.ndarray, mask: Image.Image) -> dict[str, float]:
    """By the definitions, from counts, and by scikit-learn."""
    out = {}
    small = Image.fromarray(localization_map)
    values = np.asarray(small.resize(mask.size, Image.Resampling.BICUBIC))
    large = values > 0.5
    small_mask = mask.resize(small.size, Image.Resampling.NEAREST)
    for size, got, want in (("lg", large, mask), ("sm", localization_map > 0.5, small_mask)):
        want = np.asarray(want) == 1
        hits, wrong = int((got & want).sum()), int((got != want).sum())
        out[f"iou_{size}"] = hits / (hits + wrong) if hits + wrong else 1.0
        out[f"pbca_{size}"] = 1 - wrong / want.size
        if size == "lg":
            out["f1"] = 2 * hits / (2 * hits + wrong)
            out["pixel_auc"] = roc_auc_score(want.ravel(), values.ravel())
            out["pixel_ap"] = average_precision_score(want.ravel(), values.ravel())
            out["f1_best"] = best_f1(want, values)
            out["iou_best"] = out["f1_best"] / (2 - out["f1_best"])
            out["mcc"] = matthews_corrcoef(want.ravel(), got.ravel())
            inside = ndimage.minimum_filter(want, 15)
            counted = inside | ~ndimage.maximum_filter(want, 11)
            out["f1_tolerant"] = out["f1_tolerant_best"] = np.nan
            if inside.any() and not inside[counted].all():
                sides = (got[counted], values[counted]), (~got[counted], -values[counted])
                out["f1_tolerant"] = max(f1_score(inside[counted], cut) for cut, _ in sides)
                best = (best_f1(inside[counted], ranked) for _, ranked in sides)
                out["f1_tolerant_best"] = max(best)
    return out


def rows(folder: epath.Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def results(folder: epath.Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_maps_are_worth_the_test(predicted):
    # Not one map above or below the threshold throughout, or the figures would say nothing.
    shares = (np.stack(predicted[FAKE][2]) > 0.5).mean((1, 2))
    assert 0.3 < shares.mean() < 0.7


def test_localization(run, predicted):
    files, _, maps = predicted[FAKE]
    each = [figures(m, true_mask(f)) for m, f in zip(maps, files, strict=True)]
    stored = results(run)
    for name in each[0]:
        # One pixel of one image may fall on the other side of the threshold by rounding.
        assert stored[name] == pytest.approx(mean([x[name] for x in each]), abs=0.2)
    tolerant = [x["f1_tolerant"] for x in each]
    assert stored["tolerant_images"] == np.count_nonzero(~np.isnan(tolerant)) > 0
    # The best of a single threshold: not more than one for each image, nor less than that at 0.5.
    assert stored["f1"] <= stored["f1_best_fixed"] <= stored["f1_best"]
    at = stored["f1_best_fixed_at"]
    expected = []
    for found, file in zip(maps, files, strict=True):
        mask = true_mask(file)
        got = np.asarray(Image.fromarray(found).resize(mask.size, Image.Resampling.BICUBIC)) > at
        expected.append(f1_score(np.asarray(mask).ravel(), got.ravel()))
    assert stored["f1_best_fixed"] == pytest.approx(mean(expected), abs=0.2)


def test_trivial_maps(run, predicted):
    masks = [true_mask(f) for f in predicted[FAKE][0]]
    share = 100 * np.mean([np.asarray(m).mean() for m in masks])
    stored = results(run)
    assert stored["manipulated_share"] == pytest.approx(share)
    trivial = stored["trivial"]
    assert trivial["all fake"]["iou_lg"] == pytest.approx(share)
    assert trivial["all fake"]["pbca_lg"] == pytest.approx(share)
    assert trivial["all real"]["iou_lg"] == trivial["all real"]["f1"] == 0
    assert trivial["all real"]["pbca_lg"] == pytest.approx(100 - share)
    assert trivial["all real"]["pixel_ap"] == pytest.approx(share)
    assert trivial["all real"]["pixel_auc"] == trivial["all fake"]["pixel_auc"] == 50
    size = predicted[FAKE][2][0].shape
    for name, value in (("all real", 0.0), ("all fake", 1.0)):
        expected = [figures(np.full(size, value, np.float32), m) for m in masks]
        for figure, stored_value in trivial[name].items():
            assert stored_value == pytest.approx(mean([x[figure] for x in expected])), figure
    assert 40 < trivial["random"]["pbca_sm"] < 60
    assert 0 < trivial["random"]["iou_sm"] < trivial["all fake"]["iou_sm"] + 10
    assert 45 < trivial["random"]["pixel_auc"] < 55


def test_verdict(run, predicted, evaluated):
    """The threshold is from real validation images alone, and kept with their scores."""
    method, model, step = (*load(run)[:2], runs.load(run).step)
    kept = json.loads((run / "real_scores.json").read_text())
    source = inputs.Examples((REAL,), "valid", runs.load_config(run).data.dir)
    records = [source[n] for n in range(len(source))]
    decoded = [Image.open(io.BytesIO(record["image"])).convert("RGB") for record in records]
    resized = [image.resize((64, 64), Image.Resampling.LANCZOS) for image in decoded]
    batch = jnp.asarray(np.stack(resized).astype(np.float32) / 127.5 - 1)
    scores = np.sort(method.localize(model, batch).scores)
    np.testing.assert_allclose(kept.pop("scores"), scores, atol=1e-5)
    weights = Checkpoints(run, keep_best=1).checksum(step)
    digests = provenance.digests(source.provenance)
    real = {"real": digests, "split": "valid"}
    fakes, likeness = kept.pop("fakes"), kept.pop("likeness")
    trained_on = inputs.Examples(
        (REAL, "dolos/celebahq_p2"), "valid", runs.load_config(run).data.dir
    )
    assert kept.pop("of_fakes") == provenance.digests(trained_on.provenance)
    assert kept == {"checkpoint": step, "weights": weights, **real}
    assert likeness is None and len(fakes) == 9  # of so few nothing is known
    stored = results(run)
    above = int(0.05 * len(scores))
    assert stored["threshold"] == pytest.approx(scores[len(scores) - 1 - above], abs=1e-5)
    for side, name in (("fake", FAKE), ("real", REAL)):
        share = np.mean(np.array(predicted[name][1]) > stored["threshold"])
        assert stored[f"{side}_above"] == pytest.approx(100 * share, abs=1e-9)


def test_verdicts_of_test_images(run):
    """Against counting, in the table and in the results."""
    kept = json.loads((run / "real_scores.json").read_text())
    found = results(run)["verdicts"]
    answers = {"fake": [], "real": []}
    for row in rows(run):
        score = float(row["score"])
        as_high = sum(one >= score for one in kept["scores"])
        as_low = sum(one <= score for one in kept["fakes"])
        assert float(row["p_value"]) == (1 + as_high) / (1 + len(kept["scores"]))
        answer = "real" if (1 + as_low) / (1 + len(kept["fakes"])) <= 0.05 else "unsure"
        assert row["verdict"] == ("fake" if float(row["p_value"]) <= 0.05 else answer)
        answers[row["label"]].append(row["verdict"])
    assert found["false_positive_rate"] == 5
    for side, said in answers.items():
        shares = {answer: 100 * np.mean([one == answer for one in said]) for answer in ANSWERS}
        assert found[side] == pytest.approx({**shares, "unlike": 0})
    scores = np.array([float(row["score"]) for row in rows(run) if row["label"] == "real"])
    assert found["pooled_false_positives"] == 100 * verdict.pooled_rate(scores, 0.05)


def test_images_unlike_the_validation_images(run, dolos_folder, tmp_path, monkeypatch):
    """As prediction tells them, which sees the files."""
    monkeypatch.setattr(likeness, "FEWEST", 4)  # of 9
    other = epath.Path(shutil.copytree(run, tmp_path / "other"))
    (other / "real_scores.json").unlink()
    found = evaluate(other)["verdicts"]
    assert 0 < found["fake"]["unlike"] + found["real"]["unlike"] < 200
    folders = ("fake/repaint-p2/images/test", "real/test")
    images = [str(dolos_folder / "celebahq" / name) for name in folders]
    said = predict(other, images, epath.Path(tmp_path / "out"), trust=False)
    assert [row.verdict for row in said] == [row["verdict"] for row in rows(other)]
    for side in ("fake", "real"):
        unlike = [
            one.reason == "unlike the training images"
            for one, row in zip(said, rows(other), strict=True)
            if row["label"] == side
        ]
        assert found[side]["unlike"] == pytest.approx(100 * np.mean(unlike))


def test_a_verdict_that_holds_for_perturbed_images(run, predicted, tmp_path):
    other = epath.Path(shutil.copytree(run, tmp_path / "other"))
    clean = json.loads((other / "real_scores.json").read_text())
    (other / "real_scores.json").unlink()
    config = runs.load_config(other)
    config.eval.perturbed = True
    (other / "config.json").write_text(configuration.save(config))
    stored = evaluate(other)
    kept = json.loads((other / "real_scores.json").read_text())
    perturbed = kept.pop("perturbed")
    assert kept == clean
    assert list(perturbed) == [str(chain) for chain in perturbations.EVERYDAY]
    every = [kept["scores"], *perturbed.values()]
    assert {len(scores) for scores in every} == {len(kept["scores"])}
    for place, scores in enumerate(every):
        assert scores not in every[:place]  # each change does something
    above = int(0.05 * len(kept["scores"]))
    assert stored["threshold"] == max(sorted(scores)[::-1][above] for scores in every)
    # One of them, by its definition.
    source = inputs.Examples((REAL,), "valid", config.data.dir)
    darker = [perturbations.gamma(inputs.full_image(source[n]), 1.5) for n in range(len(source))]
    resized = [Image.fromarray(one).resize((64, 64), Image.Resampling.LANCZOS) for one in darker]
    method, model = load(run)[:2]
    batch = jnp.asarray(np.stack(resized).astype(np.float32) / 127.5 - 1)
    expected = np.sort(method.localize(model, batch).scores)
    np.testing.assert_allclose(perturbed["gamma 1.5"], expected, atol=1e-5)


def test_without_real_training_images_those_tested_on_have_a_validation_split(run, tmp_path):
    other = epath.Path(shutil.copytree(run, tmp_path / "other"))
    (other / "real_scores.json").unlink()
    config = runs.load_config(other)
    config.setup, config.supervision, config.data.real = "c", "full", ()
    (other / "config.json").write_text(config.to_json())
    assert evaluate(other)["threshold"] == results(run)["threshold"]


def test_kept_scores_are_used_again_unless_of_another_network(run, tmp_path, caplog):
    other = epath.Path(shutil.copytree(run, tmp_path / "other"))
    path = other / "real_scores.json"
    kept = json.loads(path.read_text())
    true = results(run)["threshold"]
    for changed, threshold in (
        ({}, 1e9),
        ({"checkpoint": 0}, true),
        ({"weights": 0}, true),
        ({"real": {REAL: "of other images"}}, true),
    ):
        path.write_text(json.dumps({**kept, **changed, "scores": [1e9]}))
        assert evaluate(other)["threshold"] == pytest.approx(threshold)
    assert json.loads(path.read_text()) == kept


def test_without_real_validation_images_there_is_no_threshold(run, tmp_path, caplog):
    other = epath.Path(shutil.copytree(run, tmp_path / "other"))
    (other / "real_scores.json").unlink()
    config = runs.load_config(other)
    config.data.real = ("dolos/ffhq_real",)
    (other / "config.json").write_text(config.to_json())
    with caplog.at_level("WARNING", "wsdl_jax"):
        stored = evaluate(other)
    assert "no threshold for a verdict" in caplog.text and "dolos/ffhq_real" in caplog.text
    assert stored["threshold"] is stored["fake_above"] is stored["real_above"] is None
    assert stored["auc"] == results(run)["auc"]
    assert "called fake" not in (other / "results.txt").read_text()
    assert not (other / "real_scores.json").exists()


def test_detection(run, predicted):
    fake, real = np.array(predicted[FAKE][1]), np.array(predicted[REAL][1])
    assert (len(fake), len(real)) == (11, 8)
    stored = results(run)
    wins = np.mean(fake[:, None] > real) + np.mean(fake[:, None] == real) / 2
    assert stored["auc"] == pytest.approx(100 * wins, abs=1e-6)
    draws = []
    for seed in range(5):  # the larger side is subsampled with fixed seeds
        chosen = np.random.default_rng(seed).choice(fake, len(real), replace=False)
        draws.append(
            average_precision_score([0] * len(real) + [1] * len(real), np.r_[real, chosen])
        )
    assert stored["ap"] == pytest.approx(100 * np.mean(draws))
    assert stored["ap_2sd"] == pytest.approx(200 * np.std(draws))
    assert stored["ap_2sd"] > 0
    verdicts = np.r_[real, fake] > 0.5  # the scores of Patches are probabilities
    true = np.repeat([0, 1], [len(real), len(fake)])
    expected = 100 * balanced_accuracy_score(true, verdicts)
    assert stored["balanced_accuracy"] == pytest.approx(expected)
    assert stored["image_f1"] == pytest.approx(100 * f1_score(true, verdicts))
    called = np.r_[real, fake] > stored["threshold"]
    assert stored["image_f1_verdict"] == pytest.approx(100 * f1_score(true, called))


def test_counts_names_and_checkpoint(run):
    stored = results(run)
    assert (stored["test_fake"], stored["test_real"]) == (FAKE, REAL)
    assert (stored["fake_images"], stored["real_images"], stored["pixel_images"]) == (11, 8, 11)
    assert stored["checkpoint"] == 5


def test_a_row_for_every_image(run, predicted):
    table = rows(run)
    expected: Iterator = (
        (side, path, score, localization_map)
        for side, name in (("fake", FAKE), ("real", REAL))
        for path, score, localization_map in zip(*predicted[name], strict=True)
    )
    for row, (side, path, score, localization_map) in zip(table, expected, strict=True):
        assert (row["key"], row["label"]) == (path.name, side)
        assert float(row["score"]) == pytest.approx(float(score), rel=1e-4)
        assert row["probability"] == row["score"]
        if side == "real":
            figures_of_masks = ("iou", "pbc", "f1", "pix", "man", "mcc")
            assert not any(v for name, v in row.items() if name.startswith(figures_of_masks))
            continue
        mask = true_mask(path)
        assert float(row["manipulated_share"]) == pytest.approx(np.asarray(mask).mean())
        for name, value in figures(localization_map, mask).items():
            assert float(row[name]) == pytest.approx(value, abs=0.02, nan_ok=True)


def test_text_and_pictures(run):
    text = (run / "results.txt").read_text()
    assert f"{results(run)['iou_lg']:.1f}" in text and FAKE in text
    with Image.open(run / "examples.png") as sheet:
        sheet.verify()
        assert sheet.width > 8 * 128 and sheet.height > 4 * 128


def test_again_gives_the_same(run):
    names = ("results.json", "results.txt", "predictions.csv", "examples.png")
    before = {name: (run / name).read_bytes() for name in names}
    assert evaluate(run) == results(run)
    assert {name: (run / name).read_bytes() for name in names} == before


def test_another_dataset_goes_beside(run, predicted):
    other = "dolos/celebahq_repaint_p2_9k"
    before = results(run)
    returned = evaluate(run, fake=other)
    assert results(run) == before
    folder = run / "evaluations" / "dolos-celebahq_repaint_p2_9k+dolos-celebahq_real"
    assert {path.name for path in folder.iterdir()} == {
        "results.json",
        "results.txt",
        "predictions.csv",
        "examples.png",
        locks.RESULTS,
    }
    stored = results(folder)
    assert stored == returned
    assert (stored["test_fake"], stored["test_real"]) == (other, REAL)
    assert stored["checkpoint"] == before["checkpoint"]
    files, _, maps = predicted[other]
    expected = [figures(m, true_mask(f))["iou_lg"] for m, f in zip(maps, files, strict=True)]
    assert stored["iou_lg"] == pytest.approx(100 * np.mean(expected), abs=0.2)


def test_masks_of_one_class(run, monkeypatch):
    """They have no pixel AUC and AP: the means are over the other images."""
    read = inputs.full_mask

    def masks(record):
        untouched = record["key"] in (b"00003.png", b"00007.png")
        return read(record) * np.uint8(not untouched)

    before, other = results(run), "dolos/celebahq_repaint_p2_9k"
    monkeypatch.setattr(inputs, "full_mask", masks)
    stored = evaluate(run, fake=other)
    folder = run / "evaluations" / "dolos-celebahq_repaint_p2_9k+dolos-celebahq_real"
    fakes = [row for row in rows(folder) if row["label"] == "fake"]
    defined = [row for row in fakes if row["pixel_auc"] != "nan"]
    assert (stored["fake_images"], stored["pixel_images"]) == (11, 9)
    assert {row["key"] for row in fakes} - {row["key"] for row in defined} == {
        *("00003.png", "00007.png")
    }
    for name in ("pixel_auc", "pixel_ap", "f1_best"):
        assert stored[name] == pytest.approx(mean([float(row[name]) for row in defined]))
    assert stored["f1"] == pytest.approx(100 * np.mean([float(row["f1"]) for row in fakes]))
    assert "over the 9 images" in (folder / "results.txt").read_text()

    monkeypatch.setattr(inputs, "full_mask", lambda record: read(record) * np.uint8(0))
    assert evaluate(run, fake=other)["pixel_images"] == 0
    text = (folder / "results.json").read_text()
    assert "NaN" not in text  # it would not be JSON
    stored = json.loads(text)
    assert stored["pixel_auc"] is stored["trivial"]["random"]["pixel_ap"] is None
    assert results(run) == before


def test_memory_and_reading_do_not_grow_with_the_test_set(run, monkeypatch):
    """Maps are let go once measured; a record is read for the network and for the measuring."""
    gather, read = Parallel.gather, inputs.Examples.__getitem__
    maps: list[weakref.ref] = []
    reads: collections.Counter = collections.Counter()

    def gathered(self, tree):
        assert not any(reference() is not None for reference in maps[:-1])
        out = gather(self, tree)
        maps.append(weakref.ref(out.maps))
        return out

    def counted(self, index):
        record = read(self, index)
        reads[record["label"], record["key"]] += 1
        return record

    monkeypatch.setattr(Parallel, "gather", gathered)
    monkeypatch.setattr(inputs.Examples, "__getitem__", counted)
    evaluate(run)
    assert len(maps) == 3  # batches of 8: two of fake images, one of real
    assert not any(reference() is not None for reference in maps)
    assert len(reads) == 11 + 8
    # Those on the sheet of examples once more; the first of each subset also to see what that
    # holds, the last one also to fill up its batch.
    shown = [(1, b"%05d.png" % index) for index in (0, 2, 4, 6, 8, 10)]
    shown += [(0, b"00000.png"), (0, max(key for label, key in reads if label == 0))]
    reads.subtract(shown)
    first, last = (1, b"00000.png"), (1, b"00010.png")
    assert (reads.pop(first), reads.pop((0, b"00000.png")), reads.pop(last)) == (3, 3, 2 + 5)
    assert set(reads.values()) == {2}


def test_iou_by_threshold(run, predicted):
    files, _, maps = predicted[FAKE]
    stored = results(run)
    points = {point["threshold"]: point["iou_lg"] for point in stored["iou_by_threshold"]}
    assert points[0.5] == pytest.approx(stored["iou_lg"])
    for threshold in (0.05, 0.45, 0.55, 0.95):
        expected = []
        for localization_map, file in zip(maps, files, strict=True):
            mask = true_mask(file)
            values = Image.fromarray(localization_map).resize(mask.size, Image.Resampling.BICUBIC)
            got, want = np.asarray(values) > threshold, np.asarray(mask) == 1
            expected.append((got & want).sum() / (got | want).sum())
        assert points[threshold] == pytest.approx(100 * np.mean(expected), abs=0.2)


def test_the_fitted_threshold(run, predicted):
    """Fitted on spliced validation images, by a network of its own, and used on the test's maps."""
    stored, kept = results(run), json.loads((run / "map_threshold.json").read_text())
    assert stored["map_threshold"] == kept["value"] and kept["fitted_on"] == "spliced"
    config = configuration.load((run / "config.json").read_text())
    assert set(kept["data"]) == {*config.data.real, *config.data.fake}
    source = inputs.Examples((*config.data.real, *config.data.fake), "valid", config.data.dir)
    assert kept["images"] == 9  # the fakes
    method, model, _ = load(run)
    at, ious = map_threshold.CANDIDATES, []
    for index in source.places(inputs.FAKE).tolist():
        made = inputs.Spliced(source)[index]
        resized = Image.fromarray(made["image"]).resize((64, 64), Image.Resampling.LANCZOS)
        pixels = jnp.asarray(np.asarray(resized, np.float32) / 127.5 - 1)[None]
        small = Image.fromarray(np.asarray(method.localize(model, pixels).maps[0]))
        large = np.asarray(small.resize(made["region"].shape[::-1], Image.Resampling.BICUBIC))
        want = made["region"] > 0.5
        got = large[None] > at[:, None, None]
        ious.append((got & want).sum((1, 2)) / (got | want).sum((1, 2)))
    means = np.mean(ious, axis=0)
    assert kept["iou"] == pytest.approx(means.max(), abs=0.005)
    assert means[list(at).index(kept["value"])] == pytest.approx(means.max(), abs=0.005)
    files, _, maps = predicted[FAKE]
    expected = []
    for localization_map, file in zip(maps, files, strict=True):
        mask = true_mask(file)
        values = Image.fromarray(localization_map).resize(mask.size, Image.Resampling.BICUBIC)
        got, want = np.asarray(values) > kept["value"], np.asarray(mask) == 1
        expected.append((got & want).sum() / (got | want).sum())
    assert stored["iou_fitted"] == pytest.approx(100 * np.mean(expected), abs=0.2)
    assert f"maps are cut at {kept['value']:.3g}" in (run / "results.txt").read_text()


def test_a_kept_threshold_is_used_again(run, monkeypatch):
    before = results(run)
    path = run / "map_threshold.json"
    kept = json.loads(path.read_text())
    moved = {**kept, "value": 0.25}
    path.write_text(json.dumps(moved))
    assert evaluate(run)["map_threshold"] == 0.25
    path.write_text(json.dumps({**moved, "weights": 1}))  # of another network: fitted anew
    assert evaluate(run) == before
    assert json.loads(path.read_text()) == kept
    # Without the validation images, that which was kept is used, or there is none.
    opened = inputs.Examples.__init__

    def without_validation(self, names, split, data_dir):
        if split == "valid":
            raise configuration.ConfigError("not prepared")
        opened(self, names, split, data_dir)

    monkeypatch.setattr(inputs.Examples, "__init__", without_validation)
    assert evaluate(run)["map_threshold"] == before["map_threshold"]
    path.unlink()
    stored = evaluate(run)
    assert stored["map_threshold"] is None and stored["iou_fitted"] is None
    monkeypatch.undo()
    assert evaluate(run) == before


@pytest.mark.parametrize(
    ("kind", "identity"), [("noise", "0"), ("blur", "0"), ("resize", "1"), ("gamma", "1.0")]
)
def test_clean_images_have_the_figures_of_the_plain_evaluation(run, kind, identity):
    before = {path: path.read_bytes() for path in map(Path, contents(run)) if path.is_file()}
    returned = robustness(run, kind, [identity])
    path = run / f"robustness-{kind}.json"
    stored = json.loads(path.read_text())
    path.unlink()
    assert stored == returned
    assert {path: path.read_bytes() for path in before} == before
    plain = results(run)
    del plain["trivial"], plain["iou_by_threshold"], plain["parts"]
    del plain["f1_best_fixed"], plain["f1_best_fixed_at"], plain["intervals"]
    clean = {**stored["clean"], **{k: v for k, v in stored.items() if k in plain}}
    del plain["maps"], plain["predictions"]  # a hash of the table, which there is no other of
    assert clean == plain  # to the last bit
    assert stored["points"] == [{"strength": float(identity), **stored["clean"]}]


def test_robustness(run, dolos_folder):
    """Against perturbed images and maps of their own, without pipeline and mesh."""
    other = "dolos/celebahq_repaint_p2_9k"
    stored = robustness(run, "jpeg", [80, 5], fake=other)
    folder = run / "evaluations" / "dolos-celebahq_repaint_p2_9k+dolos-celebahq_real"
    assert json.loads((folder / "robustness-jpeg.json").read_text()) == stored
    assert not (run / "robustness-jpeg.json").exists()
    assert (stored["perturbation"], stored["unit"]) == ("jpeg", "JPEG quality")
    assert [point["strength"] for point in stored["points"]] == [80, 5]
    method, model, _ = load(run)
    scores = {}
    for name in (other, REAL):
        files = sorted((dolos_folder / FOLDERS[name]).iterdir())
        perturbed = []
        for path in files:
            file = io.BytesIO()
            Image.open(path).convert("RGB").save(file, "JPEG", quality=5)
            resized = Image.open(file).resize((64, 64), Image.Resampling.LANCZOS)
            perturbed.append(np.asarray(resized, np.float32) / 127.5 - 1)
        localized = method.localize(model, jnp.asarray(np.stack(perturbed)))
        scores[name] = np.asarray(localized.scores)
        if name == other:
            maps = np.asarray(localized.maps)
            expected = [figures(m, true_mask(f)) for m, f in zip(maps, files, strict=True)]
    point = stored["points"][1]
    assert point != {"strength": 5, **stored["clean"]}
    for name in expected[0]:
        assert point[name] == pytest.approx(mean([each[name] for each in expected]), abs=0.2)
    labels = np.repeat([0, 1], [len(scores[REAL]), len(scores[other])])
    auc = 100 * roc_auc_score(labels, np.r_[scores[REAL], scores[other]])
    assert point["auc"] == pytest.approx(auc, abs=0.2)


def test_everyday_robustness(run, monkeypatch, caplog):
    compiled = []
    monkeypatch.setattr(
        Parallel, "map", lambda self, step, of=Parallel.map: compiled.append(step) or of(self, step)
    )
    with caplog.at_level("INFO", "wsdl_jax"):
        stored = everyday_robustness(run)
    assert len(compiled) == 1
    assert json.loads((run / "robustness-all.json").read_text()) == stored
    plain = results(run)
    assert stored["all_fake_iou"] == plain["trivial"]["all fake"]["iou_lg"]
    for name, value in stored["clean"].items():
        assert value == plain[name], name
    points = {point["perturbation"]: point for point in stored["points"]}
    assert len(points) == len(stored["points"]) == 12
    # One of them, alone, has the same figures to the last bit.
    alone = robustness(run, "jpeg", [60])["points"][0]
    assert {**points["jpeg 60"], **alone} == {**points["jpeg 60"], "strength": 60}
    for point in stored["points"]:
        for part, iou in (("retained", "iou_lg"), ("retained_fitted", "iou_fitted")):
            above = plain[iou] - stored["all_fake_iou"]
            if above > 0:
                kept = (point[iou] - stored["all_fake_iou"]) / above
                assert point[part] == pytest.approx(kept)
            else:
                assert point[part] is None
    table = (run / "robustness-all.md").read_text()
    assert table in caplog.text and "| resize 0.75, jpeg 75 " in table
    with Image.open(run / "robustness-all.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
    # What the report is about stays as it was.
    assert results(run) == plain


def test_an_interrupted_series_leaves_no_trace(run, monkeypatch, tmp_path: Path):
    gather, calls = Parallel.gather, []

    def interrupted(self, tree):
        calls.append(1)
        if len(calls) == 5:  # clean images have been scored
            raise KeyboardInterrupt
        return gather(self, tree)

    before = contents(run)
    monkeypatch.setattr(Parallel, "gather", interrupted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        robustness(run, "gamma")
    assert len(calls) == 5 and contents(run) == before and not contents(tmp_path)


def test_a_strength_that_is_not_one(run):
    before = contents(run)
    with pytest.raises(configuration.ConfigError, match="'much' is no strength of noise"):
        robustness(run, "noise", ["1", "much"])
    assert contents(run) == before


def test_wrong_flags_are_one_line(tmp_path):
    command = [sys.executable, "-m", "wsdl_jax.evaluate", "--run", tmp_path, "--strengths", "1,2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: --strengths goes with --perturb"]
    assert "Traceback" not in done.stderr


def contents(folder: Path) -> set[str]:
    return {str(path) for path in Path(folder).rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fake": "dolos/celebahq_p2"}, r"dolos/celebahq_p2 has no split 'test'"),
        ({"fake": REAL}, r"dolos/celebahq_real holds real images, where fake ones are needed"),
        ({"real": FAKE}, r"dolos/celebahq_repaint_p2 .*fake"),
        ({"fake": "dolos/nobody"}, r"nobody.*choose from .*celebahq_ldm"),
        ({"fake": "dolos/celebahq_ldm"}, r"dolos/celebahq_ldm is not prepared in"),
        ({"real": "paintings/real"}, r"paintings.*choose from dolos, image_folder, manifest, port"),
    ],
)
def test_subsets_that_cannot_be_tested_on(run, arguments, message):
    before = contents(run)
    with pytest.raises(UserError, match=message) as caught:
        evaluate(run, **arguments)
    assert "\n" not in str(caught.value)
    assert contents(run) == before


def test_not_a_run(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "notes"):
        with pytest.raises(UserError, match=f"{path} is not a run directory") as caught:
            evaluate(epath.Path(path))
        assert "\n" not in str(caught.value)
    assert contents(tmp_path) == {str(tmp_path / "notes")}


def test_a_run_without_a_checkpoint(run, tmp_path: Path):
    unfinished = epath.Path(tmp_path)
    (unfinished / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(UserError, match="has no checkpoint yet"):
        evaluate(unfinished)


def test_a_damaged_image_is_named(run, monkeypatch):
    read = inputs.Examples.__getitem__

    def damaged(self, index):
        record = read(self, index)
        if record["key"] == b"00004.png":
            record["image"] = record["image"][:100]
        return record

    before = contents(run)
    monkeypatch.setattr(inputs.Examples, "__getitem__", damaged)
    with pytest.raises(UserError, match=r"the image of 00004\.png cannot be read"):
        evaluate(run)
    assert contents(run) == before


def test_an_interrupted_evaluation_leaves_no_trace(run, monkeypatch, tmp_path: Path):
    gather, calls = Parallel.gather, []

    def interrupted(self, tree):
        calls.append(1)
        if len(calls) == 3:  # fake images have been measured and written
            raise KeyboardInterrupt
        return gather(self, tree)

    before = {path: path.read_bytes() for path in map(Path, contents(run)) if path.is_file()}
    folders = contents(run)
    monkeypatch.setattr(Parallel, "gather", interrupted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for arguments in ({}, {"fake": "dolos/celebahq_repaint_p2_9k", "real": REAL}):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            evaluate(run, **arguments)
        assert len(calls) == 3
        assert contents(run) == folders and not contents(tmp_path)
    assert {path: path.read_bytes() for path in before} == before


def test_maps_that_are_not_finite(run, monkeypatch):
    restore = Checkpoints.restore

    def broken(self, step, like):
        state = restore(self, step, like)
        state["params"] = jax.tree.map(lambda x: x * np.float32(np.nan), state["params"])
        return state

    before = contents(run)
    monkeypatch.setattr(Checkpoints, "restore", broken)
    with pytest.raises(UserError, match=r"not finite, first those of 00000\.png") as caught:
        evaluate(run)
    assert len(str(caught.value)) < 200
    assert contents(run) == before
