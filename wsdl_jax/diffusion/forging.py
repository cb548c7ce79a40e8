"""Forges a dataset of fakes out of a prepared subset or a folder of images."""

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Bool
from PIL import Image
from tqdm import tqdm

from wsdl_data import build, image_files
from wsdl_data.masks import dilate
from wsdl_data.provenance import Origin
from wsdl_data.shapes import SHAPES, draw
from wsdl_jax.diffusion import sources as reading
from wsdl_jax.diffusion.generators import Generator, make_generator
from wsdl_jax.diffusion.maker import Sampling
from wsdl_jax.diffusion.sources import OWN, Source
from wsdl_jax.runtime.errors import UserError, in_one_line
from wsdl_jax.runtime.storage import remove_abandoned, staging_folder

log = logging.getLogger("wsdl_jax")
PAPER = Sampling()  # RePaint's steps, jumps and times


@dataclasses.dataclass(frozen=True)
class MaskChoice:
    """What is made anew in an image.

    Attributes:
      policy: one of SHAPES, whose masks are drawn, "own" or "folder".
      dilation: the fewest and the most pixels by which a mask grows, drawn for each image.
    """

    policy: str
    dilation: tuple[int, int]

    def mask(
        self, source: Source, size: int, rng: np.random.Generator
    ) -> Bool[np.ndarray, "{size} {size}"]:
        """Returns the mask of a source, drawn or read, at the size of the image to be made."""
        if self.policy in SHAPES:
            mask = draw(self.policy, rng, size, size)
        else:
            mask = source.read_mask()
            if mask.shape != (size, size):
                squashed = Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST)
                mask = np.array(squashed)
        fewest, most = self.dilation
        return dilate(mask, int(rng.integers(fewest, most + 1)))


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
    sampling: Sampling = PAPER,
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
      masks: what is made anew: "own", one of SHAPES, or a folder of masks; None for "full".
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
    masks_are_files = masks not in (None, OWN, *SHAPES)
    if masks_are_files and manipulated not in ("white", "black"):
        raise UserError(
            f"--masks {masks}: say what is made anew in them, --manipulated white or black"
        )
    fewest, most = dilation
    if not 0 <= fewest <= most:
        raise UserError(f"--dilate {fewest},{most}: not pixels FEWEST,MOST")
    made_by = make_generator(
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
        "size": made_by.size,
        "seed": seed,
        **({"limit": limit} if limit else {}),
        **made_by.origin.recipe,
    }
    recorded = dict(made_by.origin.recorded)
    sources = reading.read_sources(images, data_dir)
    if masks == OWN and not all(source.read_mask for source in sources):
        raise UserError(f"{images} has no masks of its own: choose other --masks")
    choice = None
    if not whole:
        choice = MaskChoice("folder" if masks_are_files else masks, dilation)
        recipe["mask_policy"] = choice.policy
    if masks_are_files:
        folder = Path(masks).expanduser()
        sources = reading.with_masks(sources, folder, white=manipulated == "white")
        recipe["manipulated"] = manipulated
        recorded["masks"] = os.fspath(folder.absolute())
    if not whole:
        recipe["dilation"] = f"{fewest},{most}"
    sources = reading.first_of_each_split(sources, limit)
    with in_one_line():
        made_of = reading.origin_of(sources, images, data_dir)
    origin = Origin(
        recipe | made_of.recipe,
        {**made_by.origin.content, **made_of.content},
        recorded | made_of.recorded,
    )
    kinds = ["real", "fake"] if any(source.is_real for source in sources) else ["fake"]
    ready = build.own_prepared(name, dict.fromkeys(kinds, origin), data_dir)
    place = build.own_folder(name, data_dir)
    remove_abandoned(place.parent, place.name)  # where a killed process has staged it
    if len(ready) == len(kinds):  # else a build was killed between the two
        log.info("%s: ready since before", " and ".join(ready))
        return ready
    with staging_folder(place) as stage:
        _write(stage, sources, made_by, choice, batch, seed)
        builders = build.own_builders(name, os.fspath(stage), recipe["masks"], data_dir, origin)
        build.prepare_together(list(builders.values()))
    return list(builders)


def _write(
    stage: Path,
    sources: Sequence[Source],
    generator: Generator,
    choice: MaskChoice | None,
    batch: int,
    seed: int,
) -> None:
    """Writes SPLIT/real, SPLIT/fake and SPLIT/masks, as data/image_folder takes them."""
    empty_masks = 0
    written: set[tuple[str, str]] = set()  # splits and names
    size = generator.size, generator.size
    bar = tqdm(total=len(sources), unit=" images", disable=not sys.stderr.isatty())
    for start in range(0, len(sources), batch):
        numbers, images, masks = [], [], []
        for number, source in enumerate(sources[start : start + batch], start):
            rng = np.random.default_rng([seed, number])
            with in_one_line():
                image = source.read_image()
                mask = None if choice is None else choice.mask(source, generator.size, rng)
            if mask is not None and not mask.any():
                empty_masks += 1
                continue
            if image.size != size:
                image = image.resize(size, Image.Resampling.LANCZOS)
            numbers.append(number)
            images.append(np.asarray(image))
            masks.append(mask)
        if numbers:
            given = (None, None) if choice is None else (np.stack(images), np.stack(masks))
            fakes = generator.make(np.asarray(numbers), *given)
            for number, image, mask, fake in zip(numbers, images, masks, fakes, strict=True):
                source = sources[number]
                if (source.split, source.name) in written:
                    raise UserError(f"two images are called {source.key}")
                written.add((source.split, source.name))
                pictures = {"fake": fake, **({"real": image} if source.is_real else {})}
                if mask is not None:
                    pictures["masks"] = mask.astype(np.uint8) * 255
                for kind, pixels in pictures.items():
                    path = stage / source.split / kind / source.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(image_files.png(Image.fromarray(pixels)))
        bar.update(min(batch, len(sources) - start))
    bar.close()
    if not written:
        raise UserError("no image has anything to be made anew: all masks are empty")
    for split in dict.fromkeys(source.split for source in sources):
        if not any(split == of for of, _ in written):
            raise UserError(
                f"the {split} split has nothing to be made anew: all its masks are empty"
            )
    if empty_masks:
        log.warning("%d images are left out: their masks mark nothing", empty_masks)
