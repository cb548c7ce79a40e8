"""Training: one linear function from a config to the best checkpoints of a run directory."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath
from flax import nnx

from wsdl_data import provenance
from wsdl_jax import configuration, inputs, methods, runs, weights
from wsdl_jax.models.layers import seed_dropout
from wsdl_jax.runs import State
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runs.run_log import RunLog
from wsdl_jax.runtime import hosts
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.interruption import Interrupted, StopSignals
from wsdl_jax.runtime.parallel import AXIS, Parallel, Step
from wsdl_jax.runtime.storage import Staged

log = logging.getLogger("wsdl_jax")


def make_train_step(
    method: methods.Method,
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    microbatches: int = 1,
) -> Step:
    """The step of one device: (state, its images) → ((state, metrics), None).

    Gradients, metrics and BatchNorm statistics are averaged over the axis "data". `model` gives
    the structure; its values are not used. With microbatches a device takes so many equal parts of
    its images one after the other: gradients are the mean of those of the parts, and BatchNorm
    normalizes each part, over all devices, by itself.

    What is dropped of an image depends on the seed, the step and the image's place in the batch of
    all hosts, and on nothing else. A batch may say it, `place` [B] int32, as it has to on several
    hosts; otherwise it is the place in the order of the devices.
    """
    graphdef, _, _, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def gradient(params: Any, stats: Any, batch: methods.Batch, key: jax.Array):
        def objective(params: Any):
            # A copy: inside a gradient, statistics of shared variables cannot be updated.
            network = nnx.merge(graphdef, params, stats, rest, copy=True)
            seed_dropout(network, jax.vmap(jax.random.fold_in, (None, 0))(key, batch["place"]))
            images = methods.network_input(batch["image"])
            loss, metrics = method.loss(network, {**batch, "image": images})
            return loss, ({"loss": loss, **metrics}, nnx.state(network, nnx.BatchStat))

        gradients, (metrics, moved) = jax.grad(objective, has_aux=True)(params)
        return moved, (gradients, metrics)

    def accumulated(params: Any, stats: Any, batch: methods.Batch, key: jax.Array):
        parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient, params, stats, first, key)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(carry: Any, part: Any):
            stats, sums = carry
            stats, values = gradient(params, stats, part, key)
            return (stats, jax.tree.map(jnp.add, sums, values)), None

        (stats, sums), _ = jax.lax.scan(add, (stats, zeros), parts)
        return stats, jax.tree.map(lambda x: x / microbatches, sums)

    def step(state: State, batch: methods.Batch):
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        images = batch["image"].shape[0]
        places = jax.lax.axis_index(AXIS) * images + jnp.arange(images)
        batch = {"place": places, **batch}
        backward = gradient if microbatches == 1 else accumulated
        stats, (gradients, metrics) = backward(state["params"], state["stats"], batch, key)
        gradients, metrics = jax.lax.pmean((gradients, metrics), AXIS)
        updates, opt_state = optimizer.update(gradients, state["optimizer"], state["params"])
        state = {
            "step": state["step"] + 1,
            "params": optax.apply_updates(state["params"], updates),
            "stats": stats,
            "optimizer": opt_state,
        }
        return (state, {**metrics, "gradient_norm": optax.tree.norm(gradients)}), None

    return step


def with_places(
    batches: Iterator[inputs.Batch], process: int, processes: int
) -> Iterator[inputs.Batch]:
    """Adds to a host's part of each batch `place` [b] int32: where its images are in the whole.

    Of `inputs.train_batches`, of whose images the hosts take turns.
    """
    for batch in batches:
        rows = np.arange(len(batch["image"]), dtype=np.int32)
        yield {**batch, "place": rows * processes + process}


def make_loss_step(method: methods.Method, model: nnx.Module) -> Step:
    """The validation step of one device: (state, its images) → (sums over all devices, None).

    The sums are of each loss times the images' weights, and of the weights.
    """
    graphdef, _, _, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def step(state: State, batch: methods.Batch):
        network = nnx.merge(graphdef, state["params"], state["stats"], rest)
        network.eval()
        images = methods.network_input(batch["image"])
        loss, metrics = method.loss(network, {**batch, "image": images})
        weight = batch["weight"].sum()
        sums = {name: value * weight for name, value in {"loss": loss, **metrics}.items()}
        return jax.lax.psum({**sums, "weight": weight}, AXIS), None

    return step


def start_network(model: nnx.Module, config: ml_collections.ConfigDict) -> None:
    """Takes the config's pretrained weights, if it has any, into a network; the log says which.

    Raises UserError for weights that do not fit.
    """
    init = config.init
    if init.path:
        new = weights.start(model, epath.Path(init.path), init.layout)
        log.info(
            "weights start from %s%s",
            init.path,
            f", those of {', '.join(new)} from scheme {init.scheme!r}" if new else "",
        )
    elif init.layout:
        log.warning(
            "the recipe starts from published weights (%s): config.init.path is not given, so all "
            "weights start from scheme %r",
            init.layout,
            init.scheme,
        )
    else:
        log.info("weights start from scheme %r", init.scheme)


def train(config: ml_collections.ConfigDict, run: epath.Path) -> None:
    """Trains a config in a run directory, from where that run has stopped.

    On SIGINT and SIGTERM the current step is finished and saved, and Interrupted is raised. Raises
    UserError for a directory of another config or one that another process writes to, for data that
    is not what the run began with, real images where fakes are needed or the reverse, a batch that
    does not divide over the devices, full supervision without masks, and a loss or gradient that is
    not finite.
    """
    # ----- What to run on, and what to run ------------------------------------------------------
    configuration.check_circumstances(config)
    parallel = Parallel(config.parallel.backend)
    parallel.check_batch(config.train.batch, config.train.microbatches)
    runs.check(run, config)
    training, valid = (
        inputs.Examples((*config.data.real, *config.data.fake), split, config.data.dir)
        for split in ("train", "valid")
    )
    if config.supervision == "full" and not training.have_masks:
        fakes = ", ".join(config.data.fake)
        raise configuration.ConfigError(f"{fakes} has no masks: setup c learns from them")
    hosts.agree(config=configuration.essence(config), data=provenance.digests(training.provenance))
    runs.check_data(run, training.provenance)
    inputs.check_sides(
        real=config.data.real,
        fake=config.data.fake,
        data_dir=config.data.dir,
        splits=("train", "valid"),
    )
    with runs.written(run, config, training.provenance) as check_lock:
        _train(config, run, parallel, valid, check_lock)


def _train(
    config: ml_collections.ConfigDict,
    run: epath.Path,
    parallel: Parallel,
    valid: inputs.Examples,
    check_lock: Callable[[], None],
) -> None:
    config = config.copy_and_resolve_references()
    config.eval.batch = parallel.rounded_up(config.eval.batch)
    method = methods.from_config(config)
    model = methods.build(config, AXIS)
    mask_size = methods.map_size(config) if config.supervision == "full" else None
    optimizer = runs.make_optimizer(config.train)
    state = runs.initial_state(model, config.train)
    parameters = sum(x.size for x in jax.tree.leaves(state["params"]))
    log.info(
        "%s, %s supervision: %s parameters, on %d × %s, %d images a step",
        config.method,
        config.supervision,
        f"{parameters:,}",
        parallel.mesh.size,
        jax.devices()[0].device_kind,
        config.train.batch,
    )

    # ----- Where the run has stopped -------------------------------------------------------------
    checkpoints = Checkpoints(run, keep_best=config.train.keep_best)
    total = config.train.epochs * config.train.steps_per_epoch
    newest = checkpoints.newest(state)
    if newest is None:
        start = 0
        runs.check_not_pruned(run)
        start_network(model, config)
        state = runs.initial_state(model, config.train)
    else:
        start, state = newest
        log.info("%s: continuing at step %d of %d", run, start, total)
    hosts.agree(newest_checkpoint=start)
    if start >= total:
        checkpoints.close()
        return
    train_step = make_train_step(method, model, optimizer, config.seed, config.train.microbatches)
    loss_step = parallel.map(make_loss_step(method, model))
    batches = inputs.train_batches(
        config,
        mask_size=mask_size,
        start_step=start,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    loop(
        config,
        run,
        state=state,
        train_step=train_step,
        batches=with_places(batches, jax.process_index(), jax.process_count()),
        validate=lambda state: validate(config, valid, loss_step, state, parallel, mask_size),
        checkpoints=checkpoints,
        parallel=parallel,
        check_lock=check_lock,
    )


class _Trace:
    """The steps that are traced, in a folder of the run directory."""

    def __init__(self, steps: range, run: epath.Path):
        self._steps, self._folder = steps, runs.RunDirectory(run).profile
        self._staged: Staged | None = None

    def before(self, step: int) -> None:
        """Begins at the first step of those; of a run that was stopped among them, at its first."""
        if step in self._steps and self._staged is None:
            self._staged = Staged(self._folder)
            jax.profiler.start_trace(str(self._staged.local))

    def after(self, step: int, metrics: Any, say: Callable[[str], None]) -> None:
        """Ends with the last step, when `metrics` are there."""
        if self._staged is not None and step == self._steps.stop - 1:
            jax.block_until_ready(metrics)
            self.close()
            say(f"steps {self._steps.start}:{self._steps.stop} are traced in {self._folder}")

    def close(self) -> None:
        """Keeps what was traced until now."""
        if self._staged is not None:
            staged, self._staged = self._staged, None
            try:
                jax.profiler.stop_trace()
            finally:
                staged.close()


@contextlib.contextmanager
def _closing(*close: Callable[[], None]) -> Iterator[None]:
    """Calls all of these in the end. Of several errors the first is raised."""
    errors: list[Exception] = []
    try:
        yield
    except Interrupted as stop:
        stopped: Interrupted | None = stop
    except BaseException:
        for function in close:
            with contextlib.suppress(Exception):
                function()
        raise
    else:
        stopped = None
    for function in close:
        try:
            function()
        except Exception as error:
            errors.append(error)
    if errors:  # then nothing may be said to be saved
        raise errors[0]
    if stopped is not None:
        raise stopped


def loop(
    config: ml_collections.ConfigDict,
    run: epath.Path,
    *,
    state: State,
    train_step: Step,
    batches: Iterator[inputs.Batch],
    validate: Callable[[State], dict[str, float]],
    checkpoints: Checkpoints,
    parallel: Parallel,
    check_lock: Callable[[], None],
) -> None:
    """Takes steps to the end of the config's last epoch, with logs, validation and checkpoints.

    Args:
      config: `profile` and `train` are read.
      run: the run directory.
      state: on the host; its "step" says how many are done.
      train_step: of one device: (state, its images) → ((state, metrics), None). Metrics have "loss"
        and "gradient_norm".
      batches: from the next step on.
      validate: state on the devices → losses, "valid_loss" among them, that rank checkpoints.
      checkpoints: of the run; closed at the end.
      parallel: the devices.
      check_lock: called before something is saved; raises where the run is another process's now.

    Raises Interrupted and UserError as `train` does.
    """
    start, total = int(state["step"]), config.train.epochs * config.train.steps_per_epoch
    state = parallel.replicate(state)
    train_step = parallel.map(train_step, donate=True)
    # Signals are heard until everything is on disk: a save goes on in the background.
    with StopSignals() as signals, _closing(checkpoints.close):
        run_log = RunLog(run, start_step=start, total_steps=total, writes=hosts.is_first())
        trace = _Trace(configuration.profiled_steps(config), run)
        with _closing(trace.close, run_log.close):
            _steps(
                config.train,
                range(start + 1, total + 1),
                state=state,
                train_step=train_step,
                batches=batches,
                validate=validate,
                checkpoints=checkpoints,
                parallel=parallel,
                check_lock=check_lock,
                run_log=run_log,
                trace=trace,
                signals=signals.received,
            )


def _steps(
    train: ml_collections.ConfigDict,
    steps: range,
    *,
    state: State,
    train_step: Step,
    batches: Iterator[inputs.Batch],
    validate: Callable[[State], dict[str, float]],
    checkpoints: Checkpoints,
    parallel: Parallel,
    check_lock: Callable[[], None],
    run_log: RunLog,
    trace: _Trace,
    signals: list[int],
) -> None:
    pending: list[dict[str, jax.Array]] = []  # metrics of steps whose values were not fetched yet
    since, waited, images = time.monotonic(), 0.0, 0
    for step in steps:
        trace.before(step)
        began = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - began
        (state, metrics), _ = train_step(state, parallel.shard(batch))
        pending.append(metrics)
        images += train.batch
        trace.after(step, metrics, run_log.say)
        epoch_ends = step % train.steps_per_epoch == 0
        pause = epoch_ends or step % train.log_every == 0
        # Read once: a later signal waits for the next step. Several hosts have to stop at one step,
        # and ask one another only when they pause.
        stop = hosts.any_host(bool(signals)) if pause or jax.process_count() == 1 else False

        if pause or stop:
            values = [parallel.one(metrics) for metrics in pending]
            _check_finite(values, step - len(values) + 1, checkpoints)
            elapsed = time.monotonic() - since
            mean = {k: float(np.mean([v[k] for v in values])) for k in values[0]}
            speed = {"images_per_second": images / elapsed, "data_wait": waited / elapsed}
            run_log.scalars(step, {**mean, **speed})
            run_log.progress(step, mean["loss"], speed["images_per_second"])
            pending, since, waited, images = [], time.monotonic(), 0.0, 0

        if stop and not epoch_ends:
            check_lock()
            run_log.publish()  # before the checkpoint that the rest of the log will follow
            checkpoints.save(step, parallel.one(state), math.inf)  # not validated: ranks last
            raise Interrupted(signals[0] if signals else signal.SIGTERM, step)

        if epoch_ends:
            losses = validate(state)
            run_log.scalars(step, losses)
            parts = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            run_log.say(f"epoch {step // train.steps_per_epoch}: {parts}")
            check_lock()
            run_log.publish()
            checkpoints.save(step, parallel.one(state), losses["valid_loss"])
            since = time.monotonic()
            if hosts.any_host(bool(signals)):  # after the last step, too: no evaluation begins
                raise Interrupted(signals[0] if signals else signal.SIGTERM, step)


def _check_finite(values: list[dict[str, Any]], first_step: int, checkpoints: Checkpoints) -> None:
    # A loss that is finite with a gradient that is not leaves parameters that are not.
    for offset, metrics in enumerate(values):
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(metrics[name]):
                good = checkpoints.latest()
                kept = f"{checkpoints.directory / str(good)}" if good else "none yet"
                raise UserError(
                    f"the {name.replace('_', ' ')} is {metrics[name]} at step "
                    f"{first_step + offset}; last good checkpoint: {kept}"
                )


def validate(
    config: ml_collections.ConfigDict,
    examples: inputs.Examples,
    loss_step: Step,
    state: State,
    parallel: Parallel,
    mask_size: int | None,
) -> dict[str, float]:
    """Mean losses over the whole validation split, as "valid_loss" and so on."""
    batches = inputs.eval_batches(
        examples,
        config,
        mask_size=mask_size,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    sums: dict[str, float] = {}
    for batch in batches:
        del batch["index"]
        part, _ = loss_step(state, parallel.shard(batch))
        for name, value in parallel.one(part).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    weight = sums.pop("weight")
    return {f"valid_{name}": value / weight for name, value in sums.items()}
