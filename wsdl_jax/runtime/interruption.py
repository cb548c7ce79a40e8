"""Stopping a training: the first signal asks, a second Ctrl-C does not wait."""

import os
import signal
import sys
import threading
from types import TracebackType
from typing import Any

_NOW = b"\x00"  # in the pipe: no signal's number


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """The run was asked to stop; it has saved its state and can be continued."""

    def __init__(self, signal_number: int, run: str | os.PathLike[str], step: int):
        super().__init__(f"{os.fspath(run)}: stopped at step {step}")
        self.signal_number = signal_number


def is_heard(number: int) -> bool:
    """Returns whether a signal is not ignored, as under nohup, and Ctrl-C in the background."""
    return signal.getsignal(number) != signal.SIG_IGN


class StopSignals:
    """Collects SIGINT and SIGTERM while a block runs, for it to look at between two steps.

    A second Ctrl-C ends the process at once, with code 130, also while the first thread waits in a
    library for something that does not come, where Python would not see a signal. (Schedulers may
    send SIGTERM twice, so that a second one says nothing new.)

    Outside the first thread of a process, where Python hears no signals, nothing is collected.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in filter(is_heard, (signal.SIGINT, signal.SIGTERM)):
            self._handlers[number] = signal.signal(number, self._note)
        # The system writes the number of a signal into this pipe as soon as it arrives.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._woken = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not hasattr(self, "_watcher"):
            return
        signal.set_wakeup_fd(self._woken)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.write(self._write, _NOW)
        self._watcher.join()
        os.close(self._read)
        os.close(self._write)

    def _note(self, number: int, frame: Any) -> None:
        self.received.append(number)

    def _watch(self) -> None:
        interrupts = 0
        while (byte := os.read(self._read, 1)) != _NOW:
            interrupts += byte[0] == signal.SIGINT and signal.SIGINT in self._handlers
            if interrupts > 1:
                sys.stderr.write("\nstopped at once: the steps since the last save are lost\n")
                sys.stderr.flush()
                os._exit(128 + signal.SIGINT)
