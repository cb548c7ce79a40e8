"""The forger's networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from wsdl_jax.diffusion import networks

pytestmark = pytest.mark.usefixtures("compile_quickly")


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.slow
@given(patch=st.integers(1, 4), rows=st.integers(1, 4), channels=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_patches_are_taken_and_put_back(patch, rows, channels):
    x = random(2, patch * rows, patch * (rows + 1), channels)
    patches = networks.to_patches(x, patch)
    assert patches.shape == (2, rows, rows + 1, channels * patch**2)
    first = np.asarray(x)[:, :patch, :patch].reshape(2, -1)  # the top left pixels, row by row
    np.testing.assert_array_equal(patches[:, 0, 0], first)
    np.testing.assert_array_equal(networks.from_patches(patches, patch), x)


def test_time_features_are_sines_and_cosines():
    t = np.array([0.0, 0.25, 1.0], np.float32)
    found = networks.time_features(jnp.asarray(t), 8)
    frequencies = 10_000.0 ** (-np.arange(4) / 4)
    angles = 1000 * t[:, None] * frequencies
    np.testing.assert_allclose(found, np.hstack([np.sin(angles), np.cos(angles)]), atol=1e-4)


@pytest.mark.slow
def test_attention_is_softmax_of_products():
    attention = networks.Attention(16, heads=2, rngs=nnx.Rngs(0))
    attention.out.kernel[...] = random(16, 16)
    x = random(1, 2, 3, 16)
    parts = np.asarray(attention.query_key_value(attention.norm(x))).reshape(6, 3, 2, 8)
    heads = []
    for head in range(2):
        query, key, value = (parts[:, i, head] for i in range(3))
        heads.append(special.softmax(query @ key.T / np.sqrt(8), axis=-1) @ value)
    expected = x + np.hstack(heads).reshape(1, 2, 3, 16) @ np.asarray(attention.out.kernel[...])
    np.testing.assert_allclose(attention(x), expected, atol=1e-5)


def make_unet(**changes):
    settings = {"channels": 3, "widths": (8, 16), "patch": 2, "attention": 1} | changes
    return networks.UNet(**settings, rngs=nnx.Rngs(0))


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(8,), (16, 8), (8, 16, 8)])
@pytest.mark.parametrize("attention", [0, 1, 3])
def test_unet_gives_an_image_of_the_same_shape(widths, attention):
    unet = make_unet(widths=widths, attention=attention, channels=2)
    x = jax.ShapeDtypeStruct((2, 16, 24, 2), jnp.float32)
    t = jax.ShapeDtypeStruct((2,), jnp.float32)
    assert nnx.eval_shape(unet, x, t).shape == (2, 16, 24, 2)
    levels = [module for module in (*unet.down_attention, *unet.up_attention) if module]
    assert len(levels) == 2 * len(range(attention, len(widths)))


@pytest.mark.slow
def test_unet_starts_by_saying_zero_and_then_depends_on_image_time_and_far_away_pixels():
    unet = make_unet()
    x, t = random(2, 16, 16, 3), jnp.array([0.2, 0.9])
    call = nnx.jit(lambda unet, x, t: unet(x, t))
    np.testing.assert_array_equal(call(unet, x, t), 0)
    for path, variable in nnx.to_flat_state(nnx.state(unet)):
        if "kernel" in path:
            variable.set_value(random(*variable.shape) * 0.2)
            nnx.update(unet, nnx.from_flat_state({path: variable}))
    out = call(unet, x, t)
    assert jnp.abs(call(unet, x, t + 0.05) - out).max() > 1e-3
    moved = call(unet, x.at[:, 0, 0].add(1), t) - out
    assert jnp.abs(moved[:, -1, -1]).max() > 1e-6  # by attention
    one = call(unet, x[:1], t[:1])
    np.testing.assert_allclose(one, out[:1], atol=1e-5)  # images are independent


@pytest.mark.slow
def test_autoencoder_makes_latents_of_a_quarter_and_every_pixel_anew():
    autoencoder = networks.Autoencoder(channels=4, widths=(8, 16), rngs=nnx.Rngs(0))
    images = random(2, 16, 24, 3)
    mean, log_variance = autoencoder.encode(images)
    assert mean.shape == log_variance.shape == (2, 4, 6, 4)
    assert autoencoder.decode(mean).shape == images.shape
