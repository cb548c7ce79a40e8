"""Forges images: a dataset of fakes out of a prepared subset or a folder of images.

    python -m wsdl_jax.diffusion.forge --images portraits/regrain --masks own \\
        --generator repaint --steps 20 --jump 5 --times 2 --name mine
    python -m wsdl_jax.diffusion.forge --images photos --masks strokes --generator telea --name mine
    python -m wsdl_jax.main --config configs/patches.py:setup=b,source=image_folder/mine

The result is image_folder/NAME_fake, with masks, the sources' keys and, in its metadata.json, how
it was made; and, where the sources are real, image_folder/NAME_real with them at the same size.
"""

import dataclasses
import hashlib
import importlib.resources
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from tqdm import tqdm

from wsdl_data import build, image_files, inpainters, provenance
from wsdl_data.image_folder import listing
from wsdl_data.masks import dilate
from wsdl_data.provenance import Contents, Origin
from wsdl_jax import inputs
from wsdl_jax.diffusion import forger
from wsdl_jax.diffusion.masks import POLICIES, draw
from wsdl_jax.runtime import command, plugins
from wsdl_jax.runtime.errors import ConfigError, UserError, in_one_line
from wsdl_jax.runtime.storage import remove_abandoned, staging_folder

log = logging.getLogger("wsdl_jax")
FORGERS = ("full", "repaint", "latent")  # generators that are trained here
OWN = "own"  # the mask policy that takes the subset's masks
# The forgers of the embedded dataset, which are there by default.
PACKAGED = {"full": "ddpm", "repaint": "ddpm", "latent": "latent_ddpm"}
PAPER = forger.Sampling()  # RePaint's steps, jumps and times

# (numbers, images, masks) → images; images and masks are None for whole ones.
Generator = Callable[
    [Int[np.ndarray, "n"], UInt8[np.ndarray, "n s s 3"] | None, Bool[np.ndarray, "n s s"] | None],
    UInt8[np.ndarray, "n s s 3"],
]


class Source(NamedTuple):
    """An image to forge from.

    Attributes:
      key: its name.
      split: "train", "valid" or "test".
      real: whether it is a real one.
      image: reads it.
      file: that it is; None of a subset's.
      mask: reads its mask, at any size; None where it has none.
      mask_file: that the mask is; None of a subset's.
    """

    key: str
    split: str
    real: bool
    image: Callable[[], Image.Image]
    file: Path | None
    mask: Callable[[], Bool[np.ndarray, "h w"]] | None
    mask_file: Path | None = None


# ----- What to forge from -------------------------------------------------------------------------


def read_sources(images: str, data_dir: str | None) -> list[Source]:
    """The images of a prepared subset, DATASET/CONFIG, or of a folder, split by their names.

    Raises UserError if there are none.
    """
    folder = Path(images).expanduser()
    with in_one_line():
        return list(_of_folder(folder) if folder.is_dir() else _of_subset(images, data_dir))


def _of_folder(folder: Path) -> Iterator[Source]:
    for split, items in listing.images_of(folder).items():
        for item in items:
            read = lambda path=item.image: image_files.read_pixels(path)  # noqa: E731
            yield Source(item.key, split, True, read, item.image, None)


def _of_subset(name: str, data_dir: str | None) -> Iterator[Source]:
    if "/" not in name:
        raise UserError(f"{name}: neither a folder nor a prepared subset such as portraits/real")
    inputs.prepare_subsets([name], data_dir, None)
    for split in listing.SHARES:
        try:
            examples = inputs.Examples((name,), split, data_dir)
        except ConfigError:
            if split == "train":
                raise
            continue  # as of full fakes, which have no test split
        for index in range(len(examples)):
            record = examples[index]
            key = record["key"].decode().removeprefix(f"{split}/")

            def image(examples=examples, index=index) -> Image.Image:
                return Image.fromarray(inputs.full_image(examples[index]))

            def mask(examples=examples, index=index) -> Bool[np.ndarray, "h w"]:
                return inputs.full_mask(examples[index]).astype(bool)

            real = record["label"] == inputs.REAL
            yield Source(key, split, real, image, None, mask if "mask" in record else None)


def with_masks(sources: Sequence[Source], folder: Path, *, white: bool) -> list[Source]:
    """Sources with the masks of a folder: files of their names, whatever the ending.

    white: whether what is to be made anew is white in them, or black.

    Raises UserError for a source without a mask.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no folder of masks, nor {OWN}, {', '.join(POLICIES)}")
    with in_one_line():
        files = listing.files(folder)
    masks = {file.with_suffix("").as_posix(): folder / file for file in files}
    found = []
    for source in sources:
        name = PurePosixPath(source.key).with_suffix("").as_posix()
        if name not in masks:
            raise UserError(f"{source.key}: no mask of this name in {folder}")

        def mask(path: Path = masks[name]) -> Bool[np.ndarray, "h w"]:
            return (np.asarray(image_files.read_pixels(path))[..., 0] >= 128) == white

        found.append(source._replace(mask=mask, mask_file=masks[name]))
    return found


# ----- What to forge with -------------------------------------------------------------------------


def packaged(generator: str) -> epath.Path:
    """The file of the forger that comes with the project, there or not."""
    folder = importlib.resources.files("wsdl_data.portraits")
    return epath.Path(os.fspath(folder)) / f"{PACKAGED[generator]}.safetensors"


def make_generator(
    name: str,
    *,
    path: epath.PathLike | None,
    size: int | None,
    sampling: forger.Sampling,
    batch: int,
    seed: int,
    diffusers: str | None = None,
) -> tuple[Generator, int, Origin]:
    """A generator by its name.

    Args:
      name: one of FORGERS or of INPAINTERS, "diffusers", or MODULE:FUNCTION, an Inpainter.
      path: file or run directory of a forger; None for the one that comes with the project.
      size: of the images, pixels a side; None for a forger's own, else 256.
      sampling: of a forger; of diffusers, its steps.
      batch: images at once.
      seed: of all randomness.
      diffusers: folder or name of a pipeline.

    Returns:
      The generator, the size of its images, and what there is to be told of it.

    Raises:
      UserError: there is no such generator, or not for that size.
    """
    if name in FORGERS:
        if path is None and not packaged(name).exists():
            raise UserError(f"{packaged(name)} is missing: name another forger, --forger")
        path = epath.Path(path) if path else packaged(name)
        one = forger.load(path)
        part = "latent" if name == "latent" else "pixel"
        if name != "full" and one.config.part != part:
            raise UserError(f"{path} is of part {one.config.part}: {name} needs part {part}")
        own_size = one.config.data.image_size
        if size not in (None, own_size):
            raise UserError(f"{path} makes images of {own_size} pixels, not of {size}")
        made = forger.Maker(one, sampling, whole=name == "full", batch=batch, seed=seed)
        used = {k: v for k, v in dataclasses.asdict(sampling).items() if v is not None}
        if name == "full":
            used = {k: v for k, v in used.items() if k not in ("jump", "times")}
        weights = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(one.weights))
        content = {"forger": hashlib.sha256(weights).hexdigest()}
        recorded = {"forger": os.path.abspath(path)}
        return made, made.size, Origin({"forger_step": one.step, **used}, content, recorded)
    origin = Origin({})
    if name == "diffusers":
        if not diffusers:
            raise UserError("--generator diffusers needs --pipeline, a folder or a name")
        inpaint = inpainters.from_diffusers(
            diffusers, seed=seed, num_inference_steps=sampling.steps
        )
        origin = _of_pipeline(diffusers, sampling.steps)
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

    return checked, size or 256, origin


def _of_pipeline(name: str, steps: int) -> Origin:
    """What there is to be told of a pipeline of diffusers: of a folder the hash of its files."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return Origin({"pipeline": name, "steps": steps})
    contents = Contents()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            contents.add(path.relative_to(folder).as_posix(), [path])
    recorded = {"pipeline": os.fspath(folder.absolute())}
    return Origin({"steps": steps}, {"pipeline": contents.digest()}, recorded)


# ----- Forging ------------------------------------------------------------------------------------


def forge(
    name: str,
    images: str,
    *,
    masks: str | None,
    generator: str,
    manipulated: str | None = None,
    dilation: tuple[int, int] = (0, 0),
    path: epath.PathLike | None = None,
    size: int | None = None,
    sampling: forger.Sampling = PAPER,
    batch: int = 16,
    seed: int = 0,
    limit: int | None = None,
    data_dir: str | None = None,
    diffusers: str | None = None,
) -> list[str]:
    """Makes image_folder/NAME out of images and returns the names of its subsets.

    Args:
      name: NAME.
      images: a prepared subset, or a folder.
      masks: what is made anew: "own", "boxes", "strokes", or a folder of masks; None for "full".
      generator: see `make_generator`.
      manipulated: "white" or "black", in a folder of masks.
      dilation: the fewest and the most pixels by which a mask grows, drawn for each image.
      path: of a forger.
      size: to which images are squashed, pixels a side.
      sampling: of a forger.
      batch: images at once.
      seed: of all randomness.
      limit: the most images of a split, the first ones.
      data_dir: of the prepared datasets, read and written.
      diffusers: a pipeline.

    Raises:
      UserError, BuildError: something does not fit; nothing is left behind.
    """
    whole = generator == "full"
    if whole != (masks is None):
        raise UserError("--masks goes with every generator but full")
    if masks not in (None, OWN, *POLICIES) and manipulated not in ("white", "black"):
        raise UserError(
            f"--masks {masks}: say what is made anew in them, --manipulated white or black"
        )
    low, high = dilation
    if not 0 <= low <= high:
        raise UserError(f"--dilate {low},{high}: not pixels FEWEST,MOST")
    make, size, made_with = make_generator(
        generator,
        path=path,
        size=size,
        sampling=sampling,
        batch=batch,
        seed=seed,
        diffusers=diffusers,
    )
    recipe = {
        "masks": "none" if whole else "white",
        "generator": generator,
        "size": size,
        "seed": seed,
        **({"limit": limit} if limit else {}),
        **made_with.recipe,
    }
    content, recorded = dict(made_with.content), dict(made_with.recorded)
    sources = read_sources(images, data_dir)
    if masks == OWN and not all(source.mask for source in sources):
        raise UserError(f"{images} has no masks of its own: choose other --masks")
    if masks not in (None, OWN, *POLICIES):
        folder = Path(masks).expanduser()
        sources = with_masks(sources, folder, white=manipulated == "white")
        recipe |= {"mask_policy": "folder", "manipulated": manipulated}
        recorded["masks"] = os.fspath(folder.absolute())
    elif not whole:
        recipe["mask_policy"] = masks
    if not whole:
        recipe["dilation"] = f"{low},{high}"
    sources = list(_first(sources, limit))
    with in_one_line():
        read_from = _origin_of(sources, images, data_dir)
    origin = Origin(
        recipe | read_from.recipe, content | read_from.content, recorded | read_from.recorded
    )
    kinds = ["real", "fake"] if any(source.real for source in sources) else ["fake"]
    ready = build.own_prepared(name, dict.fromkeys(kinds, origin), data_dir)
    place = build.own_folder(name, data_dir)
    remove_abandoned(place.parent, place.name)  # where a killed one has staged it
    if len(ready) == len(kinds):  # else a build was killed between the two
        log.info("%s: ready since before", " and ".join(ready))
        return ready
    with staging_folder(place) as stage:
        _write(stage, sources, make, masks, dilation, size, batch, seed)
        made = build.own_builders(name, os.fspath(stage), recipe["masks"], data_dir, origin)
        build.prepare_together(list(made.values()))
    return list(made)


def _origin_of(sources: Sequence[Source], images: str, data_dir: str | None) -> Origin:
    """What the images are, and their masks where these are files.

    Raises OSError for a file that cannot be read.
    """
    masks = Contents()
    for source in sources:
        if source.mask_file is not None:
            masks.add(f"{source.split}/{source.key}", [source.mask_file])
    content = {"masks": masks.digest()} if sources[0].mask_file is not None else {}
    if sources[0].file is None:
        subset = inputs.Examples((images,), "train", data_dir).provenance[images]
        content["sources"] = provenance.digest_of(provenance.identity(subset))
        return Origin({"source": images}, content)
    files = Contents()
    for source in sources:
        files.add(f"{source.split}/{source.key}", [source.file])
    content["sources"] = files.digest()
    recorded = {"source": os.path.abspath(os.path.expanduser(images)), **files.recorded()}
    return Origin({"source": "folder"}, content, recorded)


def _first(sources: Sequence[Source], limit: int | None) -> Iterator[Source]:
    seen: dict[str, int] = {}
    for source in sources:
        seen[source.split] = seen.get(source.split, 0) + 1
        if limit is None or seen[source.split] <= limit:
            yield source


def _write(
    stage: Path,
    sources: Sequence[Source],
    make: Generator,
    masks: str | None,
    dilation: tuple[int, int],
    size: int,
    batch: int,
    seed: int,
) -> None:
    """Writes SPLIT/real, SPLIT/fake and SPLIT/masks, as data/image_folder takes them."""
    empty = 0
    names: set[tuple[str, str]] = set()
    bar = tqdm(total=len(sources), unit=" images", disable=not sys.stderr.isatty())
    for start in range(0, len(sources), batch):
        numbers, images, drawn = [], [], []
        for number, source in enumerate(sources[start : start + batch], start):
            rng = np.random.default_rng([seed, number])
            with in_one_line():
                image = source.image().convert("RGB")
                mask = None if masks is None else _mask(source, masks, dilation, size, rng)
            if mask is not None and not mask.any():
                empty += 1
                continue
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.LANCZOS)
            numbers.append(number)
            images.append(np.asarray(image))
            drawn.append(mask)
        if numbers:
            given = (None, None) if masks is None else (np.stack(images), np.stack(drawn))
            made = make(np.asarray(numbers), *given)
            for number, image, mask, fake in zip(numbers, images, drawn, made, strict=True):
                source = sources[number]
                file = _file(source)
                if (source.split, file) in names:
                    raise UserError(f"two images are called {source.key}")
                names.add((source.split, file))
                pictures = {"fake": fake, **({"real": image} if source.real else {})}
                if mask is not None:
                    pictures["masks"] = mask.astype(np.uint8) * 255
                for kind, pixels in pictures.items():
                    path = stage / source.split / kind / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(image_files.png(Image.fromarray(pixels)))
        bar.update(min(batch, len(sources) - start))
    bar.close()
    if not names:
        raise UserError("no image has anything to be made anew: all masks are empty")
    for split in dict.fromkeys(source.split for source in sources):
        if not any(split == of for of, _ in names):
            raise UserError(
                f"the {split} split has nothing to be made anew: all its masks are empty"
            )
    if empty:
        log.warning("%d images are left out: their masks mark nothing", empty)


def _mask(
    source: Source,
    policy: str,
    dilation: tuple[int, int],
    size: int,
    rng: np.random.Generator,
) -> Bool[np.ndarray, "s s"]:
    if policy in POLICIES:
        mask = draw(policy, rng, size)
    else:
        mask = source.mask()
        if mask.shape != (size, size):
            squashed = Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST)
            mask = np.array(squashed)
    return dilate(mask, int(rng.integers(dilation[0], dilation[1] + 1)))


def _file(source: Source) -> str:
    """The source's key as the path of a file below a folder that is nowhere hidden."""
    parts = [
        "_" + part[1:] if part.startswith(".") else part
        for part in PurePosixPath(source.key.lstrip("/")).parts
    ]
    return "/".join(parts) + ".png"


def main(_: list[str]) -> None:
    """The command."""
    jax.config.parse_flags_with_absl()
    dilation = [int(value) for value in _DILATE.value]
    sampling = forger.Sampling(_STEPS.value, _ETA.value, _JUMP.value, _TIMES.value)
    made = forge(
        _NAME.value,
        _IMAGES.value,
        masks=_MASKS.value,
        generator=_GENERATOR.value,
        manipulated=_MANIPULATED.value,
        dilation=(dilation[0], dilation[-1]),
        path=_FORGER.value,
        size=_SIZE.value,
        sampling=sampling,
        batch=_BATCH.value,
        seed=_SEED.value,
        limit=_LIMIT.value,
        data_dir=_DATA_DIR.value,
        diffusers=_PIPELINE.value,
    )
    log.info("%s: ready", " and ".join(made))


if __name__ == "__main__":
    _IMAGES = flags.DEFINE_string("images", None, "A prepared subset, or a folder.", required=True)
    _NAME = flags.DEFINE_string("name", None, "The result is image_folder/NAME.", required=True)
    _GENERATOR = flags.DEFINE_string(
        "generator",
        None,
        "full, repaint, latent, telea, navier_stokes, diffusers or MODULE:FUNCTION.",
        required=True,
    )
    _MASKS = flags.DEFINE_string(
        "masks", None, "What is made anew: own, boxes, strokes, or a folder of masks."
    )
    _MANIPULATED = flags.DEFINE_enum(
        "manipulated", None, ("white", "black"), "What is made anew in a folder of masks."
    )
    _DILATE = flags.DEFINE_list(
        "dilate", ["0"], "Pixels by which masks grow: a number, or FEWEST,MOST (Dolos: 1,15)."
    )
    flags.register_validator(
        "dilate",
        lambda pixels: len(pixels) in (1, 2) and all(value.isdecimal() for value in pixels),
        "pixels are a number, or FEWEST,MOST",
    )
    _FORGER = flags.DEFINE_string(
        "forger", None, "A file or run directory; default: the embedded dataset's."
    )
    _SIZE = flags.DEFINE_integer(
        "size", None, "Pixels a side; default: a forger's own, else 256.", lower_bound=16
    )
    _STEPS = flags.DEFINE_integer("steps", 250, "Steps from noise to image.")
    _ETA = flags.DEFINE_float("eta", None, "0 DDIM (default of full), 1 ancestral (of the others).")
    _JUMP = flags.DEFINE_integer("jump", 10, "RePaint's jump length, in steps.")
    _TIMES = flags.DEFINE_integer("times", 10, "How often RePaint goes down each stretch.")
    _BATCH = flags.DEFINE_integer("batch", 16, "Images at once.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "Of all randomness.", lower_bound=0)
    _LIMIT = flags.DEFINE_integer("limit", None, "The most images of a split.", lower_bound=1)
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Default: ~/tensorflow_datasets.")
    _PIPELINE = flags.DEFINE_string("pipeline", None, "Of diffusers: a folder or a name.")
    command.run(main)
