"""Explanations against closed forms for linear upper halves, and against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsdl_jax.methods.explanation import KINDS, evidence, explain, to_image_size

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


def weighted_sum(kind: str, gradients: np.ndarray, activations: np.ndarray) -> np.ndarray:
    """The sum over channels of each location, in float64, as the papers write it."""
    out = np.zeros(activations.shape[:3])
    for image, row, column, channel in np.ndindex(activations.shape):
        weight = {
            "grad_cam": gradients[image, :, :, channel].mean(),
            "hires_cam": gradients[image, row, column, channel],
            "layer_cam": max(gradients[image, row, column, channel], 0),
        }[kind]
        out[image, row, column] += weight * activations[image, row, column, channel]
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_closed_form_of_a_linear_half(kind):
    logits, maps = jax.jit(lambda x: explain(linear, x, kind))(ACTIVATIONS)
    x, kernel = ACTIVATIONS.astype(float), KERNEL.astype(float)
    np.testing.assert_allclose(logits, np.einsum("bhwc,hwck->bk", x, kernel), rtol=1e-4)
    gradients = np.broadcast_to(kernel[..., 1], x.shape)  # the kernel itself
    expected = np.maximum(weighted_sum(kind, gradients, x), 0)
    expected -= expected.min((1, 2), keepdims=True)
    expected /= 1e-7 + expected.max((1, 2), keepdims=True)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_by_finite_differences(kind):
    """Of an upper half that is not linear, differentiated by NumPy in float64."""
    mixing = np.random.default_rng(1).normal(size=(6, 5))

    def fake_logit(x, tanh=np.tanh):
        neighbours = x[:, 1:, 1:, 0] * x[:, :-1, :-1, 1]
        return (tanh(x @ mixing) ** 2).sum((1, 2, 3)) + tanh(neighbours).sum((1, 2))

    def upper(x):
        return jnp.stack([jnp.zeros(len(x)), fake_logit(x, jnp.tanh)], axis=1)

    x, step = ACTIVATIONS.astype(float), 1e-6
    gradients = np.zeros_like(x)
    for place in np.ndindex(x.shape[1:]):
        moved = np.zeros_like(x)
        moved[(slice(None), *place)] = step
        slopes = (fake_logit(x + moved) - fake_logit(x - moved)) / (2 * step)
        gradients[(slice(None), *place)] = slopes
    logits, found = evidence(upper, jnp.array(ACTIVATIONS), kind)
    np.testing.assert_allclose(logits[:, 1], fake_logit(x), rtol=1e-5)
    expected = x.shape[1] * x.shape[2] * weighted_sum(kind, gradients, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["grad_cam", "hires_cam"])
def test_evidence_of_an_average_pool_is_the_class_activation_map(kind):
    kernel, bias = jnp.array(KERNEL[0, 0]), jnp.array([0.5, -2.0])
    logits, found = evidence(
        lambda x: x.mean((1, 2)) @ kernel + bias, jnp.asarray(ACTIVATIONS), kind
    )
    np.testing.assert_allclose(found, ACTIVATIONS @ KERNEL[0, 0, :, 1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.mean((1, 2)), logits[:, 1] - bias[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_differentiable_by_parameters(kind):
    """A loss of the map moves the weights of the half that is explained."""

    def loss(scale):
        _, found = evidence(
            lambda x: jnp.tanh(scale * linear(x)), jnp.asarray(ACTIVATIONS) / 30, kind
        )
        return (found**2).sum()

    step = 1e-2
    slope = (loss(1 + step) - loss(1 - step)) / (2 * step)
    assert abs(slope) > 1
    np.testing.assert_allclose(jax.grad(loss)(1.0), slope, rtol=1e-2)


def test_images_are_independent():
    def upper(x):
        return jnp.tanh(linear(x**2))

    _, together = explain(upper, jnp.array(ACTIVATIONS))
    for i in range(len(ACTIVATIONS)):
        _, alone = explain(upper, jnp.array(ACTIVATIONS[i : i + 1]))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-5, atol=1e-6)


def test_a_map_without_positive_entries_is_zero():
    # Every channel pulls the logit down at positive activations.
    def upper(x):
        return jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], axis=1)

    _, maps = explain(upper, jnp.abs(jnp.array(ACTIVATIONS)))
    np.testing.assert_array_equal(maps, 0)
    np.testing.assert_array_equal(to_image_size(maps, 9, 7), 0)


def test_bfloat16_activations_give_float32_maps():
    _, exact = explain(linear, jnp.array(ACTIVATIONS))
    half = jnp.array(ACTIVATIONS, jnp.bfloat16)
    _, maps = explain(lambda x: linear(x.astype(jnp.float32)), half)
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
    def explained(images):
        return explain(linear, seam(jnp.sin(images)))

    _, maps = explained(ACTIVATIONS)
    _, expected = explain(linear, jnp.sin(jnp.array(ACTIVATIONS)))
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
