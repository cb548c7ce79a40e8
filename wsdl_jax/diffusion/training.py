"""Training a forger: objectives, the steps of a device, and from a config to checkpoints."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from wsdl_jax import configuration, inputs, methods, runs, training
from wsdl_jax.diffusion import process, trained
from wsdl_jax.diffusion.networks import structures
from wsdl_jax.diffusion.state import State, Weights, blank_state, initial_state
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.parallel import AXIS, Step

log = logging.getLogger("wsdl_jax")
# (parameters, frozen weights, images in [-1, 1], a key an image) → loss of each image
Objective = Callable[[Any, Weights, Float[Array, "b h w 3"], Key[Array, "b"]], Float[Array, "b"]]
_SCALED_BY = 512  # images from which the scale of the latents is taken


def make_objective(config: ml_collections.ConfigDict) -> Objective:
    """Returns what a config's part is trained for."""
    graphs = {name: graph for name, (graph, _) in structures(config).items()}
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
    """Returns the step of one device: (state, its images) → ((state, metrics), None).

    Gradients are averaged over all devices; an image's randomness is that of its `place` in the
    whole batch, which batches have. The average of the weights starts as a plain one: its decay is
    at most (1 + n)/(10 + n) after n steps.
    """

    def step(state: State, batch: dict[str, Array]):
        images = methods.network_input(batch["image"])
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(batch["place"])

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
    """Returns the validation step of one device: (state, its images) → (sums, None).

    The sums, over all devices, are of the averaged weights' losses and of the images' weights. The
    randomness of an image is the same every time.
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

    Args:
      config: a valid one, of a forger.
      run: the run directory.

    Raises:
      UserError: as `wsdl_jax.training.train`, and where there is no trained autoencoder.
      Interrupted: the process was asked to stop; all is saved.
    """
    setup = training.check(config, run, real=config.data.real, load_config=trained.load_config)
    reading = inputs.Reading.of(config.data)
    starts = runs.Checkpoints(run, keep_best=config.train.keep_best).latest() is None
    # Before anything is written.
    frozen = _frozen(config, setup, reading) if starts and config.part == "latent" else None
    with runs.written(run, config, setup.training.provenance) as check_lock:
        _train(config, run, setup, reading, frozen, check_lock)


def _train(
    config: ml_collections.ConfigDict,
    run: epath.Path,
    setup: training.Setup,
    reading: inputs.Reading,
    frozen: Weights | None,
    check_lock: Callable[[], None],
) -> None:
    checkpoints = runs.Checkpoints(run, keep_best=config.train.keep_best)
    state = training.newest_state(run, checkpoints, blank_state(config))
    if state is None:
        state = initial_state(config, frozen)
    parameters = sum(x.size for x in jax.tree.leaves(state["params"]))
    log.info(
        "%s: %s parameters, %s images, on %d × %s, step %d of %d",
        config.part,
        f"{parameters:,}",
        f"{len(setup.training):,}",
        setup.parallel.mesh.size,
        jax.devices()[0].device_kind,
        int(state["step"]),
        config.train.epochs * config.train.steps_per_epoch,
    )
    objective = make_objective(config)
    optimizer = runs.make_optimizer(config.train)
    training.run_loop(
        config,
        run,
        setup,
        reading,
        state=state,
        train_step=make_train_step(objective, optimizer, config.seed, config.train.ema),
        loss_step=make_loss_step(objective, config.seed),
        checkpoints=checkpoints,
        check_lock=check_lock,
    )


def _frozen(
    config: ml_collections.ConfigDict, setup: training.Setup, reading: inputs.Reading
) -> Weights:
    """Returns a latent forger's trained autoencoder, and the standard deviation of its latents."""
    autoencoder = trained.load(config.autoencoder.path)
    for path in ("part", "data.image_size", "autoencoder.channels", "autoencoder.widths"):
        has, wants = (dict(configuration.essence(c))[path] for c in (autoencoder.config, config))
        wants = "autoencoder" if path == "part" else wants
        if has != wants:
            raise UserError(
                f"{config.autoencoder.path} is trained with config.{path} = {has}, not {wants}"
            )
    graph, _ = structures(config)["autoencoder"]
    weights = autoencoder.weights["autoencoder"]

    @jax.jit
    def encode(weights: Any, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h4 w4 c"]:
        return nnx.merge(graph, weights).encode(methods.network_input(images))[0]

    places = range(min(len(setup.training), _SCALED_BY))
    latents = [
        encode(weights, batch["image"])[batch["weight"] > 0]
        for batch in inputs.eval_batches(
            setup.training, reading, batch=setup.eval_batch, places=places
        )
    ]
    return {"autoencoder": weights, "scale": jnp.concatenate(latents).std()}
