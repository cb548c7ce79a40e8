"""A small sweep as a user runs it: printed, stopped, continued, with a failure, collected."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from wsdl_jax.runtime import locks
from wsdl_jax.sweeps import plan

REPOSITORY = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


def execute(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=600, env=environment()
    )


def command(*arguments: str) -> list[str]:
    ignored = ("-W", "error", "-W", "ignore:the load_module")  # of ml_collections
    return [sys.executable, *ignored, "-m", "wsdl_jax.sweep", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def test_printed_commands_are_those_of_main(tmp_path):
    workdir = tmp_path / "a b"
    arguments = ["configs/sweeps/cross_generator.py", f"--workdir={workdir}", "--runner=print"]
    done = execute(*arguments, "--override=data.dir=/my data")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    others = "latent_ddpm", "telea", "navier_stokes", "regrain", "upsample"
    assert lines[0] == [
        *("python", "-m", "wsdl_jax.main"),
        "--config=configs/patches.py:setup=c,source=portraits,generator=ddpm_repaint",
        *("--config.seed=0", "--config.train.self_blend=0.7"),
        *("--config.train.learning_rate=0.003", "--config.train.epochs=16"),
        "--config.data.dir=/my data",
        "--also_on=" + ",".join(f"portraits/{other}" for other in others),
        f"--workdir={workdir}/single/ddpm_repaint/seed-0",
    ]
    assert len(lines) == 12
    assert not workdir.exists()


def test_a_directory_that_cannot_be_written():
    done = execute("configs/sweeps/cross_generator.py", "--workdir=/dev/null/w")
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: /dev/null/w: ") and "Not a directory" in line
    assert "Traceback" not in done.stderr


MINE = """
def get_sweep(arg):
    fields = {fields!r}
    config = "configs/patches.py:setup=c,source=celebahq"
    for seed in (0, 1):
        yield "good/first", config, {{**fields, "seed": seed}}, ["dolos/celebahq_repaint_p2_9k"]
        if not seed:
            yield "bad/batch", config, {{**fields, "train.batch": 4096}}
    yield "good/again", config, {{**fields, "seed": 0}}, ["dolos/celebahq_repaint_p2_9k"]
"""


@pytest.fixture(scope="module")
def story(shrunk, tmp_path_factory):
    """A sweep that is stopped in its first run, continued and collected; what was said."""
    root = tmp_path_factory.mktemp("sweep")
    file, workdir = root / "mine.py", root / "w"
    fields = {**shrunk, "model.depth": 1, "train.epochs": 2, "train.steps_per_epoch": 60}
    file.write_text(MINE.format(fields=fields))
    arguments = (str(file), f"--workdir={workdir}")
    metrics = workdir / "good/first/seed-0/metrics.jsonl"
    with subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, text=True, env=environment(), cwd=REPOSITORY
    ) as process:
        deadline = time.monotonic() + 300
        while not (metrics.exists() and metrics.read_text()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stopped = process.stderr.read()
    os.chdir(REPOSITORY)
    said = [(process.returncode, stopped)]
    done = execute(*arguments)
    said.append((done.returncode, done.stderr))
    collected = execute(*arguments, "--collect")
    return workdir, said, collected


def test_ctrl_c_saves_the_run_in_hand_and_stops(story):
    _, said, _ = story
    code, text = said[0]
    assert code == 130, text
    assert "the same command continues the sweep" in text
    assert "stopped at step" in text
    assert "Traceback" not in text
    assert "[2 of 3]" not in text


def test_the_next_call_continues_and_a_failure_does_not_end_it(story):
    workdir, said, _ = story
    code, text = said[1]
    assert code == 1, text
    assert "4 runs" not in text and "3 runs, 3 not done" in text
    assert "continuing at step" in text
    assert "2 of 3 runs done, 1 failed" in text
    failures = json.loads((workdir / "failures.json").read_text())
    assert list(failures) == ["bad/batch/seed-0"]
    assert failures["bad/batch/seed-0"]["exit_code"] == 2
    assert failures["bad/batch/seed-0"]["error"].startswith("error: train.batch = 4096")
    for seed in (0, 1):
        run = workdir / f"good/first/seed-{seed}"
        assert (run / "results.json").exists()
        beside = "dolos-celebahq_repaint_p2_9k+dolos-celebahq_real"
        assert (run / "evaluations" / beside / "results.json").exists()
    assert not (workdir / "good/again").exists()  # it is good/first


def test_a_third_call_would_do_only_what_is_missing(story):
    workdir, _, _ = story
    planned = plan.read(str(workdir.parent / "mine.py"), epath.Path(workdir))
    assert {run.name: run.is_done() for run in planned} == {
        "good/first": True,
        "good/again": True,
        "bad/batch": False,
    }


def test_tables(story):
    workdir, _, collected = story
    assert collected.returncode == 0, collected.stderr
    text = (workdir / "tables/results.md").read_text()
    assert text in collected.stderr
    runs = [workdir / f"good/first/seed-{seed}/results.json" for seed in (0, 1)]
    aps = [json.loads(path.read_text())["ap"] for path in runs]
    assert aps[0] != aps[1]
    mean, half = sum(aps) / 2, abs(aps[0] - aps[1]) / 2
    row = next(line for line in text.splitlines() if line.startswith("| good | first |"))
    assert "| 2 of 2 |" in row
    assert f"{mean:.1f} ± {half * 2**0.5:.1f}" in row
    row = next(line for line in text.splitlines() if line.startswith("| good | again |"))
    assert "| 1 of 1 |" in row and f"| {aps[0]:.1f} |" in row
    row = next(line for line in text.splitlines() if line.startswith("| bad | batch |"))
    assert row.endswith("| 0 of 1 |  |  |  |  |  |")
    assert "- bad/batch/seed-0: error: train.batch = 4096" in text
    assert (workdir / "tables/heatmaps.png").exists()


@pytest.mark.slow
def test_a_killed_sweep_takes_its_run_with_it(shrunk, tmp_path):
    file, workdir = tmp_path / "mine.py", tmp_path / "w"
    fields = {**shrunk, "model.depth": 1, "train.epochs": 200, "train.steps_per_epoch": 20}
    file.write_text(MINE.format(fields=fields))
    lock = workdir / "good/first/seed-0/.lock"
    arguments = (str(file), f"--workdir={workdir}")
    with subprocess.Popen(
        command(*arguments), stderr=subprocess.DEVNULL, env=environment(), cwd=REPOSITORY
    ) as process:
        deadline = time.monotonic() + 300
        while not (lock.exists() and lock.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        second = execute(*arguments)
        assert second.returncode == 1
        told = f"error: {workdir} is in use by process {process.pid} on "
        assert second.stderr.splitlines()[-1].startswith(told)
        child = int(lock.read_text().split()[1])
        assert child != process.pid
        process.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with locks.locked(lock.parent, wait=True):  # as its last thread ends
        pass
