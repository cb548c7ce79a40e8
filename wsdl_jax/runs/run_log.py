"""What a run says while it runs: metrics.jsonl, TensorBoard events and a progress bar."""

import contextlib
import itertools
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from etils import epath
from tqdm import tqdm

from wsdl_jax.runs.directory import RunDirectory
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.storage import Staged, write_whole

FLUSH_SECONDS = 120  # after which events are on disk, where TensorBoard sees them


class RunLog:
    """Writes scalars of a run to disk and its progress to the terminal.

    What cannot be written raises UserError, which names the file and says why, in the thread that
    logs. `close` raises it if nothing else has before.
    """

    def __init__(self, run: epath.Path, *, start_step: int, total_steps: int, writes: bool = True):
        """Entries of steps after `start_step`, left by a run that was killed, are dropped.

        writes: of several hosts, one writes; the others are silent.

        Raises UserError for a metrics.jsonl that is damaged, by line, and for a file that cannot be
        written.
        """
        self._writes = writes
        if not writes:
            return
        self._run, self._failed = RunDirectory(run), False
        metrics = self._run.metrics
        with contextlib.ExitStack() as closing:  # what is open, should something here raise
            kept, all_kept = _entries_until(start_step, metrics)
            with self._naming(metrics):
                self._staged = Staged(run)
                closing.callback(self._close_file, run, self._staged)
                path = RunDirectory(self._staged.local).metrics
                if path != metrics or not all_kept:
                    write_whole(path, kept)
                file = path.open("a")
                closing.callback(self._close_file, metrics, file)
                self._file = file
            with self._naming(self._run.events):
                local = RunDirectory(self._staged.local).events
                events = _Events(self._run.events, local, start_step)
                closing.callback(self._close_file, self._run.events, events)
                self._events = events
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                unit="step",
                disable=not sys.stderr.isatty(),
                dynamic_ncols=True,
            )
            closing.callback(self._bar.close)
            self._closing = closing.pop_all()
        self._plain = not sys.stderr.isatty()
        self._started, self._start_step, self._spoken = time.monotonic(), start_step, 0.0
        self._total = total_steps

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Records values of a step, number of steps done."""
        if not self._writes:
            return
        with self._naming(self._run.metrics):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        with self._naming(self._run.events):
            self._events.scalars(step, values)

    def progress(self, step: int, loss: float, images_per_second: float) -> None:
        """Shows where the run is: on a terminal as a bar, else as a line every ten seconds."""
        if not self._writes:
            return
        self._bar.set_postfix(loss=f"{loss:.3f}", images_s=f"{images_per_second:.0f}")
        self._bar.update(step - self._bar.n)
        now = time.monotonic()
        if self._plain and now - self._spoken >= 10:
            self._spoken = now
            left = (now - self._started) / (step - self._start_step) * (self._total - step)
            self.say(
                f"step {step}/{self._total}  loss {loss:.3f}  {images_per_second:.0f} images/s"
                f"  {left:.0f} s left"
            )

    def say(self, line: str) -> None:
        """Writes a line to the terminal, above the bar."""
        if not self._writes:
            return
        if self._plain:
            logging.getLogger("wsdl_jax").info(line)
        else:
            self._bar.write(line, file=sys.stderr)

    def publish(self) -> None:
        """Brings a run directory in a bucket up to date."""
        if not self._writes:
            return
        with self._naming(self._run.events):
            self._events.flush()
        with self._naming(self._run.path):
            self._staged.publish()

    def close(self) -> None:
        """Flushes and closes everything, even if a part of it fails."""
        if not self._writes:
            return
        failed_before = self._failed
        try:
            self._closing.close()
        except UserError:
            if not failed_before:  # a full disk is reported once
                raise

    def _close_file(self, path: epath.Path, file: Any) -> None:
        with self._naming(path):
            file.close()

    @contextlib.contextmanager
    def _naming(self, path: epath.Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _entries_until(step: int, path: epath.Path) -> tuple[bytes, bool]:
    """The lines of metrics.jsonl up to a step, and whether these are all that the file has.

    Half a line at the end, which a killed process can leave, is left out. Raises UserError for any
    other line that is no entry, and for a file that cannot be read.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    kept = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged: line {number} is no entry of a step; mend or delete the line"
            ) from error
    together = b"".join(kept)
    return together, together == content


class _Events:
    """A file of events for TensorBoard, as tensorboardX writes it, but by the thread that logs.

    tensorboardX's own writer has a thread, which raises to nobody, and does not close a file that
    it cannot flush.
    """

    def __init__(self, folder: epath.Path, local: epath.Path, start_step: int):
        """Opens a new file in `local`, which stands for `folder`.

        TensorBoard is told to drop what earlier files have of steps after `start_step`.
        """
        # Here, since it takes half a second, or three where PyTorch is installed.
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        self._protocol, self._scalar = event_pb2, summary.scalar
        local.mkdir(parents=True, exist_ok=True)
        self._records = RecordWriter(os.fspath(_new_file(folder, local)))
        self._flushed = time.monotonic()
        self._write(file_version="brain.Event:2")
        if start_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=start_step + 1, session_log=start)

    def _write(self, **fields: Any) -> None:
        event = self._protocol.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(step=step, summary=self._scalar(name, value))
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        self._records.flush()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._records.close()


def _new_file(folder: epath.Path, local: epath.Path) -> epath.Path:
    """Makes an empty file of events, of a name that is new in both folders.

    Of names of one second the later is the greater, for TensorBoard reads files by name.
    """
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
    for number in itertools.count():
        path = local / (f"{name}.{number:03d}" if number else name)
        if not (folder / path.name).exists():
            with contextlib.suppress(FileExistsError), open(path, "xb"):
                return path
    raise AssertionError
