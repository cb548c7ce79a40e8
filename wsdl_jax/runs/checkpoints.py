"""Checkpoints of a run. The only file that knows orbax."""

import contextlib
import errno
import logging
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from wsdl_jax.runs.directory import RunDirectory
from wsdl_jax.runtime import hosts
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.storage import is_remote

log = logging.getLogger("wsdl_jax")
METRIC = "valid_loss"
_RANK = "rank"  # what checkpoints are ranked by, the lowest first, where that is not the loss
_ENDED = "ended"  # that its training ended with this checkpoint, before its last step
Found = tuple[int, Any]  # step and state
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before what cannot be read is read again
T = TypeVar("T")


class _DamagedError(UserError):
    """What is read is not what was written, or not all of it is there: reading again is no use."""


class _UnreadError(UserError):
    """A disk, a network or a permission is in the way; nothing is known of what was written."""


class Checkpoints:
    """The checkpoints of one run directory: the latest two, and the best by validation loss, or by
    what a training ranks them by instead.

    Two, since the latest may turn out to be damaged. Reading changes nothing on disk and needs no
    permission to write; `newest` and `save` are for the process that trains.
    """

    def __init__(self, run: epath.Path, *, keep_best: int):
        # orbax refuses relative paths, and only in the thread that writes. To resolve a URL gives a
        # path on the local disk.
        run = epath.Path(run)
        self._run = RunDirectory(run if is_remote(run) else run.resolve())
        self.directory = self._run.checkpoints
        self._keep_best = keep_best
        self._manager: ocp.CheckpointManager | None = None  # from the first need to write
        self._like: Any = None

    # ----- Writing --------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        state: Any,
        valid_loss: float,
        *,
        rank: float | None = None,
        ended: bool = False,
    ) -> None:
        """Writes in the background; `close` waits. What is not finite ranks last.

        Older checkpoints are deleted once the new one is complete.

        Args:
          step: number of steps done.
          state: on the host.
          valid_loss: by which checkpoints are ranked, the lowest first, unless they have a rank.
          rank: by which they are ranked instead, the lowest first, all of a run or none.
          ended: whether training has ended here, before its last step.

        Raises UserError if this or the last call cannot save: it says where, why, and which
        checkpoint is the newest that is intact.
        """
        self._like = jax.tree.map(_on_host, state)
        values = {METRIC: valid_loss} | ({} if rank is None else {_RANK: rank})
        metrics = {name: x if math.isfinite(x) else math.inf for name, x in values.items()}
        checksum = {"crc32": _checksum(state), **metrics} | ({_ENDED: True} if ended else {})
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), checksum=ocp.args.JsonSave(checksum)
        )
        with self._errors_in_one_line():
            manager = self._writer()
            manager.wait_until_finished()
            if manager.all_steps() and not self.directory.exists():
                # orbax would make a new one, and say nothing of what is lost.
                raise FileNotFoundError("the directory is gone")
            manager.save(step, args=items, metrics=metrics, force=True)

    def close(self) -> None:
        """Waits until everything is on disk. Raises UserError as `save` does."""
        if self._manager is not None:
            with self._errors_in_one_line():
                self._manager.wait_until_finished()
                self._manager.close()
            self._manager = None

    def newest(self, like: Any) -> Found | None:
        """Returns step and state of the newest sound checkpoint, to go on from; None without any.

        Damaged ones are named in a warning. Those that are newer than the sound one, which training
        will write again, are moved to `damaged_checkpoints` in the run directory. What a killed
        save has left is removed. All hosts have to ask together.

        One that cannot be read, after some attempts, is not damaged: the run neither goes on from
        an older one nor is anything moved.

        Args:
          like: a state with the structure, shapes and types to expect.

        Raises:
          UserError: there are checkpoints, and none is sound, or one cannot be read.
        """
        self._like = jax.tree.map(_on_host, like)
        failure = None
        try:
            found, damaged = self._newest_and_damaged(like)
        except UserError as error:
            failure = error
        if hosts.any_host(failure is not None):  # or the others would wait for this one
            raise failure or UserError(
                f"another host cannot read the checkpoints in {self.directory}; nothing was moved"
            )
        hosts.wait("checkpoints are read")
        if hosts.is_first():
            for step in damaged:
                self._move_away(step)
        hosts.wait("damaged checkpoints are moved")
        with self._errors_in_one_line():
            self._writer()
        return found

    def _newest_and_damaged(self, like: Any) -> tuple[Found | None, list[int]]:
        found, damaged = self._first_sound(reversed(self._steps()), like)
        for step in self._steps():
            # orbax reads the losses of all, and gives up where one cannot be read. Where it is not
            # there at all, a deletion was cut short; orbax finishes it after the next save.
            if step not in damaged and (self._path(step) / "metrics").exists():
                try:
                    self._rank(step)
                except _DamagedError as error:
                    _warn(error)
                    damaged.append(step)
        return found, damaged

    def _writer(self) -> ocp.CheckpointManager:
        if self._manager is None:
            best = preservation_policy.BestN(
                get_metric_fn=_rank_of,
                reverse=True,
                n=self._keep_best,
                keep_checkpoints_without_metrics=False,
            )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [preservation_policy.LatestN(2), best]
                ),
                best_fn=_rank_of,
                best_mode="min",
                enable_background_delete=False,
                cleanup_tmp_directories=True,
                # Otherwise threads wait ten minutes for a directory that cannot be made.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        return self._manager

    def _move_away(self, step: int) -> None:
        folder = self._run.damaged_checkpoints
        target, number = folder / str(step), 1
        while target.exists():
            number += 1
            target = folder / f"{step}-{number}"
        try:
            folder.mkdir(exist_ok=True)
            self._path(step).rename(target)
        except OSError as error:
            raise UserError(f"{self._path(step)} cannot be moved: {_reason(error)}") from error

    @contextlib.contextmanager
    def _errors_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise many kinds
            self._give_up()
            raise UserError(
                f"cannot save to {self.directory}: {_reason(error)}; newest intact checkpoint: "
                f"{self._newest_intact()}"
            ) from error

    def _give_up(self) -> None:
        """Ends what goes on in the background, and removes what is half written."""
        manager, self._manager = self._manager, None
        if manager is not None:
            for end in (manager.wait_until_finished, manager.close):
                with contextlib.suppress(Exception):  # more of the same, from other threads
                    end()
        if hosts.is_first():
            with contextlib.suppress(OSError):
                self._remove_half_written()

    def _remove_half_written(self) -> None:
        for _ in range(10):
            paths = filter(ocp.path.step.is_path_temporary, self.directory.iterdir())
            if not (half_written := list(paths)):
                return
            for path in half_written:
                with contextlib.suppress(OSError):  # tensorstore may still be writing into it
                    path.rmtree()
            time.sleep(0.1)

    def _newest_intact(self) -> epath.Path | str:
        with contextlib.suppress(UserError):
            for step in reversed(self._steps()):
                with contextlib.suppress(UserError):
                    self._restore(step, self._like)
                    return self._path(step)
        return "none"

    # ----- Reading --------------------------------------------------------------------------------

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, None if there is none."""
        if self._manager is not None:
            with self._errors_in_one_line():
                self._manager.wait_until_finished()
        steps = self._steps()
        return steps[-1] if steps else None

    def are_whole(self, total_steps: int) -> bool:
        """Returns whether the newest checkpoint is the end of a training.

        total_steps: of a training that does not end before its last step.

        Raises UserError naming the checkpoint if that cannot be read.
        """
        latest = self.latest()
        return latest is not None and (latest == total_steps or bool(self._said(latest, _ENDED)))

    def best(self) -> int | None:
        """Returns the step of the checkpoint that ranks first, None without any."""
        ranked = self._ranked()
        return ranked[0] if ranked else None

    def best_sound(self, like: Any) -> Found | None:
        """Returns step and state of the best checkpoint that is sound; None if there is none.

        Damaged ones are named in a warning.

        Args:
          like: a state with the structure, shapes and types to expect.

        Raises:
          UserError: there are checkpoints, and none is sound, or one that is better than the first
            sound one cannot be read, see `newest`.
        """
        found, _ = self._first_sound(self._ranked(), like)
        return found

    def restore(self, step: int, like: Any) -> Any:
        """Returns the state of a step as NumPy arrays, with the structure and types of another.

        Raises UserError naming the checkpoint if it cannot be read or has changed since.
        """
        return _patiently(lambda: self._restore(step, like))

    def checksum(self, step: int) -> int | None:
        """Returns the CRC-32 that is kept with a step's state; None for a step that has none.

        Raises UserError naming the checkpoint if the file of the checksum cannot be read.
        """
        crc = self._said(step, "crc32")
        return None if crc is None else int(crc)

    def _said(self, step: int, name: str) -> Any:
        """Returns what is kept beside a step's state under a name; None without it."""
        path = self._path(step)

        def read() -> Any:
            with _errors_of(path):
                if "checksum" not in _listed(path):
                    return None
                return ocp.JsonCheckpointHandler().restore(path / "checksum").get(name)

        return _patiently(read)

    def _restore(self, step: int, like: Any) -> Any:
        path = self._path(step)
        like = jax.tree.map(_on_host, like)
        with _errors_of(path):
            # Not through the manager, which needs a directory that it may write to, and several
            # hosts that succeed or fail together.
            with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
                state = handler.restore(path / "state", args=ocp.args.StandardRestore(like))
            checksum = ocp.JsonCheckpointHandler().restore(path / "checksum")
            same = checksum["crc32"] == _checksum(state)
            # Without the loss: checkpoints of before it was kept here.
            same &= METRIC not in checksum or _rank_of(checksum) == self._read_rank(step)
        if not same:
            raise _DamagedError(f"checkpoint {path} is damaged: its checksum is wrong")
        for expected, found in zip(jax.tree.leaves(like), jax.tree.leaves(state), strict=True):
            if (expected.shape, expected.dtype) != (found.shape, found.dtype):
                raise _DamagedError(
                    f"checkpoint {path} has an array of {found.dtype}{list(found.shape)} in place "
                    f"of {expected.dtype}{list(expected.shape)}"
                )
        return state

    def _path(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""

        def read() -> list[int]:
            try:
                found = ocp.path.step.standard_name_format().find_all(self.directory)
                return sorted(metadata.step for metadata in found)
            except OSError as error:
                raise _UnreadError(f"cannot read {self.directory}: {_reason(error)}") from error

        return _patiently(read)

    def _rank(self, step: int) -> float:
        return _patiently(lambda: self._read_rank(step))

    def _read_rank(self, step: int) -> float:
        path = self._path(step)
        with _errors_of(path):
            handler = ocp.JsonCheckpointHandler(filename="metrics")
            return _rank_of(handler.restore(path / "metrics"))

    def _ranked(self) -> list[int]:
        """Steps by rank, the best first; of equal ones the newest first."""
        ranks = {}
        for step in self._steps():
            try:
                ranks[step] = self._rank(step)
            except _DamagedError as error:
                _warn(error)
        return sorted(ranks, key=lambda step: (ranks[step], -step))

    def _first_sound(self, steps: Iterable[int], like: Any) -> tuple[Found | None, list[int]]:
        """The first of some steps that is sound, with its state; and the damaged ones before it."""
        damaged: dict[int, UserError] = {}
        for step in steps:
            try:
                return (step, self.restore(step, like)), list(damaged)
            except _DamagedError as error:
                _warn(error)
                damaged[step] = error
        if damaged:
            first = next(iter(damaged.values()))
            raise UserError(f"no checkpoint in {self.directory} is sound: {first}")
        return None, []


def _rank_of(metrics: Mapping[str, Any]) -> float:
    return float(metrics.get(_RANK, metrics[METRIC]))


def _on_host(x: Any) -> np.ndarray:
    """Stands for a NumPy array of this shape and type, without its memory."""
    return np.broadcast_to(np.zeros((), x.dtype), x.shape)


def _checksum(state: Any) -> int:
    # orbax reads flipped bits in array data without a word.
    crc = 0
    for leaf in jax.tree.leaves(state):
        crc = zlib.crc32(np.ascontiguousarray(leaf), crc)
    return crc


# ----- Damaged, or not to be read now? ------------------------------------------------------------

# What tensorstore begins its messages with where the fault is not in what it reads. UNKNOWN is an
# error of the operating system that it has no word for, such as EIO.
_ELSEWHERE = re.compile(
    r"\b(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|PERMISSION_DENIED|RESOURCE_EXHAUSTED"
    r"|UNAUTHENTICATED|UNAVAILABLE|UNKNOWN): "
)
_OS_ERROR = re.compile(r"\[os_error_code='(\d+)'")
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}  # something else is where a file should be
_NETWORK = {"aiohttp", "fsspec", "gcsfs", "google", "requests", "urllib3"}  # their own exceptions


@contextlib.contextmanager
def _errors_of(path: epath.Path) -> Iterator[None]:
    """Raises _DamagedError or _UnreadError, of one line, for whatever reading has raised."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
        obstacle = error if _is_elsewhere(error) else _obstacle(path)
        if obstacle is None:
            raise _DamagedError(f"checkpoint {path} cannot be read: {_reason(error)}") from error
        raise _UnreadError(
            f"checkpoint {path} could not be read: {_reason(obstacle)}; nothing was moved"
        ) from error


def _is_elsewhere(error: BaseException | None) -> bool:
    """Whether an error, or one that has led to it, says nothing about what is on the disk."""
    if error is None:
        return False
    if isinstance(error, MemoryError) or type(error).__module__.split(".")[0] in _NETWORK:
        return True
    if isinstance(error, OSError):
        kinds = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
        if error.errno not in _MISSING and not isinstance(error, kinds):
            return True
    elif code := _OS_ERROR.search(str(error)):
        return int(code[1]) not in _MISSING
    elif _ELSEWHERE.search(str(error)):
        return True
    return _is_elsewhere(error.__cause__ or error.__context__)


def _obstacle(path: epath.Path) -> OSError | None:
    """Why the folders of a checkpoint cannot be listed, which orbax takes for an empty place."""
    try:
        folders = [path]
        while folders:
            folder = folders.pop()
            folders += [entry for name in _listed(folder) if (entry := folder / name).is_dir()]
    except OSError as error:
        return error
    return None


def _listed(folder: epath.Path) -> list[str]:
    """Names in a folder, none if it is not there. Raises OSError if that cannot be known."""
    try:
        entries = list(folder.iterdir())
        if not is_remote(folder):
            for entry in entries:  # a folder may be listed, and yet not be entered
                os.stat(entry)
        return [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _patiently(read: Callable[[], T]) -> T:
    """Reads, and where a disk or a network is in the way reads again after each of `PAUSES`."""
    for pause in PAUSES:
        try:
            return read()
        except _UnreadError:
            time.sleep(pause)
    return read()


def _warn(error: UserError) -> None:
    if hosts.is_first():
        log.warning("%s; skipped", error)


def _reason(error: Exception) -> str:
    """What went wrong, without tensorstore's account of how it was asked."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    if code := _OS_ERROR.search(text):
        return os.strerror(int(code[1]))
    return text.split(" [tensorstore_spec")[0].split(" [source locations")[0].rstrip(".")
