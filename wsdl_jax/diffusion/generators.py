"""Whatever forges: the diffusion models that are trained here, and any other inpainter."""

import dataclasses
import hashlib
import importlib.resources
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Bool, Int, UInt8

from wsdl_data import inpainters, provenance
from wsdl_data.provenance import Contents, Origin
from wsdl_jax.diffusion import trained
from wsdl_jax.diffusion.maker import Maker, Sampling
from wsdl_jax.runtime import plugins
from wsdl_jax.runtime.errors import UserError

FORGERS = ("full", "repaint", "latent")  # generators that are trained here
# The forgers of the embedded dataset, which are there by default.
PACKAGED = {"full": "ddpm", "repaint": "ddpm", "latent": "latent_ddpm"}

# (numbers, images, masks) → images; images and masks are None for whole ones.
Make = Callable[
    [Int[np.ndarray, "n"], UInt8[np.ndarray, "n s s 3"] | None, Bool[np.ndarray, "n s s"] | None],
    UInt8[np.ndarray, "n s s 3"],
]


@dataclasses.dataclass(frozen=True)
class Generator:
    """What makes fakes.

    Attributes:
      make: gives an image for each number, and for each image and mask where it makes parts anew.
      size: pixels a side of its images.
      origin: what is kept with the images that it makes.
    """

    make: Make
    size: int
    origin: Origin


def packaged(name: str) -> epath.Path:
    """Returns the file of the forger that comes with the project, there or not."""
    folder = importlib.resources.files("wsdl_data.portraits")
    return epath.Path(os.fspath(folder)) / f"{PACKAGED[name]}.safetensors"


def make_generator(
    name: str,
    *,
    path: epath.PathLike | None,
    size: int | None,
    sampling: Sampling,
    batch: int,
    seed: int,
    diffusers: str | None = None,
) -> Generator:
    """Returns a generator by its name.

    Args:
      name: one of FORGERS or of INPAINTERS, "diffusers", or MODULE:FUNCTION, an Inpainter.
      path: file or run directory of a forger; None for the one that comes with the project.
      size: of the images, pixels a side; None for a forger's own, else 256.
      sampling: of a forger; of diffusers, its steps.
      batch: images at once.
      seed: of all randomness.
      diffusers: folder or name of a pipeline.

    Raises:
      UserError: there is no such generator, or not for that size.
    """
    if name in FORGERS:
        return _forger(name, path, size, sampling, batch, seed)
    origin = Origin({})
    if name == "diffusers":
        if not diffusers:
            raise UserError("--generator diffusers needs --pipeline, a folder or a name")
        inpaint = inpainters.from_diffusers(
            diffusers, seed=seed, num_inference_steps=sampling.steps
        )
        origin = _origin_of_pipeline(diffusers, sampling.steps)
    elif ":" in name:
        inpaint = plugins.resolve(name, "inpainter")
        if file := inspect.getsourcefile(inspect.unwrap(inpaint)):
            origin = Origin({}, {"generator": provenance.digest_of_file(file)})
    elif name in inpainters.INPAINTERS:
        inpaint = inpainters.INPAINTERS[name]
    else:
        names = (*FORGERS, *inpainters.INPAINTERS, "diffusers", "MODULE:FUNCTION")
        raise UserError(f"no generator {name!r}: choose from {', '.join(names)}")

    def checked(numbers: Any, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
        made = np.asarray(inpaint(images, masks))
        if (made.shape, made.dtype) != (images.shape, images.dtype):
            raise UserError(
                f"{name} gives {made.dtype}{list(made.shape)} for {images.dtype}"
                f"{list(images.shape)}: it must keep shape and type"
            )
        return made

    return Generator(checked, size or 256, origin)


def _forger(
    name: str,
    path: epath.PathLike | None,
    size: int | None,
    sampling: Sampling,
    batch: int,
    seed: int,
) -> Generator:
    if path is None and not packaged(name).exists():
        raise UserError(f"{packaged(name)} is missing: name another forger, --forger")
    path = epath.Path(path) if path else packaged(name)
    forger = trained.load(path)
    part = "latent" if name == "latent" else "pixel"
    if name != "full" and forger.config.part != part:
        raise UserError(f"{path} is of part {forger.config.part}: {name} needs part {part}")
    own_size = forger.config.data.image_size
    if size not in (None, own_size):
        raise UserError(f"{path} makes images of {own_size} pixels, not of {size}")
    maker = Maker(forger, sampling, "draw" if name == "full" else "repaint", batch=batch, seed=seed)
    without_use = ("jump", "times") if name == "full" else ()
    used = {
        field: value
        for field, value in dataclasses.asdict(sampling).items()
        if value is not None and field not in without_use
    }
    weights = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(forger.weights))
    origin = Origin(
        {"forger_step": forger.step, **used},
        {"forger": hashlib.sha256(weights).hexdigest()},
        {"forger": os.path.abspath(path)},
    )
    return Generator(maker, maker.size, origin)


def _origin_of_pipeline(name: str, steps: int) -> Origin:
    """Returns what a pipeline of diffusers is: its name, or of a folder the hash of its files."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return Origin({"pipeline": name, "steps": steps})
    contents = Contents()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            contents.add(path.relative_to(folder).as_posix(), [path])
    recorded = {"pipeline": os.fspath(folder.absolute())}
    return Origin({"steps": steps}, {"pipeline": contents.digest()}, recorded)
