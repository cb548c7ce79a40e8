"""The run directory: the names of its files, the config and the data it is of, who may write to it.

No other module spells a file's name. What a run directory holds is described in the README beside.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections
from etils import epath

from wsdl_data import provenance
from wsdl_jax import configuration
from wsdl_jax.runtime import hosts, locks
from wsdl_jax.runtime.errors import UserError, reason
from wsdl_jax.runtime.storage import is_remote, read_json, read_text, remove_abandoned, write_whole

_RESULTS = "results.json"
_LONGEST = 200  # characters of a folder's name that subsets give it
_ROBUSTNESS = "robustness-", ".json"


def subsets_stem(*sides: str) -> str:
    """Returns what a file or folder on test subsets is called, one name or several of them.

    It is short enough for any file system, also of many subsets.

    sides: the subsets of each side, see `configuration.subsets`.
    """
    name = "+".join(side.replace("/", "-") for side in sides)
    return name if len(name) <= _LONGEST else f"{name[:100]}-{provenance.digest_of(sides)[:16]}"


@dataclasses.dataclass(frozen=True)
class ResultsFolder:
    """The files of an evaluation: in the run directory itself or, of other test subsets, below it.

    Attributes:
      path: the folder.
    """

    path: epath.Path

    @property
    def results(self) -> epath.Path:
        """Returns the file of the figures, which is written last and vouches for the others."""
        return self.path / _RESULTS

    @property
    def text(self) -> epath.Path:
        """Returns the file of the figures as a table of text."""
        return self.path / "results.txt"

    @property
    def predictions(self) -> epath.Path:
        """Returns the table with a row for each test image."""
        return self.path / "predictions.csv"

    @property
    def examples(self) -> epath.Path:
        """Returns the picture of test images with their masks and maps."""
        return self.path / "examples.png"

    @property
    def maps(self) -> epath.Path:
        """Returns the folder of the maps of all test images, where they were kept."""
        return self.path / "maps"

    def robustness(self, kind: str) -> epath.Path:
        """Returns the file of the figures on test images that are perturbed in one way."""
        return self.path / kind.join(_ROBUSTNESS)

    @property
    def exchange(self) -> epath.Path:
        """Returns the file of the figures before and after original pixels are put back."""
        return self.path / "exchange.json"

    @property
    def exchange_text(self) -> epath.Path:
        """Returns the same figures as a table of text."""
        return self.path / "exchange.txt"

    @property
    def everyday(self) -> epath.Path:
        """Returns the file of the figures on test images after each everyday perturbation."""
        return self.path / "robustness-all.json"

    @property
    def everyday_table(self) -> epath.Path:
        """Returns the same figures as a table in Markdown."""
        return self.path / "robustness-all.md"

    @property
    def everyday_picture(self) -> epath.Path:
        """Returns the picture of how much of the localization each of them leaves."""
        return self.path / "robustness-all.png"


@dataclasses.dataclass(frozen=True)
class RunDirectory(ResultsFolder):
    """The files of a run, by what they hold.

    Attributes:
      path: the run directory.
    """

    @property
    def config(self) -> epath.Path:
        """Returns the file of the config, which makes a folder a run directory."""
        return self.path / "config.json"

    @property
    def data(self) -> epath.Path:
        """Returns the file that says what the subsets that the run has used were made of."""
        return self.path / "data.json"

    @property
    def metrics(self) -> epath.Path:
        """Returns the log of scalars, a line of JSON for each entry."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> epath.Path:
        """Returns the folder of the log as TensorBoard reads it."""
        return self.path / "events"

    @property
    def profile(self) -> epath.Path:
        """Returns the folder of the traces of profiled steps."""
        return self.path / "profile"

    @property
    def checkpoints(self) -> epath.Path:
        """Returns the folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def damaged_checkpoints(self) -> epath.Path:
        """Returns the folder to which damaged checkpoints are moved before they are made again."""
        return self.path / "damaged_checkpoints"

    @property
    def real_scores(self) -> epath.Path:
        """Returns the file of what real validation images score, from which verdicts follow."""
        return self.path / "real_scores.json"

    @property
    def calibration(self) -> epath.Path:
        """Returns the file of what a user's own real images score, which verdicts follow then."""
        return self.path / "calibration.json"

    @property
    def map_threshold(self) -> epath.Path:
        """Returns the file of the probability above which a location is called manipulated."""
        return self.path / "map_threshold.json"

    @property
    def report(self) -> epath.Path:
        """Returns the folder of the run's own report."""
        return self.path / "report"

    def evaluation(
        self, config: ml_collections.ConfigDict, *, fake: str, real: str
    ) -> ResultsFolder:
        """Returns where the results on fake and real test subsets belong.

        Those on the config's own subsets are in the run directory itself, those on others in a
        folder below it.

        Args:
          config: the run's.
          fake: the fake subsets, see `configuration.subsets`.
          real: the real ones.
        """
        sides = [configuration.subsets(side) for side in (fake, real)]
        own = config.data.test_fake, config.data.test_real
        if sides == [configuration.subsets(side) for side in own]:
            return self
        return ResultsFolder(self._evaluations / subsets_stem(*map(",".join, sides)))

    def evaluations(self) -> list[ResultsFolder]:
        """Returns the run directory itself, then the folders of other subsets' results by name."""
        others = sorted(self._evaluations.iterdir()) if self._evaluations.exists() else ()
        return [self, *map(ResultsFolder, others)]

    @property
    def _evaluations(self) -> epath.Path:
        return self.path / "evaluations"


def load_config(run: epath.Path) -> ml_collections.ConfigDict:
    """Returns the config of a detector's run directory. Raises UserError if it is not one."""
    return load_stored_config(run, configuration.load)


def load_stored_config(
    run: epath.Path, load: Callable[[str], ml_collections.ConfigDict]
) -> ml_collections.ConfigDict:
    """Returns the config of a run directory, of a detector or a forger.

    Args:
      run: the run directory.
      load: makes a config of its text.

    Raises:
      UserError: not a run directory, or what `load` raises.
    """
    path = RunDirectory(epath.Path(run)).config
    if not path.exists():
        raise UserError(f"{run} is not a run directory: it has no {path.name}")
    return load(read_text(path))


def check(
    run: epath.Path,
    config: ml_collections.ConfigDict,
    load: Callable[[epath.Path], ml_collections.ConfigDict] = load_config,
) -> None:
    """Raises UserError unless a run directory is new, empty, or of this config, as `load` reads it.

    A run is never continued under another config; the message shows the differences. Of buckets,
    orbax writes to Google's alone.
    """
    if is_remote(run) and not os.fspath(run).startswith("gs://"):
        raise UserError(
            f"{run}: a run directory is on a disk or in gs://; choose another --workdir"
        )
    try:
        if RunDirectory(run).config.exists():
            different = configuration.differences(load(run), config)
            if different:
                raise UserError(
                    f"{run} is a run of another config ({'; '.join(different)}): choose another "
                    "--workdir, or the same config to continue it"
                )
        elif run.exists() and not run.is_dir():
            raise UserError(f"{run} is a file: choose another --workdir")
        # What begins with a dot is of a process that was killed before it had written the config.
        elif run.exists() and any(not path.name.startswith(".") for path in run.iterdir()):
            raise UserError(f"{run} is not empty and holds no run: choose another --workdir")
    except OSError as error:
        raise UserError(f"--workdir {run}: {reason(error)}") from error


@contextlib.contextmanager
def written(
    run: epath.Path, config: ml_collections.ConfigDict, data: Mapping[str, Mapping[str, Any]]
) -> Iterator[Callable[[], None]]:
    """Makes a run directory, unless it is there, and holds its lock: one process writes to it.

    All hosts have to ask together; the first one writes.

    Args:
      run: the run directory.
      config: that is kept in it.
      data: what the subsets of the config are made of, which is kept in it, too.

    Yields:
      A function that raises UserError if another process has taken the lock over.

    Raises:
      UserError: another process writes to it, or it cannot be written.
    """
    held: list[locks.Lock] = []

    def begin() -> None:
        try:
            run.mkdir(parents=True, exist_ok=True)
            held.append(locks.Lock(run))
            remove_abandoned(run)
            write_whole(RunDirectory(run).config, configuration.save(config))
            keep_data(run, data)
        except OSError as error:
            raise UserError(f"--workdir {run}: {reason(error)}") from error

    def check() -> None:
        for lock in held:
            lock.check()

    try:
        hosts.first(begin)
        yield check
    finally:
        for lock in held:
            lock.release()


def check_not_pruned(run: epath.Path) -> None:
    """Raises UserError where a run without checkpoints must have had some: it would begin anew, and
    its log be lost.

    Before the third validation is logged, the second save has begun, and so the first is complete.
    """
    directory = RunDirectory(run)
    path = directory.metrics
    validations = read_text(path).count('"valid_loss"') if path.exists() else 0
    if validations > 2 or directory.results.exists():
        raise UserError(
            f"{run} has results, or a log of validations, and no checkpoint: bring its checkpoints "
            "back, or choose another --workdir"
        )


# ----- The data that a run has used ---------------------------------------------------------------


def data_of(run: epath.Path) -> dict[str, dict[str, Any]]:
    """Returns what the subsets that a run has used were made of, by their names; empty if unknown.

    Raises UserError for a file that cannot be read.
    """
    path = RunDirectory(epath.Path(run)).data
    if not path.exists():
        return {}
    kept = read_json(path)
    try:
        return {str(name): dict(provenance) for name, provenance in kept.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r})") from error


def check_data(run: epath.Path, data: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError for a subset that is not what it was when the run began with it.

    data: what subsets are made of, by their names, as `inputs.Examples` has it.
    """
    known = data_of(run)
    for name, now in data.items():
        if name in known and (different := provenance.differences(known[name], now)):
            raise UserError(
                f"{name} is not what {run} was trained or tested with ({'; '.join(different)}): "
                "use the data directory that has it, or begin another run"
            )


def keep_data(run: epath.Path, data: Mapping[str, Mapping[str, Any]]) -> None:
    """Keeps in a run directory what subsets are made of, unless it has them already."""
    if not data.keys() <= data_of(run).keys():
        with locks.locked(run, locks.RESULTS, wait=True):
            text = json.dumps({**data, **data_of(run)}, indent=1, sort_keys=True) + "\n"
            write_whole(RunDirectory(epath.Path(run)).data, text)
