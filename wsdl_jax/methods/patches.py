"""Patches (Chai et al., 2020): scores of local patches, from the first blocks of Xception."""

import functools
from collections.abc import Iterator

import ml_collections
from flax import nnx

from wsdl_jax.methods import objectives
from wsdl_jax.methods.method import (
    Definition,
    Method,
    check_xception,
    from_map_logits,
    map_loss,
    network_arguments,
)
from wsdl_jax.models.patches import Patches
from wsdl_jax.models.torch_names import Dialect, Layout, Place
from wsdl_jax.runtime.errors import ConfigError


def _bind(config: ml_collections.ConfigDict) -> Method:
    if config.supervision == "full":
        loss = map_loss(objectives.patches_full, "mask")
    elif config.train.splice:
        balanced = functools.partial(objectives.map_spliced, fake_weight=config.loss.fake_weight)
        loss = map_loss(balanced, "spliced")
    else:
        by_location = {
            "every": objectives.patches_weak,
            "max": objectives.patches_weak_max,
            "average": objectives.patches_weak_average,
        }
        loss = map_loss(by_location[config.loss.location], "label")
    kwargs = {"depth": config.model.depth, **network_arguments(config)}
    return Method(
        network=lambda axis_name, rngs: Patches(axis_name=axis_name, rngs=rngs, **kwargs),
        loss=loss,
        localize=from_map_logits,
    )


def _check(config: ml_collections.ConfigDict) -> None:
    check_xception(config)
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
    locations=("every", "max", "average"),
    learns_spliced=True,
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
