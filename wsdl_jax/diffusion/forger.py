"""A trained forger: its networks, read from a run directory or a file, and what it makes.

    python -m wsdl_jax.diffusion.forger --run runs/forger/pixel --out pixel.safetensors

writes the averaged weights of a run as float16, with its config: all that forging needs.
"""

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors
import safetensors.flax
from absl import flags
from etils import epath
from flax import nnx, traverse_util
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

from wsdl_jax import configuration as configurations
from wsdl_jax import methods, runs
from wsdl_jax.diffusion import configuration, process
from wsdl_jax.diffusion.networks import Autoencoder, UNet
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runtime import command
from wsdl_jax.runtime.errors import UserError, reason
from wsdl_jax.runtime.parallel import AXIS, Parallel, Step
from wsdl_jax.runtime.storage import write_whole

log = logging.getLogger("wsdl_jax")
_CALLS = 8  # at the same time, at most: each needs memory
State = dict[str, Any]  # step, params, ema, optimizer; of a latent forger frozen Weights
Weights = dict[str, Any]  # of each network by its name, "unet" and "autoencoder"; and "scale"


# ----- Networks -----------------------------------------------------------------------------------


def make_unet(config: ml_collections.ConfigDict, rngs: nnx.Rngs) -> UNet:
    """The U-Net of a config, for images or for latents, with new weights."""
    channels = config.autoencoder.channels if config.part == "latent" else 3
    return UNet(channels=channels, rngs=rngs, **config.network)


def make_autoencoder(config: ml_collections.ConfigDict, rngs: nnx.Rngs) -> Autoencoder:
    """The autoencoder of a config, with new weights."""
    autoencoder = config.autoencoder
    return Autoencoder(channels=autoencoder.channels, widths=autoencoder.widths, rngs=rngs)


def structures(config: ml_collections.ConfigDict) -> dict[str, tuple[Any, Any]]:
    """The networks of a config's part by name: graph, and state with shapes in place of weights."""
    makers = {
        "pixel": {"unet": make_unet},
        "autoencoder": {"autoencoder": make_autoencoder},
        "latent": {"unet": make_unet, "autoencoder": make_autoencoder},
    }[config.part]
    return {
        name: nnx.split(nnx.eval_shape(lambda make=make: make(config, nnx.Rngs(0))))
        for name, make in makers.items()
    }


# ----- A forger -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Forger:
    """Trained networks.

    Attributes:
      config: that they were trained by.
      weights: their parameters; of a latent one also "scale", the standard deviation of the latents
        before they are divided by it.
      step: of training.
    """

    config: ml_collections.ConfigDict
    weights: Weights
    step: int


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a forger makes images.

    Attributes:
      steps: of the network from noise to image, evenly spaced over those trained.
      eta: 0 for DDIM, 1 for ancestral sampling; None for each generator's own, 0 for whole images
        and 1 for RePaint.
      jump: RePaint's jump length, in these steps.
      times: how often RePaint goes down each stretch.
    """

    steps: int = 250
    eta: float | None = None
    jump: int = 10
    times: int = 10


def load(path: epath.PathLike) -> Forger:
    """A forger from a file of `save`, or from the best checkpoint of a run directory.

    Raises UserError, naming the path, for anything else.
    """
    path = epath.Path(path)
    if path.is_dir():
        return _from_run(path)
    if not path.exists():
        raise UserError(f"no forger {path}: neither a file nor a run directory")
    try:
        with safetensors.safe_open(os.fspath(path), "flax") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = configuration.load(metadata["config"])
        step = int(metadata["step"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, UserError) as error:
        raise UserError(f"{path} is not a forger's file: {error!r}") from error
    tree = traverse_util.unflatten_dict(flat, sep="/")
    weights: Weights = {}
    for name, (_, like) in structures(config).items():
        expected = {"/".join(map(str, p)): x for p, x in nnx.to_flat_state(like)}
        found = traverse_util.flatten_dict(tree.get(name, {}), sep="/")
        for key in sorted(expected.keys() | found.keys()):
            shapes = [x[key].shape if key in x else None for x in (expected, found)]
            if shapes[0] != shapes[1]:
                raise UserError(f"{path}: {name}/{key} is {shapes[1]}, not {shapes[0]}")
        values = {
            p: x.replace(found["/".join(map(str, p))].astype(x.dtype))
            for p, x in nnx.to_flat_state(like)
        }
        weights[name] = nnx.from_flat_state(values)
    if config.part == "latent":
        weights["scale"] = tree["scale"].astype(jnp.float32)
    return Forger(config, weights, step)


def save(forger: Forger, path: epath.PathLike) -> None:
    """Writes a forger as a safetensors file of float16, with its config. It appears when whole.

    Of its config no path of the machine that it was trained on is kept. An earlier forger's file is
    replaced. Raises UserError where something else is there, or the file cannot be written.
    """
    path = epath.Path(path)
    if path.exists():
        try:
            load(path)
        except UserError as error:
            raise UserError(
                f"{path} is there and is no forger's file: choose another --out"
            ) from error
    config = forger.config.copy_and_resolve_references()
    config.data.dir = config.data.manual_dir = None
    if config.autoencoder.path:
        config.autoencoder.path = epath.Path(config.autoencoder.path).name
    flat = {
        "/".join(map(str, (name, *p))): x.get_value().astype(jnp.float16)
        for name, state in forger.weights.items()
        if name != "scale"
        for p, x in nnx.to_flat_state(state)
    }
    if "scale" in forger.weights:
        flat["scale"] = jnp.asarray(forger.weights["scale"], jnp.float32)
    metadata = {"config": configurations.save(config), "step": str(forger.step)}
    try:
        write_whole(path, safetensors.flax.save(flat, metadata))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {reason(error)}") from error


def load_config(run: epath.Path) -> ml_collections.ConfigDict:
    """Returns the config of a forger's run directory. Raises UserError if it is not one."""

    def load(text: str) -> ml_collections.ConfigDict:
        try:
            return configuration.load(text)
        except UserError as error:
            raise UserError(f"{run} is not a run of a forger: {error}") from error

    return runs.load_stored_config(run, load)


def initial_state(config: ml_collections.ConfigDict, frozen: Weights | None) -> State:
    """The state before the first step.

    config: `seed` gives the weights.
    frozen: of a latent forger, the weights of its autoencoder and "scale".
    """
    make = make_autoencoder if config.part == "autoencoder" else make_unet
    params = nnx.state(make(config, nnx.Rngs(config.seed)), nnx.Param)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "ema": params,
        "optimizer": runs.make_optimizer(config.train).init(params),
    }
    return state if frozen is None else {**state, "frozen": frozen}


def blank_state(config: ml_collections.ConfigDict) -> State:
    """A state with shapes in place of arrays, to restore into."""
    frozen = None
    if config.part == "latent":
        frozen = {
            "autoencoder": structures(config)["autoencoder"][1],
            "scale": jax.ShapeDtypeStruct((), jnp.float32),
        }
    return jax.eval_shape(lambda: initial_state(config, None)) | (
        {} if frozen is None else {"frozen": frozen}
    )


def _from_run(run: epath.Path) -> Forger:
    config = load_config(run)
    found = Checkpoints(run, keep_best=config.train.keep_best).best_sound(blank_state(config))
    if found is None:
        raise UserError(f"{run} has no checkpoint yet")
    step, state = jax.tree.map(jnp.asarray, found)
    trained = "autoencoder" if config.part == "autoencoder" else "unet"
    return Forger(config, {trained: state["ema"], **state.get("frozen", {})}, int(step))


# ----- What it makes ------------------------------------------------------------------------------


def make_step(forger: Forger, sampling: Sampling, *, whole: bool) -> Step:
    """What one device does: (weights, its batch) → (None, images [b, S, S, 3] uint8).

    A batch has `key` [b, 2] uint32, the data of a random key an image, and, unless whole images are
    made, `image` [b, S, S, 3] uint8 and `mask` [b, S, S] bool, True where it is made anew. A forger
    on pixels leaves the rest of the image untouched; of one on latents the decoder makes all of it.
    """
    config = forger.config
    graphs = {name: graph for name, (graph, _) in structures(config).items()}
    levels = process.SCHEDULES[config.process.schedule](config.process.steps)
    latent = config.part == "latent"
    size = config.data.image_size
    shape = (size // 4, size // 4, config.autoencoder.channels) if latent else (size, size, 3)
    clip = None if latent else 1.0

    def step(weights: Weights, batch: dict[str, Array]):
        denoise = process.denoiser(nnx.merge(graphs["unet"], weights["unet"]), levels)
        keys = jax.random.wrap_key_data(batch["key"])
        if whole:
            path = process.straight(levels, sampling.steps)
            eta = 0.0 if sampling.eta is None else sampling.eta
            made = process.sample(denoise, keys, shape, path, eta=eta, clip=clip)
        else:
            path = process.resampling(levels, sampling.steps, sampling.jump, sampling.times)
            eta = 1.0 if sampling.eta is None else sampling.eta
            known, masks = methods.network_input(batch["image"]), batch["mask"]
            if latent:
                autoencoder = nnx.merge(graphs["autoencoder"], weights["autoencoder"])
                known = autoencoder.encode(known)[0] / weights["scale"]
                masks = _cells(masks)
            made = process.repaint(denoise, keys, known, masks, path, eta=eta, clip=clip)
        if latent:
            autoencoder = nnx.merge(graphs["autoencoder"], weights["autoencoder"])
            return None, to_uint8(autoencoder.decode(made * weights["scale"]))
        made = to_uint8(made)
        if not whole:
            made = jnp.where(batch["mask"][..., None], made, batch["image"])
        return None, made

    return step


def _cells(masks: Bool[Array, "b h w"]) -> Bool[Array, "b h4 w4"]:
    """The latents that hold something of the masked region."""
    batch, height, width = masks.shape
    return masks.reshape(batch, height // 4, 4, width // 4, 4).any(axis=(2, 4))


def to_uint8(images: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """The inverse of `methods.network_input`, clipped."""
    return jnp.rint(jnp.clip((images + 1) * 127.5, 0, 255)).astype(jnp.uint8)


class Maker:
    """A forger on all devices of this host, compiled once for batches of one size."""

    def __init__(self, forger: Forger, sampling: Sampling, *, whole: bool, batch: int, seed: int):
        """
        Args:
          forger: of part "pixel" or "latent".
          sampling: how images are made.
          whole: whether whole images are made, or parts of given ones.
          batch: images at once; rounded up to a multiple of the devices.
          seed: of all randomness.

        Raises UserError for an autoencoder alone, and for a sampling that is impossible.
        """
        if forger.config.part == "autoencoder":
            raise UserError("an autoencoder alone forges nothing: train part=latent on it")
        trained = forger.config.process.steps
        if not 1 <= sampling.steps <= trained:
            raise UserError(f"{sampling.steps} steps: this forger was trained with {trained}")
        if not whole and not 1 <= sampling.jump <= sampling.steps:
            raise UserError(f"a jump of {sampling.jump} steps: must be 1 to {sampling.steps}")
        if not whole and sampling.times < 1:
            raise UserError(f"{sampling.times} times down each stretch: must be at least 1")
        if sampling.eta is not None and not 0 <= sampling.eta <= 1:
            raise UserError(f"eta = {sampling.eta}: must be 0 to 1")
        # Of this host alone: data is prepared by one, while the others wait.
        parallel = Parallel("shard_map", jax.local_devices())
        self.size = forger.config.data.image_size
        self.batch = parallel.rounded_up(batch)
        self._parallel, self._seed, self._whole = parallel, seed, whole
        self._step = parallel.map(make_step(forger, sampling, whole=whole))
        self._weights = parallel.replicate(forger.weights)

    def __call__(
        self,
        numbers: Int[np.ndarray, "n"],
        images: UInt8[np.ndarray, "n s s 3"] | None = None,
        masks: Bool[np.ndarray, "n s s"] | None = None,
    ) -> UInt8[np.ndarray, "n s s 3"]:
        """Images, each a function of the seed, its number and what is given for it.

        At most `batch` of them; images and masks where parts are made anew.
        """
        count = len(numbers)
        fill = np.arange(self.batch) % count  # the program has one size
        root = jax.random.key(self._seed)
        keys = jax.vmap(lambda number: jax.random.fold_in(root, number))(numbers[fill])
        batch = {"key": np.asarray(jax.random.key_data(keys))}
        if not self._whole:
            batch |= {"image": images[fill], "mask": masks[fill]}
        sharding = NamedSharding(self._parallel.mesh, PartitionSpec(AXIS))
        _, made = self._step(self._weights, jax.device_put(batch, sharding))
        return self._parallel.gather(made)[:count]

    def map(self, batches: Iterable[tuple[np.ndarray, ...]]) -> Iterator[np.ndarray]:
        """What calls with these arguments return, in order, several of them at a time.

        A CPU does nearly twice as much that way: one call alone keeps little more than a core busy.
        """
        pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _CALLS))
        try:
            yield from pool.map(lambda arguments: self(*arguments), batches)
        finally:
            pool.shutdown(cancel_futures=True)


# ----- Command ------------------------------------------------------------------------------------


def main(_: list[str]) -> None:
    """The command."""
    jax.config.parse_flags_with_absl()
    out = epath.Path(_OUT.value)
    forger = load(_RUN.value)
    save(forger, out)
    size = out.stat().length / 1e6
    log.info("%s of step %d: %.2f MB, %s", forger.config.part, forger.step, size, out)


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "A run directory of a forger.", required=True)
    _OUT = flags.DEFINE_string("out", None, "The safetensors file to write.", required=True)
    command.run(main)
