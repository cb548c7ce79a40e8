"""Grad-CAM against closed forms for linear upper halves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsdl_jax.methods.explanation import grad_cam, to_image_size

RNG = np.random.default_rng(0)
ACTIVATIONS = RNG.normal(size=(3, 5, 4, 6)).astype(np.float32)
KERNEL = RNG.normal(size=(5, 4, 6, 2)).astype(np.float32)


def linear(x: jax.Array) -> jax.Array:
    return jnp.einsum("bhwc,hwck->bk", x, KERNEL)


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolates between pixel centres, along one axis and then the other; edges repeat."""

    def along(axis: int, size: int, x: np.ndarray) -> np.ndarray:
        old = np.arange(x.shape[axis]) + 0.5
        new = (np.arange(size) + 0.5) * x.shape[axis] / size
        return np.apply_along_axis(lambda line: np.interp(new, old, line), axis, x)

    return along(1, width, along(0, height, image.astype(float)))


def test_closed_form_of_a_linear_half():
    logits, maps = jax.jit(lambda x: grad_cam(linear, x))(ACTIVATIONS)
    x, kernel = ACTIVATIONS.astype(float), KERNEL.astype(float)
    np.testing.assert_allclose(logits, np.einsum("bhwc,hwck->bk", x, kernel), rtol=1e-4)
    weights = kernel[..., 1].mean((0, 1))  # of the channels: the gradient is the kernel itself
    expected = np.maximum((x * weights).sum(-1), 0)
    expected -= expected.min((1, 2), keepdims=True)
    expected /= 1e-7 + expected.max((1, 2), keepdims=True)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6)


def test_images_are_independent():
    def upper(x):
        return jnp.tanh(linear(x**2))

    _, together = grad_cam(upper, jnp.array(ACTIVATIONS))
    for i in range(len(ACTIVATIONS)):
        _, alone = grad_cam(upper, jnp.array(ACTIVATIONS[i : i + 1]))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-5, atol=1e-6)


def test_a_map_without_positive_entries_is_zero():
    # Every channel pulls the logit down at positive activations.
    def upper(x):
        return jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], axis=1)

    _, maps = grad_cam(upper, jnp.abs(jnp.array(ACTIVATIONS)))
    np.testing.assert_array_equal(maps, 0)
    np.testing.assert_array_equal(to_image_size(maps, 9, 7), 0)


def test_bfloat16_activations_give_float32_maps():
    _, exact = grad_cam(linear, jnp.array(ACTIVATIONS))
    half = jnp.array(ACTIVATIONS, jnp.bfloat16)
    _, maps = grad_cam(lambda x: linear(x.astype(jnp.float32)), half)
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(maps, exact, atol=0.03)


@jax.custom_vjp
def seam(x):
    """The identity; nobody may differentiate through it."""
    return x


def _refuse(_, gradient):
    raise AssertionError("the lower half is differentiated")


seam.defvjp(lambda x: (x, None), _refuse)


def test_only_the_upper_half_is_differentiated():
    @jax.jit
    def explain(images):
        return grad_cam(linear, seam(jnp.sin(images)))

    _, maps = explain(ACTIVATIONS)
    _, expected = grad_cam(linear, jnp.sin(jnp.array(ACTIVATIONS)))
    np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError, match="lower half"):
        jax.grad(lambda x: linear(seam(x)).sum())(ACTIVATIONS)


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
def test_to_image_size(height, width, up, right):
    maps = np.random.default_rng(height * width).random((2, height, width)).astype(np.float32)
    size = height * up + up // 2, width * right + right // 2
    actual = np.asarray(to_image_size(jnp.array(maps), *size))
    expected = np.stack([bilinear(m, *size) for m in maps])
    expected /= expected.max((1, 2), keepdims=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_to_image_size_of_one_zero_map_among_others():
    maps = np.zeros((2, 3, 3), np.float32)
    maps[1, 1, 1] = 0.25
    resized = np.asarray(to_image_size(jnp.array(maps), 6, 6))
    np.testing.assert_array_equal(resized[0], 0)
    assert resized[1].max() == 1
