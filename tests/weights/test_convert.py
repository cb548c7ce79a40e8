"""Weights of PyTorch in and out; test_golden.py compares what whole networks compute with them."""

import functools
import json
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from golden import weights as golden
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score

from wsdl_jax import configuration, inputs, methods, runs, training, weights
from wsdl_jax.evaluation import evaluate
from wsdl_jax.methods.explanation import KINDS, evidence
from wsdl_jax.models.attention import Attention
from wsdl_jax.models.backbone import Features
from wsdl_jax.models.classifier import ImageClassifier
from wsdl_jax.models.fcn import FCN
from wsdl_jax.models.patches import Patches
from wsdl_jax.models.xception import Trunk
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.training import pretrained
from wsdl_jax.weights import WeightsError

LAYOUTS = json.loads((pathlib.Path(golden.__file__).parent / "layouts.json").read_text())
PUBLISHED = {name: name.partition("-block")[0] for name in LAYOUTS}
# What the published FCN carries and does not use.
UNUSED = tuple(f"xcp_backbone.{part}." for part in ("block12", "conv3", "bn3", "conv4", "bn4"))
NARROW = 0.05

# Those with frozen backbones of any kind are in `test_declip`.
NETWORKS = {
    name: layout.network for name, layout in methods.layouts().items() if not layout.is_frozen
}


@functools.cache
def published(name: str) -> dict[str, np.ndarray]:
    """Tensors of a published layout. Not to be changed."""
    return golden.state_dict(name)


@functools.cache
def narrow(layout: str) -> nnx.Module:
    """A narrow network with random weights and statistics. Not to be changed."""
    model = NETWORKS[layout](width=NARROW, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for variable in weights.torch_names(model).values():
        if len(variable.shape) > 1:
            fan_in = np.prod(variable.shape[:-1])
            value = rng.uniform(-1, 1, variable.shape) * np.sqrt(3 / fan_in)
        else:
            value = rng.uniform(0.5, 1.5, variable.shape)
        variable[...] = jnp.asarray(value, jnp.float32)
    model.eval()
    return model


def narrow_tensors(layout: str = "dolos-patches") -> dict[str, np.ndarray]:
    return weights.to_torch(narrow(layout), layout)


def values(model: nnx.Module) -> dict[Any, np.ndarray]:
    """Every parameter and statistic by its path."""
    flat = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return {path: np.asarray(variable[...]) for path, variable in flat}


def assert_equal(a: nnx.Module, b: nnx.Module) -> None:
    assert type(a) is type(b)
    left, right = values(a), values(b)
    assert left.keys() == right.keys()
    for path, value in left.items():
        np.testing.assert_array_equal(value, right[path])


def one_line(raised: pytest.ExceptionInfo) -> str:
    message = str(raised.value)
    assert "\n" not in message and len(message) < 1500
    return message


# ----- Arrays -----------------------------------------------------------------------------------


def test_published_layouts():
    """Each belongs to one method, and is told from the others by a tensor that it alone has."""
    assert set(NETWORKS) == {*PUBLISHED.values()}
    registered = [kind for name in methods.names() for kind in methods.get(name).layouts]
    assert len(registered) == len(methods.layouts()) == len(NETWORKS) + 1
    signs = {kind.sign: kind.name for kind in registered}
    for layout in NETWORKS:
        assert {signs[s] for s in signs.keys() & narrow_tensors(layout).keys()} == {layout}


def test_every_value_has_its_place():
    source = published("dolos-patches-block1")
    model = weights.from_torch(source, "dolos-patches")
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


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_tensors_come_back(name):
    source = published(name)
    model = weights.from_torch(source, PUBLISHED[name])
    names = weights.torch_names(model)
    assert len({id(v) for v in names.values()}) == len(names) == len(values(model))
    back = weights.to_torch(model, PUBLISHED[name])
    assert {k: list(v.shape) for k, v in back.items()} == LAYOUTS[name]
    for key, tensor in back.items():
        if key.endswith("num_batches_tracked"):
            assert tensor.dtype == np.int64
        elif not key.startswith(UNUSED):
            assert tensor.dtype == np.float32
            np.testing.assert_array_equal(tensor, source[key])


@pytest.mark.parametrize("layout", NETWORKS)
def test_networks_come_back(layout):
    model = weights.from_torch(narrow_tensors(layout), layout)
    assert_equal(model, narrow(layout))
    assert model.trunk.norm1.use_running_average  # in evaluation mode


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(
    st.floats(0.02, 1.0),
    st.sampled_from(
        [(Patches, 1), (Patches, 2), (Patches, 12), (Attention, 0), (ImageClassifier, 0), (FCN, 0)]
    ),
)
def test_width_and_depth_are_read_from_the_arrays(width, network):
    kind, depth = network
    kwargs = {"depth": depth} if depth else {}
    shapes = nnx.eval_shape(lambda: kind(width=width, **kwargs, rngs=nnx.Rngs(0)))
    tensors = {
        place.name: np.zeros(place.torch_shape(), np.float16)
        for place in weights.layout_of(shapes).places(shapes)
    }
    layout = next(layout for layout, other in NETWORKS.items() if other is kind)
    model = weights.from_torch(tensors, layout)
    kinds = (nnx.Param, nnx.BatchStat)
    expected = dict(nnx.to_flat_state(nnx.state(shapes, kinds)))
    assert {k: v.shape for k, v in values(model).items()} == {
        k: v.shape for k, v in expected.items()
    }


@pytest.mark.parametrize("width", [0.125, 0.25, 0.5, 1.0])
def test_widths_of_the_configs_come_back(width):
    model = Patches(width=width, rngs=nnx.Rngs(0))
    tensors = weights.to_torch(model, "dolos-patches")
    assert weights.from_torch(tensors, "dolos-patches").trunk.width == width


def test_two_dimensional_pointwise_kernels():
    four = published("dolos-patches-block2")
    two = {k: v[:, :, 0, 0] if v.shape[2:] == (1, 1) else v for k, v in four.items()}
    assert sum(v.ndim == 2 for v in two.values()) == 7
    assert_equal(*(weights.from_torch(tensors, "dolos-patches") for tensors in (four, two)))


def test_prefix_of_data_parallel():
    tensors = narrow_tensors()
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    assert_equal(weights.from_torch(wrapped, "dolos-patches"), narrow("dolos-patches"))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_other_precisions_become_float32(dtype):
    source = {k: v.astype(dtype) for k, v in narrow_tensors().items()}
    model = weights.from_torch(source, "dolos-patches")
    assert {value.dtype for value in values(model).values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(
        model.trunk.norm1.mean[...], source["bn1.running_mean"].astype(np.float32)
    )


@pytest.mark.parametrize("head", ["imagenet", "none"])
def test_a_head_for_other_classes_is_dropped(head, caplog):
    source = dict(narrow_tensors("timm-xception"))
    features = source["fc.weight"].shape[1]
    if head == "imagenet":
        source["fc.weight"] = np.ones((1000, features), np.float32)
        source["fc.bias"] = np.ones(1000, np.float32)
    else:
        del source["fc.weight"], source["fc.bias"]
    model = weights.from_torch(source, "timm-xception")
    assert "fc is not for two classes" in caplog.text
    linear = ("top", "linear")
    expected = values(narrow("timm-xception"))
    for path, value in values(model).items():
        if path[:2] == linear:
            assert 0 < np.abs(value).max() <= features**-0.5  # PyTorch's initialization
        else:
            np.testing.assert_array_equal(value, expected[path])
    assert_equal(model, weights.from_torch(source, "timm-xception"))


def refused(tensors: dict[str, np.ndarray], layout: str = "dolos-patches") -> str:
    with pytest.raises(WeightsError) as raised:
        weights.from_torch(tensors, layout)
    return one_line(raised)


def test_missing_and_unexpected_names_are_listed():
    tensors = narrow_tensors()
    del tensors["convout.bias"], tensors["bn2.running_var"]
    tensors |= {"block2.rep.99.weight": np.ones(3), "ema": np.ones(3)}
    assert refused(tensors) == (
        "2 missing: bn2.running_var, convout.bias; 2 unexpected: block2.rep.99.weight, ema"
    )


def test_many_names_are_counted():
    assert refused({}).startswith("29 missing: conv1.weight, bn1.weight, ")
    assert "…" in refused({})


def test_tensors_of_a_deeper_network_are_not_ignored():
    tensors = {k: v for k, v in narrow_tensors().items() if not k.startswith("block1.")}
    assert refused(tensors).startswith("17 missing: block1.skip.weight, block1.skipbn.weight, ")


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("convout.weight", (1000, 256, 1, 1), "1000×256×1×1 for 2×256×1×1"),
        ("convout.weight", (2, 256, 3, 3), "2×256×3×3 for 2×256×1×1"),
        ("convout.bias", (1000,), "1000 for 2"),
        ("conv2.weight", (64, 16, 3, 3), "64×16×3×3 for 64×32×3×3"),
        ("conv2.weight", (64, 32), "64×32 for 64×32×3×3"),
        ("block1.rep.0.conv1.weight", (64, 64, 3, 3), "64×64×3×3 for 64×1×3×3"),
        ("block2.rep.4.pointwise.weight", (200, 256, 1, 1), "200×256×1×1 for 256×256×1×1"),
        ("bn1.weight", (), "() for 32"),
    ],
)
def test_misshapen_tensors_are_named(name, shape, said):
    message = refused(published("dolos-patches-block2") | {name: np.zeros(shape, np.float32)})
    assert message == f"1 misshapen: {name} {said}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_named(value):
    tensors = narrow_tensors()
    for name in ("bn2.running_var", "convout.weight"):
        tensors[name] = tensors[name].astype(np.float64)
        tensors[name].flat[-1] = value
    assert refused(tensors) == "2 not finite: bn2.running_var, convout.weight"


def test_tensors_of_other_kinds_are_named():
    tensors = narrow_tensors()
    tensors["bn1.bias"] = np.zeros(8, np.int32)
    tensors["convout.bias"] = np.array(["a", "b"])
    assert refused(tensors) == "2 not floating-point: bn1.bias (int32), convout.bias (<U1)"


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_layout_is_told(name):
    tensors = {k: np.zeros(shape, np.float32) for k, shape in LAYOUTS[name].items()}
    assert weights.detect(tensors) == PUBLISHED[name]
    for layout in NETWORKS.keys() - {PUBLISHED[name]}:
        assert refused(tensors, layout) == (
            f"these tensors are in layout {PUBLISHED[name]}, not {layout}"
        )


def test_unknown_layouts():
    assert refused(narrow_tensors(), "xception").startswith("layout 'xception': choose from dolos-")
    with pytest.raises(WeightsError, match="layout 'xception': choose from"):
        weights.to_torch(narrow("dolos-patches"), "xception")
    with pytest.raises(WeightsError, match="Patches is not of layout ffd-attention but of dolos-p"):
        weights.to_torch(narrow("dolos-patches"), "ffd-attention")
    trunk = nnx.eval_shape(lambda: Trunk(1, rngs=nnx.Rngs(0)))
    with pytest.raises(WeightsError, match=r"Trunk is not of layout ffd-attention$"):
        weights.to_torch(trunk, "ffd-attention")
    with pytest.raises(TypeError, match="no PyTorch layout is known for Trunk"):
        weights.torch_names(trunk)


# ----- The same as PyTorch ------------------------------------------------------------------------


def reference(torch: Any, layout: str) -> Any:
    """A narrow PyTorch network that has loaded, without a tensor left, what `to_torch` gives."""
    import torch_xception

    networks = {
        "dolos-patches": torch_xception.Patches,
        "ffd-attention": torch_xception.Attention,
        "timm-xception": torch_xception.Classifier,
        "dolos-grad-cam-full": torch_xception.FCN,
    }
    network = networks[layout](width=NARROW)
    tensors = {k: torch.from_numpy(v) for k, v in narrow_tensors(layout).items()}
    network.load_state_dict(tensors, strict=True)
    return network


def images(count: int = 4, size: int = 75) -> np.ndarray:
    return np.random.default_rng(3).uniform(-1, 1, (count, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("layout", NETWORKS)
def test_networks_run_in_pytorch(torch, layout):
    network = reference(torch, layout).eval()
    with torch.no_grad():
        theirs = network(torch.from_numpy(images().transpose(0, 3, 1, 2)))
    ours = nnx.jit(lambda model, x: model(x))(narrow(layout), images())
    match layout:
        case "ffd-attention":
            pairs = [(ours.image_logits, theirs[0]), (ours.attention, theirs[1][:, 0])]
        case "timm-xception":
            pairs = [(ours.image_logits, theirs)]
        case _:
            pairs = [(ours.map_logits, theirs.permute(0, 2, 3, 1))]
    for a, b in pairs:
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)


def test_explanations_are_pytorchs(torch):
    """Maps of block 11 by PyTorch's gradients, and by its second ones what a loss of them trains.

    In JAX the second gradients pass through derivatives that the layers define themselves.
    """
    network = reference(torch, "timm-xception").eval()
    with torch.no_grad():
        stem = network.stem(torch.from_numpy(images().transpose(0, 3, 1, 2)))
        activations = network.blocks(stem, 1, 11)
    activations.requires_grad_()
    logits = network.fc(network.pooled(network.blocks(activations, 12, 12)))
    (slopes,) = torch.autograd.grad(logits[:, 1].sum(), activations, create_graph=True)
    channels = {
        "grad_cam": slopes.mean((2, 3), keepdim=True),
        "hires_cam": slopes,
        "layer_cam": slopes.relu(),
    }
    assert channels.keys() == set(KINDS)
    locations = activations[0, 0].numel()
    theirs = {kind: (x * activations).sum(1) * locations for kind, x in channels.items()}
    sum((found**2).mean() for found in theirs.values()).backward()

    graphdef, params, rest = nnx.split(narrow("timm-xception"), nnx.Param, ...)

    def loss(params, x):
        network = nnx.merge(graphdef, params, rest, copy=True)
        maps = {
            kind: evidence(lambda x: network.upper(Features(x), 11), x, kind)[1] for kind in KINDS
        }
        return sum((found**2).mean() for found in maps.values()), maps

    x = jnp.asarray(activations.detach().numpy().transpose(0, 2, 3, 1))
    (gradients, of_x), ours = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    for kind, found in theirs.items():
        scale = found.abs().max().item()
        np.testing.assert_allclose(ours[kind], found.detach(), rtol=0, atol=1e-4 * scale)
    held = nnx.merge(graphdef, gradients, rest, copy=True)  # each variable holds its gradient
    tensors = weights.to_torch(held, "timm-xception")
    pairs = {"activations": (of_x.transpose(0, 3, 1, 2), activations.grad.numpy())}
    for name, parameter in network.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        pairs[name] = tensors[name], expected.numpy()
    for name, (actual, expected) in pairs.items():
        error = np.linalg.norm(np.asarray(actual) - expected)
        assert error <= 1e-3 * np.linalg.norm(expected), name
    assert np.linalg.norm(pairs["block12.rep.1.pointwise.weight"][1]) > 1e-3


def test_three_training_steps_are_pytorchs(torch):
    """Losses, parameters and running statistics of Patches, full supervision, under Adam."""
    network = reference(torch, "dolos-patches").train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    config = configuration.base()
    config.method, config.supervision, config.model.width = "patches", "full", NARROW
    method = methods.from_config(config)
    model = weights.from_torch(narrow_tensors(), "dolos-patches")
    model.train()
    state = runs.initial_state(model, config.train)
    step = training.make_train_step(method, model, runs.make_optimizer(config.train), seed=0)
    step = jax.jit(jax.vmap(step, in_axes=(None, 0), axis_name="data", axis_size=1))
    rng = np.random.default_rng(5)
    start = values(model)
    for _ in range(3):
        x = rng.uniform(-1, 1, (4, 75, 75, 3)).astype(np.float32)
        masks = rng.integers(0, 2, (4, 9, 9))
        optimizer.zero_grad()
        logits = network(torch.from_numpy(x.transpose(0, 3, 1, 2)))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(masks))
        loss.backward()
        optimizer.step()
        batch = {"image": x[None], "mask": masks[None].astype(np.int32)}
        (state, metrics), _ = step(state, batch)
        state = jax.tree.map(lambda leaf: leaf[0], state)
        assert float(metrics["loss"][0]) == pytest.approx(loss.item(), rel=1e-4)
    nnx.update(model, state["params"], state["stats"])
    theirs = {k: v.numpy() for k, v in network.state_dict().items()}
    trained = values(weights.from_torch(theirs, "dolos-patches"))
    far = []
    for path, value in values(model).items():
        if path[-1] in ("mean", "var"):
            np.testing.assert_allclose(value, trained[path], rtol=1e-3, atol=1e-4)
            assert np.abs(value - start[path]).max() > 1e-2
        else:
            # Adam takes a step of the full rate however small the gradient is: where rounding
            # decides its sign, it decides the step.
            far.append(np.abs(value - trained[path]).ravel() > 5e-5)
            assert np.abs(value - start[path]).max() > 2e-3
    assert np.concatenate(far).mean() < 0.01


# ----- Files --------------------------------------------------------------------------------------


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        np.testing.assert_array_equal(tensor, b[name])


def test_safetensors(tmp_path):
    path = epath.Path(tmp_path / "new" / "weights.safetensors")
    weights.write(narrow_tensors(), path)
    same(weights.read(path), narrow_tensors())
    assert [p.name for p in path.parent.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".tar"])
def test_pytorch_files(torch, tmp_path, suffix):
    path = epath.Path(tmp_path / f"weights{suffix}")
    weights.write(narrow_tensors(), path)
    content = torch.load(path, weights_only=True)
    content = content["net"] if suffix == ".tar" else content
    same({k: v.numpy() for k, v in content.items()}, narrow_tensors())
    same(weights.read(path), narrow_tensors())


@pytest.mark.parametrize("wrapper", ["net", "state_dict", "model"])
@pytest.mark.parametrize("new_format", [False, True])
def test_wrapped_pytorch_files(torch, tmp_path, wrapper, new_format):
    path = epath.Path(tmp_path / "weights.tar")
    state_dict = {k: torch.from_numpy(v) for k, v in narrow_tensors().items()}
    content = {wrapper: state_dict, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    same(weights.read(path), narrow_tensors())


def test_half_precision_files(torch, tmp_path):
    tensors = {k: torch.from_numpy(v).bfloat16() for k, v in narrow_tensors().items() if v.ndim}
    torch.save(tensors, tmp_path / "weights.pth")
    save_file(
        {k: v.astype(jnp.bfloat16) for k, v in narrow_tensors().items() if v.ndim},
        tmp_path / "weights.safetensors",
    )
    pair = [weights.read(epath.Path(tmp_path / f"weights.{s}")) for s in ("pth", "safetensors")]
    assert_equal(*(weights.from_torch(tensors, "dolos-patches") for tensors in pair))


def unreadable(path: pathlib.Path, match: str) -> None:
    before = sorted(path.parent.iterdir())
    with pytest.raises(WeightsError, match=match) as raised:
        weights.read(epath.Path(path))
    assert str(path) in one_line(raised)
    assert sorted(path.parent.iterdir()) == before


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torch_script_archives(torch, tmp_path):
    """As which OpenAI publishes CLIP, in half precision."""
    layer = torch.nn.Linear(2, 3).half()
    torch.jit.script(layer).save(str(tmp_path / "archive.pt"))
    found = weights.read(epath.Path(tmp_path / "archive.pt"))
    assert {name: array.dtype for name, array in found.items()} == dict.fromkeys(
        ("weight", "bias"), np.float32
    )
    for name, tensor in layer.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor.float().numpy())


def test_code_in_a_file_is_not_run(torch, tmp_path):
    torch.save({"net": Trap(tmp_path / "sprung")}, tmp_path / "trap.tar")
    unreadable(tmp_path / "trap.tar", r"holds more than tensors \(posix\.mkdir\): refused")
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    unreadable(tmp_path / "trap.pth", "refused, since loading it could run code")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    unreadable(tmp_path / "module.pth", r"more than tensors \(torch\.nn\.modules\.linear\.Linear\)")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".tar"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_truncated_files(torch, tmp_path, suffix, share):
    whole, path = epath.Path(tmp_path / f"whole{suffix}"), tmp_path / f"part{suffix}"
    weights.write(narrow_tensors(), whole)
    content = whole.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    unreadable(path, "cannot be read|no PyTorch file, or a damaged one|is no PyTorch file")


def test_files_of_other_kinds(torch, tmp_path):
    (tmp_path / "text.pth").write_text("hello\nworld\n")
    unreadable(tmp_path / "text.pth", "is no PyTorch file")
    (tmp_path / "text.safetensors").write_text("hello\nworld\n")
    unreadable(tmp_path / "text.safetensors", "cannot be read")
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    unreadable(tmp_path / "archive.pth", "is no PyTorch file, or a damaged one")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    unreadable(tmp_path / "list.pth", "holds no state_dict but list")
    torch.save({"weight": torch.ones(2), "name": "x"}, tmp_path / "mixed.pth")
    unreadable(tmp_path / "mixed.pth", "holds no state_dict but name")


def test_files_that_are_not_there(tmp_path):
    for name in ("nowhere.pth", "nowhere.safetensors"):
        unreadable(tmp_path / name, "is not there")
    (tmp_path / "folder.pth").mkdir()
    unreadable(tmp_path / "folder.pth", "is a folder")


def test_without_pytorch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pth").write_bytes(b"anything")
    unreadable(tmp_path / "weights.pth", r"pip install 'wsdl-jax\[torch\]', or use \.safetensors")
    with pytest.raises(WeightsError, match=r"new\.tar .*use \.safetensors"):
        weights.write(narrow_tensors(), epath.Path(tmp_path / "new.tar"))


def test_files_that_cannot_be_written(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "weights.safetensors")
    path.write_text("mine")
    with pytest.raises(WeightsError, match="is there already"):
        weights.write(narrow_tensors(), path)
    assert path.read_text() == "mine"
    with pytest.raises(WeightsError, match=r"must end in \.safetensors, \.pth, \.pt or \.tar"):
        weights.write(narrow_tensors(), epath.Path(tmp_path / "weights.npz"))
    with pytest.raises(WeightsError, match="cannot be written"):
        weights.write(narrow_tensors(), path / "below.safetensors")

    def full(self, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(pathlib.Path, "rename", full)
    with pytest.raises(WeightsError, match=r"other\.safetensors cannot be written: No space"):
        weights.write(narrow_tensors(), epath.Path(tmp_path / "other.safetensors"))
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


# ----- Runs ---------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path) -> dict[str, epath.Path]:
    """A narrow weight file of each layout."""
    out = {layout: epath.Path(tmp_path / f"{layout}.safetensors") for layout in NETWORKS}
    for layout, path in out.items():
        save_file(narrow_tensors(layout), path)
    return out


@pytest.mark.parametrize("layout", NETWORKS)
def test_a_run_of_a_file(files, layout, tmp_path):
    run = epath.Path(tmp_path / "runs" / "new")
    runs.make_run(files[layout], layout, run)
    assert {path.name for path in run.iterdir()} == {"config.json", "checkpoints"}
    assert [path.name for path in run.parent.iterdir()] == ["new"]
    config, model, step, _ = runs.load(run)
    assert_equal(model, narrow(layout))
    assert (config.setup, step) == ("c" if layout == "dolos-grad-cam-full" else "a", 0)


@pytest.mark.slow
@pytest.mark.parametrize("setup", methods.SETUPS)
@pytest.mark.parametrize("layout", NETWORKS)
def test_a_run_is_tested_as_the_recipe_is(files, layout, setup, tmp_path):
    run = epath.Path(tmp_path / "run")
    if (layout, setup) in {
        ("timm-xception", "c"),
        ("dolos-grad-cam-full", "a"),
        ("dolos-grad-cam-full", "b"),
    }:
        with pytest.raises(
            UserError, match=f"setup {setup}: networks of layout {layout} are trained in"
        ):
            runs.make_run(files[layout], layout, run, setup)
        assert not run.exists()
        return
    runs.make_run(files[layout], layout, run, setup)
    config = runs.load_config(run)
    name = {"dolos-patches": "patches", "ffd-attention": "attention"}.get(layout, "grad_cam")
    recipe = published_config(name, setup)
    assert (config.method, config.supervision) == (recipe.method, recipe.supervision)
    for field in ("real", "fake", "test_real", "test_fake", "image_size", "resize"):
        assert config.data[field] == recipe.data[field]


def published_config(method: str, setup: str):
    path = pathlib.Path(__file__).parent.parent.parent / "configs" / f"{method}.py"
    space: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    return space["get_config"](f"setup={setup},source=celebahq")


@pytest.mark.slow
def test_a_run_is_evaluated(files, data_dir, tmp_path):
    """Its scores are those of the network itself on the same images."""
    run = epath.Path(tmp_path / "run")
    runs.make_run(files["dolos-patches"], "dolos-patches", run)
    stored = evaluate(run, data_dir=str(data_dir))
    config = runs.load_config(run)
    config.data.dir = str(data_dir)
    localize = nnx.jit(methods.from_config(config).localize)
    scores = {}
    for side, name in (("real", config.data.test_real), ("fake", config.data.test_fake)):
        source = inputs.Examples((name,), "test", config.data.dir)
        reading = inputs.Reading.of(config.data)
        (batch,) = inputs.eval_batches(source, reading, batch=config.eval.batch)
        images = methods.network_input(jnp.asarray(batch["image"]))
        scores[side] = np.asarray(localize(narrow("dolos-patches"), images).scores)
        scores[side] = scores[side][batch["weight"] > 0]
    labels = np.repeat([0, 1], [len(scores["real"]), len(scores["fake"])])
    expected = roc_auc_score(labels, np.r_[scores["real"], scores["fake"]])
    assert stored["auc"] == pytest.approx(100 * expected)
    assert stored["checkpoint"] == 0


def test_folders_and_files_that_are_refused(files, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))
    source = files["dolos-patches"]
    with pytest.raises(UserError, match=f"{tmp_path} is there already"):
        runs.make_run(source, "dolos-patches", epath.Path(tmp_path))
    with pytest.raises(UserError, match=f"{source} is a file"):
        runs.make_run(source, "dolos-patches", source)
    run = epath.Path(tmp_path / "run")
    with pytest.raises(UserError, match=rf"^{source}: these tensors are in layout dolos-patches"):
        runs.make_run(source, "timm-xception", run)

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(UserError, match=rf"^{run} cannot be written: No space left on device"):
        runs.make_run(source, "dolos-patches", run)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_head_for_other_classes_makes_no_run(tmp_path):
    tensors = {k: v for k, v in narrow_tensors("timm-xception").items() if k[:3] != "fc."}
    path = epath.Path(tmp_path / "imagenet.safetensors")
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=r"not for two classes.*--config\.init\.path") as raised:
        runs.make_run(path, "timm-xception", epath.Path(tmp_path / "run"))
    assert str(path) in one_line(raised)
    assert [p.name for p in tmp_path.iterdir()] == ["imagenet.safetensors"]


# ----- Starting from weights ----------------------------------------------------------------------


def fresh(network: type[nnx.Module], **kwargs: Any) -> nnx.Module:
    """A network whose every value is 7."""
    model = network(**{"width": NARROW, **kwargs}, rngs=nnx.Rngs(0))
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    nnx.update(model, jax.tree.map(lambda x: jnp.full(x.shape, 7.0), state))
    return model


TRANSFERS = {
    ("dolos-patches", Patches, 2): [],
    ("timm-xception", Patches, 2): ["classifier"],
    ("dolos-patches", Patches, 1): ["classifier"],
    ("dolos-grad-cam-full", Patches, 11): ["classifier"],
    ("timm-xception", ImageClassifier, None): [],
    ("ffd-attention", ImageClassifier, None): [],
    ("timm-xception", FCN, None): ["classifier", "conv", "norm"],
    ("ffd-attention", FCN, None): ["classifier", "conv", "norm"],
    ("dolos-grad-cam-full", FCN, None): [],
    ("ffd-attention", Attention, None): [],
    ("timm-xception", Attention, None): ["map", "map.pointwise"],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TRANSFERS, ids=str)
def test_what_is_shared_is_taken(files, case):
    layout, network, depth = case
    model = fresh(network, **({} if depth is None else {"depth": depth}))
    new = pretrained.start(model, files[layout], layout=None)
    assert new == TRANSFERS[case]
    source = values(narrow(layout))
    for path, value in values(model).items():
        if ".".join(map(str, path[:-1])) in new:
            assert (value == 7).all()
        else:
            np.testing.assert_array_equal(value, source[path])


def test_a_run_is_a_start(files, tmp_path):
    run = epath.Path(tmp_path / "run")
    runs.make_run(files["ffd-attention"], "ffd-attention", run)
    model = fresh(Attention)
    assert pretrained.start(model, run, layout=None) == []
    assert_equal(model, narrow("ffd-attention"))


def test_a_dropped_head_stays_as_it_was(tmp_path):
    tensors = {k: v for k, v in narrow_tensors("timm-xception").items() if k[:3] != "fc."}
    save_file(tensors, tmp_path / "imagenet.safetensors")
    model = fresh(ImageClassifier)
    path = epath.Path(tmp_path / "imagenet.safetensors")
    assert pretrained.start(model, path, "timm-xception") == ["top.linear"]
    assert (model.top.linear.kernel[...] == 7).all()
    np.testing.assert_array_equal(
        model.top.norm4.var[...], narrow("timm-xception").top.norm4.var[...]
    )


def test_starts_that_do_not_fit(files, tmp_path):
    save_file({"weight": np.ones(2, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "notes").mkdir()
    for path, layout, network, match in [
        (files["dolos-patches"], None, FCN, "stages 1 to 2 of its backbone, where 11 are n"),
        (files["dolos-grad-cam-full"], None, Attention, "1 to 11 of its backbone, where 12 are"),
        (files["dolos-patches"], "timm-xception", FCN, "in layout dolos-patches, not timm-xcep"),
        (tmp_path / "other.safetensors", None, FCN, "in none of the layouts dolos-patches, "),
        (tmp_path / "other.safetensors", "dolos-patches", FCN, "29 missing: conv1.weight, "),
        (tmp_path / "nowhere.pth", None, FCN, "is not there"),
        (tmp_path / "notes", None, FCN, "is not a run directory"),
    ]:
        model = fresh(network)
        with pytest.raises(UserError, match=match) as raised:
            pretrained.start(model, epath.Path(path), layout)
        assert str(path) in one_line(raised)
        assert all((value == 7).all() for value in values(model).values())
    model = fresh(Patches, width=0.25)
    with pytest.raises(UserError, match=r"whose stages have \d+, \d+ channels, where 32, 64"):
        pretrained.start(model, files["dolos-patches"], None)


def test_a_network_without_xception_starts_from_its_own_run(tmp_path, monkeypatch):
    def linear(outputs: int) -> nnx.Linear:
        return nnx.Linear(3, outputs, rngs=nnx.Rngs(0))

    trained = runs.Trained(configuration.base(), linear(2), 0, None)
    monkeypatch.setattr(runs, "load", lambda run: trained)
    model = linear(2)
    model.kernel[...] = jnp.zeros((3, 2))
    assert pretrained.start(model, epath.Path(tmp_path), None) == []
    assert_equal(model, trained.model)
    with pytest.raises(UserError, match="has a network Linear of another size") as raised:
        pretrained.start(linear(4), epath.Path(tmp_path), None)
    assert str(tmp_path) in one_line(raised)
    with pytest.raises(UserError, match="has a network Linear, which has no part of a backbone"):
        pretrained.start(fresh(Patches), epath.Path(tmp_path), None)


@pytest.mark.slow
def test_training_starts_from_a_file(files, real_config, tmp_path, caplog):
    caplog.set_level("INFO")
    overrides = {
        "init.path": str(files["dolos-patches"]),
        "model.depth": 2,
        "train.learning_rate": 1e-12,
        "train.epochs": 1,
    }
    config = real_config("patches", "source=celebahq", overrides)
    run = epath.Path(tmp_path / "run")
    training.train(config, run)
    assert f"weights start from {files['dolos-patches']}" in caplog.text
    _, model, step, _ = runs.load(run)
    assert step == 2
    start = values(narrow("dolos-patches"))
    for path, value in values(model).items():
        if path[-1] in ("mean", "var"):
            assert np.abs(value - start[path]).max() > 1e-3  # two steps away
        else:
            np.testing.assert_allclose(value, start[path], rtol=0, atol=1e-7)
    # A continued run has its own weights; the file need not be there any more.
    files["dolos-patches"].unlink()
    training.train(config, run)


def test_a_recipe_without_its_weights_says_so(real_config, caplog):
    config = real_config("attention", "source=celebahq", {})
    model = fresh(Attention)
    training.start_network(model, config)
    assert "published weights (ffd-attention): config.init.path is not given" in caplog.text
    assert "scheme 'normal'" in caplog.text
    assert all((value == 7).all() for value in values(model).values())


# ----- Command ------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    python = (sys.executable, "-W", "error", "-m", "wsdl_jax.convert")
    return subprocess.run([*python, *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_there_and_back(files, tmp_path):
    run, back = str(tmp_path / "run"), tmp_path / "back.safetensors"
    file, layout = str(files["ffd-attention"]), "--layout=ffd-attention"
    done = command(file, layout, "--out", run, "--setup", "b")
    assert done.returncode == 0, done.stderr
    assert f"{run}: attention of {file}, to be evaluated as setup b" in done.stderr
    done = command(run, layout, "--out", str(back))
    assert done.returncode == 0, done.stderr
    same(weights.read(epath.Path(back)), narrow_tensors("ffd-attention"))
