"""Processes that do not outlive the one that has started them."""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent(parent: int | None = None) -> None:
    """Ends this process as soon as the one that has started it has ended, however that ended.

    On Linux the system sees to it; the thread that has started this process is not to end before.
    Elsewhere it takes up to a second.

    parent: its number, where it may have ended already; None for whatever it is now.
    """
    if parent is None:
        parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        watch_parent(parent)


def watch_parent(parent: int | None = None) -> None:
    """Ends this process within a second of its parent, whichever thread has started it."""
    if parent is None:
        parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
