"""Two real processes with four devices each compute what one with eight does, and one with one."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from flax import nnx

from wsdl_jax import runs
from wsdl_jax.runtime import hosts
from wsdl_jax.runtime.errors import UserError

REPOSITORY = Path(__file__).parent.parent.parent
CONFIG = "configs/patches.py:setup=b,source=celebahq"
PYTHON = (sys.executable, "-W", "error", "-W", "ignore:the load_module")  # of ml_collections


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def start(
    run: Path,
    fields: dict[str, Any],
    *,
    count: int,
    devices: int,
    own: tuple[dict, ...] = (),
    program: tuple[str, ...] = ("-m", "wsdl_jax.main"),
) -> list[subprocess.Popen]:
    """Starts the main job in so many processes with so many devices each.

    own: fields that one process has of its own.
    program: that runs the job.
    """
    words = ("--config", CONFIG, "--workdir", str(run))
    return launch((*program, *words), fields, count=count, devices=devices, own=own)


def launch(
    words: tuple[str, ...],
    fields: dict[str, Any],
    *,
    count: int,
    devices: int,
    own: tuple[dict, ...] = (),
) -> list[subprocess.Popen]:
    """Starts a command in so many processes with so many devices each."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    address = f"localhost:{free_port()}"
    started = []
    for index in range(count):
        values = {**fields, **(own[index] if own else {})}
        arguments = [
            *PYTHON,
            *words,
            *(f"--config.{field}={value}" for field, value in values.items()),
        ]
        if count > 1:
            arguments += [f"--coordinator={address}", f"--processes={count}", f"--process={index}"]
        started.append(
            subprocess.Popen(
                arguments,
                cwd=REPOSITORY,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish(started: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit code and standard error of each process, without the connection's own lines."""
    ended = [process.communicate(timeout=300) for process in started]
    return [(process.returncode, err) for process, (_, err) in zip(started, ended, strict=True)]


@pytest.fixture(scope="module")
def fields(shrunk: dict[str, Any]) -> dict[str, Any]:
    # Five fakes or three reals in a batch of eight: nothing divides, and no step is like another.
    return {**shrunk, "model.depth": 1, "train.learning_rate": 0.01, "data.flip": True}


@pytest.fixture(scope="module")
def on_two_hosts(fields, tmp_path_factory) -> dict[tuple[int, int], tuple[Path, list]]:
    """Run directory, and what each process said, by (processes, devices of each)."""
    out = {}
    for count, devices in ((2, 4), (1, 8), (1, 1)):
        run = tmp_path_factory.mktemp(f"{count}x{devices}") / "run"
        said = finish(start(run, fields, count=count, devices=devices))
        assert [code for code, _ in said] == [0] * count, said
        out[count, devices] = run, said
    return out


def lines(run: Path) -> list[dict[str, float]]:
    """Losses of all steps; speeds left out."""
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in entry.items() if k not in ("images_per_second", "data_wait")}
        for entry in entries
    ]


@pytest.mark.parametrize("other", [(1, 8), (1, 1)])
def test_the_same_run(on_two_hosts, other):
    (run, _), (reference, _) = on_two_hosts[2, 4], on_two_hosts[other]
    assert (run / "config.json").read_text() == (reference / "config.json").read_text()
    assert len(lines(run)) == len(lines(reference)) == 6  # four steps and two validations
    for mine, theirs in zip(lines(run), lines(reference), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-4)
    a, b = (runs.load(epath.Path(path)) for path in (run, reference))
    assert a.step == b.step
    states = (nnx.state(trained.model, (nnx.Param, nnx.BatchStat)) for trained in (a, b))
    for mine, theirs in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize("other", [(1, 8), (1, 1)])
def test_the_same_results(on_two_hosts, other):
    stored = [
        json.loads((on_two_hosts[which][0] / "results.json").read_text())
        for which in ((2, 4), other)
    ]
    numbers = ("iou_sm", "pbca_sm", "iou_lg", "pbca_lg", "ap", "auc")
    for name in numbers:
        assert stored[0][name] == pytest.approx(stored[1][name], abs=1)
    assert stored[0]["trivial"]["random"] == stored[1]["trivial"]["random"]
    assert (stored[0]["fake_images"], stored[0]["real_images"]) == (11, 8)
    tables = [
        list(csv.DictReader((on_two_hosts[which][0] / "predictions.csv").read_text().splitlines()))
        for which in ((2, 4), other)
    ]
    assert len(tables[0]) == len(tables[1]) == 19
    for mine, theirs in zip(*tables, strict=True):
        assert (mine["key"], mine["label"]) == (theirs["key"], theirs["label"])
        assert float(mine["score"]) == pytest.approx(float(theirs["score"]), rel=1e-3)
        assert mine["manipulated_share"] == theirs["manipulated_share"]


def test_one_host_speaks(on_two_hosts):
    _, said = on_two_hosts[2, 4]
    (_, first), (_, second) = said
    assert "epoch 2: " in first and "written to" in first
    assert "epoch" not in second and "written to" not in second


@pytest.mark.slow
def test_what_hosts_do_not_share_is_told(fields, tmp_path):
    own = ({}, {"seed": 7})
    said = finish(start(tmp_path / "run", fields, count=2, devices=4, own=own))
    assert all(code != 0 for code, _ in said)
    assert any("error: host 1 does not have host 0's config" in err for _, err in said)
    assert not (tmp_path / "run").exists()


# The first host builds the data for longer than a collective waits for its connections.
SLOW = """
import runpy, time
from wsdl_data import build
prepare = build.prepare
def slow(*arguments):
    time.sleep(20)
    prepare(*arguments)
build.prepare = slow
runpy.run_module("wsdl_jax.main", run_name="__main__")
"""


@pytest.mark.slow
def test_hosts_wait_for_data_as_long_as_it_takes(fields, dolos_folder, tmp_path):
    own = {"data.dir": tmp_path / "data", "data.manual_dir": dolos_folder, "train.epochs": 1}
    started = start(tmp_path / "run", {**fields, **own}, count=2, devices=4, program=("-c", SLOW))
    (first, err), (second, _) = finish(started)
    assert (first, second) == (0, 0), err
    assert (tmp_path / "run/results.json").exists()


@pytest.mark.slow
def test_what_the_first_host_cannot_do_ends_all(fields, tmp_path):
    own = {"data.dir": tmp_path / "data", "data.manual_dir": tmp_path / "nowhere"}
    said = finish(start(tmp_path / "run", {**fields, **own}, count=2, devices=4))
    assert [code for code, _ in said] == [1, 1]
    told = f"dolos/celebahq_real: no folder {tmp_path}/nowhere"
    assert f"error: {told}" in said[0][1] and f"error: host 0: {told}" in said[1][1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_one_host_cannot_do_by_itself_ends_all_at_once(fields, data_dir, tmp_path):
    """With data on a disk of its own."""
    elsewhere = {"data.dir": tmp_path / "data", "data.manual_dir": tmp_path / "nowhere"}
    said = finish(start(tmp_path / "run", fields, count=2, devices=4, own=({}, elsewhere)))
    # By JAX's own end of a process that fails both would be aborted, after five minutes.
    assert [code for code, _ in said] == [1, 1]
    told = f"dolos/celebahq_real: no folder {tmp_path}/nowhere"
    assert f"error: host 1: {told}" in said[0][1] and f"error: {told}" in said[1][1]


@pytest.mark.slow
def test_hosts_with_other_data_are_told(fields, data_dir, tmp_path):
    """Equal counts; masks and images of one host come from other files."""
    other = shutil.copytree(data_dir, tmp_path / "data")
    (path,) = other.glob("dolos/celebahq_real/*/metadata.json")
    kept = json.loads(path.read_text())
    kept["content"]["sources"] = "0" * 64
    kept["recorded"]["source"] = "/elsewhere"
    path.write_text(json.dumps(kept))
    own = ({}, {"data.dir": str(other)})
    said = finish(start(tmp_path / "run", fields, count=2, devices=4, own=own))
    assert [code for code, _ in said] == [1, 1]
    for _, err in said:
        assert "error: host 1 does not have host 0's data" in err
    assert not (tmp_path / "run").exists()


def test_evaluation_by_itself_joins_its_hosts(on_two_hosts, tmp_path):
    run = shutil.copytree(on_two_hosts[2, 4][0], tmp_path / "run")
    before = (run / "predictions.csv").read_text()
    for path in (run / "predictions.csv", run / "results.json", run / "real_scores.json"):
        path.unlink()
    words = ("-m", "wsdl_jax.evaluate", "--run", str(run))
    (first, err), (second, silent) = finish(launch(words, {}, count=2, devices=4))
    assert (first, second) == (0, 0), err
    assert "written to" in err and "written to" not in silent
    assert (run / "predictions.csv").read_text() == before


# Gradient descent on the sum of a matrix, of which each of eight devices has an eighth.
IN_PARTS = """
import sys
import jax, numpy as np
from wsdl_jax.runtime import hosts, parallel
hosts.start(sys.argv[1], 2, int(sys.argv[2]))
devices = parallel.Parallel("shard_map", fsdp=True)
start = {"w": np.arange(2048, dtype=np.float32).reshape(16, 128), "b": np.float32(3)}
shapes = parallel.shapes_of(start)

def step(state, batch):
    def loss(parts):
        found = parallel.whole(parts, shapes)
        return (found["w"].sum() + found["b"]) * batch["x"].mean()
    gradients = parallel.mean_gradient(jax.grad(loss)(state), shapes)
    norm = parallel.norm(gradients, shapes)
    return (jax.tree.map(lambda x, g: x - g, state, gradients), norm), None

state = devices.distribute(start)
rows = np.arange(16, dtype=np.float32).reshape(2, 8)[jax.process_index()]
(state, norm), _ = devices.map(step, donate=True)(state, devices.shard({"x": rows}))
assert [part.data.shape for part in state["w"].addressable_shards] == [(16, 16)] * 4
found = devices.one(state)
np.testing.assert_allclose(found["w"], start["w"] - 7.5, rtol=1e-6)
np.testing.assert_allclose((found["b"], devices.one(norm)), (-4.5, 7.5 * 2049**0.5), rtol=1e-6)
print("as one device", file=sys.stderr)
"""


@pytest.mark.slow
def test_parts_on_two_hosts_make_one_whole():
    address = f"localhost:{free_port()}"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    started = [
        subprocess.Popen(
            [*PYTHON, "-c", IN_PARTS, address, str(index)],
            cwd=REPOSITORY,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for code, said in finish(started):
        assert code == 0 and "as one device" in said, said


def test_one_host_is_preempted(fields, on_two_hosts, tmp_path):
    """Both stop at one step; it continues on another number of hosts, to the same end."""
    run = tmp_path / "run"
    longer = {**fields, "train.epochs": 40}
    started = start(run, longer, count=2, devices=4)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started), finish(started)
        time.sleep(0.1)
    started[1].send_signal(signal.SIGTERM)
    said = finish(started)
    assert [code for code, _ in said] == [143, 143], said
    assert "the same command continues it" in said[0][1]
    stopped = lines(run)[-1]["step"]
    assert stopped < 80
    ((code, err),) = finish(start(run, longer, count=1, devices=8))
    assert code == 0, err
    assert f"continuing at step {stopped:.0f} of 80" in err
    steps = [entry["step"] for entry in lines(run) if "loss" in entry]
    assert steps == sorted(set(steps)) and steps[-1] == 80
    for mine, theirs in zip(lines(run)[:6], lines(on_two_hosts[1, 8][0]), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-4)


# ----- One process --------------------------------------------------------------------------------


def test_one_host_is_alone():
    hosts.start(None, None, None)
    assert hosts.is_first()
    hosts.wait("anything")
    assert hosts.any_host(True) and not hosts.any_host(False)
    values = np.array([[1.5, np.nan]])
    np.testing.assert_array_equal(hosts.gather(values), values[None])
    hosts.agree(anything="at all")


@pytest.mark.parametrize(
    "arguments", [("localhost:1", None, None), (None, 2, 0), ("localhost:1", 2, None)]
)
def test_half_an_address(arguments):
    with pytest.raises(UserError, match="--coordinator, --processes and --process go together"):
        hosts.start(*arguments)
