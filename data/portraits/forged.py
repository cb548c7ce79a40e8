"""Portraits that diffusion models forge: whole ones, parts of camera images, reconstructions.

The models are in `ddpm.safetensors` and `latent_ddpm.safetensors` beside this file, trained on
portraits of other seeds (configs/diffusion.py). They work in the process that builds the dataset,
which has the accelerators where there are some.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from jaxtyping import Bool, UInt8

from wsdl_data.portraits import samples

if TYPE_CHECKING:
    from wsdl_jax.diffusion.maker import Maker

FOLDER = Path(__file__).parent  # of the models
SIZE = 96  # pixels a side: what the models were trained on
_BATCH = 16
# Reconstructions are made of camera images of the dataset's seed plus this. Hence no fake shows a
# scene of a real image, and none of the seeds 1 to 8, which the models were trained on.
SOURCE_SEED = 1000


@dataclasses.dataclass(frozen=True)
class Model:
    """How a generator's images are made.

    Attributes:
      file: of the forger, beside this one.
      whole: whether it makes whole images, or parts of given ones.
      steps, jump, times, eta: see wsdl_jax.diffusion.maker.Sampling.
      strength: of a reconstruction; None where none is made.
    """

    file: str
    whole: bool
    steps: int
    jump: int = 1
    times: int = 1
    eta: float = 0.0
    strength: float | None = None

    @property
    def subset(self) -> str:
        """Returns what is appended to the generator's name for that of its subset."""
        return "_full" if self.whole and self.strength is None else ""

    def recipe(self) -> dict[str, Any]:
        """Returns what is kept with the images that it makes."""
        return {k: value for k, value in dataclasses.asdict(self).items() if value is not None}


MODELS = {
    "ddpm": Model("ddpm.safetensors", True, steps=20, eta=0.6),
    "ddpm_reconstructed": Model("ddpm.safetensors", True, steps=10, eta=0.6, strength=0.3),
    "ddpm_repaint": Model("ddpm.safetensors", False, steps=10, jump=5, times=2, eta=0.6),
    "latent_ddpm": Model("latent_ddpm.safetensors", False, steps=10, jump=5, times=2, eta=0.6),
}


def _maker(generator: str, seed: int) -> "Maker":
    """Returns what makes a generator's images. Raises ValueError if its model is not in order."""
    # Only this part of the data needs JAX.
    from wsdl_jax.diffusion import trained
    from wsdl_jax.diffusion.maker import Maker, Sampling
    from wsdl_jax.runtime.errors import UserError

    model = MODELS[generator]
    path = FOLDER / model.file
    if not path.exists():
        raise ValueError(
            f"{path} is missing: train a forger by configs/diffusion.py, and put it there by"
            f" python -m wsdl_jax.diffusion.forger --run RUN --out {path}"
        )
    sampling = Sampling(model.steps, model.eta, model.jump, model.times)
    way = "draw" if model.whole else "repaint"
    if model.strength is not None:
        way, sampling = "reconstruct", dataclasses.replace(sampling, strength=model.strength)
    try:
        forger = trained.load(path)
        if forger.config.data.image_size != SIZE:
            raise UserError(f"{path} makes images of {forger.config.data.image_size} pixels")
        return Maker(forger, sampling, way, batch=_BATCH, seed=seed)
    except UserError as error:
        raise ValueError(str(error)) from error


def _source(
    generator: str, seed: int, split: str, index: int, size: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"] | None]:
    """Makes the camera image that an image is made of, and the mask of what is made anew in it."""
    if MODELS[generator].whole:
        return samples.make_real(seed, split, index, size).image, None
    image, edit, *_ = samples.make_source(seed, split, index, size)
    return image, edit.mask


def encoded_split(seed: int, split: str, generator: str) -> Iterator[tuple[bytes, bytes | None]]:
    """Yields all images of a split of one of MODELS, as `samples.encoded_split` does.

    An image is a function of seed, split and number; its last bits are those of the machine.

    Raises ValueError where the model is missing or damaged.
    """
    model = MODELS[generator]
    if model.strength is not None:
        seed += SOURCE_SEED
    make = _maker(generator, seed)
    count = samples.SPLITS[split]
    # A number that no other split has, whatever its size.
    first = list(samples.SPLITS).index(split) << 24
    batches = np.split(np.arange(count), range(make.batch, count, make.batch))
    if model.whole and model.strength is None:
        for images in make.map((first + numbers,) for numbers in batches):
            for image in images:
                yield samples.encode(image), None
        return
    jobs = (joblib.delayed(_source)(generator, seed, split, index, SIZE) for index in range(count))
    sources, masks = samples.in_processes(jobs), []

    def given() -> Iterator[tuple[np.ndarray, ...]]:
        for numbers in batches:
            images, drawn = zip(*itertools.islice(sources, len(numbers)), strict=True)
            masks.extend(drawn)
            yield first + numbers, np.stack(images), None if model.whole else np.stack(drawn)

    # All sources are there before the first image is: the masks are few bytes.
    made = itertools.chain.from_iterable(make.map(given()))
    for image, mask in zip(made, masks, strict=True):
        encoded = None if mask is None else samples.encode(mask.astype(np.uint8) * 255)
        yield samples.encode(image), encoded
