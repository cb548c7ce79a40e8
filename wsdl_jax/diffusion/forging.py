"""Forges a dataset of fakes out of a prepared subset or a folder of images."""

import contextlib
import dataclasses
import itertools
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Bool, UInt8
from PIL import Image
from tqdm import tqdm

from wsdl_data import build, image_files
from wsdl_data.masks import dilate
from wsdl_data.provenance import Origin
from wsdl_data.shapes import SHAPES, draw
from wsdl_jax.diffusion import sources as reading
from wsdl_jax.diffusion.generators import WHOLE, Generator, make_generator
from wsdl_jax.diffusion.maker import Sampling
from wsdl_jax.diffusion.sources import OWN, Source
from wsdl_jax.runtime import threads
from wsdl_jax.runtime.errors import UserError, in_one_line
from wsdl_jax.runtime.storage import remove_abandoned, staging_folder

log = logging.getLogger("wsdl_jax")
PAPER = Sampling()  # RePaint's steps, jumps and times
_GRID = 16  # pixels: where crops begin. JPEG's blocks have 8, those of halved colour 16.


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
        self, given: Bool[np.ndarray, "h w"] | None, size: int, rng: np.random.Generator
    ) -> Bool[np.ndarray, "{size} {size}"]:
        """Returns a mask, given or else drawn, grown and at the size of the image to be made."""
        if given is None:
            mask = draw(self.policy, rng, size, size)
        elif given.shape != (size, size):
            squashed = Image.fromarray(given).resize((size, size), Image.Resampling.NEAREST)
            mask = np.array(squashed)
        else:
            mask = given
        fewest, most = self.dilation
        return dilate(mask, int(rng.integers(fewest, most + 1)))


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one fake is made of: a whole image, or a crop of one.

    Attributes:
      number: of its randomness.
      source: the image that it is or is of; of a crop the key has the crop's place.
      image: at the size of the fake.
      mask: what is made anew; None where that is all.
      given: what the generator gets: `image`, or with it what surrounds it in a photograph.
      compressed_as: the JPEG file, if it is one, whose compression the fake gets.
    """

    number: int
    source: Source
    image: Image.Image
    mask: Bool[np.ndarray, "h w"] | None
    given: UInt8[np.ndarray, "h2 w2 3"]
    compressed_as: Path | None = None


def _whole(
    sources: Iterable[Source], choice: MaskChoice | None, size: int, seed: int
) -> Iterator[Piece]:
    """Yields the sources, squashed to a size."""
    for number, source in enumerate(sources):
        rng = np.random.default_rng([seed, number])
        with in_one_line():
            image = source.read_image()
            mask = None
            if choice is not None:
                mask = choice.mask(source.read_mask() if source.read_mask else None, size, rng)
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        yield Piece(number, source, image, mask, np.asarray(image))


def _crops(
    sources: Iterable[Source],
    choice: MaskChoice | None,
    size: int,
    seed: int,
    count: int,
    margin: int,
) -> Iterator[Piece]:
    """Yields crops of the sources in their own resolution, at most `count` of each.

    They are some of the squares that tile an image from a random place on, so that no two of them
    overlap. Places follow from the seed, the source's number and the size alone. A generator of
    whole images gets a crop with `margin` pixels around it.
    """
    for number, source in enumerate(sources):
        with in_one_line():
            image = source.read_image()
            whole = source.read_mask() if choice and source.read_mask else None
        if whole is not None and whole.shape != image.size[::-1]:
            raise UserError(
                f"{source.key}: its mask is {whole.shape[1]}x{whole.shape[0]}, the image"
                f" {image.width}x{image.height}"
            )
        rng = np.random.default_rng([seed, number])
        for index, (left, top) in enumerate(crop_places(image.size, size, count, rng)):
            mask = None
            if choice is not None:
                own = np.random.default_rng([seed, number, 1 + index])
                part = None if whole is None else whole[top : top + size, left : left + size]
                mask = choice.mask(part, size, own)
            place = dataclasses.replace(source, key=f"{source.key}-{left}-{top}")
            crop = image.crop((left, top, left + size, top + size))
            given = with_surroundings(image, (left, top), size, margin if choice is None else 0)
            yield Piece(number * count + index, place, crop, mask, given, source.file)


def with_surroundings(
    image: Image.Image, place: tuple[int, int], size: int, margin: int
) -> UInt8[np.ndarray, "s s 3"]:
    """Returns a square of an image with `margin` pixels around it, mirrored where the image ends.

    Args:
      image: RGB.
      place: the square's left upper corner, in the image.
      size: of the square, pixels a side.
      margin: pixels on each side of it.
    """
    begins = [start - margin for start in place]
    ends = [start + size + margin for start in place]
    left, top = (max(0, begin) for begin in begins)
    right, bottom = (min(end, length) for end, length in zip(ends, image.size, strict=True))
    missing = ((top - begins[1], ends[1] - bottom), (left - begins[0], ends[0] - right), (0, 0))
    return np.pad(np.asarray(image.crop((left, top, right, bottom))), missing, mode="reflect")


def crop_places(
    image: tuple[int, int], size: int, count: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Returns the left upper corners of squares of an image, which do not overlap.

    Args:
      image: its width and height, pixels.
      size: of the squares, pixels a side.
      count: how many, at most; fewer where there is not the room, and none in a smaller image.
      rng: from which they follow.

    Returns:
      (left, top), multiples of 16 pixels.
    """
    if min(image) < size:
        return []
    pitch = -(-size // _GRID) * _GRID
    starts = []
    for length in image:
        free = min(length - size, pitch - _GRID) // _GRID
        starts.append(range(_GRID * int(rng.integers(free + 1)), length - size + 1, pitch))
    places = list(itertools.product(*starts))
    chosen = rng.permutation(len(places))[:count]
    return [places[index] for index in chosen]


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
    crops: int | None = None,
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
      masks: what is made anew: "own", one of SHAPES, or a folder of masks; None for one of WHOLE.
      generator: see `make_generator`.
      manipulated: "white" or "black", in a folder of masks.
      dilation: the fewest and the most pixels by which a mask grows, drawn for each image.
      path: of a forger.
      size: to which images are squashed, pixels a side; or that of the crops.
      crops: how many squares are cut out of each image, at most, in its own resolution; None to
        squash the whole image. Fakes of crops of JPEG files are compressed as these are.
      sampling: of a forger.
      batch: images at once.
      seed: of all randomness.
      limit: the most images of a split, the first ones.
      data_dir: of the prepared datasets, read and written.
      diffusers: a pipeline.

    Raises:
      UserError, BuildError: something does not fit; nothing is left behind.
    """
    whole = generator in WHOLE
    if whole != (masks is None):
        raise UserError(f"--masks goes with every generator but {', '.join(WHOLE)}")
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
        **({"crops": crops} if crops else {}),
        **made_by.origin.recipe,
    }
    recorded = dict(made_by.origin.recorded)
    sources = reading.read_sources(images, data_dir)
    if masks == OWN and not all(source.read_mask for source in sources):
        raise UserError(f"{images} has no masks of its own: choose other --masks")
    choice = None
    if not whole:
        choice = MaskChoice("folder" if masks_are_files else masks, dilation)
        if masks in SHAPES:
            sources = [dataclasses.replace(source, read_mask=None) for source in sources]
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
    subset = f"image_folder/{name}"
    ready = build.own_prepared(subset, dict.fromkeys(kinds, origin), data_dir)
    place = build.own_folder(subset, data_dir)
    remove_abandoned(place.parent, place.name)  # where a killed process has staged it
    if len(ready) == len(kinds):  # else a build was killed between the two
        log.info("%s: ready since before", " and ".join(ready))
        return ready
    with staging_folder(place) as stage:
        with tqdm(sources, unit=" images", disable=not sys.stderr.isatty()) as shown:
            if crops is None:
                pieces = _whole(shown, choice, made_by.size, seed)
            else:
                pieces = _crops(shown, choice, made_by.size, seed, crops, made_by.margin)
            _write(stage, sources, pieces, made_by, batch)
        builders = build.own_builders(
            subset, os.fspath(stage), recipe["masks"], data_dir, made_by=origin
        )
        build.prepare_together(list(builders.values()))
    return list(builders)


def _write(
    stage: Path,
    sources: Sequence[Source],
    pieces: Iterable[Piece],
    generator: Generator,
    batch: int,
) -> None:
    """Writes SPLIT/real, SPLIT/fake and SPLIT/masks, as data/image_folder takes them."""
    empty = 0
    written: set[tuple[str, str]] = set()  # splits and names

    def marked() -> Iterator[Piece]:
        nonlocal empty
        for piece in pieces:
            if piece.mask is None or piece.mask.any():
                yield piece
            else:
                empty += 1

    with contextlib.closing(_made(marked(), generator, batch)) as made:
        for piece, fake in made:
            split, name = piece.source.split, piece.source.name
            if (split, name) in written:
                raise UserError(f"two images are called {piece.source.key}")
            written.add((split, name))
            pictures = {"fake": fake}
            if piece.source.is_real:
                pictures["real"] = piece.image
            if piece.mask is not None:
                pictures["masks"] = Image.fromarray(piece.mask.astype(np.uint8) * 255)
            for kind, picture in pictures.items():
                path = stage / split / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image_files.png(picture))
    if empty and not written:
        raise UserError("no image has anything to be made anew: all masks are empty")
    small = f"none of its images has {generator.size} pixels a side"
    reason = "all its masks are empty" if empty else small
    for split in dict.fromkeys(source.split for source in sources):
        if not any(split == of for of, _ in written):
            raise UserError(f"the {split} split has nothing to be made anew: {reason}")
    if empty:
        log.warning("%d images are left out: their masks mark nothing", empty)


def _made(
    pieces: Iterator[Piece], generator: Generator, batch: int
) -> Iterator[tuple[Piece, Image.Image]]:
    """Yields the fakes of pieces, in order."""

    def make(together: list[Piece]) -> UInt8[np.ndarray, "n s s 3"]:
        numbers = np.asarray([piece.number for piece in together])
        images = np.stack([piece.given for piece in together])
        masks = None
        if together[0].mask is not None:
            masks = np.stack([piece.mask for piece in together])
        made = generator.make(numbers, images, masks)
        margin = (made.shape[1] - generator.size) // 2
        return made[:, margin : margin + generator.size, margin : margin + generator.size]

    batches = iter(lambda: list(itertools.islice(pieces, batch)), [])
    made = threads.map_ahead(
        lambda together: (together, make(together)), batches, ahead=generator.at_once - 1
    )
    with contextlib.closing(made):
        for together, images in made:
            for piece, pixels in zip(together, images, strict=True):
                fake = Image.fromarray(pixels)
                if piece.compressed_as is not None:
                    with in_one_line():
                        fake = image_files.compressed_as(fake, piece.compressed_as)
                yield piece, fake
