"""Curves against scikit-learn and NumPy."""

import numpy as np
import pytest
from report_pages import scored_images
from sklearn.metrics import average_precision_score, precision_score, recall_score

from wsdl_jax.reporting import curves


def test_precision_and_recall():
    rows = scored_images(40, 0)
    recall, precision, ap = curves.precision_recall(rows)
    labels = [0] * 40 + [1] * 40
    scores = np.array([row.score for side in ("real", "fake") for row in rows[side]])
    assert ap == pytest.approx(average_precision_score(labels, scores))
    assert (np.diff(recall) >= 0).all()
    got = {(round(r, 9), round(p, 9)) for r, p in zip(recall, precision, strict=True)}
    expected = {
        tuple(round(f(labels, scores >= t), 9) for f in (recall_score, precision_score))
        for t in scores
    }
    assert got <= {*expected, (0, 1)} and len(got) > 5
    # Nothing that bends the curve is left out.
    recalls, precisions = np.array(sorted(expected)).T
    best = [max(p for q, p in expected if q >= r) for r in recalls]
    drawn = [max(p for q, p in got if q >= r - 1e-9) for r in recalls]
    np.testing.assert_allclose(drawn, best, atol=1e-8)
    assert len(precisions) >= len(got) - 1


@pytest.mark.parametrize("count", [1, 5, 8, 51])
def test_iou_by_size(count):
    rows = scored_images(count, count)["fake"]
    shares, ious = curves.iou_by_size(rows)
    assert len(shares) == min(8, count) and (np.diff(shares) > 0).all()
    # Groups of numbers that differ by one at most, in order: their means add up to the whole.
    order = np.argsort([row.share for row in rows])
    limits = np.linspace(0, count, len(shares) + 1)
    for share, iou, low, high in zip(shares, ious, limits, limits[1:], strict=False):
        sizes = [(int(np.floor(low)), int(np.ceil(high))), (int(np.ceil(low)), int(np.floor(high)))]
        (a, d), (b, c) = sizes
        inner = [rows[k].share for k in order[b:c]]
        outer = [rows[k].share for k in order[a:d]]
        assert min(outer) - 1e-12 <= share <= max(outer) + 1e-12
        if (a, d) == (b, c):
            assert share == pytest.approx(np.mean(inner))
            assert iou == pytest.approx(np.mean([rows[k].iou for k in order[a:d]]))
