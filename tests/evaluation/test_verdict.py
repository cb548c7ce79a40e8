"""Thresholds and p-values against counting; error rates against what is promised."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsdl_jax.evaluation import verdict
from wsdl_jax.evaluation.likeness import Likeness
from wsdl_jax.evaluation.verdict import Calibration, Verdict

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


# ----- Verdicts -----------------------------------------------------------------------------------


def by_counting(score: float, scores: list[float]) -> float:
    return (1 + sum(known >= score for known in scores)) / (1 + len(scores))


def calibration(**kwargs: Any) -> Calibration:
    real = kwargs.pop("real", {"clean": [0.0]})
    return Calibration({name: sorted(map(float, of)) for name, of in real.items()}, **kwargs)


@given(SCORES, SCORES, st.lists(st.integers(-3, 3).map(float), max_size=40), st.integers(-4, 4))
def test_answers_follow_from_p_values(clean, changed, fake, score):
    known = calibration(real={"clean": clean, "jpeg 90": changed}, fake=sorted(fake))
    p_value = max(by_counting(score, clean), by_counting(score, changed))
    assert known.p_value(float(score)) == p_value
    for rate in (0.0, 0.1, 0.5):
        found = known.judge(float(score), rate)
        assert found.p_value == p_value
        low = by_counting(-score, [-one for one in fake])
        if p_value <= rate:
            assert found.answer == "fake"
        elif fake:
            assert found.answer == ("real" if low <= rate else "unsure")
        else:
            assert found.answer == ("real" if p_value >= 0.2 else "unsure")


@pytest.mark.parametrize("count", [19, 60, 200])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_promised_rates_hold(count, rate):
    """Of real images of any distribution, and of fakes like the known ones."""
    rng = np.random.default_rng(count)
    of_real, of_fake = [], []
    for _ in range(300):
        known = calibration(
            real={"clean": rng.gamma(2, size=count)}, fake=sorted(rng.normal(3, 1, count).tolist())
        )
        of_real += [known.judge(one, rate).answer for one in rng.gamma(2, size=10).tolist()]
        of_fake += [known.judge(one, rate).answer for one in rng.normal(3, 1, 10).tolist()]
    # 3,000 answers, of which those of one calibration hang together.
    assert np.mean([answer == "fake" for answer in of_real]) < rate + 0.02
    assert np.mean([answer == "real" for answer in of_fake]) < rate + 0.02
    assert np.mean([answer == "fake" for answer in of_real]) > rate * 0.5


def test_reasons():
    known = calibration(real={"clean": [1, 2, 3, 4] * 10}, fake=sorted([4.0, 5.0, 6.0, 7.0] * 10))
    assert known.judge(9.0, 0.05) == Verdict("fake", 1 / 41, "0 of 40 real images score as high")
    assert known.judge(0.0, 0.05) == Verdict("real", 1.0, "0 of 40 known fakes score as low")
    both = "10 of 40 real images score as high, and 10 of 40 known fakes score as low"
    assert known.judge(4.0, 0.05) == Verdict("unsure", 11 / 41, both)


def near(value: float) -> Likeness:
    """The likeness of images whose only feature is a value, give or take one."""
    one = np.ones(1, np.float32)
    return Likeness(value * one, one, one[None], (np.ones(99),))


def test_images_are_judged_by_those_that_they_are_like():
    ours = calibration(real={"clean": [0.0] * 99}, likeness=near(0))
    own = calibration(real={"clean": [10.0] * 99}, likeness=near(0.5), source="own images")

    def said(score: float, feature: float | None, known: Sequence[Calibration]) -> Verdict:
        features = None if feature is None else np.array([feature], float)
        return verdict.judge(known, float(score), features, 0.05)

    assert said(5, -0.9, [ours, own]).answer == "fake"
    assert said(5, 1.2, [ours, own]) == own.judge(5.0, 0.05)
    assert said(11, 0.2, [ours, own]).answer == "fake"
    between = "fake by the training images, real by own images"
    assert said(5, 0.2, [ours, own]) == Verdict("unsure", 1.0, between)
    for score in (-1, 5, 11):
        unlike = said(score, 9, [ours, own])
        assert (unlike.answer, unlike.reason) == (
            "unsure",
            "unlike the training images and own images",
        )
        assert said(score, 9, [ours]).reason == "unlike the training images"
    # Where it cannot be told what an image is like, it is judged by what there is.
    assert said(5, None, [ours]).answer == "fake"
    assert said(5, 9, [calibration()]).answer == calibration().judge(5.0).answer


def test_pooled_rate():
    rng = np.random.default_rng(0)
    for rate in (0.05, 0.1, 0.5):
        pooled = [verdict.pooled_rate(rng.standard_normal(200), rate) for _ in range(10)]
        assert np.mean(pooled) == pytest.approx(rate, abs=0.02)
        assert max(pooled) < rate + 0.02
    # Ties with what was seen are no evidence.
    assert verdict.pooled_rate(np.zeros(50), 0.05) == 0
    assert verdict.pooled_rate(np.zeros(1), 0.05) is None
