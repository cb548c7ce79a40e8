"""Means and matrices against NumPy."""

import numpy as np
import pytest
from findings_of_generators import GENERATORS, PUBLISHED, grid, results, subset
from hypothesis import given
from hypothesis import strategies as st

from wsdl_jax.sweeps.findings import Finding, matrices, published_matrices, summarize


@given(st.lists(st.floats(0, 100) | st.none(), min_size=1, max_size=6))
def test_mean_and_sample_standard_deviation(values):
    """None: a run that is not done."""
    findings = [
        Finding("g", "s", seed, ("a/x",), "a/y", None if value is None else results(value))
        for seed, value in enumerate(values)
    ]
    (row,) = summarize(findings)
    done = [value for value in values if value is not None]
    assert (row.done, row.planned) == (len(done), len(values))
    if not done:
        assert row.mean["iou_lg"] is None
    else:
        assert row.mean["iou_lg"] == pytest.approx(np.mean(done), abs=1e-9)
        assert row.mean["ap"] == 50
    if len(done) < 2:
        assert row.std["iou_lg"] is None
    else:
        variance = np.sum((np.array(done) - np.mean(done)) ** 2) / (len(done) - 1)
        assert row.std["iou_lg"] == pytest.approx(np.sqrt(variance), abs=1e-9)
        assert row.std["ap"] == 0


def test_a_figure_that_a_run_has_not_is_left_out():
    findings = [
        Finding("g", "s", seed, ("a/x",), "a/y", results(10, pixel_auc=value))
        for seed, value in enumerate((None, 70.0, 80.0))
    ]
    (row,) = summarize(findings)
    assert (row.mean["pixel_auc"], row.done) == (75, 3)
    assert row.std["pixel_auc"] == pytest.approx(np.std([70, 80], ddof=1))


def test_matrix():
    findings, iou = grid(seeds=3)
    alone = [Finding("alone", "a", 0, (subset("ldm"),), subset("ldm"), results(1))]
    (matrix,) = matrices(summarize([*alone, *findings]))
    assert matrix.rows == matrix.columns == list(GENERATORS)
    np.testing.assert_allclose(matrix.mean, iou.mean(0))
    np.testing.assert_allclose(matrix.std, iou.std(0, ddof=1))
    np.testing.assert_array_equal(matrix.in_domain, np.eye(3, dtype=bool))


def test_in_and_out_of_domain_when_one_is_left_out():
    findings = [
        Finding("g", left, 0, tuple(subset(o) for o in GENERATORS if o != left), subset(test), None)
        for left in GENERATORS
        for test in GENERATORS
    ]
    (matrix,) = matrices(summarize(findings))
    np.testing.assert_array_equal(matrix.in_domain, ~np.eye(3, dtype=bool))
    assert np.isnan(matrix.mean).all()


def test_published_matrix_is_of_the_same_subsets():
    findings, _ = grid()
    (matrix,) = published_matrices(PUBLISHED, summarize(findings))
    np.testing.assert_array_equal(matrix.mean, [[0, 1, 2], [10, 11, 12], [20, 21, 22]])
    assert (matrix.title, matrix.rows) == ("Other", list(GENERATORS))
    (matrix,) = published_matrices(PUBLISHED, summarize(findings[::-1]))
    np.testing.assert_array_equal(matrix.mean, [[22, 21, 20], [12, 11, 10], [2, 1, 0]])
    some = [f for f in findings if not f.tested.endswith("lama")]
    assert published_matrices(PUBLISHED, summarize(some)) == []
