"""One writer a folder: locks that say who holds them, on a disk and in a bucket.

On a disk the lock is the system's (flock), which frees it when its process ends, however that
ends. In a bucket it is a lease: an object that its holder renews; one that is no longer renewed is
taken over.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.storage import is_remote

log = logging.getLogger("wsdl_jax")
WRITER = ".lock"  # of who trains in a run directory
RESULTS = ".results.lock"  # of who puts results there that belong together; held for moments
# Seconds. A lease is over when nobody has renewed it for so long; between two renewals; and until
# two processes that have taken one at the same time both see whose it is.
LEASE, RENEWAL, SETTLING = 60.0, 15.0, 2.0


class Lock:
    """A folder that is held, until `release`.

    Raises UserError, naming the holder, where another process holds it.
    """

    def __init__(self, folder: epath.PathLike, name: str = WRITER, *, wait: bool = False):
        """Takes the lock of a folder that is there.

        Args:
          folder: on a disk, or in a bucket.
          name: of the lock's file in it; locks of other names do not exclude one another.
          wait: whether to wait for another holder instead of raising.
        """
        self._folder = epath.Path(folder)
        self._path = self._folder / name
        self._lease: _Lease | None = None
        self._descriptor: int | None = None
        if is_remote(folder):
            self._lease = _Lease(self._folder, self._path, wait=wait)
        else:
            self._descriptor = _flock(self._folder, Path(self._path), wait=wait)

    def check(self) -> None:
        """Raises UserError if another process has taken the lock over: of leases alone."""
        if self._lease is not None:
            self._lease.check()

    def release(self) -> None:
        """Gives the lock back. To be called once or more."""
        if self._lease is not None:
            self._lease.end()
            self._lease = None
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


@contextlib.contextmanager
def locked(folder: epath.PathLike, name: str = WRITER, *, wait: bool = False) -> Iterator[Lock]:
    """Holds the `Lock` of a folder."""
    lock = Lock(folder, name, wait=wait)
    try:
        yield lock
    finally:
        lock.release()


def _me() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"


def _refusal(folder: epath.Path, holder: str) -> UserError:
    return UserError(
        f"{folder} is in use by {holder or 'another process'}: wait until it has ended, or stop it"
    )


def _flock(folder: epath.Path, path: Path, *, wait: bool) -> int:
    # Inherited by no child: a lock ends with the process that has taken it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise _refusal(folder, os.read(descriptor, 1000).decode(errors="replace")) from None
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s): see to it that one process at a time writes there",
                *(folder, error.strerror),
            )
            return descriptor
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _me().encode())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class _Lease:
    """An object in a bucket that says who holds it, renewed by a thread."""

    def __init__(self, folder: epath.Path, path: epath.Path, *, wait: bool):
        self._folder, self._path = folder, path
        self._token, self._holder, self._count = secrets.token_hex(8), _me(), 0
        while True:
            self._wait_for_the_end(wait)
            self._renew()
            time.sleep(SETTLING)
            if self._read().get("token") == self._token:
                break
            if not wait:
                raise _refusal(folder, self._read().get("holder", ""))
        self._lost = ""  # to whom
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def _read(self) -> dict[str, str]:
        try:
            return dict(json.loads(self._path.read_text()))
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError):  # of no use to anybody
            return {}

    def _wait_for_the_end(self, wait: bool) -> None:
        """Returns when nobody holds the lease, or its holder has not renewed it for too long."""
        seen, since = self._read(), time.monotonic()
        if seen:
            log.warning(
                "%s was in use by %s: waiting %.0f s to see whether it still is",
                *(self._folder, seen.get("holder", "another process"), LEASE),
            )
        while seen and time.monotonic() - since < LEASE:
            time.sleep(min(RENEWAL, LEASE) / 4)
            now = self._read()
            if now and now != seen and not wait:
                raise _refusal(self._folder, now.get("holder", ""))
            if now != seen:
                seen, since = now, time.monotonic()

    def _renew(self) -> None:
        self._count += 1
        content = {"holder": self._holder, "token": self._token, "renewed": self._count}
        self._path.write_text(json.dumps(content) + "\n")

    def _keep(self) -> None:
        while not self._done.wait(RENEWAL):
            # A bucket out of reach is tried again; whoever takes over meanwhile is seen then.
            with contextlib.suppress(Exception):
                if self._is_mine():
                    self._renew()

    def _is_mine(self) -> bool:
        now = self._read()
        if now.get("token") != self._token:  # whoever took it may have given it back
            self._lost = now.get("holder", "another process")
        return not self._lost

    def check(self) -> None:
        if not self._lost:
            with contextlib.suppress(Exception):  # out of reach for now is not lost
                self._is_mine()
        if self._lost:
            raise UserError(f"{self._folder} was taken over by {self._lost}: this process stops")

    def end(self) -> None:
        self._done.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # it ends by itself
            if self._is_mine():
                self._path.unlink()
