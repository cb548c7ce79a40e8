"""The networks: sizes, widths, computation types, modes, and how their pieces are put together."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from wsdl_jax.models.attention import Attention
from wsdl_jax.models.backbone import Features
from wsdl_jax.models.classifier import ImageClassifier
from wsdl_jax.models.fcn import FCN
from wsdl_jax.models.layers import seed_dropout
from wsdl_jax.models.outputs import Outputs
from wsdl_jax.models.patches import Patches
from wsdl_jax.models.xception import Trunk, scaled

pytestmark = pytest.mark.usefixtures("compile_quickly")

WIDTH = 0.125
NETWORKS = {
    "patches": Patches,
    "classifier": ImageClassifier,
    "attention": Attention,
    "fcn": FCN,
}
IMAGES = jnp.array(np.random.default_rng(0).uniform(-1, 1, (3, 64, 80, 3)), jnp.float32)


@functools.cache
def abstract(kind: Any, **kwargs: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure and shapes of a network, without values."""
    return nnx.split(nnx.eval_shape(lambda: kind(**kwargs, rngs=nnx.Rngs(0))))


def drawn(kind: Any, **kwargs: Any) -> nnx.Module:
    """A network with weights from NumPy; BatchNorm as it starts."""
    graphdef, state = abstract(kind, **kwargs)
    rng = np.random.default_rng(1)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        names = [getattr(entry, "key", None) for entry in path]
        if "kernel" in names:
            std = np.prod(leaf.shape[:-1]) ** -0.5
            return jnp.array(rng.normal(0, std, leaf.shape), leaf.dtype)
        return jnp.full(leaf.shape, 1 if {"scale", "var"} & set(names) else 0, leaf.dtype)

    variables = nnx.filter_state(state, (nnx.Param, nnx.BatchStat))
    rest = nnx.filter_state(state, nnx.Not((nnx.Param, nnx.BatchStat)))
    return nnx.merge(
        graphdef,
        jax.tree.map_with_path(draw, variables),
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest),
    )


def shape_of(kind: Any, images: tuple[int, ...], **kwargs: Any):
    graphdef, state = abstract(kind, **kwargs)

    def outputs(state: Any, images: jax.Array):
        network = nnx.merge(graphdef, state)
        network.eval()
        return network(images)

    return jax.eval_shape(outputs, state, jax.ShapeDtypeStruct(images, jnp.float32))


@functools.cache
def small(name: str, dtype: str = "float32") -> nnx.Module:
    return drawn(NETWORKS[name], width=WIDTH, dtype=jnp.dtype(dtype))


@functools.cache
def result(name: str, dtype: str = "float32", training: bool = False) -> tuple[Outputs, Any]:
    """Outputs for IMAGES and the statistics afterwards; compiled once for all tests."""
    model = nnx.clone(small(name, dtype))
    model.train() if training else model.eval()
    return nnx.jit(lambda m, x: (m(x), nnx.state(m, nnx.BatchStat)))(model, IMAGES)


# ----- Sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "side", "channels"),
    [(1, 74, 128), (2, 37, 256), (3, 19, 728), (7, 19, 728), (11, 19, 728), (12, 10, 1024)],
)
def test_published_sizes_of_the_trunk(depth, side, channels):
    assert shape_of(Trunk, (2, 299, 299, 3), depth=depth).shape == (2, side, side, channels)


def test_published_sizes_of_the_networks():
    images = (2, 299, 299, 3)
    for depth, side in {1: 74, 2: 37, 3: 19}.items():
        assert shape_of(Patches, images, depth=depth).map_logits.shape == (2, side, side, 2)
    attention = shape_of(Attention, images)
    assert attention.image_logits.shape == (2, 2)
    assert attention.attention.shape == (2, 19, 19)
    assert shape_of(FCN, images).map_logits.shape == (2, 19, 19, 2)
    assert shape_of(ImageClassifier, images).image_logits.shape == (2, 2)


def locations(pixels: int, depth: int) -> int:
    """Positions of the windows along a side, counted one by one."""
    size = len(range(0, pixels - 3 + 1, 2))  # conv1: stride 2
    size = len(range(0, size - 3 + 1))  # conv2
    for block in range(1, depth + 1):
        if block in (1, 2, 3, 12):
            size = len(range(-1, size + 1 - 3 + 1, 2))  # pooling: padding 1, stride 2
    return size


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(st.integers(64, 1200), st.integers(64, 1200), st.integers(1, 12))
def test_every_size_from_64(height, width, depth):
    out = shape_of(Patches, (2, height, width, 3), depth=depth, width=WIDTH)
    assert out.map_logits.shape == (2, locations(height, depth), locations(width, depth), 2)


@settings(deadline=None, max_examples=3)
@given(st.integers(64, 700), st.integers(64, 700))
def test_every_size_from_64_of_a_whole_network(height, width):
    out = shape_of(Attention, (1, height, width, 3), width=WIDTH)
    assert out.image_logits.shape == (1, 2)
    assert out.attention.shape == (1, locations(height, 7), locations(width, 7))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("size", [(63, 64), (64, 63), (1, 1)])
def test_small_images_are_refused(network, size):
    with pytest.raises(ValueError, match=rf"{size[0]}×{size[1]} pixels; .* 64"):
        shape_of(network, (1, *size, 3), width=WIDTH)


@pytest.mark.parametrize("depth", [0, -1, 13])
def test_depths_that_do_not_exist_are_refused(depth):
    with pytest.raises(ValueError, match=f"blocks 1 to 12, not {depth}"):
        Patches(depth=depth, width=WIDTH, rngs=nnx.Rngs(0))


# ----- Width --------------------------------------------------------------------------------------


@given(st.integers(1, 4096), st.floats(0.01, 3))
def test_scaled_widths(channels, width):
    after = scaled(channels, width)
    if width == 1:
        assert after == channels
    else:
        assert after % 8 == 0
        assert after >= 8
        assert 0 <= after - channels * width < 8 or after == 8


def test_width_multiplies_every_layer():
    kernels = {
        factor: [
            leaf.shape
            for path, leaf in jax.tree.leaves_with_path(abstract(Attention, width=factor)[1])
            if leaf.ndim == 4 or leaf.ndim == 2
        ]
        for factor in (1.0, 0.5)
    }
    ends = {3, 2, 1}  # colours, classes, and the single channel of masks and depthwise kernels
    for whole, half in zip(kernels[1.0], kernels[0.5], strict=True):
        for a, b in zip(whole, half, strict=True):
            assert b == (a if a in ends else scaled(a, 0.5))


def test_channels_of_full_width():
    trunk = nnx.merge(*abstract(Trunk, depth=12))
    widths = [[conv.pointwise.kernel.shape for conv in block.convs] for block in trunk.blocks]
    assert widths == [
        [(64, 128), (128, 128)],
        [(128, 256), (256, 256)],
        [(256, 728), (728, 728)],
        *[[(728, 728)] * 3] * 8,
        [(728, 728), (728, 1024)],
    ]
    assert [block.shortcut is None for block in trunk.blocks] == [False] * 3 + [True] * 8 + [False]
    head = nnx.merge(*abstract(FCN))
    assert head.conv.kernel.shape == (3, 3, 728, 182)


# ----- Computation --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "training"), [("patches", True), ("attention", False)])
def test_bfloat16_is_close(name, training):
    exact, exact_stats = result(name, "float32", training)
    rough, stats = result(name, "bfloat16", training)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rough), strict=True):
        spread = np.asarray(a).max() - np.asarray(a).min()
        assert 0 < np.abs(np.asarray(a) - np.asarray(b)).max() < 0.25 * spread
    for a, b in zip(jax.tree.leaves(exact_stats), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(b, a, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_bfloat16_keeps_float32_outside(network):
    graphdef, state = abstract(network, width=WIDTH, dtype=jnp.bfloat16)

    def run(state, images):
        model = nnx.merge(graphdef, state)
        model.train()
        seed_dropout(model, jax.random.split(jax.random.key(0), len(images)))
        return model(images), nnx.state(model, (nnx.Param, nnx.BatchStat))

    leaves = jax.tree.leaves(jax.eval_shape(run, state, IMAGES))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_bfloat16_is_computed_with():
    graphdef, state = abstract(Trunk, depth=3, width=WIDTH, dtype=jnp.bfloat16)
    features = jax.eval_shape(lambda s, x: nnx.merge(graphdef, s)(x), state, IMAGES)
    assert features.dtype == jnp.bfloat16


def test_gradients_of_bfloat16_are_float32():
    graphdef, params, rest = nnx.split(small("patches", "bfloat16"), nnx.Param, ...)

    def loss(params):
        return nnx.merge(graphdef, params, rest, copy=True)(IMAGES).map_logits.sum()

    gradients = jax.eval_shape(jax.grad(loss), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_statistics_move_in_training_alone():
    before = nnx.state(small("patches"), nnx.BatchStat)
    trained, evaluated = result("patches", training=True)[1], result("patches")[1]
    for old, moved, kept in zip(
        *(jax.tree.leaves(x) for x in (before, trained, evaluated)), strict=True
    ):
        np.testing.assert_array_equal(kept, old)
        assert (np.asarray(moved) != np.asarray(old)).any()


def test_outputs_that_a_network_has():
    outputs = {
        name: shape_of(network, (1, 64, 64, 3), width=WIDTH) for name, network in NETWORKS.items()
    }
    fields = {
        name: {field for field, value in out._asdict().items() if value is not None}
        for name, out in outputs.items()
    }
    assert fields == {
        "patches": {"map_logits"},
        "classifier": {"image_logits"},
        "attention": {"image_logits", "attention"},
        "fcn": {"map_logits"},
    }


@pytest.mark.slow
def test_halves_of_the_classifier_meet_at_any_block():
    model = small("classifier")
    model.eval()
    blocks = {1: (15, 19, 128), 2: (8, 10, 256), 7: (4, 5, 728), 11: (4, 5, 728), 12: (2, 3, 1024)}

    @nnx.jit
    def halves(model, images):
        lower = {block: model.lower(images, block) for block in blocks}
        upper = {block: model.upper(x, block) for block, x in lower.items()}
        return model(images).image_logits, lower, upper

    expected, lower, upper = halves(model, IMAGES)
    for block, (height, width, channels) in blocks.items():
        assert lower[block].tokens is None
        assert lower[block].map.shape == (3, height, width, scaled(channels, WIDTH))
        np.testing.assert_allclose(upper[block], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_attention_multiplies_block_7():
    """With a map kernel of zeros the mask is 1/2, and the rest a classifier of halved features."""
    model = nnx.clone(small("attention"))
    model.eval()
    model.map.kernel[...] = jnp.zeros(model.map.kernel.shape)

    @nnx.jit
    def both(model, images):
        x = model.trunk.stem(images).map
        for index, block in enumerate(model.trunk.blocks, start=1):
            x = block(x)
            if index == 7:
                x = x / 2
        return model(images), model.top(Features(x))

    out, expected = both(model, IMAGES)
    np.testing.assert_array_equal(out.attention, 0.5)
    np.testing.assert_allclose(out.image_logits, expected, rtol=1e-4, atol=1e-5)


def test_attention_is_a_probability_that_varies():
    attention = np.asarray(result("attention")[0].attention)
    assert (attention > 0).all()
    assert (attention < 1).all()
    assert attention.std() > 0.01


def test_dropout_of_the_fcn():
    model = nnx.clone(small("fcn"))
    features = jnp.ones((4, 50, 50, 8))
    model.train()
    seed_dropout(model, jax.random.split(jax.random.key(0), 4))
    first = model.dropout(features)
    assert abs((first == 0).mean() - 0.1) < 0.01
    np.testing.assert_allclose(first[first != 0], 1 / 0.9, rtol=1e-6)
    model.eval()
    np.testing.assert_array_equal(model.dropout(features), features)
