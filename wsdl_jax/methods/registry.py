"""The three methods: a network, its objective, and how a map and a score are read from it.

The training loop, the evaluation and the prediction know a method by `loss` and `localize` alone.
A fourth method is one network, one objective, one entry of `_METHODS` and one config.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float, UInt8

from wsdl_jax.methods import objectives
from wsdl_jax.methods.explanation import FAKE, grad_cam, to_image_size
from wsdl_jax.models.attention import Attention
from wsdl_jax.models.fcn import FCN
from wsdl_jax.models.initialization import initialize
from wsdl_jax.models.patches import Patches
from wsdl_jax.models.xception import ImageClassifier

Batch = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]


class Localization(NamedTuple):
    """What a method says of B images.

    Attributes:
      scores: higher = more likely fake; a probability or a logit, by method.
      probabilities: of being fake, the score as such or the softmax of the image logits.
      maps: probability of having been manipulated, in [0, 1].
    """

    scores: Float[Array, " b"]
    probabilities: Float[Array, " b"]
    maps: Float[Array, "b h w"]


@dataclass(frozen=True)
class Method:
    """One way of learning to localize.

    Attributes:
      network: builds the network in training mode from its axis name (for BatchNorm over devices;
        None: one device) and random streams.
      loss: (network, batch) → scalar loss and its parts. A batch has `image` [B, H, W, 3] float32
        in [-1, 1], see `network_input`; `label` [B]; under full supervision `mask` [B, h, w], 1 =
        manipulated; and optionally `weight` [B], 0 for padding.
      localize: (network, images) → Localization, for a network in evaluation mode.
    """

    network: Callable[[str | None, nnx.Rngs], nnx.Module]
    loss: Callable[[Any, Batch], tuple[Float[Array, ""], Metrics]]
    localize: Callable[[Any, Float[Array, "b h w 3"]], Localization]


def network_input(
    images: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
) -> Float[Array, "b h w 3"]:
    """Pixels 0 … 255, as pipelines send them to a device, → float32 in [-1, 1], as networks take
    them. Images that are floating-point already stay as they are."""
    if images.dtype != jnp.uint8:
        return images
    return images.astype(jnp.float32) / 127.5 - 1


def _from_maps(maps: Float[Array, "b h w"]) -> Localization:
    scores = maps.mean((1, 2))
    return Localization(scores, scores, maps)


def _from_map_logits(model: Any, images: Array) -> Localization:
    return _from_maps(jax.nn.softmax(model(images).map_logits)[..., FAKE])


def _from_image_logits(logits: Float[Array, "b 2"], maps: Float[Array, "b h w"]) -> Localization:
    return Localization(logits[:, FAKE], jax.nn.softmax(logits)[:, FAKE], maps)


def _map_loss(objective: Callable[..., Array], target: str):
    def loss(model: Any, batch: Batch) -> tuple[Array, Metrics]:
        outputs = model(batch["image"])
        return objective(outputs.map_logits, batch[target], batch.get("weight")), {}

    return loss


def _patches(config: ml_collections.ConfigDict, kwargs: dict[str, Any]) -> Method:
    if config.supervision == "full":
        loss = _map_loss(objectives.patches_full, "mask")
    else:
        by_location = {
            "every": objectives.patches_weak,
            "max": objectives.patches_weak_max,
            "average": objectives.patches_weak_average,
        }
        loss = _map_loss(by_location[config.loss.location], "label")
    return Method(
        network=lambda axis_name, rngs: Patches(
            depth=config.model.depth, axis_name=axis_name, rngs=rngs, **kwargs
        ),
        loss=loss,
        localize=_from_map_logits,
    )


def _grad_cam(config: ml_collections.ConfigDict, kwargs: dict[str, Any]) -> Method:
    if config.supervision == "full":
        return Method(
            network=lambda axis_name, rngs: FCN(axis_name=axis_name, rngs=rngs, **kwargs),
            loss=_map_loss(objectives.patches_full, "mask"),
            localize=_from_map_logits,
        )

    def loss(model: ImageClassifier, batch: Batch) -> tuple[Array, Metrics]:
        logits = model(batch["image"]).image_logits
        return objectives.image_cross_entropy(logits, batch["label"], batch.get("weight")), {}

    def localize(model: ImageClassifier, images: Array) -> Localization:
        logits, maps = grad_cam(model.upper, model.lower(images))
        return _from_image_logits(logits, to_image_size(maps, *images.shape[1:3]))

    return Method(
        network=lambda axis_name, rngs: ImageClassifier(axis_name=axis_name, rngs=rngs, **kwargs),
        loss=loss,
        localize=localize,
    )


def _attention(config: ml_collections.ConfigDict, kwargs: dict[str, Any]) -> Method:
    def weak(model: Attention, batch: Batch) -> tuple[Array, Metrics]:
        outputs, weight = model(batch["image"]), batch.get("weight")
        label_loss = objectives.image_cross_entropy(outputs.image_logits, batch["label"], weight)
        mask_loss = objectives.attention_map_weak(outputs.attention, batch["label"], weight)
        total = label_loss + config.loss.mask_weight * mask_loss
        return total, {"label_loss": label_loss, "mask_loss": mask_loss}

    def full(model: Attention, batch: Batch) -> tuple[Array, Metrics]:
        outputs = model(batch["image"])
        return objectives.attention_full(outputs.attention, batch["mask"], batch.get("weight")), {}

    def localize(model: Attention, images: Array) -> Localization:
        outputs = model(images)
        if config.supervision == "full":  # its objective does not train the image classifier
            return _from_maps(outputs.attention)
        return _from_image_logits(outputs.image_logits, outputs.attention)

    return Method(
        network=lambda axis_name, rngs: Attention(axis_name=axis_name, rngs=rngs, **kwargs),
        loss=full if config.supervision == "full" else weak,
        localize=localize,
    )


_METHODS = {"patches": _patches, "grad_cam": _grad_cam, "attention": _attention}


def from_config(config: ml_collections.ConfigDict) -> Method:
    """The method that a valid config describes."""
    model = config.model
    kwargs = {"width": model.width, "remat": model.remat, "dtype": jnp.dtype(model.dtype)}
    return _METHODS[config.method](config, kwargs)


def blank(config: ml_collections.ConfigDict, axis_name: str | None) -> nnx.Module:
    """The network of a config with kernels of zeros, to be filled."""
    return from_config(config).network(axis_name, nnx.Rngs(params=config.seed))


def build(config: ml_collections.ConfigDict, axis_name: str | None) -> nnx.Module:
    """The network of a config with its starting weights, in training mode."""
    model = blank(config, axis_name)
    initialize(model, config.init.scheme, config.seed)
    model.train()
    return model


def map_size(config: ml_collections.ConfigDict) -> int:
    """Locations a side of the maps that are trained, for the config's image size."""

    def outputs():
        model = from_config(config).network(None, nnx.Rngs(0))
        model.eval()
        return model(jnp.zeros((1, config.data.image_size, config.data.image_size, 3)))

    shapes = nnx.eval_shape(outputs)
    maps = shapes.attention if shapes.map_logits is None else shapes.map_logits
    if maps is None:
        raise ValueError(f"{config.method} has no map to train")
    return maps.shape[1]
