"""Run directories: what is kept of a training, and how it is read back."""

from wsdl_jax.runs.directory import (
    CONFIG,
    DATA,
    State,
    Trained,
    check,
    check_data,
    check_not_pruned,
    data_of,
    initial_state,
    keep_data,
    load,
    load_config,
    make_optimizer,
    written,
)

__all__ = [
    "CONFIG",
    "DATA",
    "State",
    "Trained",
    "check",
    "check_data",
    "check_not_pruned",
    "data_of",
    "initial_state",
    "keep_data",
    "load",
    "load_config",
    "make_optimizer",
    "written",
]
