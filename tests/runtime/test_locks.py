"""Who holds a folder: between processes on a disk, and by leases, as in a bucket."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from etils import epath

from wsdl_jax.runtime import locks
from wsdl_jax.runtime.errors import UserError

HOLD = """
import sys, time
from wsdl_jax.runtime import locks
lock = locks.Lock(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds the lock of a folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_refused_and_told_who_holds_it(tmp_path: Path, holder):
    who = rf"process {holder.pid} on {socket.gethostname()} since \d{{4}}-"
    with pytest.raises(UserError, match=rf"^{tmp_path} is in use by {who}.*: wait until"):
        locks.Lock(tmp_path)
    with locks.locked(tmp_path, locks.RESULTS):  # another lock of the same folder
        pass


def test_a_killed_holder_leaves_nothing_behind(tmp_path: Path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locks.locked(tmp_path) as lock:
        lock.check()
        assert f"process {os.getpid()} " in (tmp_path / locks.WRITER).read_text()
    assert (tmp_path / locks.WRITER).read_text() == ""
    lock.release()  # again


def test_who_waits_gets_it_when_it_is_free(tmp_path: Path):
    first = locks.Lock(tmp_path)
    got = []

    def take() -> None:
        with locks.locked(tmp_path, wait=True):
            got.append(time.monotonic())

    thread = threading.Thread(target=take)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    first.release()
    thread.join(10)
    assert got


def test_a_folder_that_cannot_be_locked_is_told(tmp_path: Path, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locks.locked(tmp_path):
        assert "cannot be locked (Operation not supported)" in caplog.text


# ----- Leases -------------------------------------------------------------------------------------


@pytest.fixture
def lease(tmp_path: Path, monkeypatch):
    """Makes the lock of a folder as if that were in a bucket, with seconds instead of minutes."""
    monkeypatch.setattr(locks, "is_remote", lambda path: True)
    monkeypatch.setattr(locks, "LEASE", 2.0)
    monkeypatch.setattr(locks, "RENEWAL", 0.1)
    monkeypatch.setattr(locks, "SETTLING", 0.05)
    return lambda **arguments: locks.Lock(epath.Path(tmp_path), **arguments)


def test_a_lease_that_is_renewed_is_not_taken(lease, tmp_path: Path):
    first = lease()
    with pytest.raises(UserError, match=rf"^{tmp_path} is in use by process {os.getpid()} on "):
        lease()
    first.check()
    first.release()
    assert not (tmp_path / locks.WRITER).exists()
    lease().release()


def test_a_lease_that_nobody_renews_is_taken_over(lease, tmp_path: Path, caplog):
    (tmp_path / locks.WRITER).write_text('{"holder": "process 1 on gone", "token": "x"}')
    second = lease()
    assert "was in use by process 1 on gone" in caplog.text
    second.check()
    second.release()


def test_whose_lease_was_taken_over_is_stopped(lease, tmp_path: Path):
    first = lease()
    (tmp_path / locks.WRITER).write_text('{"holder": "process 2 on there", "token": "y"}')
    with pytest.raises(UserError, match="was taken over by process 2 on there: this process stops"):
        first.check()
    first.release()
    assert "process 2" in (tmp_path / locks.WRITER).read_text()  # it is the other's


def test_a_lease_that_was_taken_and_given_back_is_lost(lease, tmp_path: Path):
    """As by a process that was suspended meanwhile."""
    first = lease()
    (tmp_path / locks.WRITER).unlink()
    with pytest.raises(UserError, match="was taken over by another process"):
        first.check()
    first.release()


def test_a_bucket_out_of_reach_is_not_a_lost_lease(lease, monkeypatch):
    first = lease()

    def fails(*_: object) -> None:
        raise ConnectionError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(locks._Lease, "_read", fails)
        first.check()
    first.check()
    first.release()


def test_a_lease_that_is_given_back_is_waited_for(lease):
    first = lease()
    threading.Timer(0.3, first.release).start()
    second = lease(wait=True)
    second.check()
    second.release()


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_an_object_that_says_nothing_is_nobodys(lease, tmp_path: Path, content: str):
    (tmp_path / locks.WRITER).write_text(content)
    lease().release()
