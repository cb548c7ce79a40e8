"""The fitted threshold of maps, against a search by the definition."""

import json
import re

import numpy as np
import pytest
from etils import epath

from wsdl_jax.evaluation import map_threshold, metrics
from wsdl_jax.evaluation.map_threshold import CANDIDATES, MapThreshold
from wsdl_jax.runtime.errors import UserError

NETWORK, DATA = (30, 12345), {"a": "x", "b": "y"}
FITTED = MapThreshold(0.25, 0.4, 20, "spliced")


def pairs(count: int, scale: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Maps that are right but for noise, times a scale, and their masks."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        mask = np.zeros((24, 32), bool)
        top, left = rng.integers(0, 12, 2)
        mask[top : top + 10, left : left + 12] = True
        coarse = mask.reshape(6, 4, 8, 4).mean((1, 3))
        noisy = 0.6 * coarse + 0.4 * rng.random(coarse.shape)
        made.append(((scale * noisy).astype(np.float32), mask))
    return made


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_it_has_the_largest_mean_iou(scale):
    given = pairs(10, scale)
    fitted = map_threshold.fit(given, "spliced")
    means = [
        np.mean([metrics.iou(metrics.resize_map(m, 24, 32) > at, mask) for m, mask in given])
        for at in CANDIDATES
    ]
    assert fitted.value in CANDIDATES
    assert fitted.iou == pytest.approx(max(means))
    assert means[list(CANDIDATES).index(fitted.value)] == pytest.approx(max(means))
    assert (fitted.images, fitted.fitted_on) == (10, "spliced")
    assert (fitted.value > 0.3) == (scale == 1)


def test_of_several_it_is_the_one_nearest_to_one_half():
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    fitted = map_threshold.fit([(mask.astype(np.float32), mask)], "masked")
    assert fitted == MapThreshold(0.5, 1.0, 1, "masked")


def test_candidates_rise_and_have_one_half():
    assert (np.diff(CANDIDATES) > 0).all() and 0.5 in CANDIDATES
    assert CANDIDATES[0] < 0.003 and CANDIDATES[-1] > 0.997


def test_it_is_kept_for_its_network_and_data(tmp_path):
    run = epath.Path(tmp_path)
    assert map_threshold.load(run, NETWORK) is None
    map_threshold.save(run, NETWORK, DATA, FITTED)
    assert map_threshold.load(run, NETWORK) == map_threshold.load(run, NETWORK, DATA) == FITTED
    assert map_threshold.load(run, (31, 12345)) is None
    assert map_threshold.load(run, (30, 1)) is None
    assert map_threshold.load(run, NETWORK, {"a": "x"}) is None


@pytest.mark.parametrize(
    "change", [{"value": 1.5}, {"value": "0.5"}, {"iou": None}, {"images": ...}, {"weights": ...}]
)
def test_what_cannot_be_read_is_named(tmp_path, change):
    run = epath.Path(tmp_path)
    map_threshold.save(run, NETWORK, DATA, FITTED)
    path = run / "map_threshold.json"
    kept = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: v for name, v in kept.items() if v is not ...}))
    with pytest.raises(UserError, match=f"{re.escape(str(path))} cannot be read .*: delete it"):
        map_threshold.load(run, NETWORK)
