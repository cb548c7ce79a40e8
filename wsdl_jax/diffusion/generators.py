"""Whatever forges: the diffusion models that are trained here, and any other inpainter."""

import dataclasses
import hashlib
import importlib.resources
import inspect
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from wsdl_data import inpainters, provenance
from wsdl_data.provenance import Contents, Origin
from wsdl_jax.diffusion import configuration, pipelines, trained
from wsdl_jax.diffusion.maker import Maker, Sampling, Way
from wsdl_jax.diffusion.pipelines import Make
from wsdl_jax.runtime import plugins
from wsdl_jax.runtime.errors import UserError

# Generators that are trained here, and what their forgers do.
FORGERS: dict[str, Way] = {
    "full": "draw",
    "repaint": "repaint",
    "latent": "repaint",
    "reconstruct": "reconstruct",
    "autoencode": "autoencode",
}
WHOLE = ("full", "reconstruct", "autoencode")  # those that make whole images, without masks
# The forgers of the embedded dataset, which are there by default.
PACKAGED = {
    "full": "ddpm",
    "repaint": "ddpm",
    "latent": "latent_ddpm",
    "reconstruct": "ddpm",
    "autoencode": "latent_ddpm",
}
_MARGIN = 16  # pixels, at least
_WITH_PIPELINES = ("diffusers", "reconstruct", "autoencode")


@dataclasses.dataclass(frozen=True)
class Generator:
    """What makes fakes.

    Attributes:
      make: (numbers, images, masks) → images; a number is that of an image's randomness, and masks
        are None where whole images are made.
      size: pixels a side of its images.
      origin: what is kept with the images that it makes.
      at_once: how many calls of `make` may run at the same time.
      margin: pixels around a crop of a photograph that it gets, too, and what it makes of them is
        cut off: at the border of what a network makes are traces that no other place has.
    """

    make: Make
    size: int
    origin: Origin
    at_once: int = 1
    margin: int = 0


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
      size: of the images, pixels a side; None for a forger's own, else 256. What reconstructs and
        what autoencodes takes other sizes than its own, too.
      sampling: of a forger; of diffusers, its steps and strength.
      batch: images at once.
      seed: of all randomness.
      diffusers: folder or name of a pipeline, which reconstructs and autoencodes in place of a
        forger.

    Raises:
      UserError: there is no such generator, or not for that size.
    """
    if diffusers and (path or name not in _WITH_PIPELINES):
        what = "--forger" if path else f"--generator {name}"
        raise UserError(f"--pipeline does not go with {what}")
    if diffusers:
        return _of_pipeline(name, diffusers, size or 256, sampling, seed)
    if name in FORGERS:
        return _forger(name, path, size, sampling, batch, seed)
    origin = Origin({})
    if name == "diffusers":
        raise UserError("--generator diffusers needs --pipeline, a folder or a name")
    if ":" in name:
        inpaint = plugins.resolve(name, "inpainter")
        if file := inspect.getsourcefile(inspect.unwrap(inpaint)):
            origin = Origin({}, {"generator": provenance.digest_of_file(file)})
    elif name in inpainters.INPAINTERS:
        inpaint = inpainters.INPAINTERS[name]
    else:
        names = (*FORGERS, *inpainters.INPAINTERS, "diffusers", "MODULE:FUNCTION")
        raise UserError(f"no generator {name!r}: choose from {', '.join(names)}")

    return Generator(_checked(name, lambda _, *given: inpaint(*given)), size or 256, origin)


def _checked(name: str, make: Make) -> Make:
    """Returns a generator that raises UserError where it makes images of another kind."""

    def checked(
        numbers: np.ndarray, images: np.ndarray, masks: np.ndarray | None = None
    ) -> np.ndarray:
        made = np.asarray(make(numbers, images, masks))
        if (made.shape, made.dtype) != (images.shape, images.dtype):
            raise UserError(
                f"{name} gives {made.dtype}{list(made.shape)} for {images.dtype}"
                f"{list(images.shape)}: it must keep shape and type"
            )
        return made

    return checked


def _of_pipeline(name: str, pipeline: str, size: int, sampling: Sampling, seed: int) -> Generator:
    steps, strength = sampling.steps, sampling.strength
    if name == "diffusers":
        inpaint = pipelines.inpainter(pipeline, seed=seed, num_inference_steps=steps)
        make, used = (lambda _, *given: inpaint(*given)), {"steps": steps}
    elif name == "reconstruct":
        make = pipelines.reconstructor(pipeline, strength=strength, steps=steps, seed=seed)
        used = {"steps": steps, "strength": strength}
    else:
        make, used = pipelines.autoencoder(pipeline), {}
    margin = 0 if name == "diffusers" else _MARGIN
    origin = _origin_of_pipeline(pipeline, used)
    return Generator(_checked(name, make), size, origin, margin=margin)


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
    part, way = forger.config.part, FORGERS[name]
    needed = "latent" if name == "latent" else "pixel"
    if way == "repaint" and part != needed:
        raise UserError(f"{path} is of part {part}: {name} needs part {needed}")
    own_size = forger.config.data.image_size
    if way in ("draw", "repaint") and size not in (None, own_size):
        raise UserError(f"{path} makes images of {own_size} pixels, not of {size}")
    multiple = 4 if way == "autoencode" else configuration.multiple(forger.config)
    if size is not None and size % multiple:
        raise UserError(f"{path} makes images of multiples of {multiple} pixels, not of {size}")
    maker = Maker(forger, sampling, way, batch=batch, seed=seed)
    fields = {
        "draw": ("steps", "eta"),
        "repaint": ("steps", "eta", "jump", "times"),
        "reconstruct": ("steps", "eta", "strength"),
        "autoencode": (),
    }[way]
    used = {field: value for field in fields if (value := getattr(sampling, field)) is not None}
    weights = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(forger.weights))
    origin = Origin(
        {"forger_step": forger.step, **used},
        {"forger": hashlib.sha256(weights).hexdigest()},
        {"forger": os.path.abspath(path)},
    )
    margin = 0 if way in ("draw", "repaint") else multiple * -(-_MARGIN // multiple)
    return Generator(maker, size or own_size, origin, maker.at_once, margin)


def _origin_of_pipeline(name: str, used: dict[str, Any]) -> Origin:
    """Returns what a pipeline of diffusers is: its name, or of a folder the hash of its files."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return Origin({"pipeline": name, **used})
    contents = Contents()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            contents.add(path.relative_to(folder).as_posix(), [path])
    recorded = {"pipeline": os.fspath(folder.absolute())}
    return Origin(used, {"pipeline": contents.digest()}, recorded)
