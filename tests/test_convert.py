"""PyTorch's tensors in their places; test_golden.py compares what whole networks compute."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsdl_jax import convert
from wsdl_jax.models.attention import Attention
from wsdl_jax.models.fcn import FCN
from wsdl_jax.models.patches import Patches
from wsdl_jax.models.xception import ImageClassifier, Trunk

LAYOUTS = json.loads((pathlib.Path(__file__).parent / "golden" / "layouts.json").read_text())
NETWORKS = {
    "dolos-patches-block1": functools.partial(Patches, depth=1),
    "timm-xception": ImageClassifier,
    "ffd-attention": Attention,
    "dolos-grad-cam-full": FCN,
}


@functools.cache
def _abstract(layout: str) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: NETWORKS[layout](rngs=nnx.Rngs(0))))


def blank(layout: str) -> nnx.Module:
    """A network of full width whose every variable is 7."""
    graphdef, state = _abstract(layout)
    variables = nnx.filter_state(state, (nnx.Param, nnx.BatchStat))
    rest = nnx.filter_state(state, nnx.Not((nnx.Param, nnx.BatchStat)))
    return nnx.merge(
        graphdef,
        jax.tree.map(lambda x: jnp.full(x.shape, 7.0), variables),
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rest),
    )


def tensors(layout: str) -> dict[str, np.ndarray]:
    """Tensors in which every element of a network has a value of its own, up to 2²⁴ elements."""
    rng = np.random.default_rng(0)
    return {k: rng.random(shape, np.float32) for k, shape in LAYOUTS[layout].items()}


def values(model: nnx.Module) -> list[jax.Array]:
    return jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))


def test_every_value_has_its_place():
    model, source = blank("dolos-patches-block1"), tensors("dolos-patches-block1")
    convert.load_torch(model, source)
    trunk = model.trunk
    for kernel, name in [
        (trunk.conv1.kernel, "conv1.weight"),
        (trunk.conv2.kernel, "conv2.weight"),
        (trunk.blocks[0].convs[0].kernel, "block1.rep.0.conv1.weight"),
        (trunk.blocks[0].convs[1].kernel, "block1.rep.3.conv1.weight"),
    ]:
        outputs, inputs, _, _ = source[name].shape
        for o, i, y, x in [(0, 0, 0, 0), (outputs - 1, inputs - 1, 2, 1), (3, 0, 1, 2)]:
            assert kernel[y, x, i, o] == source[name][o, i, y, x]
    for kernel, name in [
        (trunk.blocks[0].shortcut.kernel, "block1.skip.weight"),
        (trunk.blocks[0].convs[1].pointwise.kernel, "block1.rep.3.pointwise.weight"),
        (model.classifier.kernel, "convout.weight"),
    ]:
        np.testing.assert_array_equal(kernel[...], source[name][:, :, 0, 0].T)
    for norm, name in [
        (trunk.norm2, "bn2"),
        (trunk.blocks[0].norms[1], "block1.rep.4"),
        (trunk.blocks[0].shortcut_norm, "block1.skipbn"),
    ]:
        for variable, part in [
            (norm.scale, "weight"),
            (norm.bias, "bias"),
            (norm.mean, "running_mean"),
            (norm.var, "running_var"),
        ]:
            np.testing.assert_array_equal(variable[...], source[f"{name}.{part}"])
    np.testing.assert_array_equal(model.classifier.bias[...], source["convout.bias"])


@pytest.mark.parametrize("layout", NETWORKS)
def test_nothing_is_left_as_it_was(layout):
    model = blank(layout)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in LAYOUTS[layout].items()}
    convert.load_torch(model, zeros)
    for value in values(model):
        np.testing.assert_array_equal(value, 0)


def test_two_dimensional_pointwise_kernels():
    layout = "timm-xception"
    four = tensors(layout)
    two = {k: v[:, :, 0, 0] if v.shape[2:] == (1, 1) else v for k, v in four.items()}
    assert sum(v.ndim == 2 for v in two.values()) > 30
    models = blank(layout), blank(layout)
    convert.load_torch(models[0], four)
    convert.load_torch(models[1], two)
    for a, b in zip(*map(values, models), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_tensors_are_left_alone():
    model, source = blank("dolos-patches-block1"), tensors("dolos-patches-block1")
    convert.load_torch(model, source | {"block2.rep.1.conv1.weight": np.zeros((1, 2))})
    np.testing.assert_array_equal(model.classifier.bias[...], source["convout.bias"])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_become_float32(dtype):
    model = blank("dolos-patches-block1")
    source = {k: v.astype(dtype) for k, v in tensors("dolos-patches-block1").items()}
    convert.load_torch(model, source)
    assert {value.dtype for value in values(model)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(
        model.trunk.norm1.scale[...], source["bn1.weight"].astype(np.float32)
    )


def refused(source: dict[str, np.ndarray], message: str) -> None:
    model = blank("dolos-patches-block1")
    with pytest.raises(ValueError, match=message) as raised:
        convert.load_torch(model, source)
    assert "\n" not in str(raised.value)
    for value in values(model):
        np.testing.assert_array_equal(value, 7)


def test_missing_names_are_listed():
    source = tensors("dolos-patches-block1")
    del source["convout.bias"], source["bn2.running_var"]
    refused(source, r"2 tensors are missing: bn2\.running_var, convout\.bias")


def test_many_missing_names_are_counted():
    refused({}, r"29 tensors are missing: conv1\.weight, .*")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("convout.weight", (1000, 128, 1, 1)),
        ("convout.weight", (2, 128, 3, 3)),
        ("convout.bias", (1000,)),
        ("conv2.weight", (64, 16, 3, 3)),
        ("conv2.weight", (64, 32)),
        ("block1.rep.0.conv1.weight", (64, 64, 3, 3)),
        ("bn1.weight", ()),
    ],
)
def test_misshapen_tensors_are_named(name, shape):
    refused(tensors("dolos-patches-block1") | {name: np.zeros(shape)}, name.replace(".", r"\."))


def test_unknown_networks():
    trunk = nnx.eval_shape(lambda: Trunk(1, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="no PyTorch layout is known for Trunk"):
        convert.load_torch(trunk, {})
