"""Pooled scores against NumPy and SciPy, of arrays of NumPy and of JAX."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from wsdl_jax.configuration import base
from wsdl_jax.methods import POOLINGS, Pooling
from wsdl_jax.methods.pooling import locations_of


def expected(pooling: Pooling, image: np.ndarray) -> float:
    image = image.astype(float)
    if pooling.kind == "mean":
        return image.mean()
    if pooling.kind == "max":
        return image.max()
    if pooling.kind == "gem":
        return scipy.stats.pmean(image, pooling.power, axis=None)
    if pooling.sigma:
        image = scipy.ndimage.gaussian_filter(image, pooling.sigma, mode="nearest")
    count = math.ceil(pooling.topk * image.size)
    return np.sort(image, axis=None)[-count:].mean()


@settings(deadline=None, max_examples=15)
@given(
    kind=st.sampled_from(POOLINGS),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    power=st.sampled_from([1.0, 2.0, 7.5]),
    topk=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    sigma=st.sampled_from([0.0, 0.1, 0.7, 2.0]),
)
def test_against_numpy_and_scipy(kind, height, width, power, topk, sigma):
    pooling = Pooling(kind, power, topk, sigma)
    maps = np.random.default_rng(height * width).random((3, height, width), np.float32)
    maps[0] = 0
    scores = [expected(pooling, image) for image in maps]
    for pooled in (pooling(maps), pooling(jnp.asarray(maps))):
        assert pooled.shape == (3,) and pooled.dtype == np.float32
        np.testing.assert_allclose(pooled, scores, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("pooling", "limit"),
    [
        (Pooling("gem", power=1.0), np.mean),
        (Pooling("gem", power=1e4), np.max),
        (Pooling("topk", topk=1.0, sigma=0.0), np.mean),
        (Pooling("topk", topk=1e-3, sigma=0.0), np.max),
    ],
)
def test_limits(pooling, limit):
    maps = np.random.default_rng(0).random((2, 6, 5), np.float32)
    np.testing.assert_allclose(pooling(maps), [limit(image) for image in maps], rtol=1e-3)


@pytest.mark.parametrize("kind", POOLINGS)
def test_low_maps_keep_their_order(kind):
    """The third power of a probability of 1e-20 is none that a float32 holds."""
    level = np.float32([1e-20, 2e-20, 3e-20])
    maps = level[:, None, None] * np.linspace(0.1, 1, 12, dtype=np.float32).reshape(3, 4)
    scores = np.asarray(jax.jit(Pooling(kind))(maps))
    np.testing.assert_allclose(scores / scores[0], [1, 2, 3], rtol=1e-5)


def test_a_small_part_drowns_in_the_mean_alone():
    untouched = np.full((1, 10, 10), 0.3, np.float32)
    manipulated = np.full((1, 10, 10), 0.2, np.float32)
    manipulated[:, 2:5, 3:6] = 0.9
    for kind in POOLINGS:
        higher = Pooling(kind)(manipulated) > Pooling(kind)(untouched)
        assert higher == (kind != "mean")


@given(hundredths=st.integers(1, 100), hundreds=st.integers(1, 40))
def test_a_share_of_the_locations(hundredths, hundreds):
    """As whole numbers have it, and rounded up where there is no whole number."""
    count = 100 * hundreds
    assert locations_of(hundredths / 100, count) == hundredths * hundreds
    assert locations_of(hundredths / 100, count + 1) == hundredths * hundreds + 1
    assert locations_of(hundredths / 1e6, 1) == 1


def test_fields():
    assert Pooling.of(base().score) == Pooling()
    score = base().score
    score.pooling, score.power, score.topk, score.sigma = "topk", 2.0, 0.2, 0.5
    assert Pooling.of(score) == Pooling("topk", power=2.0, topk=0.2, sigma=0.5)
