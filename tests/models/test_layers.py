"""Layers against NumPy in float64, and both forms of each operator against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from wsdl_jax.models import layers

SIZES = [(7, 7), (9, 6), (1, 2)]
FORMS = ["cpu", "default"]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch) -> str:
    """Lets a test run in the CPU's form and in the one of all other platforms."""

    def choose(*args, **forms):
        return forms[request.param](*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    return request.param


def taps(x: np.ndarray, stride: int, padding: int, fill: float = 0.0) -> np.ndarray:
    """[B, H, W, C] → 3×3 windows [B, rows, columns, C, 3, 3]."""
    margins = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x.astype(float), margins, constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return windows[:, ::stride, ::stride]


def scatter(windows: np.ndarray, shape: tuple[int, ...], stride: int, padding: int) -> np.ndarray:
    """The adjoint of `taps`: sums windows back into an image of `shape`."""
    batch, height, width, channels = shape
    out = np.zeros((batch, height + 2 * padding, width + 2 * padding, channels))
    rows, columns = windows.shape[1:3]
    for r in range(rows):
        for c in range(columns):
            patch = windows[:, r, c].transpose(0, 2, 3, 1)
            out[:, stride * r : stride * r + 3, stride * c : stride * c + 3] += patch
    return out[:, padding : padding + height, padding : padding + width]


def small_integers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values whose products and sums are exact in bfloat16, and which tie often."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def value_and_pull_back(f, gradient: np.ndarray, *args: np.ndarray, dtype):
    """f(*args) and the gradients of sum(gradient · f) for each argument, in one program."""

    @jax.jit
    def both(gradient, *args):
        value, pull_back = jax.vjp(f, *args)
        return value, pull_back(gradient)

    arrays = [jnp.array(a, dtype) for a in (gradient, *args)]
    value, gradients = both(*arrays)
    assert {g.dtype for g in (value, *gradients)} == {jnp.dtype(dtype)}
    return np.asarray(value, float), *(np.asarray(g, float) for g in gradients)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", SIZES)
def test_depthwise(form, size, dtype):
    rng = np.random.default_rng(0)
    x = small_integers(rng, (2, *size, 5))
    kernel, gradient = small_integers(rng, (3, 3, 1, 5)), small_integers(rng, x.shape)
    value, dx, dkernel = value_and_pull_back(layers.depthwise_3x3, gradient, x, kernel, dtype=dtype)
    windows = taps(x, 1, 1)
    # Sums in bfloat16 are rounded to 8 bits; the kernel's gradient sums over all locations.
    tolerance = {"rtol": 1e-6} if dtype == "float32" else {"rtol": 0.02, "atol": 1}
    np.testing.assert_allclose(
        value, np.einsum("brcnij,ijn->brcn", windows, kernel[:, :, 0]), **tolerance
    )
    spread = np.einsum("brcn,ijn->brcnij", gradient, kernel[:, :, 0])
    np.testing.assert_allclose(dx, scatter(spread, x.shape, 1, 1), **tolerance)
    expected = np.einsum("brcnij,brcn->ijn", windows, gradient)
    np.testing.assert_allclose(dkernel[:, :, 0], expected, **tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("values", ["ties", "distinct", "relu"])
def test_max_pool(form, values, size, dtype):
    rng = np.random.default_rng(1)
    x = small_integers(rng, (2, *size, 5))
    if values == "distinct":
        x = rng.permutation(x.size).reshape(x.shape) % 256 - 128.0  # exact in bfloat16
    elif values == "relu":
        x = np.maximum(x, 0) * (np.arange(5) > 0)  # whole windows of zeros
    windows = taps(x, 2, 1, -np.inf)
    flat = windows.reshape(*windows.shape[:4], 9)
    winner = flat.argmax(-1)  # the first largest, in row-major order
    gradient = small_integers(rng, winner.shape)
    value, dx = value_and_pull_back(layers.max_pool_3x3, gradient, x, dtype=dtype)
    np.testing.assert_array_equal(value, flat.max(-1))
    routed = (np.arange(9) == winner[..., None]) * gradient[..., None]
    np.testing.assert_array_equal(dx, scatter(routed.reshape(windows.shape), x.shape, 2, 1))


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_max_pool_loses_no_gradient_between_programs(size, dtype):
    """Every window passes its gradient on, also where forward and backward are two programs.

    The compiler may then compute what is pooled a second time, with another last bit: a backward
    pass that looks for the largest element again finds none, or another one.
    """
    rng = np.random.default_rng(2)
    x = jnp.array(rng.normal(size=(2, size, size, 8)), dtype)
    producer = nnx.List(
        [
            layers.Pointwise(8, 8, dtype=dtype, rngs=nnx.Rngs(0)),
            layers.BatchNorm(8, axis_name=None),
        ]
    )
    graphdef, params, rest = nnx.split(producer, nnx.Param, ...)

    def forward(params):
        pointwise, norm = nnx.merge(graphdef, params, rest, copy=True)
        return layers.max_pool_3x3(norm(pointwise(x)))

    out, pull_back = jax.vjp(jax.jit(forward), params)
    gradient = jnp.array(small_integers(rng, out.shape), dtype)
    (apart,) = pull_back(gradient)
    together = jax.jit(lambda p, g: jax.vjp(forward, p)[1](g)[0])(params, gradient)
    # BatchNorm's shift moves all elements alike, so it receives every window's gradient.
    expected = np.asarray(gradient, float).sum((0, 1, 2))
    np.testing.assert_allclose(together[1]["bias"][...], expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(apart[1]["bias"][...], expected, rtol=1e-5, atol=1e-4)


def convolution(x, kernel, stride: int, padding: int, groups: int = 1):
    margins = ((padding, padding), (padding, padding))
    return jax.lax.conv_general_dilated(
        *(x, kernel, (stride, stride), margins),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def dense(stride: int, padding: int):
    return (
        layers.dense_3x3(stride, padding),
        lambda x, kernel: convolution(x, kernel, stride, padding),
        lambda c: (3, 3, c, 4),
        "stablehlo.convolution",
    )


# Operator here, plain operator, shape of the kernel for C channels, what a program for a TPU has.
OPERATORS = {
    "depthwise": (
        layers.depthwise_3x3,
        lambda x, kernel: convolution(x, kernel, 1, 1, x.shape[-1]),
        lambda c: (3, 3, 1, c),
        "stablehlo.convolution",
    ),
    "max_pool": (
        layers.max_pool_3x3,
        lambda x: nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))),
        None,
        "stablehlo.reduce_window",
    ),
    "conv1": dense(stride=2, padding=0),
    "conv2": dense(stride=1, padding=0),
    "fcn": dense(stride=1, padding=1),
    "pointwise": (
        layers.pointwise,
        lambda x, kernel: x @ kernel,
        lambda c: (c, 4),
        "stablehlo.dot_general",
    ),
}


def value_and_gradients(f, *args):
    """f(*args), and the gradients of its sum weighted by position."""
    value, pull_back = jax.vjp(f, *args)
    weights = jnp.sin(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)
    return value, *pull_back(weights)


def arguments(operator: str, shape: tuple[int, ...], dtype: str, seed: int) -> list[jax.Array]:
    rng, kernel = np.random.default_rng(seed), OPERATORS[operator][2]
    shapes = [shape] if kernel is None else [shape, kernel(shape[-1])]
    return [jnp.array(rng.normal(size=s), dtype) for s in shapes]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("operator", OPERATORS)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    height=st.integers(3, 12),
    width=st.integers(3, 12),
    channels=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_operators_are_the_plain_ones(operator, dtype, batch, height, width, channels, seed):
    ours, plain, *_ = OPERATORS[operator]
    args = arguments(operator, (batch, height, width, channels), dtype, seed)
    tolerance = 1e-5 if dtype == "float32" else 0.05  # of the largest; sums in bfloat16 have 8 bits
    for got, expected in zip(
        value_and_gradients(ours, *args), value_and_gradients(plain, *args), strict=True
    ):
        assert got.dtype == expected.dtype == dtype
        got, expected = np.asarray(got, float), np.asarray(expected, float)
        np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_under_transformations(operator):
    """Many of them at once, and computed again in the backward pass."""
    ours, plain, *_ = OPERATORS[operator]
    args = [jnp.stack([a, a[::-1]]) for a in arguments(operator, (4, 7, 6, 3), "float32", 0)]
    for transformed in (jax.vmap(ours), jax.jit(jax.checkpoint(jax.vmap(ours)))):
        for got, expected in zip(
            value_and_gradients(transformed, *args),
            value_and_gradients(jax.vmap(plain), *args),
            strict=True,
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operator", OPERATORS)
def test_programs_of_other_platforms_have_native_operators(operator):
    f, plain, _, name = OPERATORS[operator]
    args = arguments(operator, (2, 9, 9, 4), "float32", 0)

    def program(f, platform: str) -> str:
        return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()

    def gradients(f):
        return lambda *args: value_and_gradients(f, *args)[1:]

    for platform in ("tpu", "cuda"):
        for ours, other in ((f, plain), (gradients(f), gradients(plain))):
            text = program(ours, platform)
            assert name in text or ours is not f
            assert text.count("stablehlo.while") == 0
            operations = ("convolution", "reduce_window", "select_and_scatter", "dot_general")
            for operation in operations:
                count = program(other, platform).count(f"stablehlo.{operation}")
                assert text.count(f"stablehlo.{operation}") == count, operation
    if operator in ("depthwise", "max_pool"):
        assert name not in program(f, "cpu")
        assert name not in program(gradients(f), "cpu")
    if operator != "max_pool":
        assert "stablehlo.while" in program(gradients(f), "cpu")


@pytest.mark.parametrize(("stride", "padding"), [(2, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("size", [(7, 8), (8, 5)])
def test_conv(form, size, stride, padding):
    rng = np.random.default_rng(0)
    conv = layers.Conv(4, 6, stride=stride, padding=padding, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x, weights = small_integers(rng, (2, *size, 4)), small_integers(rng, (3, 3, 4, 6))
    windows = taps(x, stride, padding)
    gradient = small_integers(rng, (*windows.shape[:3], 6))
    graphdef, state = nnx.split(conv)

    def apply(x, weights):
        return nnx.merge(graphdef, nnx.State({"kernel": state["kernel"].replace(weights)}))(x)

    value, dx, dweights = value_and_pull_back(apply, gradient, x, weights, dtype="float32")
    np.testing.assert_array_equal(value, np.einsum("brcnij,ijnm->brcm", windows, weights))
    spread = np.einsum("brcm,ijnm->brcnij", gradient, weights)
    np.testing.assert_array_equal(dx, scatter(spread, x.shape, stride, padding))
    np.testing.assert_array_equal(dweights, np.einsum("brcnij,brcm->ijnm", windows, gradient))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pointwise(stride, use_bias, dtype):
    layer = layers.Pointwise(4, 3, stride=stride, use_bias=use_bias, dtype=dtype, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype(np.float32)
    expected = x[:, ::stride, ::stride] @ np.asarray(layer.kernel[...])
    if use_bias:
        layer.bias[...] = jnp.array([1.0, 2.0, 3.0])
        expected += np.array([1, 2, 3])
    out = layer(jnp.array(x))
    assert out.dtype == dtype
    assert layer.kernel[...].dtype == jnp.float32
    rough = dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out.astype(float), expected, rtol=1e-2 if rough else 1e-5, atol=0.05 if rough else 1e-6
    )


def test_separable():
    layer = layers.SeparableConv(4, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype(np.float32)
    depthwise = np.einsum("brcnij,ijn->brcn", taps(x, 1, 1), layer.kernel[...][:, :, 0])
    expected = depthwise @ np.asarray(layer.pointwise.kernel[...])
    np.testing.assert_allclose(layer(jnp.array(x)), expected, rtol=1e-4, atol=1e-6)


# ----- Batch normalization --------------------------------------------------------------------


def batch_norm(features: int, axis_name: str | None = None) -> layers.BatchNorm:
    norm = layers.BatchNorm(features, axis_name=axis_name)
    rng = np.random.default_rng(5)
    norm.scale[...] = jnp.array(rng.uniform(0.5, 2, features), jnp.float32)
    norm.bias[...] = jnp.array(rng.normal(size=features), jnp.float32)
    return norm


def normalized(x: np.ndarray, norm: layers.BatchNorm) -> np.ndarray:
    x = x.astype(float)
    deviation = x - x.mean((0, 1, 2))
    return deviation / np.sqrt(x.var((0, 1, 2)) + 1e-5) * norm.scale[...] + norm.bias[...]


def test_batch_norm_closed_form():
    norm = batch_norm(3)
    rng = np.random.default_rng(0)
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(3):
        x = rng.normal([1, -2, 30], [0.1, 1, 5], (4, 5, 6, 3)).astype(np.float32)
        np.testing.assert_allclose(norm(jnp.array(x)), normalized(x, norm), rtol=1e-4, atol=1e-4)
        mean = 0.9 * mean + 0.1 * x.astype(float).mean((0, 1, 2))
        var = 0.9 * var + 0.1 * x.astype(float).var((0, 1, 2), ddof=1)
        np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)
        np.testing.assert_allclose(norm.var[...], var, rtol=1e-5)
    norm.use_running_average = True
    expected = (x - mean) / np.sqrt(var + 1e-5) * norm.scale[...] + norm.bias[...]
    np.testing.assert_allclose(norm(jnp.array(x)), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)  # not moved in evaluation


def test_batch_norm_gradient():
    norm, rng = batch_norm(3), np.random.default_rng(0)
    x, g = (rng.normal(2, 3, (4, 5, 6, 3)).astype(np.float32) for _ in range(2))
    graphdef, params, rest = nnx.split(norm, nnx.Param, ...)

    def forward(params, x):
        return nnx.merge(graphdef, params, rest, copy=True)(x)

    _, pull_back = jax.vjp(forward, params, jnp.array(x))
    dparams, dx = pull_back(jnp.array(g))
    unit = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    axes = (0, 1, 2)
    np.testing.assert_allclose(dparams["bias"][...], g.sum(axes), rtol=1e-4)
    np.testing.assert_allclose(dparams["scale"][...], (g * unit).sum(axes), rtol=1e-3, atol=1e-3)
    inner = g - g.mean(axes) - unit * (g * unit).mean(axes)
    expected = inner * norm.scale[...] / np.sqrt(x.var(axes) + 1e-5)
    np.testing.assert_allclose(dx, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("devices", [None, 8])
@pytest.mark.parametrize("ratio", [1e3, 1e4])
def test_batch_norm_with_a_large_mean(ratio, devices):
    x = np.random.default_rng(0).normal(ratio, 1, (8, 16, 16, 2)).astype(np.float32)
    norm = batch_norm(2, "data" if devices else None)
    if devices:
        out, _, stats = on_devices(norm, x, np.ones_like(x))
    else:
        out, stats = norm(jnp.array(x)), nnx.state(norm, nnx.BatchStat)
    np.testing.assert_allclose(out, normalized(x, norm), atol=5e-3)
    expected = 0.9 + 0.1 * x.astype(float).var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(stats["var"][...], expected, rtol=1e-4)


def test_batch_norm_in_bfloat16():
    norm = batch_norm(3)
    x = np.random.default_rng(0).normal([0, 1, 8], 1, (4, 8, 8, 3))
    half = jnp.array(x, jnp.bfloat16)
    out = norm(half)
    assert out.dtype == jnp.bfloat16
    x = np.asarray(half, float)
    np.testing.assert_allclose(out.astype(float), normalized(x, norm), rtol=0.01, atol=0.01)
    assert norm.mean[...].dtype == norm.var[...].dtype == jnp.float32
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)


def test_batch_norm_of_a_single_value():
    """One value per channel has no unbiased variance: the statistics must stay finite."""
    norm = batch_norm(2)
    np.testing.assert_allclose(norm(jnp.full((1, 1, 1, 2), 3.0))[0, 0, 0], norm.bias[...])
    np.testing.assert_allclose(norm.var[...], 0.9)


def test_more_locations_than_an_int32_counts():
    """A step that is only planned, for a machine of any size."""
    graph, state = nnx.split(batch_norm(2))

    def total(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x).sum()

    x = jax.ShapeDtypeStruct((2**15, 2**10, 2**10, 2), jnp.float32)
    _, dx = jax.eval_shape(jax.grad(total, argnums=(0, 1), allow_int=True), state, x)
    assert dx.shape == x.shape


def on_devices(norm: layers.BatchNorm, x: np.ndarray, gradient: np.ndarray):
    """Outputs, gradients (parameters, x) of their mean, and statistics, over eight devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    graphdef, params, stats = nnx.split(norm, nnx.Param, ...)
    whole, split = PartitionSpec(), PartitionSpec("data")

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(whole, split, split),
        out_specs=(split, (whole, split), whole),
        check_vma=False,
    )
    def step(params, x, gradient):
        def loss(params, x):
            norm = nnx.merge(graphdef, params, stats, copy=True)
            out = norm(x)
            return (out * gradient).mean(), (out, nnx.state(norm, nnx.BatchStat))

        (dparams, dx), (out, moved) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        # x is one device's own: of the mean over devices, its gradient is an eighth.
        return out, (jax.lax.pmean(dparams, "data"), dx / 8), moved

    out, (dparams, dx), moved = step(params, jnp.array(x), jnp.array(gradient))
    return out, (dparams, dx), moved


def test_batch_norm_over_eight_devices_is_that_of_the_whole_batch():
    assert jax.device_count() == 8
    rng = np.random.default_rng(3)
    # Every device sees another distribution, so that local statistics would be far off.
    offset = np.arange(16).reshape(16, 1, 1, 1)
    x = (offset + rng.normal(size=(16, 5, 4, 3))).astype(np.float32)
    gradient = rng.normal(size=x.shape).astype(np.float32)
    out, (dparams, dx), moved = on_devices(batch_norm(3, "data"), x, gradient)

    norm = batch_norm(3)
    graphdef, params, stats = nnx.split(norm, nnx.Param, ...)

    def loss(params, x):
        norm = nnx.merge(graphdef, params, stats, copy=True)
        out = norm(x)
        return (out * gradient).mean(), (out, nnx.state(norm, nnx.BatchStat))

    gradients, (expected, expected_moved) = jax.grad(loss, (0, 1), has_aux=True)(
        params, jnp.array(x)
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out, normalized(x, norm), rtol=1e-4, atol=1e-4)
    for name in ("mean", "var"):
        np.testing.assert_allclose(moved[name][...], expected_moved[name][...], rtol=1e-5)
    for name in ("scale", "bias"):
        np.testing.assert_allclose(
            dparams[name][...], gradients[0][name][...], rtol=1e-4, atol=1e-7
        )
    np.testing.assert_allclose(dx, gradients[1], rtol=1e-4, atol=1e-8)


# ----- The same as PyTorch ---------------------------------------------------------------------


def test_layers_are_pytorchs(torch):
    rng = np.random.default_rng(7)
    x = small_integers(rng, (2, 9, 8, 4))
    channels_first = torch.tensor(x.transpose(0, 3, 1, 2)).requires_grad_()

    def compare(ours: np.ndarray, theirs, rtol=1e-5, atol=1e-5):
        theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)

    kernel = small_integers(rng, (3, 3, 1, 4))
    weight = torch.tensor(kernel.transpose(3, 2, 0, 1))
    theirs = torch.nn.functional.conv2d(channels_first, weight, padding=1, groups=4)
    compare(layers.depthwise_3x3(jnp.array(x), jnp.array(kernel)), theirs)

    theirs = torch.nn.functional.max_pool2d(channels_first, 3, 2, 1)
    gradient = small_integers(rng, (2, 5, 4, 4))
    theirs.backward(torch.tensor(gradient.transpose(0, 3, 1, 2)))
    ours, dx = value_and_pull_back(layers.max_pool_3x3, gradient, x, dtype="float32")
    compare(ours, theirs)
    compare(dx, channels_first.grad)

    norm, reference = batch_norm(4), torch.nn.BatchNorm2d(4)  # eps 1e-5 and momentum 0.1
    with torch.no_grad():
        reference.weight.copy_(torch.tensor(np.array(norm.scale[...])))
        reference.bias.copy_(torch.tensor(np.array(norm.bias[...])))
    for scale in (1, 5):
        compare(norm(scale * jnp.array(x)), reference(scale * channels_first))
    np.testing.assert_allclose(norm.mean[...], reference.running_mean.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(norm.var[...], reference.running_var.numpy(), rtol=1e-5)
    norm.use_running_average = True
    compare(norm(jnp.array(x)), reference.eval()(channels_first))


# ----- Dropout ------------------------------------------------------------------------------------


class Twice(nnx.Module):
    """Two layers of dropout, one after the other."""

    def __init__(self):
        self.first, self.second = layers.Dropout(0.5), layers.Dropout(0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_of_an_image_depends_on_its_key_alone(dtype):
    model, x = Twice(), jnp.ones((4, 30, 30, 8), dtype)
    keys = jax.random.split(jax.random.key(0), 4)
    layers.seed_dropout(model, keys)
    out = model.second(x)
    assert out.dtype == x.dtype
    assert len({np.asarray(image).tobytes() for image in out}) == 4
    assert abs(float((out == 0).mean()) - 0.1) < 0.01
    np.testing.assert_array_equal(out[out != 0], x[0, 0, 0, 0] / 0.9)
    layers.seed_dropout(model, keys[jnp.array([2, 0])])
    np.testing.assert_array_equal(model.second(x[:2]), out[jnp.array([2, 0])])
    # Layers do not draw alike: half of what one keeps the other would drop as well.
    both = (model.first(x[:2]) == 0) & (model.second(x[:2]) == 0)
    assert abs(float(both.mean()) - 0.05) < 0.01


def test_dropout_without_keys():
    model, x = Twice(), jnp.ones((2, 3))
    with pytest.raises(ValueError, match="a key an image"):
        model.first(x)
    model.eval()
    np.testing.assert_array_equal(model.first(x), x)
    assert not jax.tree.leaves(nnx.state(model))  # nothing for a checkpoint
