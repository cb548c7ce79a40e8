"""The files of `configs/` and `launch/`, which travel with the package.

A checkout has both folders beside `wsdl_jax/`, a wheel has them in it. So commands work from any
directory: a path that begins with the name of one of these folders is looked up here where the
current directory does not have it.
"""

import os
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from wsdl_jax.runtime.errors import ConfigError

_FOLDERS = ("configs/", "launch/")
_PACKAGE = Path(__file__).resolve().parent.parent


def find(path: str) -> str:
    """Returns where a file is: `path` itself, or the package's own file of that name.

    Args:
      path: of any file. Where it does not exist and begins with `configs/` or `launch/`, it is
        looked up in the package. What is nowhere is returned as it is.
    """
    if os.path.exists(path) or not path.startswith(_FOLDERS):
        return path
    for root in (_PACKAGE, _PACKAGE.parent):  # of a wheel, of a checkout
        if (root / path).exists():
            return str(root / path)
    return path


class _ConfigFileParser(flags.ArgumentParser):
    """Parses `FILE:VARIANT` as ml_collections does, from the file that `find` returns."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def parse(self, argument: str):
        file, colon, variant = argument.partition(":")
        found = find(file)
        if not os.path.isfile(found):
            raise ConfigError(f"no config file {file}")
        return self._parser.parse(f"{found}{colon}{variant}")

    def flag_type(self) -> str:
        return self._parser.flag_type()


def define_config(
    flag_values: flags.FlagValues = flags.FLAGS, argv: list[str] | None = None
) -> flags.FlagHolder:
    """Defines the flag `--config FILE:VARIANT`, with `--config.FIELD=VALUE` for single fields.

    Parsing it raises ConfigError where there is no such file.

    Args:
      flag_values: the flags to which it is added.
      argv: the arguments in which fields are looked for; by default those of the process.
    """
    flags.disclaim_key_flags()  # --help lists the flag with those of the command that calls this
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "A file of configs/, and :variant.",
        flag_values=flag_values,
        sys_argv=argv,
    )
    flag = flag_values["config"]
    flag.parser = _ConfigFileParser(flag.parser)
    return holder
