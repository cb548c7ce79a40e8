"""The config of a run that is begun or continued, with what is known of its backbones' files."""

import ml_collections
from etils import epath

from wsdl_jax import weights
from wsdl_jax.runs.directory import RunDirectory, check, load_config


def with_files(run: epath.Path, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the config of a training with the SHA-256 of its backbone's file, or of both.

    A run that is continued keeps its files where the config names none. Weights that are trained
    are in its checkpoints: the file that they started from need not be there any more.

    Args:
      run: the run directory, which may be new.
      config: that is trained.

    Raises:
      UserError: the directory is of another config, or a file is another than the run's, cannot be
        read, or is needed and not there.
    """
    check(run, config)
    if not RunDirectory(run).config.exists():
        return weights.with_digest(config)
    kept, config = load_config(run), config.copy_and_resolve_references()
    for role in ("backbone", "beside"):
        if config.model[f"{role}_path"] is None:
            for field in (f"{role}_path", f"{role}_sha256"):
                config.model[field] = kept.model[field]
    config = weights.with_digest(config, None if config.model.frozen else kept)
    check(run, config)
    return config
