"""Run directories: what is kept of a training, and how it is read back."""

from wsdl_jax.runs.checkpoints import (
    Checkpoints,
)
from wsdl_jax.runs.directory import (
    ResultsFolder,
    RunDirectory,
    check,
    check_data,
    check_not_pruned,
    data_of,
    keep_data,
    load_config,
    load_stored_config,
    subsets_stem,
    written,
)
from wsdl_jax.runs.run_log import (
    RunLog,
)
from wsdl_jax.runs.state import (
    State,
    initial_state,
    make_optimizer,
)
from wsdl_jax.runs.trained import (
    Trained,
    load,
    weights_digest,
)

__all__ = [
    "Checkpoints",
    "ResultsFolder",
    "RunDirectory",
    "RunLog",
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
    "load_stored_config",
    "make_optimizer",
    "subsets_stem",
    "weights_digest",
    "written",
]
