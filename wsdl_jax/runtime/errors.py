"""Errors that are the user's to mend."""

import contextlib
import os
from collections.abc import Iterator


class UserError(Exception):
    """Something the user can mend. The message is one line that says what and where."""


class ConfigError(UserError):
    """A config, a flag or a dataset's name that cannot be run."""


def reason(error: OSError) -> str:
    """Returns what the system says of an error, with the file that it is about if it is known."""
    what = os.strerror(error.errno) if error.errno is not None else " ".join(str(error).split())
    names = [os.fspath(name) for name in (error.filename, error.filename2) if name is not None]
    where = " → ".join(n.decode(errors="replace") if isinstance(n, bytes) else n for n in names)
    return f"{where}: {what}" if where else what or type(error).__name__


def printable(text: str) -> str:
    """Returns a text, such as a file's name, as UTF-8 can have it: other bytes are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Makes errors of files, whose texts name them, the user's to mend."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error
