"""What every training begins with, of detectors and forgers: devices, data, where it stands."""

import dataclasses
from collections.abc import Callable, Sequence

import ml_collections
from etils import epath

from wsdl_data import provenance
from wsdl_jax import configuration, inputs, runs
from wsdl_jax.runs import Checkpoints, State
from wsdl_jax.runtime import hosts
from wsdl_jax.runtime.parallel import Parallel


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a training runs on.

    Attributes:
      parallel: the devices.
      training: the training split of all subsets that are learned.
      valid: their validation split.
      eval_batch: images at once in validation, a multiple of the devices.
    """

    parallel: Parallel
    training: inputs.Examples
    valid: inputs.Examples
    eval_batch: int


def check(
    config: ml_collections.ConfigDict,
    run: epath.Path,
    *,
    real: Sequence[str],
    fake: Sequence[str] = (),
    microbatches: int = 1,
    load_config: Callable[[epath.Path], ml_collections.ConfigDict] = runs.load_config,
) -> Setup:
    """Returns what a config is trained on, if it can be trained in a run directory.

    Nothing is written. All hosts have to ask together.

    Args:
      config: `data`, `eval`, `parallel`, `profile` and `train` are read.
      run: the run directory.
      real: prepared subsets of real images that are learned.
      fake: prepared subsets of fakes that are learned.
      microbatches: parts of a device's batch.
      load_config: reads the config of a run of this kind.

    Raises:
      ConfigError: a batch that does not divide over the devices, subsets that are not prepared, or
        real images where fakes are needed or the reverse.
      UserError: the run directory is of another config, the data is not what the run began with, or
        hosts do not have the same.
    """
    configuration.check_circumstances(config)
    # Forgers, which are small, have no such field.
    parallel = Parallel(config.parallel.backend, fsdp=config.parallel.get("fsdp", False))
    parallel.check_batch(config.train.batch, microbatches)
    runs.check(run, config, load_config)
    training, valid = (
        inputs.Examples((*real, *fake), split, config.data.dir) for split in ("train", "valid")
    )
    hosts.agree(config=configuration.essence(config), data=provenance.digests(training.provenance))
    runs.check_data(run, training.provenance)
    inputs.check_sides(real=real, fake=fake, data_dir=config.data.dir, splits=("train", "valid"))
    return Setup(parallel, training, valid, parallel.rounded_up(config.eval.batch))


def newest_state(run: epath.Path, checkpoints: Checkpoints, like: State) -> State | None:
    """Returns the state that a run has stopped at; None for one that is to begin.

    All hosts have to ask together.

    Args:
      run: the run directory.
      checkpoints: the run's.
      like: a state with the structure, shapes and types to expect.

    Raises:
      UserError: checkpoints that are damaged or gone, or that hosts do not see alike.
    """
    newest = checkpoints.newest(like)
    if newest is None:
        runs.check_not_pruned(run)
    hosts.agree(newest_checkpoint=0 if newest is None else newest[0])
    return None if newest is None else newest[1]
