"""Stopping: the first signal asks, the second Ctrl-C does not wait."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from wsdl_jax.runtime.interruption import StopSignals, is_heard

# The first thread waits in C for a lock that never comes, and runs no Python.
HUNG = """
import ctypes
from wsdl_jax.runtime.interruption import StopSignals
with StopSignals() as signals:
    print("ready", flush=True)
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_handlers_come_back(number: int):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received == []
        os.kill(os.getpid(), number)
        assert signals.received == [number]
        os.kill(os.getpid(), signal.SIGTERM)  # a second SIGTERM says nothing new
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_second_ctrl_c_ends_a_step_that_hangs():
    command = [sys.executable, "-c", HUNG]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == (
            "\nstopped at once: the steps since the last save are lost\n"
        )


def test_what_a_shell_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert not is_heard(signal.SIGINT) and is_heard(signal.SIGTERM)
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received == []
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_collect_nothing():
    received = []

    def collect() -> None:
        with StopSignals() as signals:
            received.append(signals.received)

    thread = threading.Thread(target=collect)
    thread.start()
    thread.join()
    assert received == [[]]
