"""What a trained forger makes: whole images, parts of given ones, and given ones again."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt8

from wsdl_jax import methods
from wsdl_jax.diffusion import process
from wsdl_jax.diffusion.networks import structures
from wsdl_jax.diffusion.state import Weights
from wsdl_jax.diffusion.trained import Forger
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.parallel import AXIS, Parallel, Step

# New images; parts of given ones, made anew; given ones, noised part of the way and brought back;
# given ones, sent through an autoencoder alone.
Way = Literal["draw", "repaint", "reconstruct", "autoencode"]
_CALLS = 8  # at the same time, at most: each needs memory


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a forger makes images.

    Attributes:
      steps: of the network from noise to image, evenly spaced over those trained.
      eta: 0 for DDIM, 1 for ancestral sampling; None for each generator's own, 0 for whole images
        and 1 for RePaint.
      jump: RePaint's jump length, in these steps.
      times: how often RePaint goes down each stretch.
      strength: how far images are noised that are reconstructed, as a share of the schedule; they
        are brought back in this share of `steps`.
    """

    steps: int = 250
    eta: float | None = None
    jump: int = 10
    times: int = 10
    strength: float = 0.3


def make_step(forger: Forger, sampling: Sampling, way: Way) -> Step:
    """Returns what one device does: (weights, its batch) → (None, images [b, S, S, 3] uint8).

    A batch has `key` [b, 2] uint32, the data of a random key an image, and, unless new images are
    drawn, `image` [b, S, S, 3] uint8; to repaint also `mask` [b, S, S] bool, True where it is made
    anew. There a forger on pixels leaves the rest of the image untouched; of one on latents the
    decoder makes all of it.
    """
    config = forger.config
    graphs = {name: graph for name, (graph, _) in structures(config).items()}
    levels = process.SCHEDULES[config.process.schedule](config.process.steps)
    latent = config.part != "pixel"
    size = config.data.image_size
    shape = (size // 4, size // 4, config.autoencoder.channels) if latent else (size, size, 3)
    clip = None if latent else 1.0

    def sampled(
        weights: Weights,
        batch: dict[str, Array],
        known: Float[Array, "b h w c"] | None,
        masks: Bool[Array, "b h w"] | None,
    ) -> Float[Array, "b h w c"]:
        denoise = process.denoiser(nnx.merge(graphs["unet"], weights["unet"]), levels)
        keys = jax.random.wrap_key_data(batch["key"])
        if way == "repaint":
            path = process.resampling(levels, sampling.steps, sampling.jump, sampling.times)
            eta = 1.0 if sampling.eta is None else sampling.eta
            return process.repaint(denoise, keys, known, masks, path, eta=eta, clip=clip)
        eta = 0.0 if sampling.eta is None else sampling.eta
        if way == "reconstruct":
            path = process.partial(levels, sampling.steps, sampling.strength)
            return process.reconstruct(denoise, keys, known, path, eta=eta, clip=clip)
        path = process.straight(levels, sampling.steps)
        return process.sample(denoise, keys, shape, path, eta=eta, clip=clip)

    def step(weights: Weights, batch: dict[str, Array]):
        known = methods.network_input(batch["image"]) if "image" in batch else None
        masks = batch.get("mask")
        if not latent:
            made = to_uint8(sampled(weights, batch, known, masks))
            return None, made if masks is None else jnp.where(
                masks[..., None], made, batch["image"]
            )
        autoencoder = nnx.merge(graphs["autoencoder"], weights["autoencoder"])
        if known is not None:
            known = autoencoder.encode(known)[0]
        if way == "autoencode":
            return None, to_uint8(autoencoder.decode(known))
        scale = weights["scale"]
        known = None if known is None else known / scale
        made = sampled(weights, batch, known, None if masks is None else _cells(masks))
        return None, to_uint8(autoencoder.decode(made * scale))

    return step


def _cells(masks: Bool[Array, "b h w"]) -> Bool[Array, "b h4 w4"]:
    """Returns the latents that hold something of the masked region."""
    batch, height, width = masks.shape
    return masks.reshape(batch, height // 4, 4, width // 4, 4).any(axis=(2, 4))


def to_uint8(images: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """Returns images in [-1, 1] as pixels: the inverse of `methods.network_input`, clipped."""
    return jnp.rint(jnp.clip((images + 1) * 127.5, 0, 255)).astype(jnp.uint8)


def _check(config: ml_collections.ConfigDict, sampling: Sampling, way: Way) -> None:
    """Raises UserError where a forger cannot make this, or the sampling is impossible."""
    if way == "autoencode":
        if config.part == "pixel":
            raise UserError("a forger on pixels has no autoencoder: take one of part latent")
        return
    if config.part == "autoencoder":
        raise UserError("an autoencoder alone forges nothing: train part=latent on it")
    trained = config.process.steps
    if not 1 <= sampling.steps <= trained:
        raise UserError(f"{sampling.steps} steps: this forger was trained with {trained}")
    if way == "repaint" and not 1 <= sampling.jump <= sampling.steps:
        raise UserError(f"a jump of {sampling.jump} steps: must be 1 to {sampling.steps}")
    if way == "repaint" and sampling.times < 1:
        raise UserError(f"{sampling.times} times down each stretch: must be at least 1")
    if way == "reconstruct" and not 0 < sampling.strength <= 1:
        raise UserError(f"strength = {sampling.strength}: must be above 0, and at most 1")
    if sampling.eta is not None and not 0 <= sampling.eta <= 1:
        raise UserError(f"eta = {sampling.eta}: must be 0 to 1")


class Maker:
    """A forger on all devices of this host, compiled once for batches of one size."""

    def __init__(self, forger: Forger, sampling: Sampling, way: Way, *, batch: int, seed: int):
        """Replicates a forger's weights on the devices.

        Args:
          forger: of part "pixel" or "latent"; to autoencode also "autoencoder", not "pixel".
          sampling: how images are made.
          way: what is made.
          batch: images at once; rounded up to a multiple of the devices.
          seed: of all randomness.

        Raises:
          UserError: the forger is of a part that cannot do this, or the sampling is impossible.
        """
        _check(forger.config, sampling, way)
        # Of this host alone: data is prepared by one, while the others wait.
        parallel = Parallel("shard_map", jax.local_devices())
        self.size = forger.config.data.image_size
        self.at_once = min(os.cpu_count() or 1, _CALLS)
        self.batch = parallel.rounded_up(batch)
        self._parallel, self._seed, self._way = parallel, seed, way
        self._step = parallel.map(make_step(forger, sampling, way))
        self._weights = parallel.distribute(forger.weights)

    def __call__(
        self,
        numbers: Int[np.ndarray, "n"],
        images: UInt8[np.ndarray, "n s s 3"] | None = None,
        masks: Bool[np.ndarray, "n s s"] | None = None,
    ) -> UInt8[np.ndarray, "n s s 3"]:
        """Makes images, each a function of the seed, its number and what is given for it.

        Args:
          numbers: of the images, at most `batch`.
          images: that are made again, or parts of them; None where new ones are drawn.
          masks: of these parts, True where they are; None where the whole image is made.
        """
        count = len(numbers)
        fill = np.arange(self.batch) % count  # the program has one size
        root = jax.random.key(self._seed)
        keys = jax.vmap(lambda number: jax.random.fold_in(root, number))(numbers[fill])
        batch = {"key": np.asarray(jax.random.key_data(keys))}
        if self._way != "draw":
            batch["image"] = images[fill]
        if self._way == "repaint":
            batch["mask"] = masks[fill]
        sharding = NamedSharding(self._parallel.mesh, PartitionSpec(AXIS))
        _, made = self._step(self._weights, jax.device_put(batch, sharding))
        return self._parallel.gather(made)[:count]

    def map(self, batches: Iterable[tuple[np.ndarray, ...]]) -> Iterator[np.ndarray]:
        """Yields what calls with these arguments return, in order; several run at a time.

        A CPU does nearly twice as much that way: one call alone keeps little more than a core busy.
        """
        pool = ThreadPoolExecutor(self.at_once)
        try:
            yield from pool.map(lambda arguments: self(*arguments), batches)
        finally:
            pool.shutdown(cancel_futures=True)
