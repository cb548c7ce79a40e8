"""Grad-CAM: an explanation of an image classifier; in setup C an FCN on the same backbone."""

from collections.abc import Iterator

import ml_collections
from flax import nnx
from jaxtyping import Array

from wsdl_jax.methods import objectives
from wsdl_jax.methods.explanation import grad_cam, to_image_size
from wsdl_jax.methods.method import (
    Batch,
    Definition,
    Localization,
    Method,
    Metrics,
    check_xception,
    from_image_logits,
    from_map_logits,
    map_loss,
    network_arguments,
)
from wsdl_jax.models.fcn import FCN
from wsdl_jax.models.torch_names import Dialect, Layout, Place
from wsdl_jax.models.xception import ImageClassifier


def _bind(config: ml_collections.ConfigDict) -> Method:
    kwargs = network_arguments(config)
    if config.supervision == "full":
        return Method(
            network=lambda axis_name, rngs: FCN(axis_name=axis_name, rngs=rngs, **kwargs),
            loss=map_loss(objectives.patches_full, "mask"),
            localize=from_map_logits,
        )
    return Method(
        network=lambda axis_name, rngs: ImageClassifier(axis_name=axis_name, rngs=rngs, **kwargs),
        loss=_loss,
        localize=_localize,
    )


def _loss(model: ImageClassifier, batch: Batch) -> tuple[Array, Metrics]:
    logits = model(batch["image"]).image_logits
    return objectives.image_cross_entropy(logits, batch["label"], batch.get("weight")), {}


def _localize(model: ImageClassifier, images: Array) -> Localization:
    logits, maps = grad_cam(model.upper, model.lower(images))
    return from_image_logits(logits, to_image_size(maps, *images.shape[1:3]))


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
    yield from dialect.block("block12", whole.trunk.blocks[11])
    yield from dialect.top(whole.top)


METHOD = Definition(
    bind=_bind,
    check=check_xception,
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
