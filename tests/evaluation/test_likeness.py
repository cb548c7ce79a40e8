"""Distances against scikit-learn; how many known images are called unlike; what is stored."""

import json

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from wsdl_jax.evaluation import likeness
from wsdl_jax.evaluation.likeness import Likeness


def features(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated ones, of very different sizes, of which one is always the same."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((6, 6)) * np.logspace(-1, 1, 6)
    values = rng.standard_normal((count, 6)) @ mixing + shift * mixing.sum(0)
    return np.c_[values, np.full(count, 0.25)].astype(np.float32)


def test_distances_are_those_of_scikit_learn():
    real, fake = features(60, 0)[:, :-1], features(41, 1, shift=1.0)[:, :-1]
    found = likeness.fit([real, fake])
    rng = np.random.default_rng(0)
    fitted = [one[np.sort(rng.permutation(len(one))[: -(len(one) // 2)])] for one in (real, fake)]
    fitted = np.concatenate(fitted).astype(float)
    theirs = LedoitWolf().fit(fitted / fitted.std(0))
    new = features(30, 2)[:, :-1]
    assert found.distance(new) == pytest.approx(theirs.mahalanobis(new / fitted.std(0)), rel=1e-3)
    assert [len(one) for one in found.distances] == [30, 20]


@pytest.mark.parametrize("directions", [60, 20])
def test_of_many_features_few_directions_are_kept(monkeypatch, directions):
    """For as many images as directions it is the same; of more, the large variances are told."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((12, 80)) * np.logspace(0.5, -0.5, 12)[:, None]

    def drawn(count: int) -> np.ndarray:
        values = rng.standard_normal((count, 12)) @ mixing
        return (values + 0.02 * rng.standard_normal(values.shape)).astype(np.float32)

    classes, new, strange = [drawn(70), drawn(50)], drawn(30), drawn(30)
    strange[:, 3] += 8  # the same as one mixture has, and none of the others that go with it
    whole = likeness.fit(classes)
    monkeypatch.setattr(likeness, "_WIDE", 79)
    monkeypatch.setattr(likeness, "_DIRECTIONS", directions)
    found = likeness.fit(classes)
    assert found.precision.directions.shape == (directions, 80)
    if directions == 60:
        assert found.distance(new) == pytest.approx(whole.distance(new), rel=1e-4)
        for ours, theirs in zip(found.distances, whole.distances, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
    assert np.mean([found.has(one) for one in new]) > 0.9
    assert not any(found.has(one) for one in strange)

    stored = json.loads(json.dumps(found.stored()))
    again = Likeness.of_stored(stored)
    np.testing.assert_array_equal(again.distance(new), found.distance(new))
    for damage in ({"along": stored["mean"]}, {"rest": float("nan")}, {"rest": "much"}):
        with pytest.raises(ValueError, match=r".+"):
            Likeness.of_stored({**stored, **damage})
    assert Likeness.of_stored(whole.stored()).distance(new).tolist() == whole.distance(new).tolist()


def test_a_wide_network_is_told_in_little():
    width = 1100
    features = np.random.default_rng(0).standard_normal((60, width)).astype(np.float32)
    found = likeness.fit([features])
    assert found.precision.directions.shape == (30, width)
    assert len(json.dumps(found.stored())) < 32 * width * 4 * 1.4 < width**2
    nothing = likeness.fit([np.zeros((40, width), np.float32)])
    assert nothing.distance(np.zeros((1, width), np.float32)) == 0


def test_few_known_images_are_unlike_and_all_others_are():
    unlike, strange = [], []
    for seed in range(10):
        found = likeness.fit([features(200, seed), features(200, 100 + seed, shift=1.0)])
        new = [*features(100, 200 + seed), *features(100, 300 + seed, shift=1.0)]
        unlike.append(np.mean([not found.has(one) for one in new]))
        strange += [found.has(one) for one in features(20, 400 + seed, shift=9.0)]
        other = features(20, seed)
        other[:, -1] += 0.05  # of what never varies, a little is much
        strange += [found.has(one) for one in other]
    assert 0 < np.mean(unlike) < likeness.LEVEL
    assert not any(strange)


def test_of_few_images_one_in_as_many_may_be_unlike():
    found = likeness.fit([features(20, 0)])
    (known,) = found.distances
    (farthest,) = features(1, 1, shift=5.0)
    assert len(known) == 10 and found.distance(farthest[None]) > known[-1]
    assert not found.has(farthest)
    assert likeness.fit([features(19, 0)]) is likeness.fit([]) is None
    assert likeness.fit([features(200, 0), features(19, 0)]) is None


def test_versions_of_an_image_are_in_one_half():
    """Or what was not fitted to would be near what was, and new images far."""
    rng = np.random.default_rng(0)
    unlike = {"apart": [], "together": []}
    for _ in range(10):
        clean = rng.standard_normal((60, 30)).astype(np.float32)
        changed = [clean + 0.1 * rng.standard_normal(clean.shape).astype(np.float32)] * 6
        new = rng.standard_normal((100, 30)).astype(np.float32)
        origin = np.arange(60)
        together = likeness.fit([clean, *changed], [origin] * 7)
        apart = likeness.fit([clean, np.concatenate(changed)])
        for how, found in (("together", together), ("apart", apart)):
            unlike[how].append(np.mean([not found.has(one) for one in new]))
    assert np.mean(unlike["together"]) < 1 / 31 + 0.01  # 30 images tell it
    assert np.mean(unlike["apart"]) > 0.1


def test_what_is_stored_is_the_same():
    found = likeness.fit([features(50, 0), features(40, 1)])
    again = Likeness.of_stored(json.loads(json.dumps(found.stored())))
    new = features(20, 2)
    np.testing.assert_array_equal(again.distance(new), found.distance(new))
    assert [again.has(one) for one in new] == [found.has(one) for one in new]


def test_damaged_ones_are_refused():
    whole = likeness.fit([features(50, 0)]).stored()
    cut = {**whole["mean"], "float32": whole["mean"]["float32"][:-3]}
    for damage in (
        {"distances": []},
        {"distances": [[]]},
        {"distances": [[float("nan")]]},
        {"mean": whole["precision"]},
        {"mean": cut},
        {"mean": {**whole["mean"], "shape": [3]}},
    ):
        with pytest.raises(ValueError, match=r".+"):
            Likeness.of_stored({**whole, **damage})
