"""What the commands share: flags, logging, one-line errors and exit codes."""

import functools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

import jax
from absl import app, flags
from absl import logging as absl_logging

from wsdl_jax.runtime import settings
from wsdl_jax.runtime.errors import ConfigError, UserError, reason
from wsdl_jax.runtime.interruption import Interrupted, is_heard
from wsdl_jax.runtime.processes import end_with_parent

PARENT = "WSDL_JAX_PARENT"  # variable: process without which this one is not to go on
_PARTING = 2.0  # seconds
FAILED, USAGE = 1, 2  # exit codes; 128 + n after a signal n


def _fail(error: BaseException, code: int) -> None:
    if "--debug" in sys.argv:
        raise error
    # The text of a KeyError is a literal, with quotes and escapes.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    message = " ".join(str(text).split())
    print(f"error: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        # At its end a process waits minutes for those of the other hosts, and then is aborted; and
        # these are aborted where the first is gone, so that they get a moment to end by themselves.
        if jax.process_index() == 0:
            time.sleep(_PARTING)
        os._exit(code)
    sys.exit(code)


def _parse(argv: Sequence[str], operands: Sequence[str]) -> list[str]:
    if "--help" in argv:
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)  # absl's own exits with 1
    try:
        rest = flags.FLAGS(list(argv))
    # A config file raises what it likes: UserError of ours, AttributeError and KeyError of
    # ml_collections for a misspelt override, TypeError for a value of another type.
    except (
        flags.Error,
        UserError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OSError,
    ) as error:
        _fail(error, USAGE)
    given = rest[1:]
    needed = [name for name in operands if not name.startswith("[")]
    if len(given) < len(needed):
        _fail(UserError(f"{needed[len(given)]} is missing; see --help"), USAGE)
    if len(given) > len(operands) and not any("…" in name for name in operands[-1:]):
        _fail(UserError(f"unexpected argument {given[len(operands)]!r}; see --help"), USAGE)
    return rest


def run(main: Callable[[list[str]], None], operands: Sequence[str] = ()) -> None:
    """Parses the flags and runs a command.

    `main` gets the program's name and its operands, the arguments without a flag: one for each name
    in `operands`. The last can be NAME…, for one or more, or [NAME…], for any number.

    Errors that are the user's to mend end it with one line and code 1, or 2 where flags or config
    are wrong; Ctrl-C with code 130, unless `main` handles it. `--debug` shows tracebacks instead.
    """

    def guarded(argv: list[str]) -> None:
        # absl's own handler writes to stderr with a prefix that says nothing to a user.
        absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
        absl_logging.set_verbosity(absl_logging.WARNING)
        logging.getLogger("wsdl_jax").setLevel(logging.INFO)
        settings.set_up()
        if is_heard(signal.SIGTERM):  # what is temporary is removed on the way out
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        if (parent := os.environ.pop(PARENT, None)) is not None:
            end_with_parent(int(parent))
        try:
            main(argv)
        except Interrupted as stop:
            logging.getLogger("wsdl_jax").info("%s; the same command continues it", stop)
            sys.exit(128 + stop.signal_number)
        except UserError as error:
            _fail(error, USAGE if isinstance(error, ConfigError) else FAILED)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            what = (str(error).splitlines() or [""])[0]
            _fail(UserError(f"there is not enough memory: {what}"), FAILED)
        except OSError as error:  # of a disk, a folder, a connection: for the user to see to
            _fail(error if "--debug" in sys.argv else UserError(reason(error)), FAILED)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)

    flags.DEFINE_bool("debug", False, "Show the traceback of errors.")
    app.run(guarded, flags_parser=functools.partial(_parse, operands=operands))
