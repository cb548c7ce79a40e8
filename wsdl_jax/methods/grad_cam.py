"""Grad-CAM: an explanation of an image classifier; in setup C an FCN on the same backbone."""

import functools
from collections.abc import Callable, Iterator

import jax
import ml_collections
from flax import nnx
from jaxtyping import Array

from wsdl_jax.methods import objectives
from wsdl_jax.methods.explanation import evidence, explain, to_image_size
from wsdl_jax.methods.method import (
    Batch,
    Definition,
    Localization,
    Method,
    Metrics,
    early_statistics,
    from_image_logits,
    from_map_logits,
    from_maps,
    map_loss,
    network_arguments,
)
from wsdl_jax.methods.pooling import Pooling
from wsdl_jax.models import xception
from wsdl_jax.models.backbone import Features
from wsdl_jax.models.classifier import ImageClassifier
from wsdl_jax.models.fcn import FCN
from wsdl_jax.models.torch_names import Dialect, Layout, Place
from wsdl_jax.runtime.errors import ConfigError


def _bind(config: ml_collections.ConfigDict) -> Method:
    if config.supervision == "full":
        return _fcn(config)
    return _explained_by_itself(config) if config.train.splice else _explained(config)


def _fcn(config: ml_collections.ConfigDict) -> Method:
    kwargs = {"depth": config.explanation.block, **network_arguments(config)}
    return Method(
        network=lambda axis_name, rngs: FCN(axis_name=axis_name, rngs=rngs, **kwargs),
        loss=map_loss(objectives.patches_full, "mask"),
        localize=functools.partial(from_map_logits, pool=Pooling.of(config.score)),
        embed=early_statistics,
    )


def _classifier(config: ml_collections.ConfigDict) -> Callable[..., ImageClassifier]:
    kwargs = network_arguments(config)
    return lambda axis_name, rngs: ImageClassifier(axis_name=axis_name, rngs=rngs, **kwargs)


def _upper(model: ImageClassifier, features: Features, block: int) -> Callable[[Array], Array]:
    """Returns what follows a stage, in evaluation mode, as a function to be differentiated.

    It takes the map of `features`, whose tokens of the whole image, if there are any, stay as they
    are.
    """
    graphdef, state = nnx.split(model)

    def upper(activations: Array) -> Array:
        # A copy, whose variables belong to the gradient: blocks that are computed again set them.
        network = nnx.merge(graphdef, state, copy=True)
        network.eval()
        return network.upper(features._replace(map=activations), block)

    return upper


def _explained(config: ml_collections.ConfigDict) -> Method:
    """Returns the published method: trained by labels, explained afterwards."""
    kind, block = config.explanation.kind, config.explanation.block

    def loss(model: ImageClassifier, batch: Batch) -> tuple[Array, Metrics]:
        logits = model(batch["image"]).image_logits
        return objectives.image_cross_entropy(logits, batch["label"], batch.get("weight")), {}

    def localize(model: ImageClassifier, images: Array) -> Localization:
        features = model.lower(images, block)
        logits, maps = explain(_upper(model, features, block), features.map, kind)
        return from_image_logits(logits, to_image_size(maps, *images.shape[1:3]))

    return Method(network=_classifier(config), loss=loss, localize=localize, embed=early_statistics)


def _explained_by_itself(config: ml_collections.ConfigDict) -> Method:
    """Returns the method for spliced batches, whose explanation is trained beside the labels.

    The explanation of the logit of "fake" is trained to be what is known of each location, as a
    right reason (Ross et al., 2017) or as guided attention (Li et al., 2018): the weighted sum of
    activations, before ReLU and scaling, is taken as the logit of a location. So a real image has
    an empty map, which scaling each map to [0, 1] could not say, and `localize` reads the same map
    by a sigmoid, one probability a location of the explained block.

    The loss differentiates the half of the network above the block twice. That half runs a second
    time, in evaluation mode as in `localize`: in training mode an image's logit depends on the
    others through the statistics of the batch, and the part of the gradient that images have in
    common, which explains most, would cancel. Against labels alone, on a CPU, a step of 16 images
    of 96×96 pixels at width 0.125 takes 9% more processor time and 14% more memory for block 11,
    and 40% more memory for block 7: the earlier the block, the larger the half above it.
    """
    kind, block, pool = config.explanation.kind, config.explanation.block, Pooling.of(config.score)

    def loss(model: ImageClassifier, batch: Batch) -> tuple[Array, Metrics]:
        features, weight = model.lower(batch["image"], block), batch.get("weight")
        logits = model.upper(features, block)
        label_loss = objectives.image_cross_entropy(logits, batch["label"], weight)
        _, map_logits = evidence(_upper(model, features, block), features.map, kind)
        map_loss = objectives.explanation_spliced(
            map_logits, batch["spliced"], weight, fake_weight=config.loss.fake_weight
        )
        total = label_loss + config.loss.mask_weight * map_loss
        return total, {"label_loss": label_loss, "map_loss": map_loss}

    def localize(model: ImageClassifier, images: Array) -> Localization:
        features = model.lower(images, block)
        logits, map_logits = evidence(_upper(model, features, block), features.map, kind)
        maps = jax.nn.sigmoid(map_logits)
        return from_maps(maps, pool) if config.score.from_map else from_image_logits(logits, maps)

    return Method(
        network=_classifier(config),
        loss=loss,
        localize=localize,
        features=lambda model, images: model.lower(images, block).map,
        embed=early_statistics,
    )


def _check(config: ml_collections.ConfigDict) -> None:
    if config.score.from_map and config.supervision == "weak" and not config.train.splice:
        raise ConfigError(
            "config.score.from_map = True: goes with train.splice for grad_cam, as other "
            "explanations are scaled to the same maximum in every image"
        )


def _classifier_places(model: nnx.Module) -> Iterator[Place]:
    dialect = Dialect()
    yield from dialect.trunk(model.trunk)
    yield from dialect.top(model.top)
    yield from dialect.kernel("fc", model.top.linear)


def _fcn_places(model: nnx.Module) -> Iterator[Place]:
    yield from Dialect("xcp_backbone.").trunk(model.trunk)
    head = Dialect("head.")
    yield from head.kernel("0", model.conv)
    yield from head.norm("1", model.norm)
    yield from head.kernel("4", model.classifier)


def _fcn_unused(model: nnx.Module) -> Iterator[Place]:
    # The FCN is published with the whole backbone, of which it uses the first eleven blocks.
    width = model.trunk.width
    whole = nnx.eval_shape(lambda: ImageClassifier(width=width, rngs=nnx.Rngs(0)))
    dialect = Dialect("xcp_backbone.")
    for number in range(len(model.trunk.blocks) + 1, xception.BLOCKS + 1):
        yield from dialect.block(f"block{number}", whole.trunk.blocks[number - 1])
    yield from dialect.top(whole.top)


METHOD = Definition(
    bind=_bind,
    learns_spliced=True,
    map_scores=("full",),
    logit_scores=("weak",),
    reads_stage="explanation.block",
    usual_stage=lambda backbone: backbone.explained,
    explains=True,
    check=_check,
    layouts=(
        Layout(
            name="timm-xception",
            network=ImageClassifier,
            places=_classifier_places,
            sign="conv4.conv1.weight",
            setups=("a", "b"),
            resize={"weak": "lanczos"},
            head="fc",
        ),
        Layout(
            name="dolos-grad-cam-full",
            network=FCN,
            places=_fcn_places,
            sign="head.0.weight",
            setups=("c",),
            resize={"full": "bilinear"},
            unused=_fcn_unused,
        ),
    ),
    starts_from="timm-xception",
)
