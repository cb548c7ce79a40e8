"""Reads a sweep file: the list of its runs.

What a sweep file has is described in wsdl_jax/sweep.py, which users call.
"""

import logging
import re
import runpy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ml_collections
from absl import flags
from etils import epath

from wsdl_jax import configuration, weights
from wsdl_jax.runtime import shipped_files, variants
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.variants import Variant
from wsdl_jax.sweeps.run import Run

log = logging.getLogger("wsdl_jax")
_OF_FILES = ("backbone_path", "backbone_sha256", "beside_path", "beside_sha256")  # config.model's
_NAME = re.compile(r"\w[\w.+=-]*/\w[\w.+=-]*")


def variant(arg: str | None, **choices: tuple[str, ...] | None) -> dict[str, Any]:
    """Reads a sweep file's argument, such as "source=celebahq,seeds=3".

    Args:
      arg: the text behind the file's colon; None or empty where there is none.
      **choices: for each key its valid values, of which the first is the default; None for a key
        that takes any text, and is None by default.

    Returns:
      A value for every key, and for `seeds`, the number of seeds, which is 1 by default.

    Raises:
      ConfigError: another key or value.
    """
    declared = [
        Variant(key, valid or (), valid[0] if valid else None) for key, valid in choices.items()
    ]
    seeds = Variant("seeds", (), "1", is_count=True)
    values: dict[str, Any] = variants.parse(arg, (*declared, seeds), "sweep")
    return {**values, "seeds": int(values["seeds"])}


def read(sweep: str, workdir: epath.Path, overrides: Sequence[str] = ()) -> list[Run]:
    """Reads the runs of a sweep, in its order.

    Args:
      sweep: FILE or FILE:VARIANT.
      workdir: the directory of the sweep.
      overrides: "field=value" for the configs of all runs; they take precedence over the sweep's.

    Raises:
      ConfigError: no such file or variant, or a run that wsdl_jax.main would refuse.
    """
    file, _, arg = sweep.partition(":")
    path = shipped_files.find(file)
    if not epath.Path(path).is_file():
        raise ConfigError(f"no sweep file {file}")
    try:
        items = [(*item, ()) if len(item) == 3 else item for item in _get_sweep(path)(arg or None)]
    except ConfigError:
        raise
    except Exception as error:  # of the user's own code
        raise ConfigError(f"{file}: {type(error).__name__}: {error}") from error
    if not items:
        raise ConfigError(f"{sweep} has no runs")
    planned: list[Run] = []
    digests: dict[Any, ml_collections.ConfigDict] = {}  # by `_OF_FILES`, read once
    folders: dict[Any, epath.Path] = {}  # of the runs that are the same but for their names
    for name, config_file, fields, also_on in items:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{file}: the name {name!r} is not GROUP/SETTING")
        arguments = [
            f"--config={config_file}",
            *(f"--config.{field}={value}" for field, value in fields.items()),
            *(f"--config.{override}" for override in overrides),
        ]
        config = _resolve(name, arguments)
        others = (subset for subset in also_on if subset != config.data.test_fake)
        also_on = tuple(dict.fromkeys(others))
        if also_on:
            arguments.append(f"--also_on={','.join(also_on)}")
        of_files = tuple(config.model[field] for field in _OF_FILES)
        if of_files not in digests:
            digests[of_files] = _with_digest(name, config).model
        for field in _OF_FILES:
            config.model[field] = digests[of_files][field]
        essence = (*configuration.essence(config), _files_by_path(config), also_on)
        folder = folders.setdefault(essence, workdir / name / f"seed-{config.seed}")
        if any((run.name, run.config.seed) == (name, config.seed) for run in planned):
            raise ConfigError(f"{file}: {name} is there twice with seed {config.seed}")
        planned.append(Run(name, config, tuple(arguments), also_on, folder))
    return planned


def _with_digest(name: str, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a config with the SHA-256 of its backbones' files, of those that are there."""
    try:
        return weights.with_digest(config)
    except weights.MissingFileError as error:  # it may be there where the run is started
        log.warning("%s: %s. Until then it is told by its path", name, error)
        return config
    except weights.WeightsError as error:
        raise ConfigError(f"{name}: {error}") from error


def _files_by_path(config: ml_collections.ConfigDict) -> tuple[str | None, ...]:
    """Returns the paths of the backbones' files whose SHA-256 is not known; None for another."""
    model = config.model
    return tuple(
        model[f"{role}_path"] if model[f"{role}_sha256"] is None else None
        for role in ("backbone", "beside")
    )


def _get_sweep(file: str) -> Callable[[str | None], Iterable[tuple]]:
    """Returns the function `get_sweep` of a sweep file."""
    try:
        return runpy.run_path(file)["get_sweep"]
    except KeyError as error:
        raise ConfigError(f"{file} has no function get_sweep") from error


def _resolve(name: str, arguments: Sequence[str]) -> ml_collections.ConfigDict:
    """Returns the config that wsdl_jax.main makes of its arguments."""
    argv = [name, *arguments]
    values = flags.FlagValues()
    shipped_files.define_config(values, argv)
    try:
        values(argv)
        configuration.validate(values.config)
        configuration.check_circumstances(values.config)
        configuration.check_backbone_file(values.config)
    except (flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ConfigError(f"{name}: {text}") from error
    return values.config


def missing(planned: Sequence[Run]) -> list[Run]:
    """Returns the runs that are not done, each once."""
    return list({run.folder: run for run in planned if not run.is_done()}.values())
