"""Backbones by name: every method runs on each, and what one has not is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsdl_jax.models import backbones
from wsdl_jax.models.attention import Attention
from wsdl_jax.models.backbone import Frozen, freeze
from wsdl_jax.models.classifier import ImageClassifier
from wsdl_jax.models.fcn import FCN
from wsdl_jax.models.patches import Patches

# Locations a side of the map behind a stage, of images of 112×112 pixels: by patches, or halved by
# the stem's and the stages' pools.
SIDES = {
    "xception": {1: 27, 2: 14, 12: 4},
    "clip_vit_l14": {2: 8},
    "clip_rn50": {1: 28, 3: 7, 4: 3},
    "dinov2_s14": {2: 8},
    "dinov2_b14": {1: 8},
    "dinov2_l14": {1: 8},
    "vit_tiny": {2: 14},
}
IMAGES = jax.ShapeDtypeStruct((2, 112, 112, 3), jnp.float32)


def shapes(build, call):
    """Shapes of what a network gives, which is neither drawn nor compiled."""

    def run(images):
        network = build()
        network.eval()
        return call(network, images)

    return jax.eval_shape(run, IMAGES)


def test_every_backbone_is_told_here():
    assert SIDES.keys() == set(backbones.names())


@pytest.mark.parametrize(("name", "stage"), [(n, s) for n in SIDES for s in SIDES[n]])
def test_maps_behind_stages(name, stage):
    found = shapes(
        lambda: backbones.trunk(name, stage, rngs=nnx.Rngs(0)),
        lambda trunk, x: (trunk(x), trunk.statistics(x), jnp.zeros(trunk.features)),
    )
    side, channels = SIDES[name][stage], found[2].shape[0]
    assert found[0].shape == (2, side, side, channels)
    assert found[1].ndim == 2


@pytest.mark.parametrize("name", ["xception", "clip_rn50", "dinov2_s14", "vit_tiny"])
def test_every_network_runs_on_every_backbone(name):
    one = backbones.get(name)
    for network, field in (
        (lambda: Patches(depth=one.local, backbone=name, rngs=nnx.Rngs(0)), "map_logits"),
        (lambda: FCN(depth=one.explained, backbone=name, rngs=nnx.Rngs(0)), "map_logits"),
        (lambda: Attention(attended=one.attended, backbone=name, rngs=nnx.Rngs(0)), "attention"),
        (lambda: ImageClassifier(backbone=name, rngs=nnx.Rngs(0)), "image_logits"),
    ):
        found = getattr(shapes(network, lambda model, x: model(x)), field)
        assert found.shape[0] == 2
        assert found.dtype == jnp.float32


@pytest.mark.parametrize("name", ["vit_tiny", "clip_rn50"])
@pytest.mark.usefixtures("compile_quickly")
def test_going_on_from_a_stage_is_going_through_all(name):
    trunk = backbones.trunk(name, 2, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for variable in jax.tree.leaves(
        nnx.state(trunk, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Variable)
    ):
        variable[...] = jnp.asarray(rng.normal(0, 0.05, variable.shape), jnp.float32)
    trunk.eval()
    images = jnp.asarray(rng.uniform(-1, 1, (1, 64, 64, 3)), jnp.float32)
    first = trunk.through(trunk.stem(images), 0, 1)
    np.testing.assert_allclose(trunk.through(first, 1, 2).map, trunk(images), rtol=1e-5, atol=1e-6)


def test_what_is_frozen_is_all_but_adapters():
    trunk = backbones.trunk("dinov2_s14", 1, lora_rank=2, rngs=nnx.Rngs(0))
    count = len(nnx.to_flat_state(nnx.state(trunk, (nnx.Param, nnx.BatchStat))))
    freeze(trunk)
    trained = nnx.to_flat_state(nnx.state(trunk, nnx.Param))
    assert {path[-1] for path, _ in trained} == {"lora_a", "lora_b"}
    assert not nnx.to_flat_state(nnx.state(trunk, nnx.BatchStat))
    assert len(nnx.to_flat_state(nnx.state(trunk, Frozen))) == count - len(trained)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("vgg16", {}, "backbone 'vgg16': choose from xception, "),
        ("clip_vit_l14", {"width": 0.5}, "backbone clip_vit_l14 has no width, which is 0.5"),
        ("xception", {"lora_rank": 4}, "backbone xception has no lora_rank, which is 4"),
        ("vit_tiny", {"registers": 4}, "backbone vit_tiny has no registers, which is 4"),
    ],
)
def test_what_a_backbone_has_not(name, option, message):
    with pytest.raises(ValueError, match=message):
        backbones.trunk(name, 1, rngs=nnx.Rngs(0), **option)
