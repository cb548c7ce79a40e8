"""Bootstrap intervals and paired tests against SciPy, scikit-learn and closed forms."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
)

from wsdl_jax.evaluation import intervals
from wsdl_jax.evaluation.intervals import Name, Scored

RNG = np.random.default_rng(0)


def side(scores: np.ndarray) -> Scored:
    return Scored(scores, scores > 0.5)


def test_units():
    groups = map(Name, ["a", "", "b", "a", "", "image"])
    units = intervals.units_of([*groups])
    assert units.numbers.tolist() == [0, 1, 2, 0, 3, 4] and units.kind == "group"
    alone = intervals.units_of([Name(), Name()])
    assert alone.numbers.tolist() == [0, 1] and alone.kind == "image"


def test_units_of_several_sets():
    """Images of one key are drawn together; groups of one name in two sets are not."""
    keys = [Name("", "one", "1"), Name("", "one", "2"), Name("", "two", "2"), Name("", "two", "3")]
    units = intervals.units_of(keys)
    assert units.numbers.tolist() == [0, 1, 1, 2] and units.kind == "key"
    assert intervals.units_of(keys[:2]).kind == "image"
    of_groups = [Name("g", "one", "1"), Name("g", "one", "2"), Name("g", "two", "1"), keys[3]]
    units = intervals.units_of(of_groups)
    assert units.numbers.tolist() == [0, 0, 1, 2] and units.kind == "group"


def test_memory_is_bounded(monkeypatch):
    """A hundred thousand images take less than a kilobyte each, whatever is resampled."""
    monkeypatch.setattr(intervals, "RESAMPLES", 20)
    count = 100_000
    fake, real = RNG.normal(size=count), RNG.normal(size=1000)
    units = np.arange(len(real)), np.arange(count)
    runs = [(side(real), side(fake)), (side(real), side(-fake))]
    values = {str(number): fake for number in range(5)}
    for measure in (
        lambda: intervals.of_detection(*runs[0], *units),
        lambda: intervals.differences_of_detection(*runs, *units),
        lambda: intervals.of_means(values, units[1]),
    ):
        tracemalloc.start()
        measure()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 120e6


def test_intervals_of_means_are_those_of_the_normal_distribution():
    values = RNG.normal(0.6, 0.2, 900)
    sparse = np.where(RNG.random(900) < 0.3, np.nan, values)
    found = intervals.of_means({"all": values, "some": sparse}, np.arange(900))
    for name, known in (("all", values), ("some", sparse[~np.isnan(sparse)])):
        low, high = stats.norm.interval(0.95, known.mean(), known.std() / np.sqrt(len(known)))
        width = high - low
        assert found[name].low == pytest.approx(low, abs=0.08 * width)
        assert found[name].high == pytest.approx(high, abs=0.08 * width)
    again = intervals.of_means({"all": values}, np.arange(900))
    assert again["all"].low == pytest.approx(found["all"].low, rel=1e-12)


def test_images_of_a_group_are_drawn_together():
    """Four copies of each image say no more than one: the interval is that of the originals."""
    values = RNG.normal(size=100)
    copies, units = np.repeat(values, 4), np.repeat(np.arange(100), 4)
    alone = intervals.of_means({"x": values}, np.arange(100))["x"]
    grouped = intervals.of_means({"x": copies}, units)["x"]
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
    apart = intervals.of_means({"x": copies}, np.arange(400))["x"]
    assert apart.high - apart.low < 0.6 * (alone.high - alone.low)


def test_figures_that_nobody_has():
    values = {"none": np.full(3, np.nan), "one": np.array([np.nan, 1, np.nan]), "two": np.eye(3)[0]}
    found = intervals.of_means(values, np.arange(3))
    assert found["none"] is found["one"] is None and found["two"].low == 0
    assert intervals.of_means({"x": np.ones(3)}, np.zeros(3, int))["x"] is None
    alone = side(np.array([0.3]))
    one, two = np.zeros(1, int), np.arange(2)
    pair = side(np.array([0.3, 0.6]))
    assert set(intervals.of_detection(alone, pair, one, two).values()) == {None}
    found = intervals.differences_of_detection((pair, alone), (pair, alone), two, one)
    assert set(found.values()) == {None}


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_weighted_figures_are_scikit_learns(reals, fakes, levels, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels + 1, reals + fakes) / levels
    weights = rng.integers(0, 3, reals + fakes).astype(float)
    weights[[0, reals]] = 1
    true = np.repeat([0, 1], [reals, fakes])
    measured = intervals._Detection(side(scores[:reals]), side(scores[reals:]))
    found = measured.weighted(weights[:reals], weights[reals:])
    alike = weights / np.where(true, weights[reals:].sum(), weights[:reals].sum())
    called = scores > 0.5
    expected = [
        average_precision_score(true, scores, sample_weight=alike),
        roc_auc_score(true, scores, sample_weight=weights),
        balanced_accuracy_score(true, called, sample_weight=weights),
        f1_score(true, called, sample_weight=weights, zero_division=0),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_intervals_of_detection():
    """That of AUC is near DeLong's, from the variances of placements."""
    real, fake = RNG.normal(0, 1, 300), RNG.normal(1.2, 1, 200)
    units = np.arange(300), np.arange(200)
    found = intervals.of_detection(side(real), side(fake), *units)
    wins = fake[:, None] > real
    deviation = np.sqrt(wins.mean(1).var(ddof=1) / 200 + wins.mean(0).var(ddof=1) / 300)
    low, high = stats.norm.interval(0.95, wins.mean(), deviation)
    assert found["auc"].low == pytest.approx(low, abs=0.005)
    assert found["auc"].high == pytest.approx(high, abs=0.005)
    recalls = np.mean(real <= 0.5), np.mean(fake > 0.5)
    deviation = np.sqrt(sum(p * (1 - p) / n for p, n in zip(recalls, (300, 200), strict=True))) / 2
    low, high = stats.norm.interval(0.95, np.mean(recalls), deviation)
    assert found["balanced_accuracy"].low == pytest.approx(low, abs=0.005)
    for name in ("ap", "image_f1"):
        assert 0.5 < found[name].low < found[name].high < 1


def test_paired_differences_of_means():
    second = RNG.normal(0.5, 0.3, 60)
    first = second + RNG.normal(0.02, 0.05, 60)  # far less apart than images are
    first[7] = second[11] = np.nan
    found = intervals.difference_of_means(first, second, np.arange(60))
    known = ~np.isnan(first - second)
    assert found.value == pytest.approx(np.mean((first - second)[known]))
    assert found.interval.low < found.value < found.interval.high
    expected = stats.permutation_test(
        (first[known], second[known]),
        lambda x, y, axis: np.mean(x - y, axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=4000,
        rng=1,
    )
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.02)
    swapped = intervals.difference_of_means(second, first, np.arange(60))
    assert (swapped.value, swapped.p_value) == pytest.approx((-found.value, found.p_value))
    same = intervals.difference_of_means(second, second, np.arange(60))
    assert (same.value, same.interval.low, same.p_value) == (0, 0, 1)
    assert intervals.difference_of_means(first[:1], second[:1], np.arange(1)) is None


def test_paired_differences_of_detection():
    real, fake = RNG.normal(0, 1, 150), RNG.normal(1, 1, 150)
    units = np.arange(150), np.arange(150)
    noise = RNG.normal(0, 1.2, (2, 150))
    better, worse = (side(real), side(fake)), (side(real + noise[0]), side(fake + noise[1]))
    found = intervals.differences_of_detection(better, worse, *units)
    labels = np.repeat([0, 1], 150)
    auc = [
        roc_auc_score(labels, np.r_[sides[0].scores, sides[1].scores]) for sides in (better, worse)
    ]
    assert found["auc"].value == pytest.approx(auc[0] - auc[1])
    assert found["auc"].interval.low > 0 and found["auc"].p_value < 0.05
    # What any monotone change of scores leaves as it is.
    stretched = (Scored(np.exp(real), real > 0.5), Scored(np.exp(fake), fake > 0.5))
    for difference in intervals.differences_of_detection(better, stretched, *units).values():
        assert difference.value == pytest.approx(0, abs=1e-12)
        assert difference.p_value == 1
