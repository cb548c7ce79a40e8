"""Figures of merit against scikit-learn and NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from wsdl_jax import metrics

RNG = np.random.default_rng(0)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_overlaps_are_scikit_learns(height, width, seed):
    rng = np.random.default_rng(seed)
    share = rng.random(2)
    predicted, true = (rng.random((height, width)) < share[i] for i in (0, 1))
    flat = true.ravel(), predicted.ravel()
    assert metrics.pbca(predicted, true) == pytest.approx(accuracy_score(*flat))
    assert metrics.iou(predicted, true) == pytest.approx(jaccard_score(*flat, zero_division=1))
    assert metrics.f1(predicted, true) == pytest.approx(f1_score(*flat, zero_division=1))


def test_empty_masks():
    nothing, something = np.zeros((3, 3), bool), np.eye(3, dtype=bool)
    assert metrics.iou(nothing, nothing) == metrics.f1(nothing, nothing) == 1
    assert metrics.iou(something, nothing) == metrics.f1(something, nothing) == 0
    assert metrics.iou(nothing, something) == metrics.f1(nothing, something) == 0


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """[new, old] weights of the bicubic kernel with a = -1/2, widened where it shrinks."""
    widen = max(old / new, 1)
    centres = (np.arange(new) + 0.5) * old / new
    t = np.abs(np.arange(old) + 0.5 - centres[:, None]) / widen
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(40, 33), (7, 9), (5, 40), (3, 2)])
def test_maps_are_resized_bicubically(size):
    image = RNG.random((7, 9))
    resized = metrics.resize_map(image, *size)
    expected = bicubic_matrix(7, size[0]) @ image @ bicubic_matrix(9, size[1]).T
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=2e-5)


@pytest.mark.parametrize("size", [(40, 33), (7, 9), (5, 40), (3, 2)])
def test_masks_are_resized_to_the_nearest(size):
    mask = (RNG.random((7, 9)) < 0.5).astype(np.uint8)
    rows = (np.arange(size[0]) + 0.5) * 7 // size[0]
    columns = (np.arange(size[1]) + 0.5) * 9 // size[1]
    expected = mask[np.ix_(rows.astype(int), columns.astype(int))]
    np.testing.assert_array_equal(metrics.resize_mask(mask, *size), expected)


def test_localization_at_both_sizes():
    localization_map = RNG.random((6, 5))
    mask = np.zeros((48, 60), np.uint8)
    mask[10:30, 5:40] = 1
    large = bicubic_matrix(6, 48) @ localization_map @ bicubic_matrix(5, 60).T > 0.5
    small = localization_map > 0.5
    small_mask = mask[4::8, 6::12]  # the nearest of an even number of pixels
    figures = metrics.localization(localization_map, mask)
    assert figures == pytest.approx(
        {
            "iou_lg": jaccard_score(mask.ravel(), large.ravel()),
            "iou_sm": jaccard_score(small_mask.ravel(), small.ravel()),
            "pbca_lg": (mask == large).mean(),
            "pbca_sm": (small_mask == small).mean(),
            "f1": f1_score(mask.ravel(), large.ravel()),
        }
    )


def test_threshold_is_strict():
    mask = np.ones((4, 4), np.uint8)
    assert metrics.localization(np.full((4, 4), 0.5), mask)["iou_sm"] == 0
    assert metrics.localization(np.full((4, 4), 0.5001), mask)["iou_sm"] == 1


def average_precision(real: np.ndarray, fake: np.ndarray) -> float:
    """Mean over fake images of the precision at each one's score; scores are distinct."""
    precisions = [(fake >= s).sum() / ((fake >= s).sum() + (real >= s).sum()) for s in fake]
    return float(np.mean(precisions))


def area_under_roc(real: np.ndarray, fake: np.ndarray) -> float:
    """The probability that a fake image has the higher score (Mann and Whitney's U)."""
    return float((fake[:, None] > real).mean())


def test_detection_of_equal_sides():
    real, fake = RNG.normal(size=40), RNG.normal(1, 1, size=40)
    figures = metrics.detection(real, fake)
    assert figures == pytest.approx(
        {"ap": average_precision(real, fake), "ap_2sd": 0, "auc": area_under_roc(real, fake)}
    )


@pytest.mark.parametrize("larger", ["real", "fake"])
def test_detection_balances_the_sides(larger):
    # Without any information, average precision is the share of fakes: a half once balanced.
    sizes = {"real": 10, "fake": 10, larger: 90}
    figures = metrics.detection(np.ones(sizes["real"]), np.ones(sizes["fake"]))
    assert figures == pytest.approx({"ap": 0.5, "ap_2sd": 0, "auc": 0.5})


def test_detection_draws():
    real, fake = RNG.normal(size=30), RNG.normal(0.7, 1, size=200)
    figures = metrics.detection(real, fake)
    assert figures == metrics.detection(real, fake)
    draws = [
        average_precision(real, np.random.default_rng(seed).choice(fake, 30, replace=False))
        for seed in range(5)
    ]
    assert figures == pytest.approx(
        {"ap": np.mean(draws), "ap_2sd": 2 * np.std(draws), "auc": area_under_roc(real, fake)}
    )
    assert figures["ap_2sd"] > 0


@pytest.mark.parametrize(("real", "fake"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_detection_refuses(real, fake):
    with pytest.raises(ValueError, match=r"0 real|0 fake|NaN"):
        metrics.detection(np.array(real, float), np.array(fake, float))
