"""One run of a sweep: how it is started, and which results it has."""

import logging
from typing import Any, NamedTuple

import ml_collections
from etils import epath

from wsdl_jax import runs
from wsdl_jax.evaluation.results import network, read
from wsdl_jax.runtime.errors import UserError

log = logging.getLogger("wsdl_jax")


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: GROUP/SETTING.
      config: the run's config, its seed included.
      arguments: the arguments of wsdl_jax.main, without the run directory.
      also_on: the fake subsets that it is evaluated on besides the config's own.
      folder: the run directory.
    """

    name: str
    config: ml_collections.ConfigDict
    arguments: tuple[str, ...]
    also_on: tuple[str, ...]
    folder: epath.Path

    @property
    def label(self) -> str:
        """Returns the run's name in messages: GROUP/SETTING/seed-N, as its directory has it."""
        return "/".join(self.folder.parts[-3:])

    @property
    def tested(self) -> tuple[str, ...]:
        """Returns the fake subsets that it is evaluated on, the config's own first."""
        return (self.config.data.test_fake, *self.also_on)

    def command(self) -> list[str]:
        """Returns the arguments with which Python runs it."""
        return ["-m", "wsdl_jax.main", *self.arguments, f"--workdir={self.folder}"]

    def results(self) -> dict[str, dict[str, Any] | None]:
        """Returns the results on each tested fake subset; None where there are none yet.

        Only results of the best network of the whole training count: those of another, maybe an
        older one, are left out. So are results that cannot be read, with a warning.

        Raises:
          UserError: the directory is a run of another config.
        """
        if runs.RunDirectory(self.folder).config.exists():
            self._check()
        readable = {}
        for fake in self.tested:
            real = self.config.data.test_real
            files = runs.RunDirectory(self.folder).evaluation(self.config, fake=fake, real=real)
            if files.results.exists():
                try:
                    readable[fake] = read(files.results)
                except UserError as error:
                    log.warning("%s", error)
        networks = {network(results) for results in readable.values()}
        best = set(filter(self._is_best, networks))
        counting = {fake: results for fake, results in readable.items() if network(results) in best}
        return dict.fromkeys(self.tested) | counting

    def is_done(self) -> bool:
        """Returns whether it is trained to its end and evaluated on every tested subset."""
        return all(results is not None for results in self.results().values())

    def _is_best(self, evaluated: tuple[int, int | None]) -> bool:
        """Returns whether a network, by step and checksum, is the best of the whole training."""
        train = self.config.train
        checkpoints = runs.Checkpoints(self.folder, keep_best=train.keep_best)
        best = checkpoints.best()
        if best is None:
            log.warning("%s has no checkpoints: its results are taken as they are", self.folder)
            return True
        if not checkpoints.are_whole(train.epochs * train.steps_per_epoch):
            return False
        if (best, checkpoints.checksum(best)) == evaluated:
            return True
        # The best one may be damaged: then the next one was evaluated.
        try:
            trained = runs.load(self.folder)
        except UserError:
            return False
        return (trained.step, trained.checksum) == evaluated

    def _check(self) -> None:
        """Raises UserError where the directory is a run of another config."""
        kept, config = runs.load_config(self.folder), self.config.copy_and_resolve_references()
        if config.train.per_device_batch:  # these follow from the number of devices
            train = kept.train
            config.train.batch, config.train.learning_rate = train.batch, train.learning_rate
        for role in ("backbone", "beside"):
            path, known = config.model[f"{role}_path"], config.model[f"{role}_sha256"]
            before = kept.model[f"{role}_path"]
            if path is not None and known is None and path != before:
                raise UserError(
                    f"{self.folder} is a run of config.model.{role}_path = {before}; whether "
                    f"{path} is the same file cannot be told, as it is not there"
                )
        runs.check(self.folder, config)
