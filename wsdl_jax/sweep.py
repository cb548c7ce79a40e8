"""A list of configs → runs, here or on a cluster → tables.

    python -m wsdl_jax.sweep configs/sweeps/setups.py --workdir runs/setups
    python -m wsdl_jax.sweep configs/sweeps/setups.py --workdir runs/setups --collect
    python -m wsdl_jax.sweep configs/sweeps/cross_generator.py:source=celebahq,seeds=3 \\
        --workdir runs/generators --runner slurm --runner_options="--partition=gpu --nodes=1"

The same command again does what is missing. Exit codes: 0 done, 1 a run has failed, 2 wrong flags
or sweep, 130 and 143 stopped by SIGINT (Ctrl-C) and SIGTERM, after the run in hand has saved.

A sweep file has a function `get_sweep(arg)`, of the text behind the file's colon or None, that
yields (name, config, overrides) or (name, config, overrides, also_on): a name GROUP/SETTING for the
tables; a config file and its variant; values by field, the seed among them; and the subsets with
masks on which the run is evaluated besides the config's own. Tuples of one name differ by their
seeds. The run directory is WORKDIR/NAME/seed-N; what two names have in common is run once.
"""

import csv
import json
import logging
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags

from wsdl_jax import configuration, runs
from wsdl_jax.evaluate import results_folder
from wsdl_jax.evaluation import results as results_of
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runtime import command, locks
from wsdl_jax.runtime.errors import ConfigError, UserError, reason
from wsdl_jax.runtime.interruption import is_heard
from wsdl_jax.runtime.storage import read_json, write_whole
from wsdl_jax.sweeps import tables

log = logging.getLogger("wsdl_jax")
_NAME = re.compile(r"\w[\w.+=-]*/\w[\w.+=-]*")
# What is known of a sweep besides its runs, in its directory: by run, exit code and last line of
# those that failed here, and what the cluster answered to those that were submitted.
FAILURES, SUBMITTED = "failures.json", "submitted.json"


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: GROUP/SETTING.
      config: as the run has it, the seed included.
      arguments: of wsdl_jax.main.
      also_on: the subsets that it is evaluated on besides the config's own.
      folder: the run directory.
    """

    name: str
    config: ml_collections.ConfigDict
    arguments: tuple[str, ...]
    also_on: tuple[str, ...]
    folder: epath.Path

    @property
    def label(self) -> str:
        """What the run is called in messages: GROUP/SETTING/seed-N, as its directory."""
        return "/".join(self.folder.parts[-3:])

    @property
    def tested(self) -> tuple[str, ...]:
        """The fake subsets that it is evaluated on."""
        return (self.config.data.test_fake, *self.also_on)

    def command(self) -> list[str]:
        """What Python runs."""
        return ["-m", "wsdl_jax.main", *self.arguments, f"--workdir={self.folder}"]

    def results(self) -> dict[str, dict[str, Any] | None]:
        """Tested fake subset → its results, None where there are none of the best network yet.

        Results that cannot be read are told in a warning, and are none; so are those of another
        network, which may be an older one. Raises UserError where the directory is of another
        config.
        """
        if runs.RunDirectory(self.folder).config.exists():
            self._check()
        written = {}
        for fake in self.tested:
            real = self.config.data.test_real
            folder = results_folder(self.folder, self.config, fake=fake, real=real)
            if (folder / results_of.FILE).exists():
                try:
                    written[fake] = results_of.read(folder / results_of.FILE)
                except UserError as error:
                    log.warning("%s", error)
        networks = {results_of.network(figures) for figures in written.values()}
        best = set(filter(self._is_best, networks))
        of_best = {fake: f for fake, f in written.items() if results_of.network(f) in best}
        return dict.fromkeys(self.tested) | of_best

    def is_done(self) -> bool:
        """Whether it is trained, and evaluated on everything."""
        return all(results is not None for results in self.results().values())

    def _is_best(self, network: tuple[int, int | None]) -> bool:
        """Whether a network, by step and checksum, is what the whole training has given."""
        train = self.config.train
        checkpoints = Checkpoints(self.folder, keep_best=train.keep_best)
        best = checkpoints.best()
        if best is None:
            log.warning("%s has no checkpoints: its results are taken as they are", self.folder)
            return True
        if checkpoints.latest() != train.epochs * train.steps_per_epoch:
            return False
        if (best, checkpoints.checksum(best)) == network:
            return True
        # The best one may be damaged: then the next one was evaluated.
        try:
            return runs.load(self.folder)[2:] == network
        except UserError:
            return False

    def _check(self) -> None:
        config = self.config.copy_and_resolve_references()
        if config.train.per_device_batch:  # these follow from the number of devices
            train = runs.load_config(self.folder).train
            config.train.batch, config.train.learning_rate = train.batch, train.learning_rate
        runs.check(self.folder, config)


# ----- What to run --------------------------------------------------------------------------------


def variant(arg: str | None, **choices: tuple[str, ...] | None) -> dict[str, Any]:
    """Reads a sweep file's argument, "source=celebahq,seeds=3".

    Args:
      arg: what is behind the file's colon.
      choices: key → its valid values, of which the first is the default; None: any text, which is
        None where it is not given.

    Returns:
      A value for every key, and for `seeds`, the number of seeds, 1 by default.

    Raises:
      ConfigError: another key or value.
    """
    values: dict[str, Any] = {key: valid and valid[0] for key, valid in choices.items()}
    values["seeds"] = 1
    for part in filter(None, (arg or "").split(",")):
        key, _, value = part.partition("=")
        if key == "seeds" and value.isdecimal() and int(value):
            values["seeds"] = int(value)
        elif key in choices and value in (choices[key] or {value} - {""}):
            values[key] = value
        else:
            forms = [f"{k}={'|'.join(v) if v else '…'}" for k, v in choices.items()]
            raise ConfigError(
                f"sweep variant {part!r} is not one of {'; '.join([*forms, 'seeds=1|2|…'])}"
            )
    return values


def read(sweep: str, workdir: epath.Path, overrides: Sequence[str] = ()) -> list[Run]:
    """The runs of a sweep, in its order.

    Args:
      sweep: FILE or FILE:VARIANT.
      workdir: directory of the sweep.
      overrides: "field=value" for all runs, over those of the sweep.

    Raises:
      ConfigError: no such file or variant, or a run that main would refuse.
    """
    file, _, arg = sweep.partition(":")
    if not epath.Path(file).is_file():
        raise ConfigError(f"no sweep file {file}")
    try:
        items = [(*item, ()) if len(item) == 3 else item for item in _get_sweep(file)(arg or None)]
    except ConfigError:
        raise
    except Exception as error:  # of the user's own code
        raise ConfigError(f"{file}: {type(error).__name__}: {error}") from error
    if not items:
        raise ConfigError(f"{sweep} has no runs")
    found: list[Run] = []
    folders: dict[Any, epath.Path] = {}
    for name, config_file, fields, also_on in items:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{file}: the name {name!r} is not GROUP/SETTING")
        words = [
            f"--config={config_file}",
            *(f"--config.{field}={value}" for field, value in fields.items()),
            *(f"--config.{override}" for override in overrides),
        ]
        config = _resolve(name, words)
        also_on = tuple(dict.fromkeys(x for x in also_on if x != config.data.test_fake))
        if also_on:
            words.append(f"--also_on={','.join(also_on)}")
        same = (*configuration.essence(config), also_on)
        folder = folders.setdefault(same, workdir / name / f"seed-{config.seed}")
        if any((run.name, run.config.seed) == (name, config.seed) for run in found):
            raise ConfigError(f"{file}: {name} is there twice with seed {config.seed}")
        found.append(Run(name, config, tuple(words), also_on, folder))
    return found


def _get_sweep(file: str) -> Callable[[str | None], Iterable[tuple]]:
    try:
        return runpy.run_path(file)["get_sweep"]
    except KeyError as error:
        raise ConfigError(f"{file} has no function get_sweep") from error


def _resolve(name: str, words: Sequence[str]) -> ml_collections.ConfigDict:
    """The config that main makes of its arguments."""
    argv = [name, *words]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    file = words[0].removeprefix("--config=").partition(":")[0]
    if not epath.Path(file).is_file():
        raise ConfigError(f"{name}: no config file {file} (paths are the repository's)")
    try:
        values(argv)
        configuration.validate(values.config)
        configuration.check_circumstances(values.config)
    except (flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ConfigError(f"{name}: {text}") from error
    return values.config


def _missing(planned: Sequence[Run]) -> list[Run]:
    """The runs that are not done, each once."""
    return list({run.folder: run for run in planned if not run.is_done()}.values())


# ----- Here ---------------------------------------------------------------------------------------


def run_here(todo: Sequence[Run], workdir: epath.Path) -> int:
    """Runs one after the other, each as a process of its own, which ends with this one, however
    that ends. Returns the exit code.

    What a process says goes to standard error and, beside its run directory, into a file
    `seed-N.log`. A run that fails is recorded, with its last line, and the next one begins. On
    SIGINT, SIGTERM and SIGHUP the run in hand is asked to save, and no other begins.
    """
    failures = _read(workdir / FAILURES)
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
            code, said = _execute(run, processes, stops)
            if stops:
                log.info("%s: stopped; the same command continues the sweep", run.label)
                return 128 + stops[0]
            failures.pop(run.label, None)
            if code:
                failed += 1
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else said
                failures[run.label] = {"exit_code": code, "error": how}
                log.error("%s: failed (%d): %s", run.label, code, how)
            _write(workdir / FAILURES, failures)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    log.info("%d of %d runs done, %d failed", len(todo) - failed, len(todo), failed)
    return command.FAILED if failed else 0


def _execute(run: Run, processes: list[subprocess.Popen], stops: list[int]) -> tuple[int, str]:
    """Exit code and last line of a run. While it is running, its process is in `processes`."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    last = ""
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
                last = line.strip() or last
        processes.remove(process)
    return process.returncode, last


def _read(path: epath.Path) -> dict[str, Any]:
    try:
        return dict(read_json(path)) if path.exists() else {}
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it") from error


def _write(path: epath.Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=2) + "\n")


# ----- Elsewhere ----------------------------------------------------------------------------------


def slurm_command(run: Run, options: Sequence[str]) -> list[str]:
    """Submits a run by launch/slurm.sbatch; options are sbatch's."""
    return [
        *("sbatch", "--parsable", f"--job-name=wsdl-{run.label.replace('/', '-')}"),
        *(*options, "launch/slurm.sbatch"),
        *(*run.arguments, f"--workdir={run.folder}"),
    ]


def skypilot_command(run: Run, options: Sequence[str]) -> list[str]:
    """Submits a run by launch/skypilot.yaml; options are those of `sky jobs launch`.

    Raises UserError for a run directory that is not in a bucket, and for arguments that the shell
    of the launcher would split or expand.
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
        *("sky", "jobs", "launch", "launch/skypilot.yaml", "--yes", "--detach-run"),
        *("--name", "wsdl-" + re.sub(r"[^a-z0-9]+", "-", run.label.lower())),
        *("--env", f"BUCKET={bucket[1]}", "--env", f"RUN={bucket[2]}"),
        *("--env", f"ARGUMENTS={' '.join(run.arguments)}", *options),
    ]


COMMANDS = {"slurm": slurm_command, "skypilot": skypilot_command}


def submit(
    todo: Sequence[Run], workdir: epath.Path, runner: str, options: Sequence[str], resubmit: bool
) -> None:
    """Hands runs over to a cluster, as a job each; the answers are recorded in the sweep.

    What has been submitted before is left out, unless `resubmit`. Raises UserError at the first
    that the cluster does not take.
    """
    submitted = _read(workdir / SUBMITTED)
    new = [run for run in todo if resubmit or run.label not in submitted]
    commands = [COMMANDS[runner](run, options) for run in new]  # all fit before one is submitted
    for run, words in zip(new, commands, strict=True):
        environment = {"PYTHON": sys.executable, **os.environ}  # of launch/slurm.sbatch
        try:
            done = subprocess.run(words, env=environment, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise UserError(f"{words[0]} is not installed here") from error
        said = (done.stdout + done.stderr).strip().splitlines() or ["no word"]
        if done.returncode:
            raise UserError(f"{run.label} was not submitted: {words[0]}: {said[-1]}")
        submitted[run.label] = said[0] if runner == "slurm" else said[-1]
        _write(workdir / SUBMITTED, submitted)
        log.info("%s: submitted: %s", run.label, submitted[run.label])
    log.info(
        "%d submitted now, %d before (--resubmit for those that died), %d in all are missing",
        len(new),
        len(todo) - len(new),
        len(todo),
    )


# ----- Results ------------------------------------------------------------------------------------


def findings(planned: Sequence[Run]) -> list[tables.Finding]:
    """What the runs of a sweep have found, or have not yet, for the tables.

    Raises UserError where results of one subset are of different images.
    """
    found, read = [], []
    for run in planned:
        group, setting = run.name.split("/")
        for tested, results in run.results().items():
            trained = tuple(run.config.data.fake)
            found.append(tables.Finding(group, setting, run.config.seed, trained, tested, results))
            if results is not None:
                read.append((run.folder, results))
    results_of.check_same_data(read)
    return found


def published(sweep: str) -> list[tables.Published]:
    """The published figures in `published.csv` beside a sweep file; none where it is not there."""
    path = epath.Path(sweep.partition(":")[0]).parent / "published.csv"
    if not path.exists():
        return []
    with path.open("r") as file:
        rows = [{**row, "value": float(row["value"])} for row in csv.DictReader(file)]
    return [tables.Published(**row) for row in rows]


def main(argv: list[str]) -> None:
    """The command."""
    workdir = epath.Path(_WORKDIR.value)
    planned = read(argv[1], workdir, _OVERRIDE.value)
    try:
        code = _collect(argv[1], planned, workdir) if _COLLECT.value else _run(planned, workdir)
    except OSError as error:
        raise UserError(f"{workdir}: {reason(error)}") from error
    sys.exit(code)


def _collect(sweep: str, planned: Sequence[Run], workdir: epath.Path) -> int:
    kept = _read(workdir / FAILURES)
    try:
        failures = {str(name): str(failure["error"]) for name, failure in kept.items()}
    except (TypeError, KeyError) as error:
        raise UserError(f"{workdir / FAILURES} is damaged ({error!r}); delete it") from error
    found = findings(planned)
    out = tables.write(found, published(sweep), failures, workdir / "tables", title=sweep)
    log.info("%s\nwritten to %s", (out / "results.md").read_text(), out)
    return 0


def _run(planned: Sequence[Run], workdir: epath.Path) -> int:
    todo = _missing(planned)
    log.info("%d runs, %d not done", len({run.folder for run in planned}), len(todo))
    if _RUNNER.value == "here":
        workdir.mkdir(parents=True, exist_ok=True)
        with locks.locked(workdir):
            return run_here(todo, workdir)
    if _RUNNER.value == "print":
        for run in todo:
            print(shlex.join(["python", *run.command()]))
    else:
        try:
            options = shlex.split(_RUNNER_OPTIONS.value)
        except ValueError as error:
            raise ConfigError(f"--runner_options {_RUNNER_OPTIONS.value!r}: {error}") from error
        workdir.mkdir(parents=True, exist_ok=True)
        with locks.locked(workdir):
            submit(todo, workdir, _RUNNER.value, options, _RESUBMIT.value)
    return 0


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweep.", required=True)
    _RUNNER = flags.DEFINE_enum(
        "runner", "here", ["here", "print", *COMMANDS], "Who runs what is missing."
    )
    _RUNNER_OPTIONS = flags.DEFINE_string(
        "runner_options", "", "Further options of sbatch, or of sky jobs launch."
    )
    _RESUBMIT = flags.DEFINE_bool(
        "resubmit", False, "Submit again what was submitted and has no results."
    )
    _OVERRIDE = flags.DEFINE_multi_string(
        "override", [], "FIELD=VALUE of every run's config, such as data.dir=DIR; may be repeated."
    )
    _COLLECT = flags.DEFINE_bool("collect", False, "Run nothing: write tables of what is there.")
    command.run(main, operands=("FILE",))
