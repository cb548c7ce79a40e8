"""Settings of the whole process, which a command makes once, and importing never makes."""

import ctypes
import logging
import os
import sys
from pathlib import Path
from typing import Any

import jax
from absl import logging as absl_logging


def set_up() -> None:
    """Makes all settings of this module. To be called before JAX computes for the first time."""
    keep_compiled_programs()
    keep_freed_memory()
    quiet_orbax()


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache folder, so that the next start compiles nothing.

    JAX's own settings, `JAX_COMPILATION_CACHE_DIR` and so on, go first. Small programs are kept,
    too: a start compiles dozens.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsdl-jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that cannot be written: as if it were empty
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of mallopt in glibc's malloc.h


def keep_freed_memory() -> None:
    """Lets the steps of a program on a CPU take the memory of the step before, with glibc.

    By default glibc gives large blocks back to the system and takes them anew, empty and page by
    page: half of the processor time of a training step on two cores. Only the main heap can grow to
    such sizes, so all threads take from it; and steps run in the thread that calls them, or a
    step would begin before the one before has freed its memory. To be called before JAX computes
    for the first time.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = (ctypes.c_void_p,), None
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    libc.mallopt(_ARENA_MAX, 1)
    # Smaller things must not settle in the space that a step leaves, or the next one needs as much
    # again. So there is other free space that they fit better; it takes no memory until it is used.
    spaces = []
    for _ in range(128):
        spaces.append(libc.malloc(2**25))
        libc.malloc(2**12)  # never freed: keeps neighbours from becoming one
    for space in spaces:
        libc.free(space)
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def quiet_orbax() -> None:
    """Keeps back what orbax says beside the errors that it raises.

    It logs the traceback of every such error, and what it is busy with. When one array cannot be
    read or written, it closes the event loop in which it works on the others; each of them then
    complains to nobody.
    """
    absl_logging.get_absl_logger().addFilter(_is_not_of_orbax)
    logging.getLogger("asyncio").addFilter(_was_retrieved)
    previous_hook = sys.unraisablehook

    def unless_orbax_has_left(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous_hook(unraisable)

    sys.unraisablehook = unless_orbax_has_left


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname


def _was_retrieved(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()
