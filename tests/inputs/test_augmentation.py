"""Augmented images: each change against its definition, shares of changes, targets that follow."""

import dataclasses
import io
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsdl_jax import configuration
from wsdl_jax.configuration.augmentation import RECIPES
from wsdl_jax.inputs import perturbations
from wsdl_jax.inputs.augmentation import Augmentation
from wsdl_jax.runtime.errors import UserError

CHANGES = ("jpeg", "webp", "scale", "blur", "noise", "gamma", "colour", "crop", "cut_out")


def photograph(height: int = 96, width: int = 80) -> np.ndarray:
    """Smooth colours with some grain, away from both ends of the range."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    channels = [np.sin(x / 9 + phase) * np.cos(y / 7 - phase) for phase in range(3)]
    values = 127.5 + 60 * np.stack(channels, -1) + rng.normal(0, 3, (height, width, 3))
    return values.clip(20, 235).astype(np.uint8)


def augmentation(**values: Any) -> Augmentation:
    """Nothing but what is given; a change that is named alone happens always."""
    augment = configuration.base().augment
    augment.update(values)
    return Augmentation.of(augment)


def recipe(name: str) -> Augmentation:
    config = configuration.base()
    configuration.set_augment(config, name)
    return Augmentation.of(config.augment)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# ----- What there is for every image -----------------------------------------------------------


def test_nothing_by_default():
    off = Augmentation.of(configuration.base().augment)
    assert off.is_off and recipe("none") == off
    assert not recipe("light").is_off and not recipe("robust").is_off
    image, target = photograph(), np.ones((96, 80), np.uint8)
    out = off(image, target, rng(0))
    assert out[0] is image and out[1] is target


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(RECIPES)),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    dtype=st.sampled_from([None, np.uint8, np.float32]),
    seed=st.integers(0, 2**32),
)
def test_any_image_and_target(name, height, width, dtype, seed):
    image = photograph(height, width)
    target = None
    if dtype is not None:
        target = (np.arange(height * width).reshape(height, width) % 3 == 0).astype(dtype)
    before = image.copy(), None if target is None else target.copy()
    augment = recipe(name)
    out, found = augment(image, target, rng(seed))
    assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3 and min(out.shape) > 0
    np.testing.assert_array_equal(image, before[0])  # the arguments stay as they were
    if target is None:
        assert found is None
    else:
        np.testing.assert_array_equal(target, before[1])
        assert found.shape == out.shape[:2] and found.dtype == dtype
        assert found.min() >= 0 and found.max() <= 1
    # It follows from the randomness alone, in another process, too.
    again, target_again = pickle.loads(pickle.dumps(augment))(image, target, rng(seed))
    np.testing.assert_array_equal(again, out)
    if target is not None:
        np.testing.assert_array_equal(target_again, found)


def test_a_target_does_not_change_what_is_drawn():
    image, augment = photograph(), recipe("robust")
    for seed in range(60):
        alone, _ = augment(image, None, rng(seed))
        for dtype in (np.uint8, np.float32):
            beside, _ = augment(image, np.ones(image.shape[:2], dtype), rng(seed))
            np.testing.assert_array_equal(beside, alone)


@pytest.mark.parametrize("change", CHANGES)
def test_how_often_a_change_happens(change):
    image = photograph(40, 40)
    augment = augmentation(**{change: 0.3})
    changed = 0
    for seed in range(400):
        out, _ = augment(image, None, rng(seed))
        changed += out.shape != image.shape or not np.array_equal(out, image)
    # Four standard deviations are 37; a factor near 1 changes nothing.
    assert 83 - 12 * (change in ("scale", "crop", "gamma", "colour")) < changed < 157


def test_all_orders_are_drawn(monkeypatch):
    orders = []
    for name in ("jpeg", "blur", "noise"):

        def record(image, *_, name=name):
            orders[-1] += (name,)
            return image

        monkeypatch.setattr(perturbations, name, record)
    augment = augmentation(jpeg=1.0, blur=1.0, noise=1.0)
    for seed in range(300):
        orders.append(())
        augment(photograph(8, 8), None, rng(seed))
    counts = {order: orders.count(order) for order in set(orders)}
    assert len(counts) == 6 and all(sorted(order) == ["blur", "jpeg", "noise"] for order in counts)
    assert min(counts.values()) > 50 - 4 * np.sqrt(300 / 6 * 5 / 6)


# ----- Each change -----------------------------------------------------------------------------


def test_qualities_of_compression(monkeypatch):
    saved = []
    for name in ("jpeg", "webp"):
        monkeypatch.setattr(
            perturbations, name, lambda i, quality, name=name: saved.append((name, quality)) or i
        )
    augment = augmentation(jpeg=0.6, webp=0.2, again=0.5, quality_range=(60, 62))
    images = 1000
    for seed in range(images):
        augment(photograph(8, 8), None, rng(seed))
    assert {quality for _, quality in saved} == {60, 61, 62}
    # Saved at least once: 1 − 0.4·0.8; of these half once more, three of four as JPEG.
    once = 1 - 0.4 * 0.8
    for name, expected in (("jpeg", 0.6 + once / 2 * 0.75), ("webp", 0.2 + once / 2 * 0.25)):
        share = sum(of == name for of, _ in saved) / images
        assert share == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize(("name", "file_format"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_compression_is_pillows(name, file_format):
    image = photograph()
    out, _ = augmentation(**{name: 1.0, "quality_range": (70, 70)})(image, None, rng(0))
    file = io.BytesIO()
    Image.fromarray(image).save(file, file_format, quality=70)
    np.testing.assert_array_equal(out, np.asarray(Image.open(file).convert("RGB")))


@pytest.mark.parametrize(
    ("change", "strength"), [("blur", 1.25), ("noise", 3.0), ("gamma", 0.7), ("gamma", 1.5)]
)
def test_changes_are_those_of_evaluation(change, strength):
    image = photograph()
    augment = augmentation(**{change: 1.0, f"{change}_range": (strength, strength)})
    target = np.ones(image.shape[:2], np.uint8)
    out, found = augment(image, target, rng(5))
    assert found is target
    if change == "noise":
        drawn = out.astype(float) - image
        assert drawn.std() == pytest.approx(np.sqrt(9 + 1 / 12), rel=0.02)
    else:
        # exp(log(x)) is x but for the last digits.
        expected = perturbations.Perturbation(change, strength)(image, 0).astype(int)
        assert np.abs(expected - out).max() <= (change == "gamma")


def test_exponents_are_drawn_evenly_in_their_logarithm(monkeypatch):
    drawn = []
    monkeypatch.setattr(perturbations, "gamma", lambda image, e: drawn.append(e) or image)
    augment = augmentation(gamma=1.0, gamma_range=(0.5, 2.0))
    for seed in range(500):
        augment(photograph(8, 8), None, rng(seed))
    logs = np.log2(drawn)
    assert -1 <= logs.min() < -0.95 and 0.95 < logs.max() <= 1
    assert abs(logs.mean()) < 4 * np.sqrt(4 / 12 / 500)


def test_colour_is_one_affine_map_within_its_range():
    image = photograph()
    augment = augmentation(colour=1.0, colour_range=(0.1, 0.1))
    lumas = np.array([0.299, 0.587, 0.114])
    seen = set()
    for seed in range(100):
        out, _ = augment(image, None, rng(seed))
        pixels = np.column_stack([image.reshape(-1, 3), np.ones(image[..., 0].size)])
        inner = ((out > 0) & (out < 255)).all(-1).ravel()
        values = out.reshape(-1, 3).astype(float)
        solved, *_ = np.linalg.lstsq(pixels[inner], values[inner], rcond=None)
        assert np.abs(pixels[inner] @ solved - values[inner]).max() < 1.05  # rounded, or cut off
        matrix, shift = solved[:3].T, solved[3]
        # Of grey pixels, the channels change by contrast and white balance alone.
        gains = matrix.sum(1)
        contrast = min((0.9, 1.1), key=lambda c: np.abs(np.abs(gains / c - 1) - 0.05).max())
        np.testing.assert_allclose(np.abs(gains / contrast - 1), 0.05, atol=0.01)
        saturation = (matrix[0, 0] / gains[0] - lumas[0]) / (1 - lumas[0])
        assert abs(saturation - 1) == pytest.approx(0.1, abs=0.02)
        brightness = shift.mean() - 127.5 * (1 - contrast)
        assert abs(brightness) == pytest.approx(255 * 0.05, abs=1.5)
        seen.add((contrast > 1, saturation > 1, brightness > 0))
    assert len(seen) == 8


def test_scaled_images_keep_their_size_or_do_not():
    image = photograph(96, 80)
    target = np.zeros((96, 80), np.uint8)
    target[:, 40:] = 1
    augment = augmentation(scale=1.0, scale_range=(0.5, 0.5))
    filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    picture = Image.fromarray(image)
    small = {np.asarray(picture.resize((40, 48), f)).tobytes() for f in filters}
    back = {
        np.asarray(picture.resize((40, 48), f).resize((80, 96), g)).tobytes()
        for f in filters
        for g in filters
    }
    seen, kept = set(), 0
    for seed in range(200):
        out, found = augment(image, target, rng(seed))
        seen.add(out.tobytes())
        kept += out.shape == image.shape
        if out.shape == image.shape:
            assert found is target and out.tobytes() in back
        else:
            assert out.shape == (48, 40, 3) and out.tobytes() in small
            np.testing.assert_array_equal(found, target[::2, ::2])
    assert seen == small | back
    assert 70 < kept < 130


def test_shares_are_scaled_evenly():
    """A target that rises evenly still does so."""
    ramp = np.tile((np.arange(80, dtype=np.float32) + 0.5) / 80, (96, 1))
    augment = augmentation(scale=1.0, scale_range=(0.6, 1.4))
    for seed in range(40):
        out, found = augment(photograph(), ramp, rng(seed))
        width = out.shape[1]
        expected = (np.arange(width) + 0.5) / width
        inner = slice(3, -3)
        np.testing.assert_allclose(
            found[:, inner], np.tile(expected, (len(out), 1))[:, inner], atol=0.01
        )


def test_crops_are_parts_at_their_own_scale():
    rows, columns = np.mgrid[:90, :120]
    image = np.stack([rows, columns, rows + columns], -1).astype(np.uint8)
    target = (rows * 1000 + columns).astype(np.float32)
    augment = augmentation(crop=1.0, crop_range=(0.5, 0.8))
    corners = []
    for seed in range(200):
        out, found = augment(image, target, rng(seed))
        top, left = out[0, 0, :2].astype(int)
        height, width = out.shape[:2]
        np.testing.assert_array_equal(out, image[top : top + height, left : left + width])
        np.testing.assert_array_equal(found, target[top : top + height, left : left + width])
        assert 45 <= height <= 72 and abs(width / height - 4 / 3) < 0.03
        corners.append((top / (90 - height), left / (120 - width)))
    corners = np.array(corners)
    assert corners.min() == 0 and corners.max() == 1
    assert np.abs(corners.mean(0) - 0.5).max() < 4 * np.sqrt(1 / 12 / 200) + 0.02


def test_small_images_are_not_cut_or_scaled_further():
    for change in ("crop", "scale"):
        augment = augmentation(**{change: 1.0, f"{change}_range": (0.1, 0.1)})
        assert augment(photograph(20, 64), None, rng(1))[0].shape in ((20, 32, 3), (20, 64, 3))


def test_boxes_are_of_one_colour_and_not_manipulated():
    image = photograph()
    augment = augmentation(cut_out=1.0, cut_out_range=(0.1, 0.25))
    for seed in range(100):
        for dtype in (np.uint8, np.float32):
            out, found = augment(image, np.ones((96, 80), dtype), rng(seed))
            covered = found == 0
            rows, columns = (np.flatnonzero(covered.any(axis)) for axis in (1, 0))
            assert covered.sum() == len(rows) * len(columns)  # a box
            assert 10 <= len(rows) <= 24 and 8 <= len(columns) <= 20
            assert len(np.unique(out[covered], axis=0)) == 1
            np.testing.assert_array_equal(out[~covered], image[~covered])


# ----- Fields ----------------------------------------------------------------------------------


def test_every_field_is_one_of_the_config():
    names = {field.name for field in dataclasses.fields(Augmentation)}
    assert names == set(configuration.base().augment)
    ranges = {name for name in names if name.endswith("_range")}
    assert names - ranges == {*CHANGES, "again"}


def test_images_too_long_for_a_format():
    long = np.zeros((2, perturbations.LONGEST["WEBP"] + 1, 3), np.uint8)
    augmentation(webp=1.0)(long, None, rng(0))  # saved as JPEG
    with pytest.raises(
        UserError, match="an image of 16384×2 pixels: WEBP has at most 16383 a side"
    ):
        perturbations.webp(long, 80.0)
