"""What a method is: how it is used in training and prediction, and what is registered of it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float, UInt8

from wsdl_jax.methods import objectives
from wsdl_jax.methods.explanation import FAKE
from wsdl_jax.methods.pooling import Pooling
from wsdl_jax.models.backbones import Architecture
from wsdl_jax.models.torch_names import Layout
from wsdl_jax.runtime.variants import Variant

Batch = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]
SETUPS = ("a", "b", "c")
_MEAN = Pooling()


class Localization(NamedTuple):
    """What a method says of B images.

    Attributes:
      scores: higher = more likely fake; a probability or a logit, by method.
      probabilities: of being fake, the score as such or the softmax of the image logits.
      maps: probability of having been manipulated, in [0, 1].
      features: what images are like to the network, see `Method.embed`; None where that is not
        asked for, or the method has none.
      agreement: how far maps of the same image, moved and scaled, agree with each location, in
        [0, 1]; None where that is not asked for.
    """

    scores: Float[Array, " b"]
    probabilities: Float[Array, " b"]
    maps: Float[Array, "b h w"]
    features: Float[Array, "b d"] | None = None
    agreement: Float[Array, "b h w"] | None = None


@dataclass(frozen=True)
class Method:
    """One way of learning to localize, for one config.

    The training loop, the evaluation and the prediction know a method by `loss` and `localize`
    alone.

    Attributes:
      network: builds the network in training mode from its axis name (for BatchNorm over devices;
        None: one device) and random streams.
      loss: (network, batch) → scalar loss and its parts. A batch has `image` [B, H, W, 3] float32
        in [-1, 1], see `network_input`; `label` [B]; under full supervision `mask` [B, h, w], 1 =
        manipulated; where `train.splice` or `train.self_blend` is set `spliced` [B, h, w], the
        share of each location that is fake, in [0, 1], or NaN in images of which it is not known,
        which are the fakes of setup b; and optionally `weight` [B], 0 for padding.
      localize: (network, images) → Localization, for a network in evaluation mode.
      features: (network, images) → [B, h, w, …], whose locations are those of the map that `loss`
        trains. None: they are those of the mask or of the map logits that the network returns.
      embed: (network, images) → [B, d] float32, by which an image is told from such as are unlike
        those that the network was trained on. None: they are not told.
    """

    network: Callable[[str | None, nnx.Rngs], nnx.Module]
    loss: Callable[[Any, Batch], tuple[Float[Array, ""], Metrics]]
    localize: Callable[[Any, Float[Array, "b h w 3"]], Localization]
    features: Callable[[Any, Float[Array, "b h w 3"]], Array] | None = None
    embed: Callable[[Any, Float[Array, "b h w 3"]], Float[Array, "b d"]] | None = None


@dataclass(frozen=True)
class Definition:
    """What is registered of a method: everything that depends on which method it is.

    Attributes:
      bind: makes the method of a valid config.
      setups: those of "a", "b" and "c" that the method can be trained in.
      locations: the values of `loss.location` that the method has: which locations of a map its
        weak objective trains.
      learns_spliced: whether its loss reads `spliced`, where only a region of some fakes is fake.
      learns_partly_known: whether its loss reads `spliced` where that is known of some images only.
      map_scores: the supervisions, "weak" and "full", under which its score is pooled from its map
        as config.score says.
      logit_scores: the supervisions under which it has image logits, which are the score unless
        config.score.from_map asks for one from the map.
      reads_stage: the field of a config that says which stage of the backbone the method reads, as
        "model.depth"; None for one that says it otherwise, or has another network.
      usual_stage: which stage of a backbone that is, unless a config says otherwise.
      decodes: whether its network has a decoder, which config.model.decoder chooses, and may have a
        second backbone, config.model.beside.
      explains: whether its maps are explanations under weak supervision, which config.explanation
        chooses.
      check: raises ConfigError for a config that the method cannot run; called after the checks
        that all methods have in common.
      layouts: the published PyTorch layouts of its networks. Weight files are read and written in
        those of this package's own methods alone.
      variants: what a config file of the method takes behind its colon, beside setup and data.
      starts_from: the layout of the published weights from which its published recipe starts;
        None where that starts from random ones.
    """

    bind: Callable[[ml_collections.ConfigDict], Method]
    setups: tuple[str, ...] = SETUPS
    locations: tuple[str, ...] = ("every",)
    learns_spliced: bool = False
    learns_partly_known: bool = False
    map_scores: tuple[str, ...] = ()
    logit_scores: tuple[str, ...] = ()
    reads_stage: str | None = None
    usual_stage: Callable[[Architecture], int] = lambda backbone: backbone.stages
    decodes: bool = False
    explains: bool = False
    check: Callable[[ml_collections.ConfigDict], None] | None = None
    layouts: tuple[Layout, ...] = ()
    variants: tuple[Variant, ...] = ()
    starts_from: str | None = None


def network_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the arguments that every network on a backbone takes from a config."""
    model = config.model
    return {
        "backbone": model.backbone,
        "width": model.width,
        "remat": model.remat,
        "dtype": jnp.dtype(model.dtype),
        "lora_rank": model.lora_rank,
        "registers": model.registers,
    }


def early_statistics(model: Any, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
    """Returns what images are like to a network's backbone, see `Backbone.statistics`."""
    return model.trunk.statistics(images)


def network_input(
    images: UInt8[Array, "b h w 3"] | Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """Converts pixels 0 … 255, as pipelines send them to a device, to float32 in [-1, 1].

    Images that are floating-point already stay as they are, and so do features in their place.
    """
    if images.dtype != jnp.uint8:
        return images
    return images.astype(jnp.float32) / 127.5 - 1


# ----- How a map and a score are read from what networks give -------------------------------------


def from_maps(maps: Float[Array, "b h w"], pool: Pooling = _MEAN) -> Localization:
    """Returns maps of probabilities with what is pooled of them as scores and as probabilities."""
    scores = pool(maps)
    return Localization(scores, scores, maps)


def from_map_logits(
    model: Any, images: Float[Array, "b h w c"], *, pool: Pooling = _MEAN
) -> Localization:
    """Returns the softmax of a network's map logits as maps, and scores pooled from them.

    images: or features in their place, for a network that takes these.
    """
    return from_maps(jax.nn.softmax(model(images).map_logits)[..., FAKE], pool)


def from_image_logits(logits: Float[Array, "b 2"], maps: Float[Array, "b h w"]) -> Localization:
    """Returns given maps with the logit of "fake" as score and the softmax as probability."""
    return Localization(logits[:, FAKE], jax.nn.softmax(logits)[:, FAKE], maps)


def map_loss(
    objective: Callable[..., Array], target: str
) -> Callable[[Any, Batch], tuple[Array, Metrics]]:
    """Returns the loss of a network by an objective of its map logits.

    Args:
      objective: of `objectives`: (map logits, targets, weight) → scalar.
      target: which part of a batch holds the targets, "label", "mask" or "spliced".
    """

    def loss(model: Any, batch: Batch) -> tuple[Array, Metrics]:
        outputs = model(batch["image"])
        return objective(outputs.map_logits, batch[target], batch.get("weight")), {}

    return loss


def map_objective(
    config: ml_collections.ConfigDict, by_label: Callable[..., Array]
) -> Callable[[Any, Batch], tuple[Array, Metrics]]:
    """Returns the loss of a network by its map logits, from whatever a config's batches tell.

    Masks and spliced regions tell what every location is.

    Args:
      config: a valid one.
      by_label: the objective where labels alone are known: (map logits, labels, weight) → scalar.
    """
    if config.supervision == "full":
        return map_loss(objectives.patches_full, "mask")
    if config.train.splice:
        balanced = functools.partial(objectives.map_spliced, fake_weight=config.loss.fake_weight)
        return map_loss(balanced, "spliced")
    return _partly_known(by_label) if config.train.self_blend else map_loss(by_label, "label")


def on_map_logits(
    config: ml_collections.ConfigDict,
    network: Callable[..., nnx.Module],
    by_label: Callable[..., Array],
    **arguments: Any,
) -> Method:
    """Returns the method whose network's map logits are trained, and read as map and score.

    Args:
      config: a valid one.
      network: makes a network on a backbone, see `network_arguments`.
      by_label: see `map_objective`.
      **arguments: of the network, beside those of every one on a backbone.
    """
    arguments |= network_arguments(config)
    return Method(
        network=lambda axis_name, rngs: network(axis_name=axis_name, rngs=rngs, **arguments),
        loss=map_objective(config, by_label),
        localize=functools.partial(from_map_logits, pool=Pooling.of(config.score)),
        embed=early_statistics,
    )


def _partly_known(by_label: Callable[..., Array]) -> Callable[[Any, Batch], tuple[Array, Metrics]]:
    """Returns the loss of batches in which the region of partial fakes alone is not known."""

    def loss(model: Any, batch: Batch) -> tuple[Array, Metrics]:
        map_logits = model(batch["image"]).map_logits
        targets = batch["label"], batch["spliced"], batch.get("weight")
        return objectives.patches_partly_known(map_logits, *targets, unknown=by_label), {}

    return loss
