"""Grad-CAM: an explanation of an image classifier; in setup C an FCN on the same backbone."""

import functools
from collections.abc import Iterator

import jax
import ml_collections
from flax import nnx
from jaxtyping import Array

from wsdl_jax.methods import objectives
from wsdl_jax.methods.explanation import evidence, grad_cam, to_image_size
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

    def network(axis_name: str | None, rngs: nnx.Rngs) -> ImageClassifier:
        return ImageClassifier(axis_name=axis_name, rngs=rngs, **kwargs)

    if config.train.splice:
        return Method(
            network=network,
            loss=functools.partial(
                _spliced_loss,
                map_weight=config.loss.mask_weight,
                fake_weight=config.loss.fake_weight,
            ),
            localize=_localize_by_evidence,
            features=lambda model, images: model.lower(images),
        )
    return Method(network=network, loss=_loss, localize=_localize)


def _loss(model: ImageClassifier, batch: Batch) -> tuple[Array, Metrics]:
    logits = model(batch["image"]).image_logits
    return objectives.image_cross_entropy(logits, batch["label"], batch.get("weight")), {}


def _spliced_loss(
    model: ImageClassifier, batch: Batch, *, map_weight: float, fake_weight: float
) -> tuple[Array, Metrics]:
    """Returns the cross-entropy of the labels plus a loss of the network's own explanation.

    The explanation of the logit of "fake" is trained to be what is known of each location, as a
    right reason (Ross et al., 2017) or as guided attention (Li et al., 2018): the weighted sum of
    activations, before ReLU and scaling, is taken as the logit of a location. So a real image has
    an empty map, which scaling each map to [0, 1] could not say, and `localize` reads the same map
    by a sigmoid. The explained half is differentiated twice, and runs once more, in evaluation
    mode: statistics of a batch would couple its images, and most of the gradient of the sum of
    their logits would cancel in them. With block 11 that half is block 12 and what follows.
    """
    activations, weight = model.lower(batch["image"]), batch.get("weight")
    logits = model.upper(activations)
    explained = nnx.clone(model)
    explained.eval()
    _, found = evidence(explained.upper, activations)
    label_loss = objectives.image_cross_entropy(logits, batch["label"], weight)
    map_loss = objectives.explanation_spliced(
        found, batch["spliced"], weight, fake_weight=fake_weight
    )
    total = label_loss + map_weight * map_loss
    return total, {"label_loss": label_loss, "map_loss": map_loss}


def _localize_by_evidence(model: ImageClassifier, images: Array) -> Localization:
    logits, found = evidence(model.upper, model.lower(images))
    return from_image_logits(logits, jax.nn.sigmoid(found))


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
    learns_spliced=True,
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
