"""Configs: their fields, with units and defaults, their variants, and what cannot be run."""

from wsdl_jax.configuration.augmentation import set_augment
from wsdl_jax.configuration.config_files import (
    VARIED,
    freeze_backbone,
    is_small,
    set_backbone,
    set_data,
    set_small_decoder,
    start,
    variant,
    vary,
)
from wsdl_jax.configuration.fields import (
    CHOICES,
    CIRCUMSTANCES,
    LOWEST_RATE,
    base,
    check_backbone_file,
    check_circumstances,
    check_values,
    differences,
    essence,
    for_devices,
    profiled_steps,
    subsets,
    validate,
)
from wsdl_jax.configuration.stored import FORMAT, load, save
from wsdl_jax.runtime.errors import ConfigError

__all__ = [
    "CHOICES",
    "CIRCUMSTANCES",
    "FORMAT",
    "LOWEST_RATE",
    "VARIED",
    "ConfigError",
    "base",
    "check_backbone_file",
    "check_circumstances",
    "check_values",
    "differences",
    "essence",
    "for_devices",
    "freeze_backbone",
    "is_small",
    "load",
    "profiled_steps",
    "save",
    "set_augment",
    "set_backbone",
    "set_data",
    "set_small_decoder",
    "start",
    "subsets",
    "validate",
    "variant",
    "vary",
]
