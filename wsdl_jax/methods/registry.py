"""The registry: which methods there are, by name, and what follows from a config's method.

A fourth method is one file with a `Definition`, as `patches.py` is one: in this package with a line
of `_METHODS`, or anywhere else. Then a config names it MODULE:NAME, which every command resolves.
"""

from collections.abc import Mapping
from types import MappingProxyType

import jax.numpy as jnp
import ml_collections
from flax import nnx

from wsdl_jax.methods import attention, declip, dino, grad_cam, patches
from wsdl_jax.methods.method import Definition, Method
from wsdl_jax.models import backbones
from wsdl_jax.models.backbone import Backbone, freeze_backbones
from wsdl_jax.models.initialization import initialize
from wsdl_jax.models.torch_names import Layout
from wsdl_jax.runtime import plugins
from wsdl_jax.runtime.errors import ConfigError, UserError

# In the order in which sweeps and messages name them.
_METHODS: Mapping[str, Definition] = MappingProxyType(
    {
        "patches": patches.METHOD,
        "grad_cam": grad_cam.METHOD,
        "attention": attention.METHOD,
        "declip": declip.METHOD,
        "dino": dino.METHOD,
    }
)


def names() -> tuple[str, ...]:
    """Returns the names of the methods that this package has."""
    return tuple(_METHODS)


def get(name: str | None) -> Definition:
    """Returns what is registered of a method.

    name: one of `names()`, or MODULE:NAME of a `Definition` elsewhere.

    Raises ConfigError for any other.
    """
    if name in _METHODS:
        return _METHODS[name]
    if not name or ":" not in name:
        choices = ", ".join([*_METHODS, "MODULE:NAME"])
        raise ConfigError(f"config.method = {name!r}: choose from {choices}")
    try:
        found = plugins.resolve(name, "method")
    except UserError as error:
        raise ConfigError(f"config.method = {name!r}: {error}") from error
    if not isinstance(found, Definition):
        raise ConfigError(
            f"config.method = {name!r}: is of {type(found).__name__}, where a "
            "wsdl_jax.methods.Definition is needed"
        )
    return found


def layouts() -> dict[str, Layout]:
    """Returns the published layouts of all methods of this package, by their names."""
    return {layout.name: layout for method in _METHODS.values() for layout in method.layouts}


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for a config that its method cannot run."""
    definition = get(config.method)
    if config.setup not in definition.setups:
        raise ConfigError(
            f"config.setup = {config.setup!r}: {config.method} is trained in "
            f"{', '.join(definition.setups)}"
        )
    if config.loss.location not in definition.locations:
        having = [n for n, other in _METHODS.items() if config.loss.location in other.locations]
        raise ConfigError(
            f"config.loss.location = {config.loss.location!r}: only for {', '.join(having)}"
        )
    if config.train.splice and not definition.learns_spliced:
        learning = [name for name, other in _METHODS.items() if other.learns_spliced]
        raise ConfigError(
            f"config.train.splice = {config.train.splice}: only for {', '.join(learning)}"
        )
    if config.train.self_blend and config.setup == "b" and not definition.learns_partly_known:
        learning = [name for name, other in _METHODS.items() if other.learns_partly_known]
        raise ConfigError(
            f"config.train.self_blend = {config.train.self_blend} in setup b: only for "
            f"{', '.join(learning)}"
        )
    if definition.reads_stage is not None:
        _check_stage(config, "backbone", definition.reads_stage)
        _check_options(config)
    if config.model.beside is not None:
        if config.model.beside not in backbones.names():
            raise ConfigError(
                f"config.model.beside = {config.model.beside!r}: choose from "
                f"{', '.join(backbones.names())}"
            )
        _check_stage(config, "beside", "model.beside_depth")
    if definition.check is not None:
        definition.check(config)


def _check_stage(config: ml_collections.ConfigDict, role: str, stage: str) -> None:
    """Raises ConfigError for a backbone whose stage cannot be read, or that cannot be frozen.

    Args:
      config: of which `data.image_size` and `model` are read.
      role: the field of `model` that names the backbone, "backbone" or "beside".
      stage: the field that says which of its stages is read.
    """
    name, size = config.model[role], config.data.image_size
    architecture = backbones.get(name)
    group, field = stage.split(".")
    if size < architecture.smallest:
        raise ConfigError(
            f"config.data.image_size = {size}: {name} takes {architecture.smallest} pixels and more"
        )
    if size % architecture.multiple:
        raise ConfigError(
            f"config.data.image_size = {size}: {name} takes multiples of {architecture.multiple} "
            f"pixels, as {architecture.usual_size(size)}"
        )
    if not 1 <= config[group][field] <= architecture.stages:
        raise ConfigError(
            f"config.{stage} = {config[group][field]}: {name} has stages 1 to {architecture.stages}"
        )
    if config.model[f"{role}_path"] is not None and not architecture.has_files:
        raise ConfigError(
            f"config.model.{role}_path = {config.model[f'{role}_path']}: {name} takes no file of "
            "its own; config.init.path starts it from a network's"
        )
    if config.model.frozen and not architecture.has_files:
        raise ConfigError(
            f"config.model.frozen = True: {name} takes no file of its own, and random features "
            "that stay as they are detect nothing"
        )


def _check_options(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for an option that the backbone has not, or adapters of one that moves."""
    name = config.model.backbone
    for option, none in backbones.OPTIONS.items():
        if option not in backbones.get(name).options and config.model[option] != none:
            raise ConfigError(
                f"config.model.{option} = {config.model[option]}: {name} has it not, so it is "
                f"{none}"
            )
    if config.model.lora_rank and not config.model.frozen:
        raise ConfigError(
            f"config.model.lora_rank = {config.model.lora_rank}: adapters go with model.frozen"
        )


def targets(config: ml_collections.ConfigDict) -> str | None:
    """Returns which targets of locations a config's batches have: "mask", "spliced" or None."""
    if config.supervision == "full":
        return "mask"
    return "spliced" if config.train.splice or config.train.self_blend else None


def pools(config: ml_collections.ConfigDict) -> bool:
    """Returns whether scores are pooled from maps, as config.score says, in a config's method."""
    definition = get(config.method)
    return config.supervision in definition.map_scores or (
        config.supervision in definition.logit_scores and config.score.from_map
    )


# ----- A method of a config -----------------------------------------------------------------------


def from_config(config: ml_collections.ConfigDict) -> Method:
    """Returns the method that a valid config describes."""
    return get(config.method).bind(config)


def blank(config: ml_collections.ConfigDict, axis_name: str | None) -> nnx.Module:
    """Returns the network of a config with kernels of zeros, to be filled, in training mode.

    Its backbone, or both, are frozen where config.model.frozen says so.

    axis_name: the axis of devices over which BatchNorm is synchronized; None for one device.
    """
    model = from_config(config).network(axis_name, nnx.Rngs(params=config.seed))
    if config.model.frozen:
        freeze_backbones(model)
    return model


def build(config: ml_collections.ConfigDict, axis_name: str | None) -> nnx.Module:
    """Returns the network of a config with random weights, in training mode.

    Those of a frozen backbone are zero: they come from its file.

    axis_name: the axis of devices over which BatchNorm is synchronized; None for one device.
    """
    model = blank(config, axis_name)
    initialize(model, config.init.scheme, config.seed)
    model.train()
    return model


def has_backbone(config: ml_collections.ConfigDict) -> bool:
    """Returns whether the network of a config has a backbone, which config.model describes."""
    method = from_config(config)
    network = nnx.eval_shape(lambda: method.network(None, nnx.Rngs(0)))
    return isinstance(getattr(network, "trunk", None), Backbone)


def map_size(config: ml_collections.ConfigDict) -> int:
    """Returns how many locations a side the maps that are trained have, at the config's image size.

    Raises ConfigError for a network without a map to train.
    """
    method = from_config(config)

    def outputs():
        model = method.network(None, nnx.Rngs(0))
        model.eval()
        images = jnp.zeros((1, config.data.image_size, config.data.image_size, 3))
        return model(images) if method.features is None else method.features(model, images)

    shapes = nnx.eval_shape(outputs)
    if method.features is not None:
        return shapes.shape[1]
    maps = shapes.attention if shapes.map_logits is None else shapes.map_logits
    if maps is None:
        raise ConfigError(f"{config.method} has no map to train, as setup c needs")
    return maps.shape[1]
