"""A run directory: the config that it is of, and the state and the network in its checkpoints."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from etils import epath
from flax import nnx
from jaxtyping import Array

from wsdl_data import provenance
from wsdl_jax import configuration, methods
from wsdl_jax.evaluation import results
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runtime import hosts, locks
from wsdl_jax.runtime.errors import UserError, reason
from wsdl_jax.runtime.storage import is_remote, read_json, read_text, remove_abandoned, write_whole

CONFIG, DATA = "config.json", "data.json"  # in a run directory
State = dict[str, Any]  # step, params, stats (of BatchNorm), optimizer


class Trained(NamedTuple):
    """The best network of a run.

    Attributes:
      config: the run's.
      model: the network, in evaluation mode.
      step: of the checkpoint with the lowest validation loss, which the weights are from.
      checksum: of that checkpoint, which tells it from one of the same step of another training.
    """

    config: ml_collections.ConfigDict
    model: nnx.Module
    step: int
    checksum: int | None


def make_optimizer(train: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam with PyTorch's defaults; clipping and a schedule where the config has them.

    In a warm-up of n steps the rate of step t (from 1) is t/n of what it would be.
    """
    rate: Any = train.learning_rate
    if train.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, train.epochs * train.steps_per_epoch)
    if train.warmup:
        settled = rate if callable(rate) else optax.constant_schedule(rate)

        def rate(count: Array) -> Array:
            return settled(count) * jnp.minimum(1, (count + 1) / train.warmup)

    adam = optax.adam(rate, b1=0.9, b2=0.999, eps=1e-8)
    return (
        optax.chain(optax.clip_by_global_norm(train.clip_norm), adam) if train.clip_norm else adam
    )


def initial_state(model: nnx.Module, train: ml_collections.ConfigDict) -> State:
    """The state before the first step; `train` is that part of the config."""
    params, stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "stats": stats,
        "optimizer": make_optimizer(train).init(params),
    }


def load_config(run: epath.Path) -> ml_collections.ConfigDict:
    """The config of a run directory. Raises UserError if it is not one."""
    path = epath.Path(run) / CONFIG
    if not path.exists():
        raise UserError(f"{run} is not a run directory: it has no config.json")
    return configuration.load(read_text(path))


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
        if (run / CONFIG).exists():
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
            write_whole(run / CONFIG, configuration.save(config))
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
    path = run / "metrics.jsonl"
    validations = read_text(path).count('"valid_loss"') if path.exists() else 0
    if validations > 2 or (run / results.FILE).exists():
        raise UserError(
            f"{run} has results, or a log of validations, and no checkpoint: bring its checkpoints "
            "back, or choose another --workdir"
        )


# ----- The data that a run has used ---------------------------------------------------------------


def data_of(run: epath.Path) -> dict[str, dict[str, Any]]:
    """What the subsets that a run was trained on were made of, by their names; empty if unknown.

    Raises UserError for a file that cannot be read.
    """
    path = epath.Path(run) / DATA
    if not path.exists():
        return {}
    kept = read_json(path)
    try:
        return {str(name): dict(provenance) for name, provenance in kept.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error!r})") from error


def check_data(run: epath.Path, data: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError for a subset that is not what it was when the run began with it.

    data: of `pipeline.Examples`, what subsets are made of, by their names.
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
            write_whole(epath.Path(run) / DATA, text)


def load(run: epath.Path, axis_name: str | None = None) -> Trained:
    """The best network of a run.

    axis_name: over which BatchNorm is synchronized, where the network will be trained on.

    Raises UserError: not a run, no checkpoint yet, or one that cannot be read.
    """
    config = load_config(run)
    model = methods.blank(config, axis_name)
    checkpoints = Checkpoints(run, keep_best=config.train.keep_best)
    best = checkpoints.best_sound(initial_state(model, config.train))
    if best is None:
        raise UserError(f"{run} has no checkpoint yet")
    step, state = best
    params, stats = jax.tree.map(jnp.asarray, (state["params"], state["stats"]))
    nnx.update(model, params, stats)
    model.eval()
    return Trained(config, model, step, checkpoints.checksum(step))
