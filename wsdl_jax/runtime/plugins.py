"""Code from outside the package that a user names as MODULE:NAME."""

import importlib
import os
import sys
from typing import Any

from wsdl_jax.runtime.errors import UserError


def resolve(name: str, kind: str) -> Any:
    """Imports a module and returns what it calls by a name.

    Modules are looked for where `python -m` looks for them, so also in the current directory,
    which stays on the path, since the module may import its neighbours later.

    Args:
      name: "MODULE:NAME", such as "my_package.inpainters:blur".
      kind: what is looked for, for the message of an error, such as "inpainter".

    Raises:
      UserError: the module cannot be imported, whatever the reason, or has no such name.
    """
    module, _, attribute = name.partition(":")
    try:
        if not sys.flags.safe_path and not {"", os.getcwd()}.intersection(sys.path):
            sys.path.insert(0, os.getcwd())
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # The module's own code raises what it likes.
        stands_alone = isinstance(error, (ImportError, AttributeError))
        reason = str(error) if stands_alone else f"{type(error).__name__}: {error}"
        raise UserError(" ".join(f"no {kind} {name}: {reason}".split())) from error
