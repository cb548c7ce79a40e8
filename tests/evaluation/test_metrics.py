"""Figures of merit against scikit-learn and NumPy."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    jaccard_score,
    matthews_corrcoef,
    precision_recall_curve,
    roc_auc_score,
)

from wsdl_jax.evaluation import metrics

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
    one_class = len({*flat[0].tolist(), *flat[1].tolist()}) < 2  # scikit-learn warns of it
    expected = 0 if one_class else matthews_corrcoef(*flat)
    assert metrics.mcc(predicted, true) == pytest.approx(expected, abs=1e-12)


def test_empty_masks():
    nothing, something = np.zeros((3, 3), bool), np.eye(3, dtype=bool)
    assert metrics.iou(nothing, nothing) == metrics.f1(nothing, nothing) == 1
    assert metrics.iou(something, nothing) == metrics.f1(something, nothing) == 0
    assert metrics.iou(nothing, something) == metrics.f1(nothing, something) == 0
    assert metrics.mcc(nothing, something) == metrics.mcc(something, nothing) == 0
    assert metrics.mcc(nothing, nothing) == metrics.mcc(~nothing, nothing) == 0
    assert metrics.mcc(something, something) == -metrics.mcc(something, ~something) == 1


def test_mcc_of_a_large_image():
    """The product of four counts exceeds 64 bits."""
    true = RNG.random((1000, 1000)) < 0.4
    predicted = true ^ (RNG.random((1000, 1000)) < 0.3)
    expected = np.corrcoef(predicted.ravel().astype(float), true.ravel().astype(float))[0, 1]
    assert metrics.mcc(predicted, true) == pytest.approx(expected)


def best_f1(true: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The largest F1 by scikit-learn's curve, and the score that is the lowest called true."""
    precision, recall, thresholds = precision_recall_curve(true, scores)
    f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-300))[:-1]
    return f1.max(), thresholds[f1.argmax()]


def check_ranking(scores: np.ndarray, true: np.ndarray) -> None:
    expected = roc_auc_score(true, scores), average_precision_score(true, scores)
    ranked = metrics.Ranked.of(scores, true)
    np.testing.assert_allclose(ranked.auc_and_ap(), expected, rtol=1e-12, atol=0)
    for found, predicted in ((ranked.best_f1(), scores), (ranked.best_opposite_f1(), -scores)):
        assert found == pytest.approx(best_f1(true, predicted)[0], rel=1e-12)
    for threshold in scores[:3]:
        (hits,), (false,) = ranked.above(np.array([threshold]))
        above = scores > threshold
        assert (hits, false) == (np.sum(above & true), np.sum(above & ~true))


# Few values and many: ties, both zeros, the smallest and the largest numbers, beyond 0 and 1.
VALUES = st.sampled_from([-0.0, 0.0, 1e-45, -1e-45, -0.125, 0.5, 1.0, 1.125, 1e38, -1e38])


@settings(deadline=None, max_examples=200)
@given(st.data(), st.integers(2, 40), st.sampled_from([np.float32, np.float64]))
def test_ranking_is_scikit_learns(data, count, dtype):
    values = VALUES if data.draw(st.booleans()) else st.floats(-1.5, 1.5, width=32)
    scores = data.draw(hnp.arrays(dtype, count, elements=values))
    true = data.draw(hnp.arrays(bool, count))
    true[:2] = False, True
    check_ranking(scores, true)


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 99), st.floats(0.01, 0.99), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_ranking_of_maps_is_scikit_learns(size, share, decimals, seed):
    rng = np.random.default_rng(seed)
    localization_map = metrics.resize_map(rng.random((7, 7)), size, size).ravel()
    true = rng.random(size**2) < share
    true[:2] = False, True
    check_ranking(localization_map, true)
    check_ranking(localization_map.round(decimals), true)  # ties


def test_ranking_of_a_full_image():
    yy, xx = np.mgrid[:256, :256]
    true = ((yy - 100) ** 2 + (xx - 90) ** 2 < 60**2).ravel()
    localization_map = metrics.resize_map(RNG.random((37, 37)), 256, 256).ravel()
    assert localization_map.min() < 0 and localization_map.max() > 1  # bicubic overshoots
    check_ranking(localization_map, true)
    check_ranking(localization_map, ~true)
    check_ranking(localization_map + true, true)
    check_ranking(np.full(256**2, 0.3, np.float32), true)


@pytest.mark.parametrize("true", [np.zeros(4, bool), np.ones(4, bool)])
def test_ranking_needs_both_classes(true):
    for scores in (np.arange(4.0), np.ones(4)):
        ranked = metrics.Ranked.of(scores, true)
        assert np.isnan([*ranked.auc_and_ap(), ranked.best_f1(), ranked.best_opposite_f1()]).all()


def tolerant_f1(values: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """By the definition: SciPy's filters and scikit-learn's F1, of the map and of its opposite."""
    inside = ndimage.minimum_filter(true, 15)
    counted = inside | ~ndimage.maximum_filter(true, 11)
    want, scores = inside[counted], values[counted]
    if want.all() or not want.any():
        return np.nan, np.nan
    at_half = max(f1_score(want, scores > 0.5), f1_score(want, scores <= 0.5))
    return at_half, max(best_f1(want, scores)[0], best_f1(want, -scores)[0])


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 45), st.integers(1, 45), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_f1_that_forgives_errors_near_the_outline(height, width, levels, seed):
    rng = np.random.default_rng(seed)
    true = np.zeros((height, width), bool)
    top, left = rng.integers(-10, height), rng.integers(-10, width)
    true[max(top, 0) : top + 30, max(left, 0) : left + 30] = True
    noisy = 0.3 * true + rng.random((height, width))
    values = (np.round(noisy * levels) / levels).astype(np.float32)
    found = metrics.tolerant_f1(values, true)
    np.testing.assert_allclose(found, tolerant_f1(values, true), rtol=1e-9)


def test_errors_near_the_outline_are_forgiven():
    true = np.zeros((64, 64), np.uint8)
    true[16:48, 16:48] = 1
    large = np.zeros((64, 64), np.float32)
    large[11:53, 11:53] = 1  # 5 pixels too far on every side
    figures = metrics.localization(large, true)
    assert figures.f1 < 0.75 and figures.f1_tolerant == figures.f1_tolerant_best == 1
    assert metrics.localization(1 - large, true).f1_tolerant == 1  # what is told apart counts
    large[10:54, 10:54] = 1  # the sixth is counted
    assert metrics.localization(large, true).f1_tolerant < 1
    small = np.zeros((64, 64), np.float32)
    small[23:41, 23:41] = 1  # 7 pixels too little
    assert metrics.localization(small, true).f1_tolerant == 1


@pytest.mark.parametrize("size", [14, 60])
def test_without_pixels_away_from_the_outline_there_is_no_tolerant_f1(size):
    true = np.zeros((64, 64), np.uint8)
    true[2 : 2 + size, 2 : 2 + size] = 1
    figures = metrics.localization(RNG.random((9, 9)), true)
    assert np.isnan([figures.f1_tolerant, figures.f1_tolerant_best]).all()
    assert figures.f1_best > 0


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


@settings(deadline=None, max_examples=30)
@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    *(st.integers(1, 40) for _ in range(4)),
)
def test_constant_maps_are_resized_as_pillow_does(value, height, width, new_height, new_width):
    image = np.full((height, width), value, np.float32)
    by_pillow = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
    resized = metrics.resize_map(image, new_height, new_width)
    assert resized.dtype == np.float32
    np.testing.assert_array_equal(resized, np.asarray(by_pillow))


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
    values = bicubic_matrix(6, 48) @ localization_map @ bicubic_matrix(5, 60).T
    large = values > 0.5
    small = localization_map > 0.5
    small_mask = mask[4::8, 6::12]  # the nearest of an even number of pixels
    highest, lowest = best_f1(mask.ravel(), values.ravel())
    figures = metrics.localization(localization_map, mask)
    assert dataclasses.asdict(figures) == pytest.approx(
        {
            "iou_lg": jaccard_score(mask.ravel(), large.ravel()),
            "iou_sm": jaccard_score(small_mask.ravel(), small.ravel()),
            "pbca_lg": (mask == large).mean(),
            "pbca_sm": (small_mask == small).mean(),
            "f1": f1_score(mask.ravel(), large.ravel()),
            "pixel_auc": roc_auc_score(mask.ravel(), values.ravel()),
            "pixel_ap": average_precision_score(mask.ravel(), values.ravel()),
            "iou_best": jaccard_score(mask.ravel(), values.ravel() >= lowest),
            "f1_best": highest,
            "mcc": matthews_corrcoef(mask.ravel(), large.ravel()),
            "f1_tolerant": tolerant_f1(values, mask > 0)[0],
            "f1_tolerant_best": tolerant_f1(values, mask > 0)[1],
        },
        rel=1e-4,  # in float32 a few pixels change places
    )
    assert tuple(dataclasses.asdict(figures)) == metrics.LOCALIZATION


@pytest.mark.parametrize("value", [0, 1])
def test_pixel_figures_of_a_mask_of_one_class(value):
    figures = metrics.localization(RNG.random((6, 5)), np.full((8, 9), value, np.uint8))
    undefined = {name for name, x in dataclasses.asdict(figures).items() if np.isnan(x)}
    best = {"iou_best", "f1_best", "f1_tolerant", "f1_tolerant_best"}
    assert undefined == {"pixel_auc", "pixel_ap", *best}
    assert figures.mcc == 0


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_iou_at_every_threshold(height, width, seed):
    rng = np.random.default_rng(seed)
    assert metrics.THRESHOLD in metrics.THRESHOLDS
    # Values on the thresholds themselves too, which are not above them.
    steps = rng.integers(0, 21, (4, 5)) / 20
    localization_map = np.where(rng.random((4, 5)) < 0.5, steps, rng.random((4, 5)))
    localization_map = localization_map.astype(np.float32)
    mask = (rng.random((height, width)) < rng.choice([0, 0.3, 1])).astype(np.uint8)
    values = metrics.resize_map(localization_map, height, width)
    expected = [metrics.iou(values > threshold, mask > 0) for threshold in metrics.THRESHOLDS]
    got = metrics.iou_by_threshold(localization_map, mask)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    at_half = got[metrics.THRESHOLDS.tolist().index(metrics.THRESHOLD)]
    assert at_half == metrics.localization(localization_map, mask).iou_lg


def test_means_leave_out_what_is_undefined():
    table = RNG.random((9, 3))
    table[[1, 4], 1] = table[:, 2] = np.nan
    names = ("always", "sometimes", "never")
    whole, parts = metrics.Means(names), [metrics.Means(names) for _ in range(2)]
    for row, values in enumerate(table):
        for means in (whole, parts[row % 2]):
            means.add(dict(zip(names, values, strict=True)))
    expected = {"always": table[:, 0].mean(), "sometimes": np.nanmean(table[:, 1]), "never": np.nan}
    assert whole.means() == pytest.approx(expected, nan_ok=True)
    assert [whole.count(name) for name in names] == [9, 7, 0]
    # Parts of a test set, as several hosts have them.
    parts[0].totals += parts[1].totals
    parts[0].counts += parts[1].counts
    assert parts[0].means() == pytest.approx(expected, nan_ok=True)
    assert parts[0].count("sometimes") == 7


def test_threshold_is_strict():
    mask = np.ones((4, 4), np.uint8)
    assert metrics.localization(np.full((4, 4), 0.5), mask).iou_sm == 0
    assert metrics.localization(np.full((4, 4), 0.5001), mask).iou_sm == 1


def detection(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """The figures of scores that are probabilities."""
    return metrics.detection(real, fake, real_probabilities=real, fake_probabilities=fake)


def average_precision(real: np.ndarray, fake: np.ndarray) -> float:
    """Mean over fake images of the precision at each one's score; scores are distinct."""
    precisions = [(fake >= s).sum() / ((fake >= s).sum() + (real >= s).sum()) for s in fake]
    return float(np.mean(precisions))


def area_under_roc(real: np.ndarray, fake: np.ndarray) -> float:
    """The probability that a fake image has the higher score (Mann and Whitney's U)."""
    return float((fake[:, None] > real).mean())


def test_detection_of_equal_sides():
    real, fake = RNG.normal(size=40), RNG.normal(1, 1, size=40)
    figures = detection(real, fake)
    del figures["balanced_accuracy"], figures["image_f1"]
    assert figures == pytest.approx(
        {"ap": average_precision(real, fake), "ap_2sd": 0, "auc": area_under_roc(real, fake)}
    )


@pytest.mark.parametrize("larger", ["real", "fake"])
def test_detection_balances_the_sides(larger):
    # Without any information, average precision is the share of fakes: a half once balanced.
    sizes = {"real": 10, "fake": 10, larger: 90}
    figures = detection(np.ones(sizes["real"]), np.ones(sizes["fake"]))
    assert figures == pytest.approx(
        {"ap": 0.5, "ap_2sd": 0, "auc": 0.5, "balanced_accuracy": 0.5}
        | {"image_f1": 2 * sizes["fake"] / (2 * sizes["fake"] + sizes["real"])}
    )


@settings(deadline=None, max_examples=30)
@given(*(st.lists(st.sampled_from([0.1, 0.5, 0.6]), min_size=1, max_size=9) for _ in range(2)))
def test_balanced_accuracy_is_scikit_learns(real, fake):
    true = np.r_[np.zeros(len(real)), np.ones(len(fake))]
    figures = metrics.detection(
        np.zeros(len(real)),  # scores have no part in it
        np.zeros(len(fake)),
        real_probabilities=np.array(real),
        fake_probabilities=np.array(fake),
    )
    expected = balanced_accuracy_score(true, np.r_[real, fake] > 0.5)
    assert figures["balanced_accuracy"] == pytest.approx(expected)
    assert figures["image_f1"] == pytest.approx(f1_score(true, np.r_[real, fake] > 0.5))


def test_detection_draws():
    real, fake = RNG.normal(size=30), RNG.normal(0.7, 1, size=200)
    figures = detection(real, fake)
    assert figures == detection(real, fake)
    del figures["balanced_accuracy"], figures["image_f1"]
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
        detection(np.array(real, float), np.array(fake, float))
