"""Thresholds against counting; what is kept of a run."""

import json

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from wsdl_jax.evaluation import verdict
from wsdl_jax.runtime.errors import UserError

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40)  # with ties


@given(SCORES, st.integers(0, 99))
def test_threshold_is_the_least_score_that_few_enough_exceed(scores, percent):
    found = verdict.threshold({"clean": scores}, percent / 100)
    values = np.array(scores)

    def few_enough(limit: float) -> bool:
        return 100 * np.count_nonzero(values > limit) <= percent * len(values)

    assert found in scores
    assert few_enough(found)
    assert not [lower for lower in scores if lower < found and few_enough(lower)]


@given(SCORES, SCORES, st.integers(0, 99))
def test_a_threshold_holds_after_every_perturbation(scores, perturbed, percent):
    found = verdict.threshold({"clean": scores, "jpeg 90": perturbed}, percent / 100)
    alone = [verdict.threshold({"clean": s}, percent / 100) for s in (scores, perturbed)]
    assert found == max(alone)


def test_bad_arguments():
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"not in \[0, 1\)"):
            verdict.threshold({"clean": [0.5]}, rate)
    with pytest.raises(ValueError, match="no scores"):
        verdict.threshold({"clean": []}, 0.05)
    with pytest.raises(ValueError, match="no scores"):
        verdict.threshold({"clean": [0.5], "jpeg 90": []}, 0.05)
    with pytest.raises(ValueError, match="no scores"):
        verdict.threshold({}, 0.05)


def test_what_is_kept_is_of_one_network_and_one_dataset(tmp_path):
    run, data = epath.Path(tmp_path), {"a/real": "0f"}
    assert verdict.load(run, (7, 1)) is None
    verdict.save(run, (7, 1), data, {"clean": [0.5, -1.0], "jpeg 90": [2.0, 1.0]})
    both = {"clean": [-1.0, 0.5], "jpeg 90": [1.0, 2.0]}
    assert verdict.load(run, (7, 1)) == verdict.load(run, (7, 1), data) == both
    verdict.save(run, (7, 1), data, {"clean": [0.5, -1.0]})
    assert verdict.load(run, (7, 1)) == verdict.load(run, (7, 1), data) == {"clean": [-1.0, 0.5]}
    assert "perturbed" not in json.loads((tmp_path / "real_scores.json").read_text())
    for network, real in (
        ((8, 1), data),
        ((7, 2), data),  # the same step of another training
        ((7, None), data),
        ((7, 1), {"a/real": "1f"}),  # built again, of other images
        ((7, 1), {"b/real": "0f"}),
        ((7, 1), {}),
    ):
        assert verdict.load(run, network, real) is None
    assert [path.name for path in tmp_path.iterdir()] == ["real_scores.json"]
    assert verdict.load(run, (7, 1), data, kinds=["clean"]) is not None
    assert verdict.load(run, (7, 1), data, kinds=["clean", "jpeg 90"]) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"checkpoint": 7, "scores": ["x"]}'),
        '{"checkpoint": 7, "weights": 1, "scores": [1], "perturbed": [1]}',
        '{"checkpoint": 7, "weights": 1, "scores": [1], "perturbed": {"blur 1": 1}}',
    ],
)
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "real_scores.json").write_text(text)
    with pytest.raises(UserError, match=r"real_scores.json cannot be read .*delete it"):
        verdict.load(epath.Path(tmp_path), (7, 1))
    json_of_another = json.dumps({"checkpoint": 7, "weights": 1, "scores": []})
    (tmp_path / "real_scores.json").write_text(json_of_another)
    assert verdict.load(epath.Path(tmp_path), (7, 1)) is None
