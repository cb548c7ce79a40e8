"""Trains a forger: a U-Net on pixels, an autoencoder, or a U-Net on its latents.

    python -m wsdl_jax.diffusion.train --config configs/diffusion.py --workdir runs/forger/pixel

The same command again continues where the run has stopped, also after Ctrl-C. Exit codes are those
of wsdl_jax.main.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from absl import flags
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8
from ml_collections import config_flags

from wsdl_data import provenance
from wsdl_jax import configuration, inputs, methods, runs
from wsdl_jax.diffusion import configuration as forgers
from wsdl_jax.diffusion import forger, process
from wsdl_jax.diffusion.forger import State, Weights
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runtime import command, hosts
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.interruption import Interrupted
from wsdl_jax.runtime.parallel import AXIS, Parallel, Step
from wsdl_jax.training import loop

log = logging.getLogger("wsdl_jax")
# (parameters, frozen weights, images in [-1, 1], a key an image) → loss of each image
Objective = Callable[[Any, Weights, Float[Array, "b h w 3"], Key[Array, "b"]], Float[Array, "b"]]
_SCALED_BY = 512  # images from which the scale of the latents is taken


def make_objective(config: ml_collections.ConfigDict) -> Objective:
    """What a config's part is trained for."""
    graphs = {name: graph for name, (graph, _) in forger.structures(config).items()}
    steps = config.process
    levels = process.SCHEDULES[steps.schedule](steps.steps)

    def pixel(params, frozen, images, keys):
        denoise = process.denoiser(nnx.merge(graphs["unet"], params), levels)
        return process.loss(denoise, images, keys, levels, steps.p2_k, steps.p2_gamma)

    def latent(params, frozen, images, keys):
        autoencoder = nnx.merge(graphs["autoencoder"], frozen["autoencoder"])
        return pixel(params, frozen, autoencoder.encode(images)[0] / frozen["scale"], keys)

    def reconstruction(params, frozen, images, keys):
        autoencoder = nnx.merge(graphs["autoencoder"], params)
        mean, log_variance = autoencoder.encode(images)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        error = jnp.abs(autoencoder.decode(mean + jnp.exp(log_variance / 2) * noise) - images)
        divergence = (mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
        weight = config.autoencoder.kl_weight
        return error.mean(axis=(1, 2, 3)) + weight * divergence.mean(axis=(1, 2, 3))

    return {"pixel": pixel, "latent": latent, "autoencoder": reconstruction}[config.part]


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, seed: int, ema: float
) -> Step:
    """The step of one device: (state, its images) → ((state, metrics), None).

    Gradients are averaged over all devices; an image's randomness is that of its place in the whole
    batch. The average of the weights starts as a plain one: its decay is at most (1 + n)/(10 + n)
    after n steps.
    """

    def step(state: State, batch: dict[str, Array]):
        images = methods.network_input(batch["image"])
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        places = jax.lax.axis_index(AXIS) * len(images) + jnp.arange(len(images))
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)

        def mean(params: Any) -> Array:
            return objective(params, state.get("frozen", {}), images, keys).mean()

        loss, gradients = jax.lax.pmean(jax.value_and_grad(mean)(state["params"]), AXIS)
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        decay = jnp.minimum(ema, (1 + state["step"]) / (10 + state["step"]))
        state = {
            **state,
            "step": state["step"] + 1,
            "params": params,
            "ema": jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state["ema"], params),
            "optimizer": optimizer_state,
        }
        return (state, {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}), None

    return step


def make_loss_step(objective: Objective, seed: int) -> Step:
    """The validation step of one device: (state, its images) → (sums over all devices, None).

    The sums are of the averaged weights' losses and of the images' weights. The randomness of an
    image is the same every time.
    """

    def step(state: State, batch: dict[str, Array]):
        root = jax.random.fold_in(jax.random.key(seed), 2**31)  # which no step has
        keys = jax.vmap(lambda index: jax.random.fold_in(root, index))(batch["index"])
        images = methods.network_input(batch["image"])
        losses = objective(state["ema"], state.get("frozen", {}), images, keys)
        sums = {"loss": (losses * batch["weight"]).sum(), "weight": batch["weight"].sum()}
        return jax.lax.psum(sums, AXIS), None

    return step


def train(config: ml_collections.ConfigDict, run: epath.Path) -> None:
    """Trains a config in a run directory, from where that run has stopped.

    Raises as wsdl_jax.train.train does, and UserError where there is no trained autoencoder.
    """
    # ----- What to run on, and what to run ------------------------------------------------------
    configuration.check_circumstances(config)
    parallel = Parallel(config.parallel.backend)
    parallel.check_batch(config.train.batch, microbatches=1)
    runs.check(run, config, forger.load_config)
    training, valid = (
        inputs.Examples(config.data.real, split, config.data.dir) for split in ("train", "valid")
    )
    hosts.agree(config=configuration.essence(config), data=provenance.digests(training.provenance))
    runs.check_data(run, training.provenance)
    inputs.check_sides(
        real=config.data.real, fake=(), data_dir=config.data.dir, splits=("train", "valid")
    )
    reading = _for_pipeline(config, parallel)
    starts = Checkpoints(run, keep_best=config.train.keep_best).latest() is None
    # Before anything is written.
    frozen = _frozen(config, reading, training) if starts and config.part == "latent" else None
    with runs.written(run, config, training.provenance) as check_lock:
        _train(config, run, parallel, reading, valid, len(training), frozen, check_lock)


def _train(
    config: ml_collections.ConfigDict,
    run: epath.Path,
    parallel: Parallel,
    reading: ml_collections.ConfigDict,
    valid: inputs.Examples,
    training_images: int,
    frozen: Weights | None,
    check_lock: Callable[[], None],
) -> None:
    checkpoints = Checkpoints(run, keep_best=config.train.keep_best)
    newest = checkpoints.newest(forger.blank_state(config))
    if newest is None:
        runs.check_not_pruned(run)
    state = forger.initial_state(config, frozen) if newest is None else newest[1]
    parameters = sum(x.size for x in jax.tree.leaves(state["params"]))
    start, total = int(state["step"]), config.train.epochs * config.train.steps_per_epoch
    log.info(
        "%s: %s parameters, %s images, on %d × %s, step %d of %d",
        *(config.part, f"{parameters:,}", f"{training_images:,}", parallel.mesh.size),
        *(jax.devices()[0].device_kind, start, total),
    )
    if start >= total:
        checkpoints.close()
        return

    # ----- Steps ----------------------------------------------------------------------------------
    objective = make_objective(config)
    optimizer = runs.make_optimizer(config.train)
    loss_step = parallel.map(make_loss_step(objective, config.seed))

    def validate(state: State) -> dict[str, float]:
        sums = {"loss": 0.0, "weight": 0.0}
        for batch in inputs.eval_batches(
            valid,
            reading,
            mask_size=None,
            process=jax.process_index(),
            processes=jax.process_count(),
        ):
            part, _ = loss_step(state, parallel.shard(batch))
            for name, value in parallel.one(part).items():
                sums[name] += float(value)
        return {"valid_loss": sums["loss"] / sums["weight"]}

    batches = inputs.train_batches(
        reading,
        mask_size=None,
        start_step=start,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    loop(
        config,
        run,
        state=state,
        train_step=make_train_step(objective, optimizer, config.seed, config.train.ema),
        batches=batches,
        validate=validate,
        checkpoints=checkpoints,
        parallel=parallel,
        check_lock=check_lock,
    )


def _for_pipeline(
    config: ml_collections.ConfigDict, parallel: Parallel
) -> ml_collections.ConfigDict:
    """The config with the further fields that the input pipeline reads."""
    with config.copy_and_resolve_references().unlocked() as reading:
        reading.data.fake = ()
        reading.data.mask_resize = "nearest"
        reading.eval.batch = parallel.rounded_up(config.eval.batch)
    return reading


def _frozen(
    config: ml_collections.ConfigDict,
    reading: ml_collections.ConfigDict,
    examples: inputs.Examples,
) -> Weights:
    """The trained autoencoder of a latent forger, and the standard deviation of its latents."""
    trained = forger.load(config.autoencoder.path)
    for path in ("part", "data.image_size", "autoencoder.channels", "autoencoder.widths"):
        has, wants = (dict(configuration.essence(c))[path] for c in (trained.config, config))
        wants = "autoencoder" if path == "part" else wants
        if has != wants:
            raise UserError(
                f"{config.autoencoder.path} is trained with config.{path} = {has}, not {wants}"
            )
    graph, _ = forger.structures(config)["autoencoder"]
    weights = trained.weights["autoencoder"]

    @jax.jit
    def encode(weights: Any, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h4 w4 c"]:
        return nnx.merge(graph, weights).encode(methods.network_input(images))[0]

    count = min(len(examples), _SCALED_BY)
    latents = [
        encode(weights, batch["image"])[batch["weight"] > 0]
        for batch in inputs.eval_batches(examples, reading, mask_size=None, places=range(count))
    ]
    return {"autoencoder": weights, "scale": jnp.concatenate(latents).std()}


def main(_: list[str]) -> None:
    """The command."""
    jax.config.parse_flags_with_absl()
    config_file, *_ = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")
    if not epath.Path(config_file).is_file():
        raise ConfigError(f"no config file {config_file}")
    config = _CONFIG.value
    forgers.validate(config)
    configuration.check_circumstances(config)
    hosts.start_by_flags()
    if not hosts.is_first():
        log.setLevel(logging.WARNING)
    run = epath.Path(_WORKDIR.value or f"runs/forger/{config.part}")
    runs.check(run, config, forger.load_config)
    data = config.data
    hosts.first(lambda: inputs.prepare_subsets(data.real, data.dir, data.manual_dir))
    # Where the others have disks of their own.
    hosts.each(lambda: inputs.prepare_subsets(data.real, data.dir, data.manual_dir))
    try:
        train(config, run)
    except Interrupted as stop:
        log.info("%s: %s; the same command continues it", run, stop)
        sys.exit(128 + stop.signal_number)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, and :variant.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; default: runs/forger/PART.")
    flags.mark_flag_as_required("config")
    hosts.define_flags()
    flags.adopt_module_key_flags(hosts)  # for --help
    command.run(main)
