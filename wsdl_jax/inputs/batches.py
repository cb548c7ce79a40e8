"""Batches of NumPy arrays from records: decoded, resized, flipped, shuffled, one shard per host.

Built on grain's `MapDataset`, indexed by step: any number of hosts and workers reads the same
global batches, and resuming means starting at step n.
"""

import dataclasses
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex

import grain
import ml_collections
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from wsdl_data import decoding
from wsdl_jax.inputs import self_blending, splicing
from wsdl_jax.inputs.examples import FAKE, REAL, Examples, decoded, full_mask
from wsdl_jax.runtime.errors import ConfigError
from wsdl_jax.runtime.processes import end_with_parent

Batch = dict[str, np.ndarray]
# (decoded image [h, w, 3] uint8, its place among the examples) → image
Perturb = Callable[[UInt8[np.ndarray, "h w 3"], int], UInt8[np.ndarray, "h w 3"]]
# (image [h, w, 3] uint8, target of every pixel [h, w] or None, rng) → both, changed alike
Augment = Callable[
    [UInt8[np.ndarray, "h w 3"], np.ndarray | None, np.random.Generator],
    tuple[UInt8[np.ndarray, "h2 w2 3"], np.ndarray | None],
]
_WINDOW = 64  # images of several subsets, in random order
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclasses.dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
      image_size: pixels a side to which images are squashed.
      resize: Pillow's filter for images of another size, "bilinear" or "lanczos".
      mask_size: locations a side of the mask targets; None where none are read.
      mask_resize: Pillow's filter for the targets, "nearest" or "bilinear".
      flip: whether training images, and their masks with them, are flipped horizontally with
        probability 0.5.
      workers: processes that read and decode; 0: threads of this process.
      cache: whether training images are kept in memory once they are decoded, by each process that
        reads: image_size² × 3 bytes each, or as many as in the file where images are varied.
      splice: the share of the fakes of which only a region stays fake, see `splicing.splice`; above
        0 targets are `spliced` and not `mask`.
      has_masks: whether targets are the masks that fakes have. Otherwise nothing is known of the
        locations of a fake, unless it is spliced, and targets are `spliced` and not `mask`.
      self_blend: the share of the images of which a region is processed anew, see
        `self_blending.self_blend`; where targets are read, of those images that have them.
      augment: changes images at their own size, and their targets with them; None for no change.
      weights: how often a training image is of each subset, in proportion; empty for as many images
        as each has.
    """

    image_size: int
    resize: str
    mask_size: int | None = None
    mask_resize: str = "nearest"
    flip: bool = False
    workers: int = 0
    cache: bool = False
    has_masks: bool = True
    splice: float = 0.0
    self_blend: float = 0.0
    augment: Augment | None = None
    weights: tuple[float, ...] = ()

    @property
    def is_varied(self) -> bool:
        """Returns whether images are changed at random at their own size."""
        return self.splice > 0 or self.self_blend > 0 or self.augment is not None

    @classmethod
    def of(cls, data: ml_collections.ConfigDict, mask_size: int | None = None) -> "Reading":
        """Returns how a config reads images, but for the variations of a training.

        Args:
          data: that part of the config, of a detector or a forger.
          mask_size: locations a side of the mask targets; None where none are read.
        """
        fields = ("image_size", "resize", "flip", "workers", "cache")
        return cls(
            **{name: data[name] for name in fields},
            mask_size=mask_size,
            mask_resize=data.get("mask_resize", cls.mask_resize),
        )


def squashed(image: Image.Image, size: int, resize: str) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Returns the pixels of an RGB image that is squashed to size × size.

    resize: Pillow's filter, by its name in config.data.resize; for an image of another size.
    """
    return np.asarray(_resized(image, size, _FILTERS[resize]))


class _Decoded:
    """Examples as pixels at the network's size, in a dict, with their labels and targets.

    Where they are to be varied, they come at their own size. Examples that have features have these
    in place of pixels.
    """

    def __init__(self, examples: Examples, reading: Reading, *, cache: bool):
        """cache: whether what was decoded once is kept, by each process that reads."""
        self._examples, self._reading = examples, reading
        self._kept: dict[int, dict[str, Any]] | None = {} if cache else None
        if reading.splice:
            self._places = {label: examples.places(label) for label in (REAL, FAKE)}

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        index = int(index)
        read = self._native if self._reading.is_varied else self.read
        if self._kept is None:
            return read(index)
        if index not in self._kept:
            self._kept[index] = read(index)
        return self._kept[index]

    def _native(self, index: int) -> dict[str, Any]:
        """Returns an example at its own size, with the mask that it has, if masks are targets."""
        record = self._examples[index]
        image = record.get("features")
        if image is None:
            image = np.asarray(decoding.to_rgb(decoded(record, "image")))
        example = {"image": image, "label": np.int32(record["label"])}
        if self._reading.mask_size is not None and not self._reading.splice:
            known = self._reading.has_masks
            example["region"] = full_mask(record) if known else _of_label(example)
        return example

    def read(self, index: int, perturb: Perturb | None = None) -> dict[str, Any]:
        """Returns an example, perturbed, or varied always alike, before it is resized."""
        example = self._native(index)
        if self._reading.is_varied:
            return self.varied(example, _rng(index))
        if perturb is not None:
            example["image"] = perturb(example["image"], index)
        return self._at_size(example)

    def varied(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Returns an example, given at its own size, spliced, blended, augmented and resized."""
        reading = self._reading
        example = self.spliced(example, rng)
        if reading.self_blend:
            example = self_blending.self_blend(example, reading.self_blend, rng)
        if reading.augment is not None:
            image, region = reading.augment(example["image"], example.get("region"), rng)
            example = {**example, "image": image}
            if region is not None:
                example["region"] = region
                if not region.any():  # all that was fake has been cut away; NaN is not known
                    example["label"] = np.int32(REAL)
        return self._at_size(example)

    def spliced(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Returns an example, given at its own size, spliced if the reading says so."""
        if not self._reading.splice:
            return example
        return splicing.splice(example, self._partner, self._reading.splice, rng)

    def _partner(self, label: int, rng: np.random.Generator) -> dict[str, Any]:
        places = self._places[label]
        return self[places[int(rng.integers(len(places)))]]

    def _at_size(self, example: dict[str, Any]) -> dict[str, Any]:
        reading = self._reading
        image = example["image"]
        if image.dtype == np.uint8:  # and not features
            image = squashed(Image.fromarray(image), reading.image_size, reading.resize)
        out = {"image": image, "label": example["label"]}
        if reading.mask_size is not None and (reading.splice or not reading.has_masks):
            out["spliced"] = splicing.shares(example["region"], reading.mask_size)
        elif reading.mask_size is not None:
            out["mask"] = self._target(example["region"], reading.mask_size)
        return out

    def _target(self, mask: UInt8[np.ndarray, "h w"], size: int) -> np.ndarray:
        # As published: the mask file (white = untouched) is resized, and dark is manipulated.
        untouched = Image.fromarray(np.where(mask, 0, 255).astype(np.uint8))
        resized = np.asarray(_resized(untouched, size, _FILTERS[self._reading.mask_resize]))
        return (resized < 127.5).astype(np.int32)


class Spliced:
    """The images of a split, every fake spliced, at their own size, as validation sees them.

    Image n is that which `eval_batches` reads with `Reading.splice` = 1 before it resizes it.
    """

    def __init__(self, examples: Examples):
        """examples: of one split, real and fake."""
        self._source = _Decoded(examples, Reading(0, "bilinear", splice=1.0), cache=False)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `image` [h, w, 3] uint8, `label`, and `region`, see `splicing.splice`."""
        return self._source.spliced(self._source[index], _rng(index))


def _of_label(example: dict[str, Any]) -> Float32[np.ndarray, "h w"]:
    """Returns what the label of an image says of its pixels: 0 if it is real, else NaN."""
    value = 0.0 if example["label"] == REAL else np.nan
    return np.full(example["image"].shape[:2], value, np.float32)


def _rng(index: int) -> np.random.Generator:
    """Returns the randomness of an image of a split that is read without a seed."""
    return np.random.default_rng(index)


class _Vary(grain.transforms.RandomMap):
    """Splices, blends, augments and resizes examples."""

    def __init__(self, source: _Decoded):
        self._source = source

    def random_map(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return self._source.varied(example, rng)


class _Flip(grain.transforms.RandomMap):
    """Flips half of the images horizontally, and their masks with them."""

    def random_map(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= 0.5:
            return example
        names = {"image", "mask", "spliced"} & example.keys()
        images = {name: example[name][:, ::-1] for name in names}
        return {**example, **images}


def _resized(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    return image if image.size == (size, size) else image.resize((size, size), resample)


def train_batches(
    examples: Examples,
    reading: Reading,
    *,
    batch: int,
    seed: int,
    start_step: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Yields endless training batches from a step on: this host's rows of each.

    Examples are pooled and reshuffled in every pass; a pass drops what does not fill a batch. With
    weights, batches are of as many examples of each subset as these say, over several batches; each
    subset is reshuffled once all of its examples were read.
    Batches have `image` [b, S, S, 3] uint8 (or the features that examples have), `label` [b] int32
    and, if targets are read, `mask`
    [b, m, m] int32 (1 = manipulated) or, where images are spliced, `spliced` [b, m, m] float32, the
    share of each location that is fake; b = batch / processes.

    How an image is varied follows from the seed, the step and its place in the batch of all hosts.

    Args:
      examples: of the training split.
      reading: how images are read.
      batch: images a step, over all hosts; a multiple of their number.
      seed: of order, variations and flips.
      start_step: the first batch's number, from 0.
      process: this host.
      processes: how many hosts there are.

    Raises:
      ConfigError: there are fewer examples than a batch takes.
    """
    whole = len(examples) // batch * batch
    if not whole:
        raise ConfigError(f"train.batch = {batch}, but there are {len(examples)} training images")
    source = _Decoded(examples, reading, cache=reading.cache)
    if reading.weights:
        dataset, whole = _mixed(source, examples.sizes, reading.weights, seed), None
    else:
        dataset = grain.MapDataset.source(source).seed(seed).shuffle()
    # What is random comes before the slice, or hosts would draw the same randomness.
    if reading.is_varied:
        dataset = dataset.random_map(_Vary(source))
    if reading.flip:
        dataset = dataset.random_map(_Flip())
    dataset = dataset[:whole][process::processes].batch(batch // processes, drop_remainder=True)
    endless = dataset if reading.weights else dataset.repeat()
    return _iterate(endless[start_step:], reading.workers)


def _mixed(
    source: _Decoded, sizes: Sequence[int], weights: Sequence[float], seed: int
) -> grain.MapDataset:
    """Returns examples without end, of each subset as often as its weight says."""
    whole, subsets, end = grain.MapDataset.source(source), [], 0
    for number, size in enumerate(sizes):
        subset = whole[end : end + size].seed(seed + number).shuffle()
        subsets.append(subset.repeat())
        end += size
    # What is mixed comes in turns: parts of a batch would each be of one subset.
    mixed = grain.MapDataset.mix(subsets, weights)
    mixed = grain.experimental.WindowShuffleMapDataset(mixed, window_size=_WINDOW, seed=seed)
    return mixed.seed(seed)


def eval_batches(
    examples: Examples,
    reading: Reading,
    *,
    batch: int,
    places: Sequence[int] | None = None,
    perturb: Perturb | None = None,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Yields every example once, in order: this host's rows of each batch.

    Batches are those of `train_batches`, not flipped, varied each image always in the same way, and
    with `index` [b] int32, the place
    in `examples`, and `weight` [b] float32. The last batch is filled up with copies of the last
    example of weight 0, so that all batches, on all hosts, have one shape.

    Args:
      examples: of one split.
      reading: how images are read.
      batch: images at once, over all hosts; a multiple of their number.
      places: those of the examples that are wanted; all by default.
      perturb: changes an image before it is resized.
      process: this host.
      processes: how many hosts there are.
    """
    places = range(len(examples)) if places is None else places
    padded = -(-len(places) // batch) * batch
    if perturb is not None and reading.is_varied:
        raise ValueError("images are perturbed, or varied, but not both")
    load = _Load(_Decoded(examples, reading, cache=False), places, perturb)
    dataset = grain.MapDataset.range(padded)[process::processes].map(load)
    return _iterate(dataset.batch(batch // processes), reading.workers)


class _Load(grain.transforms.Map):
    """Loads the example at the n-th of some places; past their end, the last with weight 0."""

    def __init__(self, source: _Decoded, places: Sequence[int], perturb: Perturb | None):
        self._source, self._places, self._perturb = source, places, perturb
        self._last = len(places) - 1

    def map(self, number: int) -> dict[str, Any]:
        index = self._places[min(number, self._last)]
        weight = np.float32(number <= self._last)
        example = self._source.read(index, self._perturb)
        return {**example, "index": np.int32(index), "weight": weight}


def _iterate(dataset: grain.MapDataset, workers: int) -> Iterator[Batch]:
    if workers:
        processes = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
        read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        iterable = dataset.to_iter_dataset(read)
        iterator = iter(iterable.mp_prefetch(processes, worker_init_fn=_worker_started))
    else:
        iterator = iter(
            dataset.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=4))
        )
    try:
        yield from iterator
    finally:
        iterator.close()  # ends the workers and frees the memory that is shared with them


def _worker_started(worker: int, count: int) -> None:
    # SIGTERM and Ctrl-C go to the whole process group; the main process decides what to do, and
    # its workers must live until it has.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
