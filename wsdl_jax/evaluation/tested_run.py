"""A trained run together with the images that it is tested on."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import ml_collections
from etils import epath
from tqdm import tqdm

from wsdl_data import provenance
from wsdl_jax import configuration, inputs, methods, runs
from wsdl_jax.evaluation.network import on_devices
from wsdl_jax.inputs.perturbations import Chain, Perturbation
from wsdl_jax.runs import State
from wsdl_jax.runtime import hosts
from wsdl_jax.runtime.parallel import AXIS, Parallel, Step


@dataclasses.dataclass(frozen=True)
class TestedRun:
    """A trained run and what it is tested on.

    Attributes:
      config: the run's config, with the directory that the data is really in.
      names: the names of the tested subsets of the sides "fake" and "real"; those of several have
        commas between them.
      sides: the test splits of those subsets.
      step: (state, {"image": …}) → (None, Localization with features), on all devices.
      state: the network's state on all devices.
      parallel: the devices.
      checkpoint: the step of the checkpoint that the network is from.
      weights: the checksum of that checkpoint; None where it was saved without one.
      out: the files where results belong: those of the run directory or, for other subsets than
        the config's, of a folder in it.
    """

    __test__ = False  # pytest takes what is called Test… for a test

    config: ml_collections.ConfigDict
    names: dict[str, str]
    sides: dict[str, inputs.Examples]
    step: Step
    state: State
    parallel: Parallel
    checkpoint: int
    weights: int | None
    out: runs.ResultsFolder


def load(
    run: epath.Path,
    *,
    fake: str | None = None,
    real: str | None = None,
    data_dir: str | None = None,
) -> TestedRun:
    """Loads the best checkpoint of a run and opens the test splits of fake and real subsets.

    Args:
      run: a run directory.
      fake: a prepared subset of fake images, or several with commas between them; the config's own
        by default. Where none has masks, there are no figures of localization.
      real: prepared subsets of real images in the same way; the config's own by default.
      data_dir: the folder of the prepared datasets; the one that the run was trained from by
        default.

    Raises:
      ConfigError: a subset that is unknown or not prepared, or holds images of the other side.
      UserError: not a run, no checkpoint yet, or data that differs from what the run used before.
    """
    config = runs.load_config(run)
    config.data.dir = data_dir or config.data.dir
    chosen = {"fake": fake or config.data.test_fake, "real": real or config.data.test_real}
    subsets = {side: configuration.subsets(names) for side, names in chosen.items()}
    names = {side: ",".join(of_side) for side, of_side in subsets.items()}
    sides = {
        side: inputs.Examples(of_side, "test", config.data.dir) for side, of_side in subsets.items()
    }
    inputs.check_sides(**subsets, data_dir=config.data.dir, splits=("test",))
    data = {**sides["fake"].provenance, **sides["real"].provenance}
    hosts.agree(config=configuration.essence(config), data=provenance.digests(data))
    runs.check_data(run, data)
    parallel = Parallel(config.parallel.backend, fsdp=config.parallel.fsdp)
    config.eval.batch = parallel.rounded_up(config.eval.batch)
    _, model, checkpoint, weights = runs.load(run, AXIS)
    hosts.agree(checkpoint=(checkpoint, weights))
    step, state = on_devices(methods.from_config(config), model, parallel, embeds=True)
    out = runs.RunDirectory(run).evaluation(config, **names)
    return TestedRun(config, names, sides, step, state, parallel, checkpoint, weights, out)


def localized(
    test: TestedRun,
    source: inputs.Examples,
    description: str,
    *,
    places: Sequence[int] | None = None,
    perturbation: Perturbation | Chain | None = None,
    splice: float = 0.0,
) -> Iterator[tuple[inputs.Batch, methods.Localization]]:
    """Yields this host's part of every batch of images, with what the network finds in it.

    A batch is yielded while the network works on the next one.

    Args:
      test: the network, and the devices that it is on.
      source: the images.
      description: the text beside the progress bar.
      places: indices in `source` of the images that are wanted; all by default.
      perturbation: applied to every image; none by default.
      splice: the share of the fakes of which only a region stays fake, see `inputs.Reading`; 1 for
        what `inputs.Spliced` has.
    """
    batches = inputs.eval_batches(
        source,
        dataclasses.replace(inputs.Reading.of(test.config.data), splice=splice),
        batch=test.config.eval.batch,
        places=places,
        perturb=perturbation,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    total = -(-len(source if places is None else places) // test.config.eval.batch)
    silent = None if hosts.is_first() else True  # None: unless there is a terminal
    pending = None
    with contextlib.closing(batches):  # on Ctrl-C too: its threads must end before the program
        for batch in tqdm(batches, description, total, unit="batch", disable=silent, leave=False):
            _, found = test.step(test.state, test.parallel.shard({"image": batch["image"]}))
            if pending is not None:
                yield pending[0], test.parallel.gather(pending[1])
            pending = batch, found
    if pending is not None:
        yield pending[0], test.parallel.gather(pending[1])
