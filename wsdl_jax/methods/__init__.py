"""The methods: how each learns to localize, in one registry."""

from wsdl_jax.methods.registry import (
    Batch,
    Localization,
    Method,
    blank,
    build,
    from_config,
    map_size,
    network_input,
)

__all__ = [
    "Batch",
    "Localization",
    "Method",
    "blank",
    "build",
    "from_config",
    "map_size",
    "network_input",
]
