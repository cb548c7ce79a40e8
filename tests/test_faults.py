"""A real run is killed, its files are damaged, its disk is full: it ends as if undisturbed."""

import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from wsdl_jax import methods, runs
from wsdl_jax.evaluation import evaluate
from wsdl_jax.runs.checkpoints import Checkpoints

REPOSITORY = Path(__file__).parent.parent
STEPS = 2  # of an epoch, after which all is saved
TOTAL = 20 * STEPS

# Imports take seconds: one process imports the program, and a fork of it is each attempt. A line of
# standard input is [arguments, file of what is said]; the answers are the fork's process id and,
# when it has ended, its exit code.
SERVER = """
import json, os, runpy, sys, traceback
import wsdl_jax.evaluation, wsdl_jax.training, wsdl_jax.runtime.command  # noqa
for line in sys.stdin:
    arguments, said = json.loads(line)
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
        sys.argv = ["wsdl_jax.main", *arguments]
        try:
            runpy.run_module("wsdl_jax.main", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Attempts:
    """The command, one attempt at a time."""

    def __init__(self, overrides: dict[str, Any], said: Path):
        self._config = ["--config", str(REPOSITORY / "configs/patches.py:source=celebahq")]
        self._config += [f"--config.{field}={value}" for field, value in overrides.items()]
        self._said = said
        ignored = ("the load_module", ".*fork")  # of ml_collections; of JAX
        flags = [flag for part in ignored for flag in ("-W", f"ignore:{part}")]
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error", *flags, "-c", SERVER],
            # Compilation takes most of the time of such short runs.
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def _answer(self) -> int:
        return int(self._server.stdout.readline())

    def _ended(self) -> bool:
        return bool(select.select([self._server.stdout], [], [], 0)[0])

    def __call__(self, run: Path, until: Callable[[], bool] | None = None) -> tuple[int, str]:
        """Exit code and what is said of the command on a run, killed as soon as `until`."""
        self._said.unlink(missing_ok=True)
        arguments = [*self._config, "--workdir", str(run)]
        self._server.stdin.write(json.dumps([arguments, str(self._said)]).encode() + b"\n")
        process = self._answer()
        while until is not None and not self._ended():
            if until():
                os.kill(process, signal.SIGKILL)
                break
            time.sleep(0.001)
        code = self._answer()
        return code, self._said.read_text() if self._said.exists() else ""

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


@pytest.fixture(scope="module")
def attempts(shrunk, tmp_path_factory) -> Iterator[Attempts]:
    overrides = {
        **shrunk,
        "model.depth": 1,
        "train.epochs": TOTAL // STEPS,
        "train.steps_per_epoch": STEPS,
        "train.keep_best": 4,
        "train.learning_rate": 0.01,
    }
    attempts = Attempts(overrides, tmp_path_factory.mktemp("attempts") / "said")
    yield attempts
    attempts.close()


@pytest.fixture(scope="module")
def undisturbed(attempts: Attempts, tmp_path_factory) -> Path:
    """A run that nothing has disturbed. To be read only."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    code, said = attempts(run)
    assert code == 0, said
    return run


def logged(run: Path) -> list[dict[str, Any]]:
    """The entries of metrics.jsonl; of a killed run without the half line at the end."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def saved(run: Path) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    return sorted(int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit())


def assert_same(run: Path, other: Path) -> None:
    """Two runs have ended with the same bits, have logged the same, and are judged the same."""
    config = runs.load_config(epath.Path(run))
    like = runs.initial_state(methods.blank(config, None), config.train)
    (step, state), (other_step, other_state) = (
        Checkpoints(epath.Path(r), keep_best=1).newest(like) for r in (run, other)
    )
    assert step == other_step == TOTAL
    assert jax.tree.structure(state) == jax.tree.structure(other_state) == jax.tree.structure(like)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    for key, steps in (
        ("loss", [*range(1, TOTAL + 1)]),
        ("gradient_norm", [*range(1, TOTAL + 1)]),
        ("valid_loss", [*range(STEPS, TOTAL + 1, STEPS)]),
    ):
        values, others = (
            [(e["step"], e[key]) for e in logged(r) if key in e] for r in (run, other)
        )
        assert values == others
        assert [step for step, _ in values] == steps
    for name in ("results.json", "predictions.csv"):
        assert (run / name).read_text() == (other / name).read_text()


# ----- kill -9 ------------------------------------------------------------------------------------


class Moment:
    """True once an attempt has come to a step, or to saving or evaluation, and some time later."""

    def __init__(self, run: Path, kind: str, step: int, delay: float):
        self._run, self._kind, self._step, self._delay = run, kind, step, delay
        self._log = run / "metrics.jsonl"
        self._old = self._modified()
        self.began = time.monotonic()
        self.since = math.inf

    def __call__(self) -> bool:
        if self.since == math.inf and self._reached():
            self.since = time.monotonic()
        return time.monotonic() >= self.since + self._delay

    def _modified(self) -> int:
        return self._log.stat().st_mtime_ns if self._log.exists() else 0

    def _reached(self) -> bool:
        if self._kind == "start":
            return True
        if self._kind == "evaluation":
            return (self._run / f"checkpoints/{TOTAL}").exists()
        if self._modified() == self._old:  # by the attempt before
            return False
        entries = logged(self._run)
        if not entries or entries[-1]["step"] < self._step:
            return False
        return self._kind == "step" or any(self._run.glob("checkpoints/*.orbax-checkpoint-tmp"))


def test_killed_at_twenty_moments(attempts: Attempts, undisturbed: Path, tmp_path: Path):
    run = tmp_path / "run"
    rng = np.random.default_rng(0)
    # After these steps: at once, or as soon as something is being saved; then some time later.
    steps = np.sort(rng.choice(np.arange(1, TOTAL - 10), 14, replace=False)).tolist()
    moments = [("save" if rng.random() < 0.5 else "step", step) for step in steps]
    for place in rng.integers(0, 14, 5):
        moments.insert(place, ("start", 0))
    moments.append(("evaluation", TOTAL))
    assert len(moments) == 20

    # Seconds at most; those until the first step are measured below.
    delays = {"start": 3.0, "step": 0.05, "save": 0.05, "evaluation": 0.5}
    leftovers = 0
    for kind, step in moments:
        moment = Moment(run, kind, step, rng.uniform(0, delays[kind]))
        before = saved(run)
        code, said = attempts(run, until=moment)
        if kind == "step":
            delays["start"] = moment.since - moment.began
        assert code == -signal.SIGKILL, said
        assert "Traceback" not in said and "error" not in said and "skipped" not in said, said
        if "continuing at step" in said:
            assert f"continuing at step {before[-1]} of {TOTAL}" in said
        elif "epoch" in said:
            assert not before
        # The save before the last one was complete when the last one began.
        last = logged(run)[-1]["step"] if logged(run) else 0
        assert last - max(saved(run), default=0) <= 2 * STEPS + 1, (kind, step, saved(run))
        leftovers += any(run.glob("checkpoints/*.orbax-checkpoint-tmp"))
    assert leftovers

    code, said = attempts(run)
    assert code == 0, said
    assert_same(run, undisturbed)
    assert not list(run.glob("checkpoints/*.orbax-checkpoint-tmp"))
    assert not (run / "damaged_checkpoints").exists()


# ----- Damage -------------------------------------------------------------------------------------


def largest(checkpoint: Path) -> Path:
    return max(checkpoint.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)


def flip(checkpoint: Path) -> None:
    content = bytearray(largest(checkpoint).read_bytes())
    content[len(content) // 2] ^= 1
    largest(checkpoint).write_bytes(content)


def truncate(checkpoint: Path) -> None:
    os.truncate(largest(checkpoint), 1000)


def delete(checkpoint: Path) -> None:
    largest(checkpoint).unlink()


def test_damaged_checkpoints_are_skipped(attempts: Attempts, undisturbed: Path, tmp_path: Path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    *_, sound, third, second, newest = saved(run)
    flip(run / f"checkpoints/{newest}")
    truncate(run / f"checkpoints/{second}")
    delete(run / f"checkpoints/{third}")
    (run / "results.json").unlink()
    code, said = attempts(run)
    assert code == 0, said
    for step in (newest, second, third):
        assert f"checkpoint {run}/checkpoints/{step} " in said
    assert said.count("; skipped") == 3
    assert f"continuing at step {sound} of {TOTAL}" in said
    assert "Traceback" not in said and "Exception" not in said
    assert_same(run, undisturbed)
    assert saved(run) == saved(undisturbed)
    moved = {int(path.name) for path in (run / "damaged_checkpoints").iterdir()}
    assert moved == {newest, second, third}


def test_the_next_best_is_evaluated(undisturbed: Path, tmp_path: Path, caplog):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    losses = {entry["step"]: entry["valid_loss"] for entry in logged(run) if "valid_loss" in entry}
    best, second, *_ = sorted(saved(run), key=losses.get)
    assert json.loads((run / "results.json").read_text())["checkpoint"] == best
    truncate(run / f"checkpoints/{best}")
    assert evaluate(epath.Path(run))["checkpoint"] == second
    assert f"checkpoint {run}/checkpoints/{best} cannot be read: " in caplog.text
    assert saved(run) == saved(undisturbed) and not (run / "damaged_checkpoints").exists()


# ----- Disks --------------------------------------------------------------------------------------


def test_a_full_disk(attempts: Attempts, undisturbed: Path, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(arguments, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        run = disk / "run"
        code, said = attempts(run)
        assert code == 1
        newest = saved(run)[-1]
        assert said.splitlines()[-1] == (
            f"error: cannot save to {run}/checkpoints: No space left on device; newest intact "
            f"checkpoint: {run}/checkpoints/{newest}"
        )
        assert "Traceback" not in said and said.count("error") == 1
        assert not list(run.glob("checkpoints/*.orbax-checkpoint-tmp"))
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        code, said = attempts(run)
        assert code == 0, said
        assert f"continuing at step {newest} of {TOTAL}" in said
        assert_same(run, undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
