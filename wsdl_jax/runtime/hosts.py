"""Several hosts as one program: they start together, agree, and wait for one another.

With one host everything here returns at once.
"""

import glob
import importlib.util
import itertools
import logging
import os
import signal
import threading
import zlib
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from jax._src import distributed
from jax.experimental import multihost_utils

from wsdl_jax.runtime.errors import UserError

_MESSAGE = 2000  # bytes of an error that the other hosts get to know
_AS_LONG_AS_IT_TAKES = 14 * 24 * 3600 * 1000  # milliseconds; a host that dies ends all before
_waits = itertools.count()  # the same on all hosts: a name serves once


def define_flags() -> None:
    """Defines the flags that say which of several hosts a process is, see `start`."""
    flags.DEFINE_string("coordinator", None, "host:port of process 0.")
    flags.DEFINE_integer("processes", None, "Number of processes, one a host.")
    flags.DEFINE_integer("process", None, "Which one this is, from 0.")


def start_by_flags() -> None:
    """Joins this process to the others as `start` does, by the flags of `define_flags`.

    Of several hosts the first alone logs what it does; the others log warnings.
    """
    values = flags.FLAGS
    start(values.coordinator, values.processes, values.process)
    if not is_first():
        logging.getLogger("wsdl_jax").setLevel(logging.WARNING)


def start(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins this process to those of the other hosts, before the first use of a device.

    Cloud TPU, GKE and SLURM are recognized, and JAX finds the other processes by itself; elsewhere
    the arguments say it. Without either this process is alone.

    Args:
      coordinator: host:port of process 0.
      count: number of processes.
      index: of this process, from 0.

    Raises:
      UserError: some of the arguments without the others, or no connection.
    """
    explicit = (coordinator, count, index)
    if any(value is None for value in explicit) and any(value is not None for value in explicit):
        raise UserError("--coordinator, --processes and --process go together")
    if coordinator is None and not _in_cluster():
        return
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the hosts do not find one another: {error}") from error
    # JAX has taken SIGTERM for itself, and tells nobody before a training asks.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    # On CPUs the first collective makes the connections, for which it waits 30 s.
    multihost_utils.sync_global_devices("start")


def _in_cluster() -> bool:
    """Whether this is one of several processes that JAX can find, or a TPU VM."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return True
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):  # GKE
        return True
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_first() -> bool:
    """Returns whether this is the host that writes logs, reports and results."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Returns when every host has come here, however long that takes.

    Not by a collective: on CPUs one fails after half an hour, and building a dataset takes hours.
    """
    if jax.process_count() > 1:
        # JAX's connection to the coordinator, which has no public name; orbax waits by it, too.
        client = distributed.global_state.client
        client.wait_at_barrier(f"wsdl-jax {next(_waits)}: {what}", _AS_LONG_AS_IT_TAKES)


def first(function: Callable[[], None]) -> None:
    """Calls a function on the first host; returns on every host when it is done there.

    However long that takes. All hosts have to ask together. What it raises is raised on the first
    host as it is, and on the others as a UserError of the same text.
    """
    _on_hosts(function, only_first=True)


def each(function: Callable[[], None]) -> None:
    """Calls a function on every host; returns when it is done on all, however long that takes.

    All hosts have to ask together. What it raises is raised where it was raised, and on the others
    as a UserError of the same text: no host goes on alone.
    """
    _on_hosts(function, only_first=False)


def first_then_each(function: Callable[[], None]) -> None:
    """Calls a function on the first host, and when it is done there on every host.

    For files that are made unless they are there: where hosts share a disk the first one makes
    them, and where they have disks of their own each does. Raises as `first` and `each` do.
    """
    first(function)
    each(function)


def _on_hosts(function: Callable[[], None], *, only_first: bool) -> None:
    error = None
    if is_first() or not only_first:
        try:
            function()
        except Exception as raised:
            error = raised
    wait("a function")
    text = "" if error is None else str(error) or type(error).__name__
    message = np.frombuffer(text.encode()[:_MESSAGE].ljust(_MESSAGE, b"\0"), np.uint8)
    texts = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in gather(message)]
    if error is not None:
        raise error
    for host, text in enumerate(texts):
        if text:
            raise UserError(f"host {host}: {text}")


def any_host(value: bool) -> bool:
    """Returns whether a value is true on any host. All hosts have to ask together."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(np.array(value)).any())


def gather(values: np.ndarray) -> np.ndarray:
    """Returns the arrays of all hosts, stacked: [hosts, …]. All hosts have to ask together.

    The arrays have one shape. Floating-point numbers are passed on to the bit, float64 too, which
    JAX would round.
    """
    if jax.process_count() == 1:
        return values[None]
    bits = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(bits))
    return np.frombuffer(gathered.tobytes(), values.dtype).reshape(-1, *values.shape)


def agree(**facts: object) -> None:
    """Raises UserError, on every host, that names what they do not have in common."""
    checksums = np.array([zlib.crc32(repr(fact).encode()) for fact in facts.values()], np.uint32)
    everywhere = gather(checksums)
    for host, of_host in enumerate(everywhere):
        different = [n for n, a, b in zip(facts, of_host, everywhere[0], strict=True) if a != b]
        if different:
            names = ", ".join(name.replace("_", " ") for name in different)
            raise UserError(f"host {host} does not have host 0's {names}")
