"""metrics.jsonl, TensorBoard's events and the lines of progress, as others read them."""

import contextlib
import json
import logging
import os
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from wsdl_jax.runs import run_log
from wsdl_jax.runs.run_log import RunLog
from wsdl_jax.runtime import storage
from wsdl_jax.runtime.errors import UserError


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def events(run: Path) -> list[Event]:
    """All events of a run in the order of writing; checks TFRecord's checksums."""
    out = []
    for path in sorted((run / "events").iterdir()):
        data = path.read_bytes()
        while data:
            (length,), (head,) = struct.unpack("<Q", data[:8]), struct.unpack("<I", data[8:12])
            record, (body,) = data[12 : 12 + length], struct.unpack_from("<I", data, 12 + length)
            assert (head, body) == (masked_crc(data[:8]), masked_crc(record))
            out.append(Event.FromString(record))
            data = data[16 + length :]
    return out


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def open_log(run: Path, start: int = 0, total: int = 100) -> RunLog:
    return RunLog(epath.Path(run), start_step=start, total_steps=total)


def test_scalars_are_written_at_once_and_to_both_places(tmp_path: Path):
    log = open_log(tmp_path)
    log.scalars(10, {"loss": 0.1, "images_per_second": 12.5})
    assert lines(tmp_path) == [{"step": 10, "loss": 0.1, "images_per_second": 12.5}]
    log.scalars(20, {"loss": 1 / 3})
    log.close()
    assert lines(tmp_path)[1] == {"step": 20, "loss": 1 / 3}
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert scalars == [
        (10, "loss", pytest.approx(0.1)),
        (10, "images_per_second", 12.5),
        (20, "loss", pytest.approx(1 / 3)),
    ]


def test_what_a_killed_run_wrote_after_its_checkpoint_is_dropped(tmp_path: Path):
    log = open_log(tmp_path)
    for step in (10, 20, 30):
        log.scalars(step, {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "valid_loss": 0.5}\n{"step": 40, "lo')
    log = open_log(tmp_path, start=20)
    assert [(x["step"], *x) for x in lines(tmp_path)] == [
        (10, "step", "loss"),
        (20, "step", "loss"),
        (20, "step", "valid_loss"),
    ]
    log.scalars(30, {"loss": -1.0})
    log.close()
    assert lines(tmp_path)[-1] == {"step": 30, "loss": -1.0}
    # TensorBoard drops what came before a SessionLog.START of a smaller or equal step.
    restarts = [e.step for e in events(tmp_path) if e.session_log.status == 1]
    assert restarts == [21]


def test_starting_over_drops_everything(tmp_path: Path):
    log = open_log(tmp_path)
    log.scalars(10, {"loss": 1.0})
    log.close()
    open_log(tmp_path).close()
    assert lines(tmp_path) == []


def test_events_are_written_by_who_logs_and_seen_after_a_while(tmp_path: Path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
    threads = threading.active_count()
    began = time.time()
    log = open_log(tmp_path)
    log.scalars(1, {"loss": 1.0})
    assert threading.active_count() == threads
    log.publish()
    assert [e.step for e in events(tmp_path)] == [0, 1]
    log.scalars(2, {"loss": 1.0})
    assert [e.step for e in events(tmp_path)] == [0, 1]
    now[0] += run_log.FLUSH_SECONDS
    log.scalars(3, {"loss": 1.0})
    found = events(tmp_path)
    assert [e.step for e in found] == [0, 1, 2, 3]
    assert found[0].file_version == "brain.Event:2"
    assert [e.wall_time for e in found] == sorted(e.wall_time for e in found)
    assert began <= found[0].wall_time and found[-1].wall_time <= time.time()
    log.close()
    assert len(list((tmp_path / "events").glob("events.out.tfevents.*"))) == 1


def test_files_of_one_second_do_not_collide(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run_log.time, "time", lambda: 1_800_000_000.5)
    for step in range(12):
        log = open_log(tmp_path, start=step)
        log.scalars(step + 1, {"loss": 0.0})
        log.close()
    scalars = [e.step for e in events(tmp_path) if e.summary.value]
    assert scalars == list(range(1, 13))  # in the order of their names
    assert len(list((tmp_path / "events").iterdir())) == 12


def test_what_need_not_go_is_not_written_again(tmp_path: Path, monkeypatch):
    log = open_log(tmp_path)
    for step in (10, 20, 30):
        log.scalars(step, {"loss": 0.5})
    log.close()
    path = tmp_path / "metrics.jsonl"
    content, before = path.read_bytes(), path.stat()
    open_log(tmp_path, start=30).close()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    # And what must go, goes at once: a process that is killed there loses nothing.
    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            open_log(tmp_path, start=20)
    assert path.read_bytes() == content
    open_log(tmp_path, start=20).close()
    assert path.read_bytes() == b"".join(content.splitlines(keepends=True)[:2])
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.jsonl", "events"}


@pytest.mark.parametrize("line", [b"{", b"", b"7", b'{"loss": 1}', b'{"step": "x"}', b"\xff"])
def test_a_damaged_line_is_told(tmp_path: Path, line: bytes):
    content = b'{"step": 1}\n' + line + b'\n{"step": 3}\n'
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_log(tmp_path, start=3)
    assert str(caught.value).startswith(f"{tmp_path}/metrics.jsonl is damaged: line 2 is no entry")
    assert (tmp_path / "metrics.jsonl").read_bytes() == content
    assert not (tmp_path / "events").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(arguments, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("full_for", ["metrics.jsonl", "events"])
def test_a_full_disk_is_told_once(small_disk: Path, full_for: str, capfd):
    log = open_log(small_disk)
    log.scalars(1, {"loss": 1.0})
    log.publish()
    with (small_disk / "filler").open("wb") as filler:
        fill(filler)

    def go_on() -> None:
        if full_for == "metrics.jsonl":
            log.scalars(2, {"x" * 5000: 1.0})
        log._events.scalars(2, {"x" * 5000: 1.0})
        log.publish()

    with pytest.raises(UserError) as caught:
        go_on()
    assert (
        str(caught.value) == f"{small_disk}/{full_for} cannot be written: No space left on device"
    )
    log.close()  # as the loop does after an error
    assert log._file.closed and log._events._records._writer.closed
    assert capfd.readouterr().err == ""
    # Closing tells it, where nothing else has.
    (small_disk / "filler").unlink()
    log = open_log(small_disk, start=1)
    log._events.scalars(2, {"y" * 3000: 1.0})
    with (small_disk / "filler").open("wb") as filler:
        fill(filler)
    with pytest.raises(UserError, match=f"{small_disk}/events cannot be written: No space left"):
        log.close()
    assert log._file.closed and log._events._records._writer.closed
    (small_disk / "filler").unlink()
    open_log(small_disk, start=1).close()
    assert lines(small_disk) == [{"step": 1, "loss": 1.0}]


def fill(file: Any) -> None:
    """Writes until the disk is full."""
    with contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))


def test_closing_goes_on_after_an_error(tmp_path: Path, monkeypatch):
    ended = []
    monkeypatch.setattr(storage.Staged, "close", lambda self: ended.append("staged"))

    def fails(self: RecordWriter) -> None:
        raise OSError(5, "Input/output error")

    log = open_log(tmp_path)
    monkeypatch.setattr(RecordWriter, "flush", fails)
    with pytest.raises(UserError, match="events cannot be written: Input/output error"):
        log.close()
    assert ended == ["staged"] and log._file.closed and log._events._records._writer.closed


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "events").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/events cannot be written: File exists"):
        open_log(tmp_path)


def test_plain_lines_now_and_then(tmp_path: Path, monkeypatch, caplog):
    now = [1000.0]
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now[0])
    log = open_log(tmp_path, start=20, total=100)
    with caplog.at_level(logging.INFO, "wsdl_jax"):
        for step in range(21, 61):
            now[0] += 1  # a step a second
            log.progress(step, loss=0.5, images_per_second=16.0)
        log.say("epoch 1: valid_loss 0.4")
    log.close()
    said = [record.getMessage() for record in caplog.records]
    assert said[-1] == "epoch 1: valid_loss 0.4"
    assert said[:-1] == [
        f"step {step}/100  loss 0.500  16 images/s  {100 - step} s left"
        for step in (21, 31, 41, 51)
    ]


def test_a_bar_on_a_terminal(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(run_log.sys.stderr, "isatty", lambda: True, raising=False)
    log = open_log(tmp_path, start=20, total=100)
    log.progress(50, loss=0.25, images_per_second=31.4)
    log.say("epoch 1: valid_loss 0.4000")
    log.close()
    shown = capsys.readouterr().err
    assert "epoch 1: valid_loss 0.4000\n" in shown
    assert "50/100" in shown and "loss=0.250" in shown and "images_s=31" in shown
