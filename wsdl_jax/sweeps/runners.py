"""Who runs what is missing of a sweep: this machine, a SLURM cluster, a cloud, or the user."""

import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath

from wsdl_jax.runtime import command, locks, shipped_files
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.interruption import is_heard
from wsdl_jax.sweeps.directory import SweepDirectory, read_by_run, write_by_run
from wsdl_jax.sweeps.plan import missing
from wsdl_jax.sweeps.run import Run

log = logging.getLogger("wsdl_jax")


def start(
    planned: Sequence[Run], workdir: epath.Path, runner: str, options: str, *, resubmit: bool
) -> int:
    """Starts the runs of a sweep that are not done.

    Args:
      planned: the runs of the sweep.
      workdir: the directory of the sweep, which is made unless the runs are only printed.
      runner: one of `RUNNERS`: "here" runs them one after the other and waits for them, "print"
        prints the commands, the others submit them to a cluster.
      options: further options of the cluster's command, as a shell reads them.
      resubmit: whether to submit runs again that were submitted before.

    Returns:
      The exit code, see `run_here`.

    Raises:
      ConfigError: options that a shell cannot read.
      UserError: another process is at work on the sweep, or the cluster does not take a run.
    """
    todo = missing(planned)
    log.info("%d runs, %d not done", len({run.folder for run in planned}), len(todo))
    if runner == "print":
        for run in todo:
            print(shlex.join(["python", *run.command()]))
        return 0
    try:
        words = shlex.split(options) if runner in CLUSTERS else []
    except ValueError as error:
        raise ConfigError(f"--runner_options {options!r}: {error}") from error
    workdir.mkdir(parents=True, exist_ok=True)
    with locks.locked(workdir):
        if runner == "here":
            return run_here(todo, workdir)
        submit(todo, workdir, runner, words, resubmit)
        return 0


# ----- Here ---------------------------------------------------------------------------------------


def run_here(todo: Sequence[Run], workdir: epath.Path) -> int:
    """Runs one after the other on this machine, each as a process of its own.

    The output of a process goes to standard error and, beside its run directory, into a file
    `seed-N.log`. A run that fails is recorded, with its last line, and the next one begins. On
    SIGINT, SIGTERM and SIGHUP the run in hand is asked to save, and no other begins. A process ends
    with this one, however that ends.

    Args:
      todo: the runs.
      workdir: the directory of the sweep.

    Returns:
      The exit code: 0, `command.FAILED` where a run has failed, 128 + n after signal n.

    Raises:
      UserError: the record of failures is damaged.
    """
    directory = SweepDirectory(workdir)
    failures = read_by_run(directory.failures)
    stops: list[int] = []
    processes: list[subprocess.Popen] = []

    def stop(number: int, _: Any) -> None:
        stops.append(number)
        for process in processes:
            # A second Ctrl-C does not wait. (Of SIGTERM, some programs send two.)
            process.kill() if stops.count(signal.SIGINT) > 1 else process.terminate()

    caught = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if is_heard(n)]
    handlers = {number: signal.signal(number, stop) for number in caught}
    failed = 0
    try:
        for number, run in enumerate(todo, 1):
            log.info("[%d of %d] %s", number, len(todo), run.label)
            code, last_line = _execute(run, processes, stops)
            if stops:
                log.info("%s: stopped; the same command continues the sweep", run.label)
                return 128 + stops[0]
            failures.pop(run.label, None)
            if code:
                failed += 1
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else last_line
                failures[run.label] = {"exit_code": code, "error": how}
                log.error("%s: failed (%d): %s", run.label, code, how)
            write_by_run(directory.failures, failures)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    log.info("%d of %d runs done, %d failed", len(todo) - failed, len(todo), failed)
    return command.FAILED if failed else 0


def _execute(run: Run, processes: list[subprocess.Popen], stops: list[int]) -> tuple[int, str]:
    """Executes a run; returns its exit code and the last line of its output.

    Args:
      run: the run.
      processes: has the run's process while it is running.
      stops: signals that have asked to stop; read once the process can be asked, too.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    last_line = ""
    with run.folder.with_name(f"{run.folder.name}.log").open("a") as file:
        # In a process group of its own: Ctrl-C goes to this program, which passes SIGTERM on.
        with subprocess.Popen(
            [sys.executable, *run.command()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
            env={**os.environ, command.PARENT: str(os.getpid())},
        ) as process:
            processes.append(process)
            if stops:  # it came before there was a process
                process.terminate()
            for line in process.stdout:
                sys.stderr.write(line)
                file.write(line)
                file.flush()
                last_line = line.strip() or last_line
        processes.remove(process)
    return process.returncode, last_line


# ----- Elsewhere ----------------------------------------------------------------------------------


def slurm_command(run: Run, options: Sequence[str]) -> list[str]:
    """Returns the command that submits a run to SLURM by launch/slurm.sbatch.

    Args:
      run: the run.
      options: further options of sbatch.
    """
    return [
        *("sbatch", "--parsable", f"--job-name=wsdl-{run.label.replace('/', '-')}"),
        *(*options, shipped_files.find("launch/slurm.sbatch")),
        *(*run.arguments, f"--workdir={run.folder}"),
    ]


def skypilot_command(run: Run, options: Sequence[str]) -> list[str]:
    """Returns the command that submits a run to a cloud by launch/skypilot.yaml.

    Args:
      run: the run.
      options: further options of `sky jobs launch`.

    Raises:
      UserError: a run directory that is not in a bucket, or an argument that the launcher's shell
        would split or expand.
    """
    bucket = re.match(r"(\w+://[^/]+)/(.+)", os.fspath(run.folder))
    if bucket is None:
        raise UserError(
            f"--workdir {run.folder}: SkyPilot's machines write to a bucket, gs://BUCKET/FOLDER"
        )
    for word in (*run.arguments, bucket[2]):
        if re.search(r"[\s*?\[]", word):
            raise UserError(f"{run.label}: {word!r} cannot be passed on by launch/skypilot.yaml")
    return [
        *("sky", "jobs", "launch", shipped_files.find("launch/skypilot.yaml")),
        *("--yes", "--detach-run"),
        *("--name", "wsdl-" + re.sub(r"[^a-z0-9]+", "-", run.label.lower())),
        *("--env", f"BUCKET={bucket[1]}", "--env", f"RUN={bucket[2]}"),
        *("--env", f"ARGUMENTS={' '.join(run.arguments)}", *options),
    ]


CLUSTERS = {"slurm": slurm_command, "skypilot": skypilot_command}
RUNNERS = ("here", "print", *CLUSTERS)


def submit(
    todo: Sequence[Run], workdir: epath.Path, runner: str, options: Sequence[str], resubmit: bool
) -> None:
    """Submits runs to a cluster, a job for each, and records the answers in the sweep.

    Args:
      todo: the runs.
      workdir: the directory of the sweep.
      runner: one of `CLUSTERS`.
      options: further options of the command that submits.
      resubmit: whether to submit runs again that were submitted before.

    Raises:
      UserError: the first run that the cluster does not take, which ends the submission, or a run
        that cannot be described to it, before anything is submitted.
    """
    directory = SweepDirectory(workdir)
    submitted = read_by_run(directory.submitted)
    new = [run for run in todo if resubmit or run.label not in submitted]
    commands = [CLUSTERS[runner](run, options) for run in new]  # all fit before one is submitted
    for run, words in zip(new, commands, strict=True):
        environment = {"PYTHON": sys.executable, **os.environ}  # of launch/slurm.sbatch
        try:
            done = subprocess.run(words, env=environment, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UserError(f"{words[0]} is not installed here") from error
        answer = (done.stdout + done.stderr).strip().splitlines() or ["no word"]
        if done.returncode:
            raise UserError(f"{run.label} was not submitted: {words[0]}: {answer[-1]}")
        submitted[run.label] = answer[0] if runner == "slurm" else answer[-1]
        write_by_run(directory.submitted, submitted)
        log.info("%s: submitted: %s", run.label, submitted[run.label])
    log.info(
        "%d submitted now, %d before (--resubmit for those that died), %d in all are missing",
        len(new),
        len(todo) - len(new),
        len(todo),
    )
