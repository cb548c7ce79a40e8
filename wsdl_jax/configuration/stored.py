"""Configs as JSON, as run directories keep them, with the version of the format.

A run of an earlier format is read where that has the same meaning here. Any other is refused in a
line that says which version of the package works with it.
"""

import json
from collections.abc import Callable
from importlib import metadata
from typing import Any

import ml_collections

from wsdl_jax.configuration import fields
from wsdl_jax.runtime.differences import leaves
from wsdl_jax.runtime.errors import ConfigError

# 1: without a version, of wsdl-jax 0.1. 2: with one; fields and their meaning are those of 1.
FORMAT = 2
_WRITTEN_BY = "written_by"  # beside the fields: what has written them
_FIRST = {"format": 1, "wsdl_jax": "0.1.0"}  # of what does not say it


def save(config: ml_collections.ConfigDict) -> str:
    """Returns the config as JSON, for a run directory."""
    written_by = {"format": FORMAT, "wsdl_jax": metadata.version("wsdl-jax")}
    content = {**config.to_dict(), _WRITTEN_BY: written_by}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def load(
    text: str,
    base: Callable[[], ml_collections.ConfigDict] = fields.base,
    validate: Callable[[ml_collections.ConfigDict], None] = fields.validate,
) -> ml_collections.ConfigDict:
    """Returns the config that `save` wrote.

    Args:
      text: JSON.
      base: returns every field with its default, of configs of this kind.
      validate: raises ConfigError for a config that cannot be run.

    Raises:
      ConfigError: anything else; for a config of another version it says which one works.
    """
    config = base()
    written_by = None  # not known of what is no config at all
    try:
        stored = json.loads(text)
        if not isinstance(stored, dict):
            raise ValueError("not a JSON object")
        written_by = stored.pop(_WRITTEN_BY, _FIRST)
        if not isinstance(written_by["format"], int) or not 1 <= written_by["format"] <= FORMAT:
            raise ValueError(f"it has format {written_by['format']}, where 1 to {FORMAT} are read")
        for path, value in leaves(stored):
            if value is None and fields.field(config, path) is not None:
                raise TypeError(f"{path} is null")
            _set(config, path, tuple(value) if isinstance(value, list) else value)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"not a config of this version: {error}{_which_works(written_by)}"
        ) from error
    validate(config)
    return config


def _which_works(written_by: Any) -> str:
    try:
        version = str(written_by["wsdl_jax"])
    except (KeyError, TypeError):
        return ""
    if version == metadata.version("wsdl-jax"):
        return ""
    return f"; wsdl-jax {version}, which has written it, works with it"


def _set(config: ml_collections.ConfigDict, path: str, value: Any) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        config = config[parent]
    if key not in config:
        raise KeyError(path)
    config[key] = value
