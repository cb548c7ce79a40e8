"""What is measured once of a network on validation images, kept in its run as a JSON file."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from etils import epath

from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.storage import read_json, write_whole

T = TypeVar("T")


def save(
    path: epath.Path,
    network: tuple[int, int | None],
    key: str,
    data: Mapping[str, str],
    content: Mapping[str, Any],
) -> None:
    """Writes what was measured, with what it was measured of.

    Args:
      path: the file.
      network: step and checksum of the checkpoint whose network it is of.
      key: the name of `data` in the file.
      data: hashes of the subsets whose validation images were used, by their names.
      content: what was measured, as JSON has it.
    """
    step, checksum = network
    facts = {"checkpoint": step, "weights": checksum, key: dict(data), "split": "valid"}
    write_whole(path, json.dumps({**facts, **content}) + "\n")


def load(
    path: epath.Path,
    network: tuple[int, int | None],
    key: str,
    data: Mapping[str, str] | None,
    parse: Callable[[Mapping[str, Any]], T],
) -> T | None:
    """Returns what `save` has written; None if there is nothing of this network and data.

    Args:
      path: the file.
      network: step and checksum of the checkpoint that is asked for.
      key: the name of `data` in the file.
      data: hashes of the subsets; None accepts any, where the data is not at hand.
      parse: the file's content → what was measured. It may raise ValueError, TypeError, KeyError
        and OverflowError for a content that was not written by `save`.

    Raises:
      UserError: a file that cannot be read.
    """
    if not path.exists():
        return None
    try:
        stored = read_json(path)
        if not isinstance(stored, Mapping):
            raise TypeError("it holds no JSON object")
        found = parse(stored)
        same = (stored["checkpoint"], stored["weights"]) == network
        return found if same and (data is None or stored[key] == dict(data)) else None
    except (UserError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, and evaluate") from error
