"""Vision transformers: their arithmetic in NumPy, sizes of images, adapters, memory."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import special

from wsdl_jax.models import layers, vit
from wsdl_jax.models.backbone import Features
from wsdl_jax.models.initialization import initialize

SMALL = {"width": 32, "blocks": 3, "heads": 2}
CLIP = dataclasses.replace(vit.FORMS["clip_vit_l14"], **SMALL, patch=4, grid=3)
DINOV2 = dataclasses.replace(vit.FORMS["dinov2_s14"], **SMALL, patch=4, grid=3)
TINY = dataclasses.replace(vit.FORMS["vit_tiny"], **SMALL, patch=4, convolutions=(8, 8))
FORMS = {"clip": CLIP, "dinov2": DINOV2, "tiny": TINY}


def network(form: vit.Form, depth: int = 2, **arguments) -> vit.ViT:
    """A network of random weights, biases and scales too."""
    trunk = vit.ViT(depth, form=form, rngs=nnx.Rngs(0), **arguments)
    initialize(trunk, "torch", 0)
    rng = np.random.default_rng(0)
    for _, variable in nnx.iter_graph(trunk):
        if isinstance(variable, nnx.Param) and not isinstance(variable, nnx.LoRAParam):
            noise = 0.2 * rng.standard_normal(variable.shape)
            variable[...] = variable[...] + jnp.asarray(noise, jnp.float32)
    return trunk


def images(height: int, width: int, count: int = 2) -> jax.Array:
    return jnp.asarray(
        np.random.default_rng(1).uniform(-1, 1, (count, height, width, 3)), jnp.float32
    )


def run(trunk: vit.ViT, x: jax.Array) -> Features:
    """What is behind the last stage, by one program."""
    structure, state = nnx.split(trunk)

    @jax.jit
    def apply(state, x):
        trunk = nnx.merge(structure, state)
        return trunk.through(trunk.stem(x), 0, trunk.stages)

    return apply(state, x)


def numpy_block(block: vit.Block, x: np.ndarray) -> np.ndarray:
    """A block in float64, token by token and head by head."""

    def array(variable) -> np.ndarray:
        return np.asarray(variable[...], np.float64)

    def norm(layer, x):
        deviation = x - x.mean(-1, keepdims=True)
        std = np.sqrt((deviation**2).mean(-1, keepdims=True) + block.form.epsilon)
        return deviation / std * array(layer.scale) + array(layer.bias)

    def linear(layer, x):
        return x @ array(layer.kernel) + array(layer.bias)

    def scale(variable) -> np.ndarray | float:
        return 1.0 if variable is None else array(variable)

    normed = norm(block.norm1, x)
    query, key, value = (linear(layer, normed) for layer in (block.query, block.key, block.value))
    size = x.shape[-1] // block.form.heads
    attended = np.zeros(x.shape)
    for image in range(len(x)):
        for head in range(block.form.heads):
            part = np.s_[image, :, head * size : (head + 1) * size]
            weights = special.softmax(query[part] @ key[part].T / np.sqrt(size), axis=-1)
            attended[part] = weights @ value[part]
    x = x + linear(block.out, attended) * scale(block.attention_scale)
    hidden = linear(block.up, norm(block.norm2, x))
    if block.form.activation is vit.quick_gelu:
        hidden = hidden * special.expit(1.702 * hidden)
    else:
        hidden = hidden * special.ndtr(hidden)
    return x + linear(block.down, hidden) * scale(block.mlp_scale)


@pytest.mark.usefixtures("compile_quickly")
@pytest.mark.parametrize("form", FORMS)
def test_block(form):
    block = network(FORMS[form]).blocks[1]
    x = np.random.default_rng(2).standard_normal((2, 5, 32)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(block)(x), numpy_block(block, x), rtol=2e-4, atol=2e-5)


def test_embeddings_are_of_the_patches_in_their_places():
    """Patch (1, 2) of an image, by hand; and the class token with its own position."""
    trunk = network(DINOV2, depth=1, registers=2)
    x = images(12, 12)
    features = trunk.stem(x)
    mean, std = (np.array(v, np.float64) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    patch = ((np.asarray(x[1, 4:8, 8:12], np.float64) + 1) / 2 - mean) / std
    kernel = np.asarray(trunk.patches.kernel[...], np.float64)
    token = np.einsum("ijc,ijcd->d", patch, kernel) + np.asarray(trunk.patches.bias[...])
    positions = np.asarray(trunk.positions[...])
    np.testing.assert_allclose(features.map[1, 1, 2], token + positions[1 + 3 + 2], rtol=1e-4)
    tokens = np.concatenate([(trunk.class_token[...] + positions[0])[None], trunk.registers[...]])
    np.testing.assert_allclose(features.tokens, [tokens, tokens], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(old=st.integers(1, 40), new=st.integers(1, 40), antialias=st.booleans())
def test_bicubic(old, new, antialias):
    """Weights sum to 1, a constant stays, the same size is left as it is, mirrored is mirrored."""
    matrix = vit.bicubic(old, new, antialias)
    assert matrix.shape == (new, old)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-5)
    if old == new:
        np.testing.assert_allclose(matrix, np.eye(old), atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(37, 16), (16, 37), (7, 5)])
def test_antialiased_is_pillows(old, new):
    values = np.random.default_rng(3).standard_normal((old, 1)).astype(np.float32)
    resized = Image.fromarray(values).resize((1, new), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(vit.bicubic(old, new, True) @ values, np.asarray(resized), atol=1e-5)


def test_bicubic_is_exact_for_parabolas_inside():
    """As Keys' kernel with a = -0.5 is; that with a = -0.75 is exact for lines halfway alone."""
    old, new = 12, 24
    places = (np.arange(new) + 0.5) / 2 - 0.5
    inside = (places > 2) & (places < old - 3)
    values = np.arange(old) ** 2.0
    found = vit.bicubic(old, new, True) @ values
    np.testing.assert_allclose(found[inside], places[inside] ** 2, rtol=1e-5)
    halved = vit.bicubic(old, old // 2, False)  # centres lie between two values
    np.testing.assert_allclose(halved[2, 3:7], [-0.09375, 0.59375, 0.59375, -0.09375], atol=1e-6)


class Abstract(dict):
    """Networks of one block by form, without values."""

    def __missing__(self, form: str) -> vit.ViT:
        self[form] = nnx.eval_shape(lambda: vit.ViT(1, form=FORMS[form], rngs=nnx.Rngs(0)))
        return self[form]


ABSTRACT = Abstract()


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), form=st.sampled_from(sorted(FORMS)))
def test_any_size_that_divides(rows, columns, form):
    x = jax.ShapeDtypeStruct((2, 4 * rows, 4 * columns, 3), jnp.float32)
    features = nnx.eval_shape(lambda t, x: t.through(t.stem(x), 0, t.stages), ABSTRACT[form], x)
    assert features.map.shape == (2, rows, columns, 32)
    if form == "tiny":
        assert features.tokens is None
    else:
        assert features.tokens.shape == (2, 1, 32)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(0, 40), width=st.integers(0, 40))
def test_other_sizes_are_refused(height, width):
    if height and width and height % 4 == 0 and width % 4 == 0:
        return
    with pytest.raises(ValueError, match=f"^images of {height}×{width} pixels; this ViT takes "):
        ABSTRACT["clip"].stem(jnp.zeros((1, height, width, 3)))


@pytest.mark.parametrize("depth", [0, 4])
def test_no_such_block(depth):
    with pytest.raises(ValueError, match=re.escape(f"blocks 1 to 3, not {depth}")):
        vit.ViT(depth, form=CLIP, rngs=nnx.Rngs(0))


@pytest.mark.usefixtures("compile_quickly")
def test_stage_by_stage():
    """Going on from a stage gives what going through at once does, with tokens on the way."""
    trunk = network(DINOV2, depth=3, registers=2)
    structure, state = nnx.split(trunk)
    x = images(8, 16)

    @jax.jit
    def both(state, x):
        trunk = nnx.merge(structure, state)
        first = trunk.through(trunk.stem(x), 0, 1)
        return trunk.through(first, 1, 3).map, trunk(x), trunk.through(first, 1, 1), first

    apart, at_once, same, first = both(state, x)
    np.testing.assert_allclose(apart, at_once, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(same.map, first.map)
    assert same.tokens.shape == (2, 3, 32)
    # Tokens matter to the map.
    other = Features(first.map, jnp.roll(first.tokens, 1, -1))
    changed = jax.jit(lambda state, x: nnx.merge(structure, state).through(x, 1, 3).map)
    assert np.abs(changed(state, other) - at_once).max() > 0.01


def test_sines_and_cosines():
    """Moving by a patch turns each pair by the same angle; rows and columns are apart."""
    found = vit.sines_and_cosines(5, 7, 16)
    assert found.shape == (5, 7, 16)
    np.testing.assert_allclose(found[3, 4, :4], np.sin(4 * 10.0 ** -np.arange(4)), rtol=1e-5)
    np.testing.assert_allclose(found[3, 4, 4:8], np.cos(4 * 10.0 ** -np.arange(4)), rtol=1e-5)
    np.testing.assert_array_equal(found[1, :, :8], found[4, :, :8])
    np.testing.assert_array_equal(found[:, 1, 8:], found[:, 6, 8:])
    np.testing.assert_allclose(vit.sines_and_cosines(9, 9, 16)[:5, :7], found)


@pytest.mark.parametrize(("width", "channels"), [(1.0, 128), (0.5, 64), (0.1, 16)])
def test_width_of_the_small_one(width, channels):
    published = vit.FORMS["vit_tiny"]
    trunk = nnx.eval_shape(
        lambda: vit.ViT(published.blocks, form=published, width=width, rngs=nnx.Rngs(0))
    )
    assert trunk.widths == (channels,) * 6
    x = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)
    assert nnx.eval_shape(lambda t, x: t(x), trunk, x).shape == (1, 12, 12, channels)


@pytest.mark.usefixtures("compile_quickly")
def test_bfloat16_is_near_float32():
    x = images(12, 20)
    exact = run(network(DINOV2, registers=2), x)
    trunk = network(DINOV2, registers=2, dtype=jnp.bfloat16)
    rounded = run(trunk, x)
    assert rounded.map.dtype == rounded.tokens.dtype == jnp.bfloat16
    for _, variable in nnx.iter_graph(trunk):
        if isinstance(variable, nnx.Param):
            assert variable.dtype == jnp.float32
    error = np.abs(np.asarray(rounded.map, np.float32) - exact.map)
    assert 0 < error.max() < 0.05 * np.abs(exact.map).max()


@pytest.mark.usefixtures("compile_quickly")
def test_blocks_computed_again_have_the_same_gradients():
    x = images(8, 8)
    found = []
    for remat in (False, True):
        structure, state = nnx.split(network(CLIP, depth=1, remat=remat))

        def total(state, structure=structure):
            return jnp.square(nnx.merge(structure, state)(x)).mean()

        gradients = jax.jit(jax.grad(total))(state)
        found.append([v for _, v in nnx.to_flat_state(gradients)])
        assert ("remat" in str(jax.make_jaxpr(jax.grad(total))(state))) == remat
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine[...], theirs[...], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("compile_quickly")
def test_adapters_begin_as_nothing_and_learn():
    plain, adapted = network(DINOV2, 1), network(DINOV2, 1, lora_rank=2)
    nnx.update(adapted, nnx.state(plain, nnx.Param))
    adapters = nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam))
    assert {path[-3:] for path, _ in adapters} == {
        (layer, "lora", part) for layer in ("query", "value") for part in ("lora_a", "lora_b")
    }
    assert not nnx.to_flat_state(nnx.state(plain, nnx.LoRAParam))
    x = images(8, 8)
    np.testing.assert_allclose(run(adapted, x).map, run(plain, x).map, rtol=1e-5, atol=1e-6)

    structure, lora, rest = nnx.split(adapted, nnx.LoRAParam, ...)
    gradients = jax.jit(
        jax.grad(lambda lora: jnp.square(nnx.merge(structure, lora, rest)(x)).sum())
    )(lora)
    for path, gradient in nnx.to_flat_state(gradients):
        assert (np.abs(gradient[...]).max() > 0) == (path[-1] == "lora_b")

    block = adapted.blocks[0]
    block.query.lora.lora_b[...] = jnp.ones(block.query.lora.lora_b.shape)
    tokens = np.random.default_rng(4).standard_normal((7, 32)).astype(np.float32)
    kernel = block.query.kernel[...] + block.query.lora.lora_a[...] @ np.ones((2, 32))
    expected = tokens @ kernel + block.query.bias[...]
    np.testing.assert_allclose(block.query(tokens), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_top(form):
    """Class token beside the mean of patches, or the mean alone, each normalized."""
    top = vit.Top(32, form=FORMS[form], dtype=jnp.bfloat16, axis_name=None, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 3, 4, 32)).astype(np.float32)
    tokens = None if form == "tiny" else rng.standard_normal((2, 3, 32)).astype(np.float32)
    features = Features(jnp.asarray(x), None if tokens is None else jnp.asarray(tokens))
    np.testing.assert_array_equal(top(features), 0)
    kernel = rng.standard_normal(top.linear.kernel.shape).astype(np.float32)
    top.linear.kernel[...] = jnp.asarray(kernel)

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)

    pooled = norm(x).mean((1, 2))
    if tokens is not None:
        pooled = np.concatenate([norm(tokens[:, 0]), pooled], axis=-1)
    np.testing.assert_allclose(top(features), pooled @ kernel, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("compile_quickly")
def test_statistics():
    trunk = network(TINY)
    x = images(12, 8)
    first = trunk.through(trunk.stem(x), 0, 1)
    maps = [np.asarray(f.map) for f in (first, trunk.through(first, 1, 2))]
    expected = np.concatenate([f((1, 2)) for m in maps for f in (m.mean, m.std)], axis=-1)
    np.testing.assert_allclose(trunk.statistics(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("compile_quickly")
@pytest.mark.parametrize("tokens", [6, 7])
def test_attention_by_platform(monkeypatch, tokens):
    """On a GPU with cuDNN, bfloat16 takes its kernel, of an even number of tokens, by name.

    There is none here: the other implementation stands for it, and what it was given is looked at.
    """
    real, calls = jax.nn.dot_product_attention, []

    def attend(*args, implementation=None, **kwargs):
        calls.append((implementation, args[0].shape[1]))
        return real(*args, **kwargs)

    def on_cuda(*args, cuda, default):
        return cuda(*args)

    def value_and_gradients(*args):
        value, pull_back = jax.vjp(layers.attention, *args)
        return value, *pull_back(jnp.ones_like(value))

    rng = np.random.default_rng(6)
    args = [jnp.asarray(rng.standard_normal((2, tokens, 3, 8)), jnp.bfloat16) for _ in range(3)]
    expected = jax.jit(value_and_gradients)(*args)
    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    monkeypatch.setattr(jax.lax, "platform_dependent", on_cuda)
    monkeypatch.setattr(layers, "_fuses_attention", lambda: True)
    found = jax.jit(lambda *args: value_and_gradients(*args))(*args)
    assert set(calls) == {("cudnn", tokens + tokens % 2)}
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(
            np.asarray(mine, np.float32), np.asarray(theirs, np.float32), rtol=0.02, atol=0.02
        )
    calls.clear()
    jax.eval_shape(layers.attention, *(x.astype(jnp.float32) for x in args))
    assert calls == [(None, tokens)]


def test_no_fused_attention_here():
    assert not layers._fuses_attention()
