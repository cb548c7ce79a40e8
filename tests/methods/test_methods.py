"""Scores and probabilities of each method from given network outputs, by SciPy and NumPy."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from wsdl_jax import methods
from wsdl_jax.models.attention import Attention
from wsdl_jax.models.outputs import Outputs
from wsdl_jax.models.patches import Patches
from wsdl_jax.models.xception import ImageClassifier

CONFIGS = Path(__file__).parent.parent.parent / "configs"
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(-1, 1, (4, 6, 5, 3)), jnp.float32)
IMAGE_LOGITS = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
MAP_LOGITS = jnp.asarray(RNG.normal(size=(4, 3, 2, 2)), jnp.float32)
MASKS = jnp.asarray(RNG.random((4, 3, 2)), jnp.float32)
FAKE = 1


class GivenPatches(Patches):
    def __init__(self):
        pass

    def __call__(self, images):
        return Outputs(map_logits=MAP_LOGITS)


class GivenAttention(Attention):
    def __init__(self):
        pass

    def __call__(self, images):
        return Outputs(image_logits=IMAGE_LOGITS, attention=MASKS)


class GivenClassifier(ImageClassifier):
    def __init__(self):
        pass

    def lower(self, images):
        return images

    def upper(self, activations):
        return activations.mean((1, 2))[:, :2] - IMAGES.mean((1, 2))[:, :2] + IMAGE_LOGITS


def test_network_input():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 4, 64, 1).repeat(3, -1)
    expected = pixels.astype(np.float64) / 127.5 - 1
    for convert in (methods.network_input, jax.jit(methods.network_input)):
        images = convert(jnp.asarray(pixels))
        assert images.dtype == jnp.float32
        np.testing.assert_allclose(images, expected, rtol=0, atol=2e-7)
        np.testing.assert_array_equal(convert(images), images)


def localize(name: str, network, variant: str = "") -> methods.Localization:
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](variant)
    return methods.from_config(config).localize(network, IMAGES)


@pytest.mark.parametrize(
    ("name", "network", "map_size"),
    [("attention", GivenAttention(), (3, 2)), ("grad_cam", GivenClassifier(), (6, 5))],
)
def test_methods_with_image_logits(name, network, map_size):
    scores, probabilities, maps = localize(name, network)
    np.testing.assert_allclose(scores, IMAGE_LOGITS[:, FAKE], rtol=1e-5)
    expected = scipy.special.softmax(IMAGE_LOGITS, axis=-1)[:, FAKE]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    assert maps.shape == (4, *map_size)
    assert maps.min() >= 0 and maps.max() <= 1
    if name == "attention":
        np.testing.assert_array_equal(maps, MASKS)


def test_methods_with_map_logits():
    scores, probabilities, maps = localize("patches", GivenPatches())
    expected = scipy.special.softmax(MAP_LOGITS, axis=-1)[..., FAKE]
    np.testing.assert_allclose(maps, expected, rtol=1e-5)
    for values in (scores, probabilities):
        np.testing.assert_allclose(values, expected.mean((1, 2)), rtol=1e-5)


def test_attention_under_full_supervision():
    """Nothing trains its image classifier, so its score is the mask's mean."""
    scores, probabilities, maps = localize("attention", GivenAttention(), "setup=c")
    np.testing.assert_array_equal(maps, MASKS)
    for values in (scores, probabilities):
        np.testing.assert_allclose(values, MASKS.mean((1, 2)), rtol=1e-6)
