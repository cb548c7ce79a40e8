"""Localizers against the network itself, Pillow and NumPy."""

import copy
import dataclasses
import itertools
import json
import math
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import SIZE, noise
from PIL import Image

from wsdl_jax import methods, runs
from wsdl_jax.evaluation import calibration, likeness, verdict
from wsdl_jax.prediction.localizer import Localizer, Prediction, _Blend, _window_starts
from wsdl_jax.runtime.errors import UserError


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


def test_maps_are_cut_where_the_run_has_fitted_it(evaluated):
    kept = json.loads((evaluated / "map_threshold.json").read_text())
    localizer = Localizer.load(evaluated)
    assert localizer.cut == kept["value"] != 0.5
    (prediction,) = localizer([noise(80, 70)])
    assert prediction.manipulated_share == np.mean(prediction.map > kept["value"])


def of_map(raw: np.ndarray, size: tuple[int, int], covered: tuple[float, float]) -> Prediction:
    return Prediction(3.0, 0.5, "real", None, "", raw, size, covered)


def test_manipulated_share():
    raw = np.zeros((10, 10), np.float32)
    raw[:, 5:] = 1
    prediction = of_map(raw, (40, 40), (10.0, 10.0))
    assert prediction.manipulated_share == 0.5
    assert prediction.map[:, :15].max() == pytest.approx(0, abs=1e-6)
    assert prediction.map[:, 25:].min() == pytest.approx(1, abs=1e-6)
    # On a map that is 5 columns wide for the image, which ends where the ones begin.
    assert of_map(raw, (40, 40), (10.0, 4.0)).manipulated_share == 0


def test_verdict(trained, network):
    """By the scores of real images; by probability before those are known."""
    images = [noise(40, 40, seed) for seed in range(6)]
    scores, _ = network([Image.fromarray(image) for image in images])
    config, model, *_ = runs.load(trained)
    ordered = sorted(scores.tolist())
    middle = (ordered[2] + ordered[3]) / 2
    known = verdict.Calibration({"clean": [middle] * 99}, fake=[middle] * 99)
    localizer = Localizer(config, model, calibrations=[known])
    found = localizer(images)
    assert [p.verdict for p in found] == ["fake" if one > middle else "real" for one in scores]
    assert {p.p_value for p in found} == {0.01, 1.0}
    strict = Localizer(config, model, calibrations=[known], false_positive_rate=0.001)
    assert {p.verdict for p in strict(images)} == {"unsure"}
    localizer = Localizer.load(trained)
    assert localizer.calibrations == ()
    found = localizer(images)
    assert [p.verdict == "fake" for p in found] == (scores > 0.5).tolist()
    assert {p.p_value for p in found} == {None}
    with pytest.raises(UserError, match=r"false_positive_rate 1.0: not in \[0, 1\)"):
        Localizer(config, model, false_positive_rate=1.0)


def test_features_are_those_of_the_method(trained, localizer, tiler):
    config, model, *_ = runs.load(trained)
    method = methods.from_config(config)
    image = noise(150, 64, 1)
    small = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    windows = [image[top : top + SIZE] for top in (0, 30, 60, 86)]
    for by, looks in ((localizer, [np.asarray(small)]), (tiler, windows)):
        (found,) = by([image])
        pixels = methods.network_input(jax.numpy.asarray(np.stack(looks)))
        expected = np.asarray(method.embed(model, pixels)).mean(0)
        assert found.features.shape == expected.shape
        if by is localizer:
            np.testing.assert_allclose(found.features, expected, atol=1e-4)
        else:  # where windows lie is tested below
            np.testing.assert_allclose(found.features, expected, atol=0.1)


def test_calibrations_of_a_run(trained, tmp_path, caplog):
    run = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    network = tuple(runs.load(run)[2:])
    known = verdict.Calibration({"clean": [0.1 * n for n in range(10)]})
    calibration.save(run, network, {}, known)
    (found,) = Localizer.load(run).calibrations
    assert found.real == {"clean": tuple(known.real["clean"])}
    own = dataclasses.replace(known, source="own images", mode="tile")
    calibration.save_own(epath.Path(tmp_path / "own.json"), network, own)
    localizer = Localizer.load(run, mode="tile", calibration=tmp_path / "own.json")
    assert [one.source for one in localizer.calibrations] == ["own images"]
    with pytest.raises(UserError, match=r"own.json is of --mode tile: calibrate with --mode"):
        Localizer.load(run, calibration=tmp_path / "own.json")
    # The run's own is passed over, where it was not asked for.
    shutil.copy(tmp_path / "own.json", run / "calibration.json")
    (found,) = Localizer.load(run).calibrations
    assert found.source == "the training images"
    assert "not used: " in caplog.text
    (run / "calibration.json").unlink()
    # What can be told apart goes beside one's own, and that of the run is found.
    features = np.random.default_rng(0).random((40, 5), np.float32)
    calibration.save(
        run, network, {}, dataclasses.replace(known, likeness=likeness.fit([features]))
    )
    calibration.save_own(run / "calibration.json", network, dataclasses.replace(own, mode="resize"))
    found = Localizer.load(run).calibrations
    assert [one.source for one in found] == ["the training images", "own images"]
    (run / "calibration.json").unlink()
    step, checksum = network
    calibration.save(run, (step, checksum + 1), {}, known)  # of a network that was replaced
    assert Localizer.load(run).calibrations == ()


def test_strips_make_the_map(monkeypatch):
    raw = np.random.default_rng(0).random((9, 7), np.float32)
    prediction = of_map(raw, (101, 53), (8.25, 6.5))
    whole = prediction.map
    box = (0, 0, 6.5, 8.25)
    large = Image.fromarray(raw).resize((53, 101), Image.Resampling.BICUBIC, box)
    assert whole == pytest.approx(np.asarray(large).clip(0, 1), abs=1e-6)
    monkeypatch.setattr("wsdl_jax.prediction.localizer._STRIP_PIXELS", 53 * 7)
    assert [len(strip) for strip in prediction.strips()] == [7] * 14 + [3]
    assert prediction.map == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"image 1 is uint8 \[4, 5\]"),
        (np.zeros((4, 5, 3), np.float32), r"image 1 is float32 \[4, 5, 3\]"),
        (np.zeros((0, 5, 3), np.uint8), r"image 1 is uint8 \[0, 5, 3\]"),
        (Image.new("F", (5, 4), 255), "floating-point grey values beyond 0 to 1"),
    ],
)
def test_what_is_no_image_is_refused(localizer, image, message):
    with pytest.raises(ValueError, match=message):
        localizer([noise(4, 5), image])


def test_unknown_mode_and_no_run(trained, tmp_path):
    with pytest.raises(UserError, match="mode 'tiles': choose from resize, tile"):
        Localizer.load(trained, mode="tiles")
    with pytest.raises(UserError, match="not a run directory"):
        Localizer.load(tmp_path)


def test_a_network_without_finite_numbers(trained, tmp_path):
    config, model, *_ = runs.load(trained)
    model.classifier.bias.set_value(model.classifier.bias.get_value() * np.nan)
    with pytest.raises(UserError, match="not finite, first those of 0"):
        Localizer(config, model, batch=8)([noise(20, 20)])


# ----- Tiles --------


@settings(max_examples=200, deadline=None)
@given(st.floats(0.01, 300), st.integers(1, 75))
def test_windows_cover_all_and_overlap_by_half(covered, window):
    starts = _window_starts(covered, window)
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
    for (row, column), pixels in zip(view.corners, view.pixels, strict=True):
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


@pytest.mark.parametrize("size", [(150, 97), (150, 30)])
def test_pooled_scores_of_tiles(trained, tiler, size):
    """Of the whole image's map, and of what the image covers of it, where windows are larger."""
    config, model, *_ = runs.load(trained)
    config.score.pooling = "max"
    pooled = Localizer(config, model, mode="tile", batch=16)
    image, small = noise(*size, seed=3), noise(50, 40)
    (found, of_one_window), (plain, _) = pooled([image, small]), tiler([image, small])
    np.testing.assert_array_equal(found.raw, plain.raw)
    rows, columns = (math.ceil(side * 15 / SIZE) for side in size)
    assert found.score == found.probability == found.raw[:rows, :columns].max()
    assert plain.score < found.score
    assert of_one_window.score == pytest.approx(of_one_window.raw.max(), abs=1e-6)


def test_trust_is_of_maps_that_point_somewhere(trained):
    config, model, *_ = runs.load(trained)
    image = noise(64, 64)
    (plain,) = Localizer(config, model)([image])
    low, high = float(plain.raw.min()), float(plain.raw.max())
    for cut, is_told in ((low / 2, False), ((low + high) / 2, True), (high, False)):
        (found,) = Localizer(config, model, cut=cut, trust=True)([image])
        assert (found.agreement is not None) == is_told
    with pytest.raises(ValueError, match="no agreement"):
        _ = plain.trust


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
    assert (view.window, view.map_size, view.corners) == (16, (16, 24), [(0, 0), (0, 8)])
    blend = _Blend("image", view)
    maps = np.random.default_rng(0).random((2, SIZE, SIZE), np.float32)
    for corner, score, part in zip(view.corners, np.float32([1, 4]), maps, strict=True):
        assert not blend.complete
        blend.add(corner, methods.Localization(score, np.float32(0.5), part, None, 1 - part))
    assert blend.complete
    said = verdict.Verdict("fake", 0.25, "why")
    found = blend.prediction(lambda *of: said if of == (2.5, 0.5, None) else None, 0.5)
    left, right = maps.reshape(2, 16, 4, 16, 4).mean((2, 4))
    assert found.raw[:, :8] == pytest.approx(left[:, :8], abs=1e-6)
    assert found.raw[:, 16:] == pytest.approx(right[:, 8:], abs=1e-6)
    assert (found.score, found.probability, found.verdict) == (2.5, 0.5, "fake")
    assert (found.p_value, found.reason) == (0.25, "why")
    assert found.agreement == pytest.approx(1 - found.raw, abs=1e-6)
