"""Patches (Chai et al., 2020): scores of local patches, from a backbone's first stages."""

import functools
from collections.abc import Callable, Iterator, Mapping

import ml_collections
from flax import nnx
from jaxtyping import Array

from wsdl_jax.methods import objectives
from wsdl_jax.methods.method import Definition, Method, on_map_logits
from wsdl_jax.models.patches import Patches
from wsdl_jax.models.torch_names import Dialect, Layout, Place
from wsdl_jax.runtime.errors import ConfigError

# The objectives of weak supervision, from config.loss.
_BY_LOCATION: Mapping[str, Callable[[ml_collections.ConfigDict], Callable[..., Array]]] = {
    "every": lambda _: objectives.patches_weak,
    "max": lambda _: objectives.patches_weak_max,
    "average": lambda _: objectives.patches_weak_average,
    "lse": lambda loss: functools.partial(objectives.patches_weak_lse, sharpness=loss.sharpness),
    "topk": lambda loss: functools.partial(objectives.patches_weak_topk, topk=loss.topk),
    "gem": lambda loss: functools.partial(objectives.patches_weak_gem, power=loss.power),
}


def _bind(config: ml_collections.ConfigDict) -> Method:
    by_label = _BY_LOCATION[config.loss.location](config.loss)
    return on_map_logits(config, Patches, by_label, depth=config.model.depth)


def _check(config: ml_collections.ConfigDict) -> None:
    if config.loss.location != "every" and config.supervision == "full":
        raise ConfigError(
            f"config.loss.location = {config.loss.location!r}: only for weak supervision; masks "
            "train every location"
        )
    if config.loss.location != "every" and config.train.splice:
        raise ConfigError(
            f"config.loss.location = {config.loss.location!r} with config.train.splice = "
            f"{config.train.splice}: splicing says of every location whether it is fake"
        )


def _places(model: nnx.Module) -> Iterator[Place]:
    dialect = Dialect()
    yield from dialect.trunk(model.trunk)
    yield from dialect.kernel("convout", model.classifier)


METHOD = Definition(
    bind=_bind,
    locations=tuple(_BY_LOCATION),
    learns_spliced=True,
    learns_partly_known=True,
    map_scores=("weak", "full"),
    reads_stage="model.depth",
    usual_stage=lambda backbone: backbone.local,
    check=_check,
    layouts=(
        Layout(
            name="dolos-patches",
            network=Patches,
            places=_places,
            sign="convout.weight",
            setups=("a", "b", "c"),
            resize={"weak": "lanczos", "full": "bilinear"},
            is_cut=True,
        ),
    ),
)
