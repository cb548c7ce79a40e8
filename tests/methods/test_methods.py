"""Scores and probabilities of each method from given network outputs, by SciPy and NumPy."""

import runpy
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from flax import nnx

from wsdl_jax import configuration, methods
from wsdl_jax.models import layers, xception
from wsdl_jax.models.attention import Attention
from wsdl_jax.models.backbone import Features
from wsdl_jax.models.classifier import ImageClassifier
from wsdl_jax.models.layers import BatchNorm
from wsdl_jax.models.outputs import Outputs
from wsdl_jax.models.patches import Patches

CONFIGS = Path(__file__).parent.parent.parent / "configs"
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.uniform(-1, 1, (4, 6, 5, 3)), jnp.float32)
IMAGE_LOGITS = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
MAP_LOGITS = jnp.asarray(RNG.normal(size=(4, 3, 2, 2)), jnp.float32)
MASKS = jnp.asarray(RNG.random((4, 3, 2)), jnp.float32)
FAKE = 1


class GivenPatches(Patches):
    def __init__(self):
        pass

    def __call__(self, images):
        return Outputs(map_logits=MAP_LOGITS)


class GivenAttention(Attention):
    def __init__(self):
        pass

    def __call__(self, images):
        return Outputs(image_logits=IMAGE_LOGITS, attention=MASKS)


class GivenClassifier(ImageClassifier):
    def __init__(self):
        pass

    def lower(self, images, block):
        return Features(images)

    def upper(self, features, block):
        return features.map.mean((1, 2))[:, :2] - IMAGES.mean((1, 2))[:, :2] + IMAGE_LOGITS


def test_network_input():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 4, 64, 1).repeat(3, -1)
    expected = pixels.astype(np.float64) / 127.5 - 1
    for convert in (methods.network_input, jax.jit(methods.network_input)):
        images = convert(jnp.asarray(pixels))
        assert images.dtype == jnp.float32
        np.testing.assert_allclose(images, expected, rtol=0, atol=2e-7)
        np.testing.assert_array_equal(convert(images), images)


def get_config(name: str, variant: str = "", fields: Mapping[str, Any] = MappingProxyType({})):
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](variant)
    config.update_from_flattened_dict(dict(fields))
    configuration.validate(config)
    return config


def localize(name: str, network, variant: str = "", **fields: Any) -> tuple[Any, Any, Any]:
    config = get_config(name, variant, {k.replace("__", "."): v for k, v in fields.items()})
    return methods.from_config(config).localize(network, IMAGES)[:3]


@pytest.mark.parametrize(
    ("name", "network", "map_size"),
    [("attention", GivenAttention(), (3, 2)), ("grad_cam", GivenClassifier(), (6, 5))],
)
def test_methods_with_image_logits(name, network, map_size):
    scores, probabilities, maps = localize(name, network)
    np.testing.assert_allclose(scores, IMAGE_LOGITS[:, FAKE], rtol=1e-5)
    expected = scipy.special.softmax(IMAGE_LOGITS, axis=-1)[:, FAKE]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    assert maps.shape == (4, *map_size)
    assert maps.min() >= 0 and maps.max() <= 1
    if name == "attention":
        np.testing.assert_array_equal(maps, MASKS)


def test_methods_with_map_logits():
    scores, probabilities, maps = localize("patches", GivenPatches())
    expected = scipy.special.softmax(MAP_LOGITS, axis=-1)[..., FAKE]
    np.testing.assert_allclose(maps, expected, rtol=1e-5)
    for values in (scores, probabilities):
        np.testing.assert_allclose(values, expected.mean((1, 2)), rtol=1e-5)


def test_attention_under_full_supervision():
    """Nothing trains its image classifier, so its score is the mask's mean."""
    scores, probabilities, maps = localize("attention", GivenAttention(), "setup=c")
    np.testing.assert_array_equal(maps, MASKS)
    for values in (scores, probabilities):
        np.testing.assert_allclose(values, MASKS.mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "network", "variant", "fields"),
    [
        ("patches", GivenPatches(), "", {}),
        ("attention", GivenAttention(), "setup=c", {}),
        ("attention", GivenAttention(), "", {"score__from_map": True}),
        ("grad_cam", GivenPatches(), "setup=c", {}),
        ("grad_cam", GivenClassifier(), "", {"score__from_map": True, "train__splice": 0.5}),
    ],
)
def test_scores_are_pooled_from_maps(name, network, variant, fields):
    _, _, plain = localize(name, network, variant, **fields)
    for pooling, expected in {
        "mean": np.mean(plain, (1, 2)),
        "max": np.max(plain, (1, 2)),
        "gem": scipy.stats.pmean(np.asarray(plain, float).reshape(4, -1), 3, axis=1),
    }.items():
        scores, probabilities, maps = localize(
            name, network, variant, **fields, score__pooling=pooling
        )
        np.testing.assert_array_equal(maps, plain)
        np.testing.assert_array_equal(scores, probabilities)
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_maps_of_a_trained_explanation():
    """Of this upper half the evidence is the second channel: see `evidence`."""
    scores, probabilities, maps = localize("grad_cam", GivenClassifier(), train__splice=0.5)
    np.testing.assert_allclose(scores, IMAGE_LOGITS[:, FAKE], rtol=1e-5)
    expected = scipy.special.softmax(IMAGE_LOGITS, axis=-1)[:, FAKE]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    np.testing.assert_allclose(maps, scipy.special.expit(IMAGES[..., 1]), rtol=1e-4)


@pytest.mark.parametrize("balance", [1.0, 3.0])
@pytest.mark.parametrize("name", ["patches", "attention", "grad_cam"])
def test_losses_of_spliced_batches(name, balance):
    network, p = {
        "patches": (GivenPatches(), scipy.special.softmax(MAP_LOGITS, -1)[..., FAKE]),
        "attention": (GivenAttention(), MASKS),
        "grad_cam": (GivenClassifier(), scipy.special.expit(IMAGES[..., 1])),
    }[name]
    config = get_config(
        name, "", {"train.splice": 0.5, "loss.fake_weight": balance, "loss.mask_weight": 0.25}
    )
    labels = np.array([0, 1, 1, 0])
    shares = RNG.random(p.shape).astype(np.float32) * labels[:, None, None]
    batch = {"image": IMAGES, "label": jnp.asarray(labels), "spliced": jnp.asarray(shares)}
    loss, parts = methods.from_config(config).loss(network, batch)
    p = np.asarray(p, float)
    expected = -(balance * shares * np.log(p) + (1 - shares) * np.log(1 - p)).mean()
    if name == "patches":
        assert parts == {}
    else:
        logits = scipy.special.log_softmax(IMAGE_LOGITS, -1)
        label_loss = -np.take_along_axis(logits, labels[:, None], 1).mean()
        np.testing.assert_allclose(parts.pop("label_loss"), label_loss, rtol=1e-5)
        np.testing.assert_allclose(*parts.values(), expected, rtol=1e-4)
        expected = label_loss + 0.25 * expected
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    # An image of weight zero counts for nothing: given the others, its label and shares are free.
    weighted = {**batch, "weight": jnp.array([1.0, 0.0, 1.0, 1.0])}
    method = methods.from_config(config)
    loss, _ = method.loss(network, weighted)
    weighted["label"] = weighted["label"].at[1].set(0)
    weighted["spliced"] = weighted["spliced"].at[1].set(0.75)
    assert method.loss(network, weighted)[0] == loss


@pytest.mark.parametrize(
    ("name", "fields", "size"),
    [
        ("patches", {"model.depth": 3}, 19),
        ("attention", {}, 19),
        ("grad_cam", {}, 19),
        ("grad_cam", {"explanation.block": 2}, 37),
        ("grad_cam", {"explanation.block": 12}, 10),
    ],
)
def test_sizes_of_spliced_targets(name, fields, size):
    config = get_config(name, "", {"data.image_size": 299, "train.splice": 0.5, **fields})
    assert methods.map_size(config) == size


# ----- A trained explanation, of a real network ---------------------------------------------------


def small_classifier(remat: bool) -> tuple[methods.Method, nnx.Module]:
    """The method for spliced batches, and a network without many of its like layers."""
    fields = {"data.image_size": 64, "model.width": 0.05, "model.remat": remat, "train.splice": 0.5}
    config = get_config("grad_cam", "", fields)
    model = methods.build(config, None)
    for index, block in enumerate(model.trunk.blocks[:11]):
        block.convs, block.norms = (
            nnx.List(list(like)[: int(index < 4)]) for like in (block.convs, block.norms)
        )
    return methods.from_config(config), model


def gradients(method: methods.Method, model: nnx.Module) -> dict[str, np.ndarray]:
    """The gradients of a spliced batch's loss, and the statistics afterwards, by path."""
    rng = np.random.default_rng(2)
    batch = {
        "image": jnp.asarray(rng.uniform(-1, 1, (6, 64, 64, 3)), jnp.float32),
        "label": jnp.array([0, 1, 1, 0, 1, 0]),
        "spliced": jnp.asarray(rng.random((6, 4, 4)), jnp.float32),
    }
    graphdef, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    @jax.jit
    def gradient(params):
        def loss(params):
            network = nnx.merge(graphdef, params, stats, rest, copy=True)
            total, parts = method.loss(network, batch)
            return total, (parts, nnx.state(network, nnx.BatchStat))

        return jax.grad(loss, has_aux=True)(params)

    found = jax.tree.leaves_with_path(gradient(params))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def plain_normalize(x, scale, bias, axis_name):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    out = (x - mean) / jnp.sqrt(var + BatchNorm.epsilon) * scale + bias
    return out, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)


def plain_conv(stride, padding):
    return lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, ((padding,) * 2,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain_depthwise(x, kernel):
    return jax.lax.conv_general_dilated(
        *(x, kernel, (1, 1), ((1, 1), (1, 1))),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.slow
@pytest.mark.usefixtures("compile_quickly")
def test_gradients_of_a_trained_explanation(monkeypatch: pytest.MonkeyPatch):
    """Layers with gradients of their own are differentiated twice as plain operators are."""
    found = gradients(*small_classifier(remat=False))
    again = gradients(*small_classifier(remat=True))
    monkeypatch.setattr(layers, "_normalize", plain_normalize)
    monkeypatch.setattr(layers, "dense_3x3", plain_conv)
    monkeypatch.setattr(layers, "depthwise_3x3", plain_depthwise)
    monkeypatch.setattr(layers, "pointwise", lambda x, kernel: x @ kernel)
    monkeypatch.setattr(
        xception,
        "max_pool_3x3",
        lambda x: nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))),
    )
    expected = gradients(*small_classifier(remat=False))
    assert found.keys() == again.keys() == expected.keys()
    for path, leaf in expected.items():
        size = max(np.linalg.norm(leaf), 1e-4)
        assert np.linalg.norm(found[path] - leaf) < 1e-3 * size, path
        assert np.linalg.norm(again[path] - leaf) < 1e-3 * size, path


# What is trained on spliced images reads its own map, at the size of block 7.
@pytest.mark.parametrize(("splice", "shape"), [(0.0, (2, 64, 64)), (0.7, (2, 4, 4))])
def test_explanations_of_blocks_that_are_computed_again(splice, shape):
    fields = {"data.image_size": 64, "model.width": 0.05, "model.remat": True}
    config = get_config("grad_cam", f"splice={splice}", fields)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: methods.blank(config, None)))

    def localize(state, images):
        model = nnx.merge(graphdef, state)
        model.eval()
        return methods.from_config(config).localize(model, images)

    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    assert jax.eval_shape(localize, state, images).maps.shape == shape


def test_a_plain_explanation_has_no_map_to_train():
    with pytest.raises(configuration.ConfigError, match="grad_cam has no map to train"):
        methods.map_size(get_config("grad_cam", "splice=0"))


def test_images_are_embedded_by_the_first_two_blocks():
    for name, variant in (("patches", ""), ("attention", "setup=c"), ("grad_cam", "setup=c")):
        config = get_config(name, variant, {"model.width": 0.1})
        method = methods.from_config(config)
        model = method.network(None, nnx.Rngs(0))
        model.eval()
        images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
        x, expected = model.trunk.stem(jnp.asarray(images)).map, []
        for block in model.trunk.blocks[:2]:
            x = block(x)
            expected += [np.mean(x, (1, 2)), np.std(x, (1, 2))]
        found = method.embed(model, jnp.asarray(images))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, np.concatenate(expected, -1), rtol=1e-4, atol=1e-5)
