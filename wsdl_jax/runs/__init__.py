"""Run directories: what is kept of a training, and how it is read back."""

from wsdl_jax.runs.checkpoints import (
    Checkpoints,
)
from wsdl_jax.runs.continued import with_files
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
from wsdl_jax.runs.plateau import (
    Plateau,
    after_validation,
    has_ended,
    learning_rate,
    plateau_of,
    with_plateau,
)
from wsdl_jax.runs.published_run import make_run
from wsdl_jax.runs.run_log import (
    RunLog,
)
from wsdl_jax.runs.state import (
    State,
    initial_state,
    kept,
    make_optimizer,
    network,
    structure,
    variables,
)
from wsdl_jax.runs.trained import (
    Trained,
    load,
    weights_digest,
)

__all__ = [
    "Checkpoints",
    "Plateau",
    "ResultsFolder",
    "RunDirectory",
    "RunLog",
    "State",
    "Trained",
    "after_validation",
    "check",
    "check_data",
    "check_not_pruned",
    "data_of",
    "has_ended",
    "initial_state",
    "keep_data",
    "kept",
    "learning_rate",
    "load",
    "load_config",
    "load_stored_config",
    "make_optimizer",
    "make_run",
    "network",
    "plateau_of",
    "structure",
    "subsets_stem",
    "variables",
    "weights_digest",
    "with_files",
    "with_plateau",
    "written",
]
