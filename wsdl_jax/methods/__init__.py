"""The methods: how each learns to localize, in one registry."""

from wsdl_jax.methods.explanation import KINDS as EXPLANATIONS
from wsdl_jax.methods.method import (
    SETUPS,
    Batch,
    Definition,
    Localization,
    Method,
    from_image_logits,
    from_map_logits,
    from_maps,
    map_loss,
    network_arguments,
    network_input,
)
from wsdl_jax.methods.pooling import KINDS as POOLINGS
from wsdl_jax.methods.pooling import Pooling
from wsdl_jax.methods.registry import (
    blank,
    build,
    check,
    from_config,
    get,
    has_backbone,
    layouts,
    map_size,
    names,
    pools,
    targets,
)

__all__ = [
    "EXPLANATIONS",
    "POOLINGS",
    "SETUPS",
    "Batch",
    "Definition",
    "Localization",
    "Method",
    "Pooling",
    "blank",
    "build",
    "check",
    "from_config",
    "from_image_logits",
    "from_map_logits",
    "from_maps",
    "get",
    "has_backbone",
    "layouts",
    "map_loss",
    "map_size",
    "names",
    "network_arguments",
    "network_input",
    "pools",
    "targets",
]
