"""launch/slurm.sbatch on a real SLURM of one machine: two nodes, eight pretended GPUs each."""

import contextlib
import getpass
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from test_hosts import CONFIG, REPOSITORY, finish, free_port, lines, start

from wsdl_jax import methods, runs
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.sweeps import plan

pytestmark = pytest.mark.slurm

WAIT = 300  # seconds for anything
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # daemons are not on everybody's path
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
FirstJobId={first_job}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=DEFAULT CPUs=32 RealMemory=1000 Gres=gpu:8
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName={host}-second NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=DEFAULT Nodes=ALL State=UP MaxTime=INFINITE
PartitionName=batch Default=YES PriorityTier=1
PartitionName=grace PriorityTier=1 GraceTime=60
PartitionName=urgent PriorityTier=2
"""


class Cluster:
    """A running SLURM. `batch` and `grace` are preempted by jobs of `urgent`."""

    def __init__(self, root: Path, environment: dict[str, str]):
        self._root, self._environment = root, environment

    def say(self, *command: str, **environment: str) -> str:
        """Standard output of one of SLURM's commands, in the repository."""
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**self._environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}\n{self.logs()}"
        return done.stdout

    def submit(self, output: Path, *arguments: str, **environment: str) -> str:
        """Submits a job and returns its id."""
        return self.say("sbatch", "--parsable", f"--output={output}", *arguments, **environment)[
            :-1
        ]

    def preempt(self) -> None:
        """Takes all nodes away for a moment."""
        arguments = ("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
        self.submit(Path(os.devnull), *arguments)

    def job(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        fields = self.say("scontrol", "show", "--oneliner", "job", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def ended(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job that has ended."""
        final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        return wait_for(lambda: (facts := self.job(job))["JobState"] in final and facts, self.logs)

    def logs(self) -> str:
        return "\n".join(
            f"{log.name}: {log.read_text()[-2000:]}"
            for log in sorted(self._root.iterdir())
            if log.suffix in (".log", ".out")
        )


def wait_for(condition: Callable[[], Any], explain: Callable[[], str]) -> Any:
    """The first value of `condition` that is true."""
    deadline = time.monotonic() + WAIT
    while not (value := condition()):
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)
    return value


def first_job_id() -> int:
    """JAX derives its coordinator's port from the job's id; the ports of some jobs are free."""

    def is_free(port: int) -> bool:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return True
        return False

    for candidate in iter(lambda: secrets.randbelow(50000) + 1, None):
        if all(is_free(65535 - 4095 + (candidate + i) % 4096) for i in range(20)):
            return candidate
    raise AssertionError


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    missing = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if missing:
        pytest.skip(f"SLURM is not installed: no {', '.join(missing)}")
    host = socket.gethostname().split(".")[0]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    # Not pytest's directory: the path of a Unix socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        environment |= {"SLURM_CONF": str(root / "slurm.conf"), "PATH": PATH}
        (root / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=host,
                user=getpass.getuser(),
                root=root,
                ports=[free_port() for _ in range(3)],
                first_job=first_job_id(),
            )
        )
        (root / "gres.conf").write_text(f"Name=gpu File={root}/gpu[0-7]\n")
        for index in range(8):
            (root / f"gpu{index}").touch()
        (root / "munge.key").write_bytes(secrets.token_bytes(128))
        (root / "munge.key").chmod(0o400)
        cluster = Cluster(root, environment)

        daemons: list[subprocess.Popen] = []

        def daemon(*command: str) -> None:
            with (root / f"{command[0]}-{len(daemons)}.out").open("wb") as out:
                process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
            daemons.append(process)
            stack.callback(stop, process)

        def stop(process: subprocess.Popen) -> None:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        daemon(
            *("munged", "--foreground", "--force"),
            *(f"--key-file={root}/munge.key", f"--socket={root}/munge.socket"),
            *(f"--pid-file={root}/munged.pid", f"--log-file={root}/munged.log"),
            f"--seed-file={root}/munge.seed",
        )
        wait_for((root / "munge.socket").exists, cluster.logs)
        (root / "state").mkdir()
        daemon("slurmctld", "-D")
        for node in (host, f"{host}-second"):
            (root / f"spool-{node}").mkdir()
            daemon("slurmd", "-D", "-N", node)

        def idle() -> bool:
            assert all(process.poll() is None for process in daemons), cluster.logs()
            command = ("sinfo", "--noheader", "--partition=batch", "--format=%T")
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            return done.stdout == "idle\n"

        wait_for(idle, cluster.logs)
        try:
            yield cluster
        finally:
            cluster.say("scancel", f"--user={getpass.getuser()}", "--signal=KILL", "--full")
            cluster.say("scancel", f"--user={getpass.getuser()}")
            wait_for(lambda: not cluster.say("squeue", "--noheader"), cluster.logs)


# ----- The real job -------------------------------------------------------------------------------


def final_state(run: Path) -> Any:
    """Everything in the newest checkpoint."""
    config = runs.load_config(epath.Path(run))
    checkpoints = Checkpoints(epath.Path(run), keep_best=config.train.keep_best)
    try:
        like = runs.initial_state(methods.blank(config, None), config.train)
        return checkpoints.restore(checkpoints.latest(), like)
    finally:
        checkpoints.close()


@pytest.mark.slow
def test_preempted_once(cluster, shrunk, tmp_path):
    """Two tasks, preempted and requeued by SLURM, end as two processes do that nobody disturbs."""
    fields = {**shrunk, "model.depth": 1, "data.flip": True, "train.learning_rate": 0.01}
    fields |= {"train.epochs": 2, "train.steps_per_epoch": 40}
    reference, run, output = tmp_path / "reference", tmp_path / "run", tmp_path / "output"
    said = finish(start(reference, fields, count=2, devices=4))
    assert [code for code, _ in said] == [0, 0], said

    job = cluster.submit(
        output,
        *("launch/slurm.sbatch", "--config", CONFIG, "--workdir", str(run)),
        *(f"--config.{field}={value}" for field, value in fields.items()),
        PYTHON=sys.executable,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    metrics = run / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text(), lambda: output.read_text())
    cluster.preempt()
    facts = cluster.ended(job)
    text = output.read_text()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), text
    assert "DUE TO PREEMPTION" in text
    assert "the same command continues it" in text
    stopped = int(text.split(": stopped at step ")[1].split(";")[0])
    assert 0 < stopped < 80
    assert f"continuing at step {stopped} of 80" in text
    assert "on 8 × cpu" in text.lower()

    assert lines(run) == lines(reference)
    for file in ("results.json", "predictions.csv", "config.json"):
        assert (run / file).read_bytes() == (reference / file).read_bytes()
    for mine, theirs in zip(
        *map(jax.tree.leaves, (final_state(run), final_state(reference))), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


# ----- What becomes of a job, with a program that does nothing else -------------------------------


@pytest.fixture
def program(tmp_path) -> Path:
    """In place of Python: says how it was started; what it does follows from its last argument."""
    path = tmp_path / "python"
    path.write_text(
        """#!/usr/bin/env bash
trap 'sleep 2; echo "saved $SLURM_PROCID"; exit 143' TERM
echo "task $SLURM_PROCID/$SLURM_STEP_NUM_TASKS restart ${SLURM_RESTART_COUNT:-0}" \\
  "gpus $JAX_LOCAL_DEVICE_IDS cpus $SLURM_CPUS_PER_TASK arguments $*"
[[ ${!#} == fail ]] && exit 1
[[ ${!#} == once || ${SLURM_RESTART_COUNT:-0} -gt 0 ]] && exit 0
for ((i = 0; i < 1000; i++)); do sleep 0.1; done
"""
    )
    path.chmod(0o755)
    return path


def started(output: Path) -> bool:
    return output.exists() and output.read_text().count("task ") == 2


@pytest.mark.parametrize(("argument", "state"), [("once", "COMPLETED"), ("fail", "FAILED")])
def test_the_end_is_the_end(cluster, program, tmp_path, argument, state):
    output = tmp_path / "output"
    job = cluster.submit(
        output, "launch/slurm.sbatch", "--workdir", "a  b", argument, PYTHON=str(program)
    )
    facts = cluster.ended(job)
    assert (facts["JobState"], facts["Restarts"]) == (state, "0"), output.read_text()
    assert facts["ExitCode"] == ("1:0" if argument == "fail" else "0:0")
    said = [line for line in output.read_text().splitlines() if line.startswith("task")]
    assert sorted(said) == [
        f"task {task}/2 restart 0 gpus 0,1,2,3,4,5,6,7 cpus 32 arguments "
        f"-m wsdl_jax.main --workdir a  b {argument}"
        for task in (0, 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["grace", "signal", "time"])
def test_the_script_requeues(cluster, program, tmp_path, how):
    """Where SLURM only signals the tasks, the script has to see to it that the job runs again."""
    output = tmp_path / "output"
    options = {
        "grace": ["--partition=grace"],
        "signal": [],
        "time": ["--time=1", "--signal=TERM@60"],  # due at once, and sent within half a minute
    }[how]
    job = cluster.submit(output, *options, "launch/slurm.sbatch", "wait", PYTHON=str(program))
    if how != "time":
        wait_for(lambda: started(output), cluster.logs)
    if how == "grace":
        cluster.preempt()
    if how == "signal":
        cluster.say("scancel", "--signal=TERM", job)
    facts = cluster.ended(job)
    text = output.read_text()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), text
    for task in (0, 1):
        assert f"saved {task}" in text
        assert f"task {task}/2 restart 1" in text


def test_a_cancelled_job_saves_and_stays_away(cluster, program, tmp_path):
    output = tmp_path / "output"
    job = cluster.submit(output, "launch/slurm.sbatch", "wait", PYTHON=str(program))
    wait_for(lambda: started(output), cluster.logs)
    cluster.say("scancel", job)
    facts = cluster.ended(job)
    wait_for(lambda: output.read_text().count("saved") == 2, output.read_text)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
def test_a_sweep(cluster, program, tmp_path):
    """A job a run, with the arguments that the run has."""
    program.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    said = cluster.say(
        *(sys.executable, "-m", "wsdl_jax.sweep", "configs/sweeps/cross_dataset.py"),
        *(f"--workdir={tmp_path}/w", "--runner=slurm", "--override=train.epochs=1"),
        f"--runner_options=--nodes=1 --gpus-per-node=4 --output={tmp_path}/%x",
        PYTHON=str(program),
    )
    assert said == ""
    submitted = json.loads((tmp_path / "w" / "submitted.json").read_text())
    assert set(submitted) == {f"portraits-128px/{setup}/seed-0" for setup in "abc"}
    planned = plan.read(
        "configs/sweeps/cross_dataset.py", epath.Path(tmp_path) / "w", ["train.epochs=1"]
    )
    for run in planned:
        facts = cluster.ended(submitted[run.label])
        output = (tmp_path / f"wsdl-{run.label.replace('/', '-')}").read_text()
        assert facts["JobState"] == "COMPLETED", output
        assert output.splitlines() == run.command()


def test_an_interpreter_that_is_not_there(cluster, tmp_path):
    output = tmp_path / "output"
    job = cluster.submit(output, "launch/slurm.sbatch", PYTHON="/nowhere/python")
    facts = cluster.ended(job)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0")
    (line,) = output.read_text().splitlines()
    assert line.startswith("error: no /nowhere/python: ")
