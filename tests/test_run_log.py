"""metrics.jsonl, TensorBoard's events and the lines of progress, as others read them."""

import json
import logging
import struct
from pathlib import Path

import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from wsdl_jax import run_log
from wsdl_jax.run_log import RunLog


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
