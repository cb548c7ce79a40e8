"""Starting weights: their distributions, by PyTorch's fan-in and fan-out."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from wsdl_jax.models import vit
from wsdl_jax.models.backbone import freeze, freeze_backbones
from wsdl_jax.models.clip_resnet import Bottleneck
from wsdl_jax.models.declip import DeCLIP
from wsdl_jax.models.initialization import initialize
from wsdl_jax.models.layers import BatchNorm, Conv, Pointwise, SeparableConv
from wsdl_jax.models.xception import Trunk

SEED = 3
WIDTH = 32


class Network(nnx.Module):
    """One of each layer that has weights."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = Conv(WIDTH, 2 * WIDTH, dtype=jnp.float32, rngs=rngs)
        self.separable = SeparableConv(8 * WIDTH, WIDTH, dtype=jnp.float32, rngs=rngs)
        self.norms = nnx.List([BatchNorm(30 * WIDTH, axis_name=None) for _ in range(2)])
        self.classifier = Pointwise(WIDTH, 8 * WIDTH, use_bias=True, dtype=jnp.float32, rngs=rngs)


# Kernels as PyTorch counts their fans: inputs of a group × 9, outputs × 9.
FANS = {
    "conv": (9 * WIDTH, 9 * 2 * WIDTH),
    "depthwise": (9, 9 * 8 * WIDTH),
    "pointwise": (8 * WIDTH, WIDTH),
    "classifier": (WIDTH, 8 * WIDTH),
}


def initialized(scheme: str, seed: int = SEED) -> Network:
    network = Network()
    for variable in _variables(network):  # what a network has learned must not survive
        variable[...] = jnp.full(variable.shape, 7.0)
    initialize(network, scheme, seed)
    return network


def _variables(network: Network) -> list[nnx.Param]:
    return [v for _, v in nnx.iter_graph(network) if isinstance(v, nnx.Param)]


def kernels(network: Network) -> dict[str, np.ndarray]:
    return {
        "conv": np.asarray(network.conv.kernel[...]),
        "depthwise": np.asarray(network.separable.kernel[...]),
        "pointwise": np.asarray(network.separable.pointwise.kernel[...]),
        "classifier": np.asarray(network.classifier.kernel[...]),
    }


def drawn_from(values: np.ndarray, distribution) -> None:
    assert stats.kstest(values.ravel(), distribution.cdf).pvalue > 1e-3


def uniform(bound: float):
    return stats.uniform(-bound, 2 * bound)


def test_torch():
    network = initialized("torch")
    for name, kernel in kernels(network).items():
        bound = FANS[name][0] ** -0.5
        assert np.abs(kernel).max() <= bound
        drawn_from(kernel, uniform(bound))
    bias = np.asarray(network.classifier.bias[...])
    assert np.abs(bias).max() <= WIDTH**-0.5
    drawn_from(bias, uniform(WIDTH**-0.5))
    for norm in network.norms:
        np.testing.assert_array_equal(norm.scale[...], 1)
        np.testing.assert_array_equal(norm.bias[...], 0)


@pytest.mark.parametrize(("scheme", "scale_std"), [("xavier", 0.02), ("normal", 0.01)])
def test_normal_schemes(scheme, scale_std):
    network = initialized(scheme)
    for name, kernel in kernels(network).items():
        std = 0.01 if scheme == "normal" else 0.02 * (2 / sum(FANS[name])) ** 0.5
        drawn_from(kernel, stats.norm(0, std))
    np.testing.assert_array_equal(network.classifier.bias[...], 0)
    for norm in network.norms:
        drawn_from(np.asarray(norm.scale[...]), stats.norm(1, scale_std))
        np.testing.assert_array_equal(norm.bias[...], 0)


def test_decoder():
    network = initialized("decoder")
    for kernel in kernels(network).values():
        drawn_from(kernel, stats.norm(0, 0.02))
    drawn_from(np.asarray(network.classifier.bias[...]), uniform(WIDTH**-0.5))
    for norm in network.norms:
        drawn_from(np.asarray(norm.scale[...]), stats.norm(0, 0.02))
        np.testing.assert_array_equal(norm.bias[...], 0)


def test_a_backbone_that_is_trained_is_none_of_the_decoder():
    def drawn(*, frozen: bool) -> DeCLIP:
        network = DeCLIP(
            backbone="xception", depth=4, decoder="linear", width=0.05, rngs=nnx.Rngs(0)
        )
        if frozen:
            freeze_backbones(network)
        initialize(network, "decoder", SEED)
        return network

    network, frozen = drawn(frozen=False), drawn(frozen=True)
    kernel = np.asarray(network.trunk.conv2.kernel[...])
    drawn_from(kernel, uniform((9 * kernel.shape[2]) ** -0.5))
    np.testing.assert_array_equal(network.trunk.norm1.scale[...], 1)
    np.testing.assert_array_equal(network.trunk.blocks[3].norms[2].scale[...], 0)
    for one in (network, frozen):
        drawn_from(np.asarray(one.decoder.linear.kernel[...]), stats.norm(0, 0.02))


def test_residual_blocks_begin_as_identities():
    """Entry blocks, whose shortcut is a convolution, and all kernels are those of "torch"."""
    trunks = [Trunk(5, width=0.05, rngs=nnx.Rngs(0)) for _ in range(2)]
    for trunk, scheme in zip(trunks, ("torch", "zero_residual"), strict=True):
        initialize(trunk, scheme, SEED)
        trunk.eval()
    torchs, zeros = (nnx.to_flat_state(nnx.state(trunk, nnx.Param)) for trunk in trunks)
    different = {
        p for (p, a), (_, b) in zip(torchs, zeros, strict=True) if (a[...] != b[...]).any()
    }
    assert different == {("blocks", block, "norms", 2, "scale") for block in (3, 4)}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, trunk.features)), jnp.float32)
    for block in trunk.blocks[3:]:
        np.testing.assert_array_equal(block(x), x)


def transformer() -> vit.ViT:
    """One block of everything that a transformer can have."""
    form = dataclasses.replace(vit.FORMS["dinov2_s14"], width=256, heads=2, pre_norm=True)
    return vit.ViT(1, form=form, registers=40, lora_rank=64, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("scheme", ["torch", "xavier", "normal", "zero_residual"])
def test_transformer(scheme):
    trunk = transformer()
    for variable in _variables(trunk):
        variable[...] = jnp.full(variable.shape, 7.0)
    initialize(trunk, scheme, SEED)
    block = trunk.blocks[0]
    for norm in (trunk.pre_norm, block.norm1, block.norm2):
        np.testing.assert_array_equal(norm.scale[...], 1)
        np.testing.assert_array_equal(norm.bias[...], 0)
    for variable in (trunk.class_token, trunk.registers, trunk.positions):
        drawn_from(np.asarray(variable[...]), stats.norm(0, 0.02))
    for variable in (block.attention_scale, block.mlp_scale):
        np.testing.assert_allclose(variable[...], 1e-5)
    drawn_from(np.asarray(block.query.lora.lora_a[...]), uniform(256**-0.5))
    np.testing.assert_array_equal(block.value.lora.lora_b[...], 0)
    kernel, bias = np.asarray(block.up.kernel[...]), np.asarray(block.up.bias[...])
    patches = np.asarray(trunk.patches.kernel[...])
    if scheme in ("torch", "zero_residual"):
        drawn_from(kernel, uniform(256**-0.5))
        drawn_from(bias, uniform(256**-0.5))
        drawn_from(patches.ravel()[::9], uniform((14 * 14 * 3) ** -0.5))
    else:
        std = 0.01 if scheme == "normal" else 0.02 * (2 / (256 + 4 * 256)) ** 0.5
        drawn_from(kernel.ravel()[::9], stats.norm(0, std))
        np.testing.assert_array_equal(bias, 0)
    last = [v[...] for layer in (block.out, block.down) for v in (layer.kernel, layer.bias)]
    assert all((np.asarray(v) == 0).all() for v in last) == (scheme == "zero_residual")


def test_residual_blocks_of_other_networks_begin_as_identities():
    kwargs = {"remat": False, "dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    bottleneck = Bottleneck(16, 4, pool=False, axis_name=None, **kwargs)
    block = transformer().blocks[0]
    rng = np.random.default_rng(0)
    for network, shape in ((bottleneck, (2, 4, 4, 16)), (block, (2, 5, 256))):
        initialize(network, "zero_residual", SEED)
        network.eval()
        x = jnp.abs(jnp.asarray(rng.normal(size=shape), jnp.float32))  # what ReLU leaves
        np.testing.assert_array_equal(network(x), x)


def test_what_is_frozen_stays_and_its_adapters_are_drawn():
    trunk = transformer()
    for variable in _variables(trunk):
        variable[...] = jnp.full(variable.shape, 7.0)
    freeze(trunk)
    initialize(trunk, "zero_residual", SEED)
    assert {type(v) for v in _variables(trunk)} == {nnx.LoRAParam}
    for _, variable in nnx.iter_graph(trunk):
        if isinstance(variable, nnx.Variable):
            assert (variable[...] != 7).all() == isinstance(variable, nnx.LoRAParam)


@pytest.mark.parametrize("scheme", ["torch", "xavier", "normal", "decoder"])
def test_seed(scheme):
    first, again, other = (_variables(initialized(scheme, seed)) for seed in (SEED, SEED, 4))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a[...], b[...])
    changed = [(a[...] != b[...]).any() for a, b in zip(first, other, strict=True)]
    assert sum(changed) >= 4  # the kernels, at least
    # Layers of one shape do not repeat each other.
    network = initialized("xavier")
    assert (network.norms[0].scale[...] != network.norms[1].scale[...]).any()


def test_statistics_are_left_alone():
    network = Network()
    network.norms[0].mean[...] = jnp.full(network.norms[0].mean.shape, 5.0)
    initialize(network, "xavier", SEED)
    np.testing.assert_array_equal(network.norms[0].mean[...], 5)
    np.testing.assert_array_equal(network.norms[0].var[...], 1)


def test_bounds_are_pytorchs(torch):
    theirs = {
        "conv": torch.nn.Conv2d(WIDTH, 2 * WIDTH, 3, bias=False),
        "depthwise": torch.nn.Conv2d(8 * WIDTH, 8 * WIDTH, 3, groups=8 * WIDTH, bias=False),
        "pointwise": torch.nn.Conv2d(8 * WIDTH, WIDTH, 1, bias=False),
        "classifier": torch.nn.Conv2d(WIDTH, 8 * WIDTH, 1),
    }
    for name, kernel in kernels(initialized("torch")).items():
        other = theirs[name].weight.detach().numpy()
        np.testing.assert_allclose(np.abs(kernel).max(), np.abs(other).max(), rtol=0.01)
    torch.manual_seed(0)
    for name, kernel in kernels(initialized("xavier")).items():
        other = torch.nn.init.xavier_normal_(theirs[name].weight, gain=0.02).detach().numpy()
        np.testing.assert_allclose(kernel.std(), other.std(), rtol=0.06)
