"""The networks of DeCLIP and DINO, what they learn from, and what of them is trained."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from wsdl_jax import configuration, methods, runs, training
from wsdl_jax.models.backbone import Frozen
from wsdl_jax.models.declip import DeCLIP
from wsdl_jax.models.decoder import ENLARGED
from wsdl_jax.runtime.errors import ConfigError
from wsdl_jax.runtime.parallel import AXIS

METHODS = ("declip", "dino")
SIZE = {"declip": 64 // 8 * ENLARGED, "dino": 64 // 8 * 4}  # of the maps of images of 64×64
# Of a transformer with patches of 8, one block.
TINY = {
    "model.backbone": "vit_tiny",
    "model.depth": 1,
    "model.width": 0.1,
    "data.image_size": 64,
}


def made(method: str, setup: str = "a", **fields) -> ml_collections.ConfigDict:
    config = configuration.base()
    config.method, config.setup = method, setup
    config.supervision = "full" if setup == "c" else "weak"
    config.data.fake, config.data.test_fake = ("a/fake",), "a/fake"
    config.data.real = () if setup == "c" else ("a/real",)
    if method == "declip":
        config.model.decoder = "linear"
    config.update_from_flattened_dict({**TINY, **fields})
    configuration.validate(config)
    return config


def image(size: int = 64, count: int = 2) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (count, size, size, 3), minval=-1)


def sigmoid_loss(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Binary cross-entropy, in float64."""
    return np.logaddexp(0, logits) - targets * logits


# ----- What is learned from -----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("compile_quickly")
def test_objectives(method: str):
    """Masks and shares train every location; a label, where these are not known, the mean logit."""
    rng, size, images = np.random.default_rng(0), SIZE[method], image()
    masks = rng.integers(0, 2, (2, size, size), np.int32)
    shares = rng.uniform(0, 1, (2, size, size)).astype(np.float32)
    labels = np.array([0, 1], np.int32)
    configs = [made(method, "c"), made(method, **{"train.splice": 0.5}), made(method, "b")]
    partly = methods.from_config(made(method, "b", **{"train.self_blend": 0.5}))
    for config in configs:
        assert methods.map_size(config) == size
    in_setups = [methods.from_config(config) for config in configs]
    batch = {"image": images, "label": labels, "mask": masks, "spliced": shares}
    known = jnp.stack([jnp.zeros((size, size)), jnp.full((size, size), jnp.nan)])
    model = methods.build(made(method), None)
    model.eval()

    @nnx.jit
    def everything(model: nnx.Module, batch: methods.Batch):
        losses = [bound.loss(model, batch)[0] for bound in in_setups]
        losses.append(partly.loss(model, {**batch, "spliced": known})[0])
        return model(images).map_logits, losses, in_setups[0].localize(model, images)

    scores, losses, found = everything(model, jax.tree.map(jnp.asarray, batch))
    scores = np.asarray(scores, float)
    assert scores.shape == (2, size, size, 2) and np.ptp(scores) > 1e-3
    logits = scores[..., 1] - scores[..., 0]
    expected = [
        sigmoid_loss(logits, masks).mean(),
        sigmoid_loss(logits, shares).mean(),
        sigmoid_loss(logits.mean((1, 2)), labels).mean(),
        (sigmoid_loss(logits[0], 0).mean() + sigmoid_loss(logits[1].mean(), 1)) / 2,
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(found.maps, 1 / (1 + np.exp(-logits)), rtol=1e-4)
    np.testing.assert_allclose(found.scores, found.maps.mean((1, 2)), rtol=1e-5)


# ----- Two backbones ------------------------------------------------------------------------------


@pytest.mark.usefixtures("compile_quickly")
def test_a_second_backbone_is_beside_the_first(torch):
    kwargs = {"backbone": "vit_tiny", "depth": 1, "decoder": "linear", "width": 0.1}
    model = DeCLIP(**kwargs, beside="clip_rn50", beside_depth=1, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param):
            variable[...] = jnp.asarray(rng.normal(0, 0.1, variable.shape), jnp.float32)
    model.eval()
    images = image(72)
    features, first, second = nnx.jit(
        lambda m: (m.features(images), m.trunk(images), m.beside(images))
    )(model)
    # 9 locations a side, and 18 that are brought to these: without antialiasing, as in PyTorch.
    assert (first.shape[1:3], second.shape[1:3]) == ((9, 9), (18, 18))
    split = first.shape[-1]
    np.testing.assert_allclose(features[..., :split], first, rtol=1e-5, atol=1e-5)
    wanted = torch.nn.functional.interpolate(
        torch.tensor(np.array(second)).permute(0, 3, 1, 2), (9, 9), mode="bilinear"
    )
    got = np.asarray(features[..., split:]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-4)
    assert model.decode(features).map_logits.shape == (2, 144, 144, 2)


def test_both_backbones_freeze():
    config = made(
        "declip",
        **{
            "model.backbone": "dinov2_s14",
            "model.width": 1.0,
            "data.image_size": 70,
            "model.frozen": True,
            "model.beside": "clip_rn50",
        },
    )
    model = nnx.eval_shape(lambda: methods.blank(config, None))
    learned = {name[0] for name in dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))}
    stays = {name[0] for name in dict(nnx.to_flat_state(nnx.state(model, Frozen)))}
    assert learned == {"decoder"} and stays == {"trunk", "beside"}
    assert not nnx.state(model, nnx.BatchStat)
    # 384 channels of DINOv2's and 256 of stage 1 of the ResNet.
    assert model.decoder.linear.kernel.shape == (384 + 256, 1)
    with pytest.raises(ConfigError, match=r"model\.backbone_path has to name .* of dinov2_s14"):
        configuration.check_backbone_file(config)
    config.model.backbone_path = "dinov2.pth"
    with pytest.raises(ConfigError, match=r"model\.beside_path has to name .* of clip_rn50"):
        configuration.check_backbone_file(config)
    config.model.beside_path = "RN50.pt"
    configuration.check_backbone_file(config)
    # Where files are is no part of a run; what they are is, once it is known.
    other = config.copy_and_resolve_references()
    other.model.beside_path, other.model.beside_sha256 = "elsewhere/RN50.pt", "ab" * 32
    assert configuration.differences(config, other) == []
    config.model.beside_sha256 = "cd" * 32
    assert len(configuration.differences(config, other)) == 1


# ----- Adapters -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("compile_quickly")
def test_only_adapters_and_the_head_are_trained():
    fields = {
        "model.backbone": "dinov2_s14",
        "model.width": 1.0,
        "data.image_size": 56,
        "model.frozen": True,
        "model.lora_rank": 2,
    }
    config = made("dino", "c", **fields)
    model = methods.build(config, AXIS)
    rng = np.random.default_rng(0)
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, Frozen):  # as a file would have them
            variable[...] = jnp.asarray(rng.normal(0, 0.1, variable.shape), jnp.float32)
    optimizer = runs.make_optimizer(config.train)
    state = runs.initial_state(model, config.train)
    names = {".".join(map(str, name)) for name in dict(nnx.to_flat_state(state["params"]))}
    head = {name for name in names if name.startswith("head.")}
    adapters = {
        f"trunk.blocks.0.{layer}.lora.lora_{side}" for layer in ("query", "value") for side in "ab"
    }
    assert names == head | adapters and len(head) == 11
    assert sum(x.size for x in jax.tree.leaves(state["params"])) < 0.4 * sum(
        x.size for x in jax.tree.leaves(nnx.state(model, Frozen))
    )
    step = training.make_train_step(methods.from_config(config), model, optimizer, config.seed)
    batch = {
        "image": image(56),
        "mask": jnp.asarray(rng.integers(0, 2, (2, 16, 16), np.int32)),
    }

    @jax.jit
    def on_one_device(state, batch):
        one = jax.tree.map(lambda x: x[None], batch)
        (after, metrics), _ = jax.vmap(step, in_axes=(None, 0), axis_name=AXIS)(state, one)
        return jax.tree.map(lambda x: x[0], (after, metrics))

    state = {**runs.variables(model), **state}
    first, _ = on_one_device(state, batch)
    second, _ = on_one_device(first, batch)
    before, after = (dict(nnx.to_flat_state(s["params"])) for s in (state, second))
    still = {".".join(map(str, n)) for n in before if (before[n][...] == after[n][...]).all()}
    # What the first matrix makes of the second one is nothing until the second has moved.
    assert still == set()
    for a, b in zip(
        jax.tree.leaves(state["backbone"]), jax.tree.leaves(second["backbone"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert runs.kept(second).keys() == {"step", "params", "stats", "optimizer"}


# ----- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "fields", "reason"),
    [
        ("declip", {"model.decoder": "conv-8"}, "'conv-8': choose from linear, conv-4, conv-12, "),
        ("declip", {"model.beside": "resnet"}, "config.model.beside = 'resnet': choose from xcept"),
        ("declip", {"model.beside_depth": 3}, "config.model.beside_depth = 3: goes with model.bes"),
        (
            "declip",
            {"model.beside": "clip_rn50", "model.beside_depth": 5},
            "config.model.beside_depth = 5: clip_rn50 has stages 1 to 4",
        ),
        (
            "declip",
            {"model.beside": "dinov2_s14"},
            "config.data.image_size = 64: dinov2_s14 takes multiples of 14",
        ),
        (
            "declip",
            {"model.beside": "xception", "model.beside_path": "x.pth"},
            "config.model.beside_path = x.pth: xception takes no file",
        ),
        ("declip", {"model.frozen": True}, "vit_tiny takes no file of its own, and random feat"),
        ("dino", {"model.decoder": "linear"}, "'linear': dino has no such decoder"),
        ("dino", {"model.beside": "clip_rn50"}, "'clip_rn50': dino has one backbone"),
        (
            "dino",
            {
                "model.backbone": "dinov2_s14",
                "model.width": 1.0,
                "data.image_size": 56,
                "model.frozen": True,
            },
            "config.model.lora_rank = 0: of a frozen backbone dino trains adapters",
        ),
        ("declip", {"loss.location": "max"}, "'max': only for patches"),
    ],
)
def test_what_is_refused(method: str, fields: dict, reason: str):
    with pytest.raises(ConfigError) as raised:
        made(method, **fields)
    assert reason in str(raised.value) and "\n" not in str(raised.value)
