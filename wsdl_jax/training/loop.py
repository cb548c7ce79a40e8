"""The loop of a training: steps, logs, validation, checkpoints, and how it is stopped."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from wsdl_jax import configuration, inputs, runs
from wsdl_jax.runs import Checkpoints, RunLog, State
from wsdl_jax.runtime import hosts
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.interruption import Interrupted, StopSignals
from wsdl_jax.runtime.parallel import Parallel, Step
from wsdl_jax.runtime.storage import Staged
from wsdl_jax.training.setup import Setup


class _Trace:
    """Traces some of the steps, into a folder of the run directory."""

    def __init__(self, steps: range, run: epath.Path):
        self._steps, self._folder = steps, runs.RunDirectory(run).profile
        self._staged: Staged | None = None

    def before(self, step: int) -> None:
        """Begins with the first of those steps that this process takes."""
        if step in self._steps and self._staged is None:
            self._staged = Staged(self._folder)
            jax.profiler.start_trace(str(self._staged.local))

    def after(self, step: int, metrics: Any, say: Callable[[str], None]) -> None:
        """Ends with the last of those steps, when its metrics are there."""
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
    """Calls all of some functions in the end, and raises the first of their errors."""
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


def with_places(
    batches: Iterator[inputs.Batch], process: int, processes: int
) -> Iterator[inputs.Batch]:
    """Adds to a host's rows of training batches `place` [b] int32: their places in the whole batch.

    Hosts take turns in the images of a batch of `inputs.train_batches`.

    Args:
      batches: this host's.
      process: this host.
      processes: how many hosts there are.
    """
    for batch in batches:
        rows = np.arange(len(batch["image"]), dtype=np.int32)
        yield {**batch, "place": rows * processes + process}


def run_loop(
    config: ml_collections.ConfigDict,
    run: epath.Path,
    setup: Setup,
    reading: inputs.Reading,
    *,
    state: State,
    train_step: Step,
    loss_step: Step,
    checkpoints: Checkpoints,
    check_lock: Callable[[], None],
) -> None:
    """Takes steps to the end of the config's last epoch, with logs, validation and checkpoints.

    With the schedule "plateau" it may be over before that, see `runs.has_ended`.

    Args:
      config: `profile`, `seed` and `train` are read.
      run: the run directory.
      setup: devices and data.
      reading: how images are read.
      state: on the host; its "step" says how many are done.
      train_step: of one device: (state, its images) → ((state, metrics), None). Metrics have "loss"
        and "gradient_norm".
      loss_step: of one device: (state, its images) → (sums over all devices, None), of losses and
        of "weight", the number of images. Checkpoints are ranked by "loss", and a plateau is one
        of "loss"; where there is an "iou", by that and of that.
      checkpoints: of the run; closed at the end.
      check_lock: called before something is saved; raises where the run is another process's now.

    Raises:
      Interrupted: the process was asked to stop; all is saved.
      UserError: a loss or gradient that is not finite, with the schedule "plateau" a validation
        that is not, or what cannot be written.
    """
    start, total = int(state["step"]), config.train.epochs * config.train.steps_per_epoch
    if start >= total or runs.has_ended(state["optimizer"], config.train):
        checkpoints.close()
        return
    parallel = setup.parallel
    process, processes = jax.process_index(), jax.process_count()
    batches = inputs.train_batches(
        setup.training,
        reading,
        batch=config.train.batch,
        seed=config.seed,
        start_step=start,
        process=process,
        processes=processes,
    )
    mapped_loss_step = parallel.map(loss_step)
    state = parallel.distribute(state)
    train_step = parallel.map(train_step, donate=True)
    # Signals are heard until everything is on disk: a save goes on in the background.
    with StopSignals() as signals, _closing(checkpoints.close):
        run_log = RunLog(run, start_step=start, total_steps=total, writes=hosts.is_first())
        trace = _Trace(configuration.profiled_steps(config), run)
        with _closing(trace.close, run_log.close):
            _steps(
                run,
                config.train,
                range(start + 1, total + 1),
                state=state,
                train_step=train_step,
                batches=with_places(batches, process, processes),
                valid_losses=lambda state: validate(setup, reading, mapped_loss_step, state),
                checkpoints=checkpoints,
                parallel=parallel,
                check_lock=check_lock,
                run_log=run_log,
                trace=trace,
                signals=signals.received,
            )


def _steps(
    run: epath.Path,
    train: ml_collections.ConfigDict,
    steps: range,
    *,
    state: State,
    train_step: Step,
    batches: Iterator[inputs.Batch],
    valid_losses: Callable[[State], dict[str, float]],
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
            checkpoints.save(
                step, parallel.one(runs.kept(state)), math.inf
            )  # not validated: ranks last
            raise Interrupted(signals[0] if signals else signal.SIGTERM, run, step)

        if epoch_ends:
            losses = valid_losses(state)
            if runs.plateau_of(state["optimizer"]) is not None:
                _check_validation(losses, step, train.steps_per_epoch, checkpoints)
            run_log.scalars(step, losses)
            parts = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            run_log.say(f"epoch {step // train.steps_per_epoch}: {parts}")
            rank = -losses["valid_iou"] if "valid_iou" in losses else None
            watched = losses["valid_loss"] if rank is None else rank
            state = _after_validation(state, watched, train, parallel, run_log)
            on_host = parallel.one(runs.kept(state))
            ended = runs.has_ended(on_host["optimizer"], train)
            check_lock()
            run_log.publish()
            checkpoints.save(step, on_host, losses["valid_loss"], rank=rank, ended=ended)
            del on_host
            since = time.monotonic()
            if hosts.any_host(bool(signals)):  # after the last step, too: no evaluation begins
                raise Interrupted(signals[0] if signals else signal.SIGTERM, run, step)
            if ended:
                return


def _after_validation(
    state: State,
    watched: float,
    train: ml_collections.ConfigDict,
    parallel: Parallel,
    run_log: RunLog,
) -> State:
    """Returns a state, on the devices, whose learning rate has fallen if validation asks for it.

    watched: of this validation, the lower the better.
    """
    plateau = runs.plateau_of(state["optimizer"])
    if plateau is None:
        return state
    before = parallel.one(plateau)
    after = runs.after_validation(before, watched, train.patience)
    if after.falls > before.falls:
        rate = runs.learning_rate(after, train)
        outcome = "training ends" if runs.has_ended(after, train) else f"learning rate {rate:g}"
        run_log.say(f"not better for {train.patience} epochs: {outcome}")
    optimizer = runs.with_plateau(state["optimizer"], parallel.distribute(after))
    return {**state, "optimizer": optimizer}


def _check_finite(values: list[dict[str, Any]], first_step: int, checkpoints: Checkpoints) -> None:
    # A loss that is finite with a gradient that is not leaves parameters that are not.
    for offset, metrics in enumerate(values):
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(metrics[name]):
                when = f"at step {first_step + offset}"
                raise _not_finite(name, float(metrics[name]), when, checkpoints)


def _check_validation(
    losses: dict[str, float], step: int, steps_per_epoch: int, checkpoints: Checkpoints
) -> None:
    # It would count as no better than the last one, and end a training as if that had settled.
    for name, value in losses.items():
        if not math.isfinite(value):
            when = f"after epoch {step // steps_per_epoch}, at step {step}"
            raise _not_finite(name, value, when, checkpoints)


def _not_finite(name: str, value: float, when: str, checkpoints: Checkpoints) -> UserError:
    good = checkpoints.latest()
    kept = f"{checkpoints.directory / str(good)}" if good else "none yet"
    return UserError(
        f"the {name.replace('_', ' ')} is {value} {when}; last good checkpoint: {kept}"
    )


def validate(
    setup: Setup, reading: inputs.Reading, loss_step: Step, state: State
) -> dict[str, float]:
    """Returns mean losses over the whole validation split, as "valid_loss" and so on.

    Args:
      setup: devices and data.
      reading: how images are read.
      loss_step: see `run_loop`; of all devices.
      state: on the devices.
    """
    batches = inputs.eval_batches(
        setup.valid,
        reading,
        batch=setup.eval_batch,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    sums: dict[str, float] = {}
    for batch in batches:
        part, _ = loss_step(state, setup.parallel.shard(batch))
        for name, value in setup.parallel.one(part).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    weight = sums.pop("weight")
    return {f"valid_{name}": value / weight for name, value in sums.items()}
