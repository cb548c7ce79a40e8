"""How good whole images are."""

import json
import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import linalg
from sklearn.neighbors import NearestNeighbors

from wsdl_jax.diffusion import figures


def noise(count, seed=0, size=32):
    rng = np.random.default_rng(seed)
    smooth = rng.integers(60, 190, (count, size // 8, size // 8, 3)).repeat(8, 1).repeat(8, 2)
    return (smooth + rng.integers(-9, 9, (count, size, size, 3))).astype(np.uint8)


@given(dimensions=st.integers(2, 12), seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_frechet_distance_is_the_formula_with_scipys_root(dimensions, seed):
    rng = np.random.default_rng(seed)
    one, two = (
        rng.standard_normal((40, dimensions)) @ rng.standard_normal((dimensions, dimensions)) + i
        for i in range(2)
    )
    a, b = (np.cov(x, rowvar=False) for x in (one, two))
    root = linalg.sqrtm(a @ b).real
    expected = ((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
    np.testing.assert_allclose(figures.frechet_distance(one, two), expected, rtol=1e-5, atol=1e-6)


def test_frechet_distance_of_normal_distributions():
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, 1, (200_000, 2)), rng.normal([1, 0], [2, 1], (200_000, 2))
    assert np.isclose(figures.frechet_distance(one, two), 1 + (2 - 1) ** 2, atol=0.03)
    assert abs(figures.frechet_distance(one, one)) < 1e-9


def test_frechet_distance_with_fewer_images_than_features():
    one, two = (figures.features(noise(20, seed)) for seed in (0, 1))
    assert one.shape == (20, 256)
    assert 0 < figures.frechet_distance(one, two) < np.inf


def test_features_are_means_and_variations_of_cells():
    images = noise(3)
    found = figures.features(images)
    cell = images[1, 4:8, 8:12].astype(float)  # row 1, column 2 of 8
    np.testing.assert_allclose(
        found[1, 3 * (8 + 2) : 3 * (8 + 3)], cell.mean((0, 1)) / 64, rtol=1e-5
    )
    deviation = cell.mean(axis=-1).std()
    np.testing.assert_allclose(found[1, 192 + 8 + 2], np.log(deviation + 1), rtol=1e-4)


def test_nearest_is_that_of_scikit_learn():
    images, others = noise(10, 1), noise(30, 2)
    small, others_small = (
        np.stack([np.asarray(Image.fromarray(x).reduce(4)) for x in y]).reshape(len(y), -1)
        for y in (images, others)
    )
    distances, places = NearestNeighbors(n_neighbors=1).fit(others_small).kneighbors(small)
    found, at = figures.nearest(images, others)
    np.testing.assert_array_equal(at, places[:, 0])
    expected = distances[:, 0] / np.sqrt(small.shape[1])
    np.testing.assert_allclose(found, expected, atol=0.6)  # Pillow rounds the means


def test_copies_are_found_and_fresh_images_are_not():
    training, fresh = noise(200, 0), noise(200, 1)
    copied = np.clip(training[:50].astype(int) + noise(50, 3) % 9 - 4, 0, 255).astype(np.uint8)
    copies = figures.measure(copied, training, fresh)
    new = figures.measure(noise(50, 4), training, fresh)
    assert copies["copies"] == 1 and copies["nearest"] < 0.2 * copies["nearest_real"]
    assert new["copies"] < 0.1 and 0.8 < new["nearest"] / new["nearest_real"] < 1.2


def test_worse_images_are_farther_away():
    training, fresh = noise(300, 0), noise(300, 1)
    good = figures.measure(noise(300, 2), training, fresh)
    dark = figures.measure(noise(300, 2) // 2, training, fresh)
    assert 0.7 < good["frechet"] / good["frechet_real"] < 1.4
    assert dark["frechet"] > 3 * good["frechet"]


def test_the_command(trained_forgers, tmp_path):
    out = tmp_path / "sheet.png"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "wsdl_jax.diffusion.quality"),
            *(f"--forger={trained_forgers['pixel']}", "--steps=2", "--count=16", "--batch=8"),
            f"--out={out}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["step"], found["images"]) == (4, 16)
    # A network that has learned nothing draws noise: no copies, and far from real images.
    assert found["copies"] == 0 and found["frechet"] > 2 * found["frechet_real"]
    # Five real portraits to compare with: three rows of five made, their nearest, and those.
    with Image.open(out) as sheet:
        assert sheet.size == (5 * 32, 5 * 32)
