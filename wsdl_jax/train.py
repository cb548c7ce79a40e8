"""Training: one linear function from a config to the best checkpoints of a run directory."""

import logging
import math
import signal
import time
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from etils import epath
from flax import nnx

from wsdl_jax import configuration, convert, methods, pipeline, runs
from wsdl_jax.checkpoint import Checkpoints
from wsdl_jax.errors import UserError
from wsdl_jax.parallel import AXIS, Parallel, Step
from wsdl_jax.run_log import RunLog
from wsdl_jax.runs import State

log = logging.getLogger("wsdl_jax")


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """The run was asked to stop; it has saved its state and can be continued."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"stopped at step {step}")
        self.signal_number = signal_number


def make_train_step(
    method: methods.Method, model: nnx.Module, optimizer: optax.GradientTransformation, seed: int
) -> Step:
    """The step of one device: (state, its images) → ((state, metrics), None).

    Gradients, metrics and BatchNorm statistics are averaged over the axis "data". `model` gives
    the structure; its values are not used.
    """
    graphdef, _, _, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def step(state: State, batch: methods.Batch):
        def objective(params: Any):
            # A copy: inside a gradient, statistics of shared variables cannot be updated.
            network = nnx.merge(graphdef, params, state["stats"], rest, copy=True)
            key = jax.random.fold_in(jax.random.key(seed), state["step"])
            nnx.reseed(network, dropout=jax.random.fold_in(key, jax.lax.axis_index(AXIS)))
            loss, metrics = method.loss(network, batch)
            return loss, ({"loss": loss, **metrics}, nnx.state(network, nnx.BatchStat))

        gradients, (metrics, stats) = jax.grad(objective, has_aux=True)(state["params"])
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


def make_loss_step(method: methods.Method, model: nnx.Module) -> Step:
    """The validation step of one device: (state, its images) → (sums over all devices, None).

    The sums are of each loss times the images' weights, and of the weights.
    """
    graphdef, _, _, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def step(state: State, batch: methods.Batch):
        network = nnx.merge(graphdef, state["params"], state["stats"], rest)
        network.eval()
        loss, metrics = method.loss(network, batch)
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
        new = convert.start(model, epath.Path(init.path), init.layout)
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
    UserError for a directory of another config, a batch that does not divide over the devices, and
    a loss or gradient that is not finite.
    """
    # ----- What to run on, and what to run ------------------------------------------------------
    parallel = Parallel(config.parallel.backend)
    parallel.check_batch(config.train.batch, "train.batch")
    parallel.check_batch(config.eval.batch, "eval.batch")
    runs.check(run, config)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(configuration.save(config))
    method = methods.from_config(config)
    model = methods.build(config, AXIS)
    mask_size = methods.map_size(config) if config.supervision == "full" else None
    optimizer = runs.make_optimizer(config.train)
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    log.info(
        "%s, %s supervision: %s parameters, on %d × %s",
        config.method,
        config.supervision,
        f"{parameters:,}",
        parallel.mesh.size,
        jax.devices()[0].device_kind,
    )

    # ----- Where the run has stopped -------------------------------------------------------------
    checkpoints = Checkpoints(run, keep_best=config.train.keep_best)
    total = config.train.epochs * config.train.steps_per_epoch
    latest = checkpoints.latest()
    start = latest or 0
    if latest is None:
        start_network(model, config)
    state = runs.initial_state(model, config.train)
    if latest is not None:
        state = checkpoints.restore(latest, state)
        log.info("%s: continuing at step %d of %d", run, start, total)
    if start >= total:
        checkpoints.close()
        return
    state = parallel.replicate(state)
    train_step = parallel.map(make_train_step(method, model, optimizer, config.seed), donate=True)
    loss_step = parallel.map(make_loss_step(method, model))
    batches = pipeline.train_batches(
        config,
        mask_size=mask_size,
        start_step=start,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    valid = pipeline.Examples((*config.data.real, *config.data.fake), "valid", config.data.dir)
    run_log = RunLog(run, start_step=start, total_steps=total)

    # ----- Loop -----------------------------------------------------------------------------------
    signals: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: signals.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    pending: list[dict[str, jax.Array]] = []  # metrics of steps whose values were not fetched yet
    since, waited, images = time.monotonic(), 0.0, 0
    try:
        for step in range(start + 1, total + 1):
            began = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - began
            (state, metrics), _ = train_step(state, parallel.shard(batch))
            pending.append(metrics)
            images += config.train.batch
            epoch_ends = step % config.train.steps_per_epoch == 0
            stop = bool(signals)  # read once: a later signal waits for the next step

            if step % config.train.log_every == 0 or epoch_ends or stop:
                values = [parallel.one(metrics) for metrics in pending]
                _check_finite(values, step - len(values) + 1, checkpoints)
                elapsed = time.monotonic() - since
                mean = {k: float(np.mean([v[k] for v in values])) for k in values[0]}
                speed = {"images_per_second": images / elapsed, "data_wait": waited / elapsed}
                run_log.scalars(step, {**mean, **speed})
                run_log.progress(step, mean["loss"], speed["images_per_second"])
                pending, since, waited, images = [], time.monotonic(), 0.0, 0

            if stop and not epoch_ends:
                checkpoints.save(step, parallel.one(state), math.inf)  # not validated: ranks last
                raise Interrupted(signals[0], step)

            if epoch_ends:
                losses = _validate(config, valid, loss_step, state, parallel, mask_size)
                run_log.scalars(step, losses)
                parts = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
                run_log.say(f"epoch {step // config.train.steps_per_epoch}: {parts}")
                checkpoints.save(step, parallel.one(state), losses["valid_loss"])
                since = time.monotonic()
                if signals and step < total:
                    raise Interrupted(signals[0], step)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        run_log.close()
        checkpoints.close()


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


def _validate(
    config: ml_collections.ConfigDict,
    examples: pipeline.Examples,
    loss_step: Step,
    state: State,
    parallel: Parallel,
    mask_size: int | None,
) -> dict[str, float]:
    """Mean losses over the whole validation split, as "valid_loss" and so on."""
    batches = pipeline.eval_batches(
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
