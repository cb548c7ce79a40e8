"""Portraits that diffusion models forge: whole ones, and parts of camera images.

The models are in `ddpm.safetensors` and `latent_ddpm.safetensors` beside this file, trained on
portraits of other seeds (configs/diffusion.py). They work in the process that builds the dataset,
which has the accelerators where there are some.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import joblib
import numpy as np
from jaxtyping import Bool, UInt8

from wsdl_data.portraits import samples

if TYPE_CHECKING:
    from wsdl_jax.diffusion.maker import Maker

FOLDER = Path(__file__).parent  # of the models
SIZE = 96  # pixels a side: what the models were trained on
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Model:
    """How a generator's images are made.

    Attributes:
      file: of the forger, beside this one.
      whole: whether it makes whole images, or parts of given ones.
      steps, jump, times, eta: see wsdl_jax.diffusion.maker.Sampling.
    """

    file: str
    whole: bool
    steps: int
    jump: int = 1
    times: int = 1
    eta: float = 0.0


MODELS = {
    "ddpm": Model("ddpm.safetensors", True, steps=20, eta=0.6),
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
    try:
        forger = trained.load(path)
        if forger.config.data.image_size != SIZE:
            raise UserError(f"{path} makes images of {forger.config.data.image_size} pixels")
        return Maker(forger, sampling, whole=model.whole, batch=_BATCH, seed=seed)
    except UserError as error:
        raise ValueError(str(error)) from error


def _source(
    seed: int, split: str, index: int, size: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    image, edit, *_ = samples.make_source(seed, split, index, size)
    return image, edit.mask


def encoded_split(seed: int, split: str, generator: str) -> Iterator[tuple[bytes, bytes | None]]:
    """Yields all images of a split of one of MODELS, as `samples.encoded_split` does.

    An image is a function of seed, split and number; its last bits are those of the machine.

    Raises ValueError where the model is missing or damaged.
    """
    make = _maker(generator, seed)
    count = samples.SPLITS[split]
    # A number that no other split has, whatever its size.
    first = list(samples.SPLITS).index(split) << 24
    batches = np.split(np.arange(count), range(make.batch, count, make.batch))
    if MODELS[generator].whole:
        for images in make.map((first + numbers,) for numbers in batches):
            for image in images:
                yield samples.encode(image), None
        return
    jobs = (joblib.delayed(_source)(seed, split, index, SIZE) for index in range(count))
    images, masks = map(np.stack, zip(*samples.in_processes(jobs), strict=True))
    given = ((first + numbers, images[numbers], masks[numbers]) for numbers in batches)
    for numbers, made in zip(batches, make.map(given), strict=True):
        for image, mask in zip(made, masks[numbers], strict=True):
            yield samples.encode(image), samples.encode(mask.astype(np.uint8) * 255)
