"""Input pipelines: prepared TFDS subsets → batches of NumPy arrays, one shard per host.

Built on grain's `MapDataset`, indexed by step: any number of hosts and workers reads the same
global batches, and resuming means starting at step n.
"""

import io
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

import grain
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from wsdl_data import build, provenance
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.processes import end_with_parent
from wsdl_jax.runtime.storage import is_remote

Batch = dict[str, np.ndarray]
REAL, FAKE = 0, 1
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


class Examples:
    """The records of one split of several subsets, one after the other, still encoded.

    A record has `image` and, where the subset has masks, `mask` (bytes of an image file),
    `label` (0 = real, 1 = fake) and `key` (the name of its source).

    Attributes:
      have_masks: whether all subsets have masks.
      provenance: what each subset was made of, by its name, see wsdl_data.provenance.
    """

    def __init__(self, names: Sequence[str], split: str, data_dir: str | None):
        """Raises ConfigError for a subset that is unknown, not prepared, or lacks the split."""
        self._arguments = (tuple(names), split, data_dir)
        self._sources, self._folders = [], []
        self.have_masks = True
        self.provenance: dict[str, dict[str, Any]] = {}
        for name in names:
            builder = _builder(name, data_dir)
            if not build.is_prepared(builder):
                if builder.data_path.exists():
                    raise ConfigError(
                        f"{name}: {builder.data_dir} is {build.faults(builder)}; delete this folder"
                        f" and run {build.command(builder)}"
                    )
                raise ConfigError(
                    f"{name} is not prepared in {builder.data_dir}: run {build.command(builder)}"
                )
            try:
                self.provenance[name] = provenance.of(builder)
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from error
            if split not in builder.info.splits:
                raise ConfigError(
                    f"{name} has no split {split!r}, only {', '.join(builder.info.splits)}"
                )
            decoders = {
                feature: tfds.decode.SkipDecoding()
                for feature in ("image", "mask")
                if feature in builder.info.features
            }
            self._sources.append(builder.as_data_source(split, decoders=decoders))
            self._folders.append(builder.data_dir)
            self.have_masks &= "mask" in decoders
        self._ends = np.cumsum([len(source) for source in self._sources])

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes open the files anew: TFDS refuses to unpickle a builder whose config is
        # equal, but not identical, to one of its own.
        return Examples, self._arguments

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Raises UserError naming the folder of a file that is damaged."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        start = self._ends[which - 1] if which else 0
        try:
            return self._sources[which][int(index) - int(start)]
        except RuntimeError as error:  # of array_record: truncated, or a checksum is wrong
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self._folders[which]} is damaged ({reason}); delete this folder and build again"
            ) from error


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    root = data_dir or tfds.core.constants.DATA_DIR
    if is_remote(root):
        raise ConfigError(
            f"{root} is not on a disk, which ArrayRecord files are read from: copy the prepared "
            "datasets to one, or mount them"
        )
    try:
        return build.make_builder(name, data_dir)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def prepare(config: ml_collections.ConfigDict, also: Sequence[str] = ()) -> None:
    """Builds every subset that the config trains or tests on and that is not there yet.

    also: names of further subsets to build.

    Raises ConfigError for an unknown subset and wsdl_data.build.BuildError where one cannot be
    built.
    """
    data = config.data
    names = (*data.real, *data.fake, data.test_real, data.test_fake, *also)
    prepare_subsets(names, data.dir, data.manual_dir)


def prepare_subsets(names: Iterable[str], data_dir: str | None, manual_dir: str | None) -> None:
    """Builds the subsets of these names that are not there yet. Raises as `prepare` does."""
    # Unknown names fail before any work.
    builders = [_builder(name, data_dir) for name in dict.fromkeys(names)]
    for builder in builders:
        if not build.is_prepared(builder):
            build.prepare(builder, manual_dir=manual_dir)


def check_sides(
    *,
    real: Sequence[str],
    fake: Sequence[str],
    data_dir: str | None,
    splits: Sequence[str],
) -> None:
    """Raises ConfigError where what is called real holds fakes, or what is called fake reals.

    Args:
      real, fake: names of prepared subsets; of a subset all images are of one side.
      data_dir: the prepared datasets.
      splits: that each of them must have.
    """
    for side, names, label in (("real", real, REAL), ("fake", fake, FAKE)):
        for name in dict.fromkeys(names):
            for split in splits:
                examples = Examples((name,), split, data_dir)
                if not len(examples):
                    raise ConfigError(f"{name} has no images in its split {split!r}")
                if examples[0]["label"] != label:
                    other = "fake" if side == "real" else "real"
                    raise ConfigError(f"{name} holds {other} images, where {side} ones are needed")


def _open(record: dict[str, Any], feature: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(record[feature]))
        image.load()
    except (OSError, SyntaxError) as error:
        key = record["key"].decode(errors="replace")
        raise UserError(f"the {feature} of {key} cannot be read: {error}") from error
    return image


def full_mask(record: dict[str, Any]) -> UInt8[np.ndarray, "h w"]:
    """The mask of a record of `Examples` at its own size, 0 = untouched, 1 = manipulated."""
    return (np.asarray(_open(record, "mask")) > 0).astype(np.uint8)


def full_image(record: dict[str, Any]) -> UInt8[np.ndarray, "h w 3"]:
    """The image of a record of `Examples` at its own size."""
    return np.asarray(_open(record, "image").convert("RGB"))


def squashed(image: Image.Image, size: int, resize: str) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The pixels of an RGB image at size × size.

    resize: Pillow's filter, by its name in config.data.resize; for an image of another size.
    """
    return np.asarray(_resized(image, size, _FILTERS[resize]))


class _Decoded:
    """Examples as pixels at the network's size, in a dict, with their labels and targets."""

    def __init__(
        self,
        examples: Examples,
        data: ml_collections.ConfigDict,
        *,
        mask_size: int | None,
        cache: bool = False,
    ):
        """cache: whether what was decoded once is kept, by each process that reads."""
        self._examples = examples
        self._size, self._resize = data.image_size, data.resize
        self._mask_size, self._mask_filter = mask_size, _FILTERS[data.mask_resize]
        self._kept: dict[int, dict[str, Any]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        index = int(index)
        if self._kept is None:
            return self.read(index)
        if index not in self._kept:
            self._kept[index] = self.read(index)
        return self._kept[index]

    def read(
        self, index: int, perturb: Callable[[np.ndarray, int], np.ndarray] | None = None
    ) -> dict[str, Any]:
        """perturb: (decoded image [h, w, 3] uint8, its place) → image, before it is resized."""
        record = self._examples[index]
        image = _open(record, "image").convert("RGB")
        if perturb is not None:
            image = Image.fromarray(perturb(np.asarray(image), index))
        example = {
            "image": squashed(image, self._size, self._resize),
            "label": np.int32(record["label"]),
        }
        if self._mask_size is not None:
            example["mask"] = self._target(record)
        return example

    def _target(self, record: dict[str, Any]) -> np.ndarray:
        # As published: the mask file (white = untouched) is resized, and dark is manipulated.
        untouched = Image.fromarray(255 - np.asarray(_open(record, "mask")))
        resized = np.asarray(_resized(untouched, self._mask_size, self._mask_filter))
        return (resized < 127.5).astype(np.int32)


class _Flip(grain.transforms.RandomMap):
    """The flip of the recipe: of half of the images, and of their masks with them."""

    def random_map(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if rng.random() >= 0.5:
            return example
        images = {name: example[name][:, ::-1] for name in ("image", "mask") if name in example}
        return {**example, **images}


def _resized(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    return image if image.size == (size, size) else image.resize((size, size), resample)


def train_batches(
    config: ml_collections.ConfigDict,
    *,
    mask_size: int | None,
    start_step: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Endless training batches from step `start_step` on: this host's rows of each.

    Real and fake examples are pooled and reshuffled in every pass; a pass drops what does not fill
    a batch. Batches have `image` [b, S, S, 3] uint8, `label` [b] int32 and, if `mask_size` is
    given, `mask` [b, m, m] int32 (1 = manipulated), where b = train.batch / hosts.

    Raises ConfigError where there are fewer examples than a batch takes.
    """
    data, batch = config.data, config.train.batch
    examples = Examples((*data.real, *data.fake), "train", data.dir)
    whole = len(examples) // batch * batch
    if not whole:
        raise ConfigError(f"train.batch = {batch}, but there are {len(examples)} training images")
    decoded = _Decoded(examples, data, mask_size=mask_size, cache=data.cache)
    dataset = grain.MapDataset.source(decoded).seed(config.seed).shuffle()
    if data.flip:  # before the slice, or hosts would draw the same randomness
        dataset = dataset.random_map(_Flip())
    dataset = dataset[:whole][process::processes].batch(batch // processes, drop_remainder=True)
    return _iterate(dataset.repeat()[start_step:], data.workers)


def eval_batches(
    examples: Examples,
    config: ml_collections.ConfigDict,
    *,
    mask_size: int | None,
    places: Sequence[int] | None = None,
    perturb: Callable[[np.ndarray, int], np.ndarray] | None = None,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Every example once, in order: this host's rows of each batch.

    As `train_batches`, without randomness, and with `index` [b] int32, the place in `examples`, and
    `weight` [b] float32. The last batch is filled up with copies of the last example of weight 0,
    so that all batches, on all hosts, have one shape.

    Args:
      examples: of one split.
      config: the run's; `data` and `eval` are read.
      mask_size: of the targets, if there are to be any.
      places: of the examples that are wanted; all by default.
      perturb: (decoded image [h, w, 3] uint8, its place) → image, before it is resized.
      process: this host.
      processes: how many hosts there are.
    """
    batch = config.eval.batch
    places = range(len(examples)) if places is None else places
    padded = -(-len(places) // batch) * batch
    load = _Load(_Decoded(examples, config.data, mask_size=mask_size), places, perturb)
    dataset = grain.MapDataset.range(padded)[process::processes].map(load)
    return _iterate(dataset.batch(batch // processes), config.data.workers)


class _Load(grain.transforms.Map):
    """A number → that one of `places`, decoded; past the end, the last with weight 0."""

    def __init__(
        self,
        decoded: _Decoded,
        places: Sequence[int],
        perturb: Callable[[np.ndarray, int], np.ndarray] | None,
    ):
        self._decoded, self._places, self._perturb = decoded, places, perturb
        self._last = len(places) - 1

    def map(self, number: int) -> dict[str, Any]:
        index = self._places[min(number, self._last)]
        weight = np.float32(number <= self._last)
        example = self._decoded.read(index, self._perturb)
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
