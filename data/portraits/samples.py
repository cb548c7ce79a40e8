"""The images of the dataset, each a pure function of (seed, split, kind, index).

Every image has random streams of its own, so the result does not depend on the order in which
images are made or on the number of processes. This module imports nothing heavy: workers load it.
"""

import dataclasses
import io
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import joblib
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from wsdl_data.inpainters import INPAINTERS
from wsdl_data.masks import dilate
from wsdl_data.portraits import camera
from wsdl_data.portraits.generators import GENERATORS
from wsdl_data.portraits.scene import draw_scene, redraw, render
from wsdl_jax.runtime.processes import watch_parent

SPLITS = {"train": 1500, "valid": 200, "test": 300}
KINDS = ("real", "full", "partial")

# What is redrawn in a partial fake, and how often; the last but one is the face without its hair.
# Parts all over the frame, so that no fixed map does well: see the README.
REGIONS: dict[tuple[str, ...], float] = {
    ("mouth",): 0.1,
    ("nose",): 0.12,
    ("brows",): 0.08,
    ("eyes",): 0.14,
    ("eyes", "brows"): 0.1,
    ("nose", "mouth"): 0.14,
    ("hair",): 0.1,
    ("clothes",): 0.12,
    ("skin",): 0.03,
    ("skin", "brows", "eyes", "nose", "mouth"): 0.04,
    ("background",): 0.03,
}
# The manipulated share of a partial fake's pixels; what falls outside is drawn again.
MIN_SHARE, MAX_SHARE = 0.02, 0.6


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image of the dataset, with its mask."""

    image: UInt8[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"] | None  # None where the kind has no mask


def streams(seed: int, split: str, kind: str, index: int, count: int) -> list[np.random.Generator]:
    """Returns `count` independent random streams of one image."""
    key = (list(SPLITS).index(split), KINDS.index(kind), index)
    root = np.random.SeedSequence(seed, spawn_key=key)
    return [np.random.default_rng(child) for child in root.spawn(count)]


def max_dilation(size: int) -> int:
    """Returns the largest dilation: 15 pixels at 256, as in Dolos, in proportion elsewhere."""
    return max(1, round(size * 15 / 256))


@dataclasses.dataclass(frozen=True)
class Edit:
    """A scene before and after one of its regions is redrawn, in linear light.

    Both agree outside the mask.
    """

    region: tuple[str, ...]
    before: Float32[np.ndarray, "h w 3"]
    after: Float32[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"]


def draw_edit(rng: np.random.Generator, size: int) -> Edit:
    """Draws a scene and the redrawing of one of its REGIONS.

    The two scenes are exchangeable: parts are independent in the prior, and the mask treats both
    alike. Hence neither the content nor the mask says which one was first.
    """
    regions = list(REGIONS)
    while True:
        scene = draw_scene(rng)
        region = regions[rng.choice(len(regions), p=list(REGIONS.values()))]
        before, parts_before = render(scene, size)
        after, parts_after = render(redraw(scene, region, rng), size)
        # A part is softer than its mask, and shades its neighbours: take all that differs.
        mask = (before != after).any(axis=-1)
        for part in region:
            mask |= parts_before[part] | parts_after[part]
        mask = dilate(mask, int(rng.integers(1, max_dilation(size) + 1)))
        if MIN_SHARE <= mask.mean() <= MAX_SHARE:
            return Edit(region, before, after, mask)


def make_real(seed: int, split: str, index: int, size: int) -> Sample:
    """Makes a camera's image of a scene."""
    scene_rng, camera_rng = streams(seed, split, "real", index, 2)
    light, _ = render(draw_scene(scene_rng), size)
    settings = camera.draw_settings(camera_rng)
    return Sample(camera.capture(light, settings, camera_rng), None)


def make_full(seed: int, split: str, index: int, size: int, generator: str) -> Sample:
    """Makes a generator's image of a scene, with the settings of a camera that was never there."""
    scene_rng, camera_rng, generator_rng = streams(seed, split, "full", index, 3)
    light, _ = render(draw_scene(scene_rng), size)
    settings = camera.draw_settings(camera_rng)
    return Sample(GENERATORS[generator](light, settings, generator_rng), None)


def make_source(
    seed: int, split: str, index: int, size: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Edit, camera.Settings, np.random.Generator]:
    """Makes what a partial fake is made from.

    Returns the camera's image, the edit, the camera's settings and the generator's random stream.
    """
    scene_rng, camera_rng, generator_rng = streams(seed, split, "partial", index, 3)
    edit = draw_edit(scene_rng, size)
    settings = camera.draw_settings(camera_rng)
    image = camera.capture(edit.before, settings, camera_rng)
    return image, edit, settings, generator_rng


def make_partial(seed: int, split: str, index: int, size: int, generator: str) -> Sample:
    """Makes a camera's image in which a generator redraws a region; the rest is untouched."""
    image, edit, settings, generator_rng = make_source(seed, split, index, size)
    if generator in GENERATORS:
        generated = GENERATORS[generator](edit.after, settings, generator_rng)
    else:
        generated = INPAINTERS[generator](image[None], edit.mask[None])[0]
    return Sample(np.where(edit.mask[..., None], generated, image), edit.mask)


def encode(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """Returns PNG bytes, by the same encoder settings for every image, fake or real."""
    buffer = io.BytesIO()
    # On noisy images run-length matching compresses as well as zlib's default, four times faster.
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def encoded(
    seed: int, split: str, index: int, size: int, kind: str, generator: str | None
) -> tuple[bytes, bytes | None]:
    """Returns one image and its mask, if any (0 untouched, 255 manipulated), as PNG bytes."""
    if kind == "real":
        sample = make_real(seed, split, index, size)
    elif kind == "full":
        sample = make_full(seed, split, index, size, generator)
    else:
        sample = make_partial(seed, split, index, size, generator)
    mask = None if sample.mask is None else encode(sample.mask.astype(np.uint8) * 255)
    return encode(sample.image), mask


def encoded_split(
    seed: int, split: str, size: int, kind: str, generator: str | None
) -> Iterator[tuple[bytes, bytes | None]]:
    """Yields all images of a split, in order, but for those that `forged.encoded_split` makes."""
    yield from in_processes(
        joblib.delayed(encoded)(seed, split, index, size, kind, generator)
        for index in range(SPLITS[split])
    )


def in_processes(jobs: Iterable[Any]) -> Iterator[Any]:
    """Yields the results of joblib's jobs, in order, worked out by one process per core.

    These processes stay for the next split, and unlike those of `multiprocessing` they neither
    fork this process (JAX may run threads in it) nor import its main module.
    """
    return joblib.Parallel(
        n_jobs=-1, batch_size=16, return_as="generator", initializer=watch_parent
    )(jobs)
