"""From a config file's method and variant to a config with its data, to be filled by a recipe."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from wsdl_data import catalogue
from wsdl_jax import methods
from wsdl_jax.configuration import augmentation
from wsdl_jax.configuration.fields import base
from wsdl_jax.models import backbones
from wsdl_jax.runtime import variants
from wsdl_jax.runtime.errors import ConfigError
from wsdl_jax.runtime.variants import Variant

_SETUP = Variant("setup", methods.SETUPS, "a")
# What a config file may take beside data and the method's own, see `vary`.
VARIED = (
    Variant("splice", (), is_share=True),
    augmentation.VARIANT,
    Variant("recipe", ("usual", "long", "small"), "usual"),
    Variant("backbone", backbones.names()),
)


def start(
    method: str, arg: str | None, *further: Variant
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
    """Returns the config that a config file begins with, and the value of each of its variants.

    The config has the method, the data of the variant, and in `variant` what else the default run
    directory is named by: whatever is not the default and cannot be told by setup and fakes.

    Args:
      method: a name of `methods.names()`, or MODULE:NAME.
      arg: what is behind the colon of the config file.
      further: variants that the config file takes beside those of every method and source.

    Raises:
      ConfigError: a variant that does not exist, listing what is valid, or data that a source does
        not have.
    """
    data = (_SETUP, *catalogue.variants())
    declared = (*methods.get(method).variants, *further)
    values = variants.parse(arg, (*data, *declared))
    config = base()
    config.method = method
    set_data(config, **{variant.key: values[variant.key] for variant in data})
    named = [v.key for v in declared if values[v.key] != v.default]
    # The usual generator is tested on another one's images, unless it is asked for.
    usual = catalogue.source(values["source"]).subsets(values["setup"])
    if usual.fake == config.data.fake and usual.test_fake != config.data.test_fake:
        named.insert(0, "generator")
    config.variant = ",".join(f"{key}={values[key]}" for key in named)
    return config, values


def is_small(values: Mapping[str, Any]) -> bool:
    """Returns whether a recipe is that of small networks, which train in minutes on a processor.

    values: of the variants `recipe` and `source`, as `start` gives them.
    """
    return catalogue.source(values["source"]).is_small or values["recipe"] == "small"


def vary(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets what a variant asks for beside a recipe: `train.splice`, if it is given, and `augment`.

    To be called when the recipe has been set.

    Args:
      config: to be set.
      values: of the variants `VARIED` and of `source`, as `start` gives them.

    Raises:
      ConfigError: recipe=long where there is none.
    """
    if values["splice"] is not None:
        config.train.splice = float(values["splice"])
    augmentation.set_augment(config, values["augment"])
    if values["recipe"] == "long" and not (is_small(values) and config.train.splice):
        raise ConfigError(
            "recipe=long: only what is trained on spliced portraits has it; elsewhere set "
            "--config.train.epochs"
        )


def set_backbone(config: ml_collections.ConfigDict, name: str | None) -> None:
    """Sets the backbone, and what a recipe for Xception has that another one cannot have.

    The method reads the stage that is usual for it, of images of a size that the backbone takes, at
    its full width and without the weights of Xception. A transformer that is trained from nothing
    has smaller steps, which grow at first, and twice as many of them, gradients that are bounded,
    and blocks that begin as identities.

    To be called when all else has been set.

    Args:
      config: to be set.
      name: one of `backbones.names()`; None and "xception" change nothing.
    """
    if name in (None, backbones.XCEPTION):
        return
    architecture = backbones.get(name)
    config.model.backbone = name
    config.model.width = 1.0
    config.init.layout = None
    config.data.image_size = architecture.usual_size(config.data.image_size)
    if not architecture.has_files:
        config.init.scheme = "zero_residual"
        config.train.epochs *= 2
        config.train.learning_rate = 5e-4
        config.train.warmup = 100
        config.train.clip_norm = 1.0
        config.train.schedule = "cosine"
    definition = methods.get(config.method)
    if definition.reads_stage is not None:
        group, key = definition.reads_stage.split(".")
        config[group][key] = definition.usual_stage(architecture)


def set_small_decoder(config: ml_collections.ConfigDict, source: str, *, is_long: bool) -> None:
    """Sets the recipe by which what is made of features is trained with a small backbone.

    `set_backbone`, for a small transformer, doubles the epochs.

    Args:
      config: to be set.
      source: a name of the catalogue, or image_folder/NAME or manifest/NAME.
      is_long: whether it takes four times as many steps.
    """
    config.data.image_size = 96
    config.data.flip = True
    config.model.width = 0.25
    config.train.batch = 16
    config.train.epochs = 40 if is_long else 10
    config.train.steps_per_epoch = 100
    if catalogue.source(source).is_small and config.setup == "a":
        config.train.splice = 0.7
    config.train.schedule = "cosine"  # a short run has to settle
    config.eval.batch = 50


def freeze_backbone(config: ml_collections.ConfigDict, *, lora_rank: int = 0) -> None:
    """Freezes the backbone, if weights of it are published; others are trained with the rest.

    Args:
      config: to be set.
      lora_rank: of the adapters that are trained instead; a backbone that takes none is not frozen.
    """
    architecture = backbones.get(config.model.backbone)
    if architecture.has_files and (not lora_rank or "lora_rank" in architecture.options):
        config.model.frozen, config.model.lora_rank = True, lora_rank


def variant(arg: str | None) -> dict[str, Any]:
    """Reads the variant of a config that takes none but setup and data, "setup=b,source=celebahq".

    Returns arguments of `set_data`, those that are given or have defaults. Raises ConfigError for
    another key or value, listing what is valid.
    """
    values = variants.parse(arg, (_SETUP, *catalogue.variants()))
    return {key: value for key, value in values.items() if value is not None}


def set_data(
    config: ml_collections.ConfigDict,
    *,
    setup: str,
    source: str,
    generator: str | None = None,
    leave_out: str | None = None,
) -> None:
    """Sets what is trained and tested on, by the paper's three setups.

    Args:
      config: to be set.
      setup: "a": fully generated fakes; "b": fakes with a generated part; both with image labels.
        "c": those of "b", with masks.
      source: a name of the catalogue, or image_folder/NAME or manifest/NAME.
      generator: whose images are trained and tested on; by default the paper's choice.
      leave_out: the generator that is tested on, while the union of the others is trained on.

    Raises:
      ConfigError: the source has no such images.
    """
    subsets = catalogue.source(source).subsets(setup, generator, leave_out)
    config.setup = setup
    config.supervision = "full" if setup == "c" else "weak"
    config.data.real = () if setup == "c" else subsets.real
    config.data.fake = subsets.fake
    config.data.spliced_fake = subsets.spliced_fake
    config.data.test_real, config.data.test_fake = subsets.test_real, subsets.test_fake
