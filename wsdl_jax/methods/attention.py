"""Attention (after Dang et al., 2020): a learned mask that gates an image classifier's features."""

from collections.abc import Iterator

import ml_collections
from flax import nnx
from jaxtyping import Array

from wsdl_jax.methods import objectives
from wsdl_jax.methods.method import (
    Batch,
    Definition,
    Localization,
    Method,
    Metrics,
    early_statistics,
    from_image_logits,
    from_maps,
    network_arguments,
)
from wsdl_jax.methods.pooling import Pooling
from wsdl_jax.models.attention import Attention
from wsdl_jax.models.torch_names import Dialect, Layout, Place


def _bind(config: ml_collections.ConfigDict) -> Method:
    def weak(model: Attention, batch: Batch) -> tuple[Array, Metrics]:
        outputs, weight = model(batch["image"]), batch.get("weight")
        label_loss = objectives.image_cross_entropy(outputs.image_logits, batch["label"], weight)
        if config.train.splice:
            mask_loss = objectives.attention_spliced(
                outputs.attention,
                batch["spliced"],
                weight,
                fake_weight=config.loss.fake_weight,
            )
        else:
            mask_loss = objectives.attention_map_weak(outputs.attention, batch["label"], weight)
        total = label_loss + config.loss.mask_weight * mask_loss
        return total, {"label_loss": label_loss, "mask_loss": mask_loss}

    def localize_by_mask(model: Attention, images: Array) -> Localization:
        return from_maps(model(images).attention, Pooling.of(config.score))

    kwargs = {"attended": config.model.attended, **network_arguments(config)}
    is_full = config.supervision == "full"
    # Full supervision does not train the image classifier.
    by_mask = is_full or config.score.from_map
    return Method(
        network=lambda axis_name, rngs: Attention(axis_name=axis_name, rngs=rngs, **kwargs),
        loss=_full if is_full else weak,
        localize=localize_by_mask if by_mask else _localize,
        embed=early_statistics,
    )


def _full(model: Attention, batch: Batch) -> tuple[Array, Metrics]:
    outputs = model(batch["image"])
    return objectives.attention_full(outputs.attention, batch["mask"], batch.get("weight")), {}


def _localize(model: Attention, images: Array) -> Localization:
    outputs = model(images)
    return from_image_logits(outputs.image_logits, outputs.attention)


def _places(model: nnx.Module) -> Iterator[Place]:
    dialect = Dialect(depthwise="c", shortcut_norm="skip_bn")
    yield from dialect.trunk(model.trunk)
    yield from dialect.top(model.top)
    yield from dialect.kernel("last_linear", model.top.linear)
    yield from dialect.separable("map.c", model.map)


METHOD = Definition(
    bind=_bind,
    learns_spliced=True,
    map_scores=("full",),
    logit_scores=("weak",),
    reads_stage="model.attended",
    usual_stage=lambda backbone: backbone.attended,
    layouts=(
        Layout(
            name="ffd-attention",
            network=Attention,
            places=_places,
            sign="map.c.c.weight",
            setups=("a", "b", "c"),
            resize={"weak": "bilinear", "full": "bilinear"},
        ),
    ),
    starts_from="ffd-attention",
)
