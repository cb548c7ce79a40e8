"""Records of prepared subsets, still encoded, and how one of them becomes pixels."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, UInt8
from PIL import Image

from wsdl_data import build, decoding, provenance
from wsdl_jax import configuration
from wsdl_jax.inputs.features import KeptFeatures
from wsdl_jax.runtime import hosts
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.storage import is_remote

_LOG = logging.getLogger("wsdl_jax")
REAL, FAKE = 0, 1
_SET = "set"
_FEATURES = {"image", "mask", "label", "key"}  # that any subset may have


class Examples:
    """The records of one split of several subsets, one after the other, still encoded.

    A record has `image` and, where the subset has masks, `mask` (bytes of an image file),
    `label` (0 = real, 1 = fake) and `key` (the name of its source); and where features were given
    `features` [h, w, c] bfloat16, see `with_features`.

    Attributes:
      have_masks: whether all subsets have masks.
      sizes: how many records each subset has.
      facts: names of what else is known of images, such as "generator", of some subsets at least;
        among them "set", the name of its subset, where there are several.
      provenance: what each subset was made of, by its name, see wsdl_data.provenance.
      features: those that are kept of the images of each subset; empty without.
    """

    def __init__(
        self,
        names: Sequence[str],
        split: str,
        data_dir: str | None,
        features: Sequence[KeptFeatures] = (),
    ):
        """Raises ConfigError for a subset that is unknown, not prepared, or lacks the split."""
        self._arguments = (tuple(names), split, data_dir, tuple(features))
        self.features = tuple(features)
        self._sources, self._folders, self._builders = [], [], []
        self.have_masks = True
        facts: list[set[str]] = []
        self.provenance: dict[str, dict[str, Any]] = {}
        for name in names:
            builder = _builder(name, data_dir)
            if not build.has_any(builder, (split,)):
                raise _no_split(name, split, provenance.split_sizes(builder))
            if not build.is_prepared(builder, (split,)):
                there = builder.data_path.exists()
                if there and (faults := build.faults(builder)):
                    raise ConfigError(
                        f"{name}: {builder.data_dir} is {faults}; delete this folder and run"
                        f" {build.command(builder)}"
                    )
                what = f"the {split} split of {name}" if there else name
                raise ConfigError(
                    f"{what} is not prepared in {builder.data_dir}: run"
                    f" {build.command(builder, split)}"
                )
            try:
                self.provenance[name] = provenance.of(builder)
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from error
            if split not in builder.info.splits:
                raise _no_split(name, split, builder.info.splits)
            decoders = {
                feature: tfds.decode.SkipDecoding()
                for feature in ("image", "mask")
                if feature in builder.info.features
            }
            self._sources.append(builder.as_data_source(split, decoders=decoders))
            self._folders.append(builder.data_dir)
            self._builders.append(builder)
            self.have_masks &= "mask" in decoders
            facts.append(set(builder.info.features) - _FEATURES)
        self._names = tuple(names)
        self.facts = tuple(sorted(set.union(*facts, {_SET} if len(names) > 1 else ())))
        self.sizes = tuple(len(source) for source in self._sources)
        self._ends = np.cumsum(self.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes open the files anew: TFDS refuses to unpickle a builder whose config is
        # equal, but not identical, to one of its own.
        return Examples, self._arguments

    def with_features(self, features: Sequence[KeptFeatures]) -> "Examples":
        """Returns the same records with features that are kept of their images.

        features: of each subset, in order.
        """
        return Examples(*self._arguments[:3], features)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def subset(self, index: int) -> str:
        """Returns the name of the subset that an image is of."""
        return self._names[int(np.searchsorted(self._ends, index, side="right"))]

    def original(self, index: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """Returns the pixels that an image was made of, where its dataset can make them again.

        None for an image of any other dataset.
        """
        builder = self._builders[int(np.searchsorted(self._ends, index, side="right"))]
        if not isinstance(builder, build.MakesOriginals):
            return None
        return builder.original(self[index]["key"].decode())

    def places(self, label: int) -> Int[np.ndarray, " n"]:
        """Returns the indices of all images of a label, 0 real or 1 fake.

        Of a subset all images have one label.
        """
        starts = [0, *self._ends[:-1].tolist()]
        labels = [self[start]["label"] for start in starts]
        spans = zip(labels, starts, self._ends.tolist(), strict=True)
        chosen = [np.arange(start, end) for of, start, end in spans if of == label]
        return np.concatenate([np.arange(0), *chosen])

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Returns a record, which has `set`, the name of its subset, where there are several.

        Raises UserError naming the folder of a file that is damaged.
        """
        which = int(np.searchsorted(self._ends, index, side="right"))
        start = self._ends[which - 1] if which else 0
        place = int(index) - int(start)
        try:
            record = self._sources[which][place]
        except RuntimeError as error:  # of array_record: truncated, or a checksum is wrong
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self._folders[which]} is damaged ({reason}); delete this folder and build again"
            ) from error
        if self.features:
            features = self.features[which].read(place, record["image"])
            record = {**record, "features": features}
        return record if len(self._names) == 1 else {**record, _SET: self._names[which].encode()}


def _no_split(name: str, split: str, present: Iterable[str]) -> ConfigError:
    return ConfigError(f"{name} has no split {split!r}, only {', '.join(present)}")


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
    """Builds every split that the config trains or tests on and that is not there yet.

    also: names of further subsets to test on.

    Raises ConfigError for an unknown subset and wsdl_data.build.BuildError where one cannot be
    built.
    """
    data = config.data
    test_real, test_fake = map(configuration.subsets, (data.test_real, data.test_fake))
    needed: dict[str, set[str]] = {}
    for names, splits in (
        ((*data.real, *data.fake), ("train", "valid")),
        # The verdict comes from real validation images, also where none are learned from.
        ((*data.spliced_fake, *(data.real or test_real)), ("valid",)),
        ((*test_real, *test_fake, *also), ("test",)),
    ):
        for name in names:
            needed.setdefault(name, set()).update(splits)
    prepare_subsets(needed, data.dir, data.manual_dir)


def prepare_subsets(
    needed: Mapping[str, Collection[str] | None], data_dir: str | None, manual_dir: str | None
) -> None:
    """Builds what subsets lack of the splits that are needed.

    Args:
      needed: names of the splits, by the names of the subsets; None for all splits.
      data_dir: the prepared datasets.
      manual_dir: as of `build.prepare`.

    Raises ConfigError and BuildError as `prepare` does.
    """
    # Unknown names fail before any work.
    builders = {name: _builder(name, data_dir) for name in needed}
    for name, builder in builders.items():
        build.prepare(builder, manual_dir, needed[name])


def warn_of_changed_sources(names: Collection[str], data_dir: str | None) -> None:
    """Warns, on the first host, of a user's datasets made of files that have changed since.

    It is their sizes and times that are looked at, for a few seconds at most, where they are at
    hand, see `build.changed_sources`.

    Args:
      names: of prepared subsets.
      data_dir: the prepared datasets.
    """
    if hosts.is_first():
        for line in build.changed_sources(names, data_dir):
            _LOG.warning("%s", line)


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


def decoded(record: dict[str, Any], feature: str) -> Image.Image:
    """Returns an image of a record of `Examples`, as it is stored.

    feature: "image" or "mask".

    Raises UserError, naming the record, for one that cannot be decoded.
    """
    try:
        return decoding.load(record[feature], checksums=False)  # the record has one of its own
    except (OSError, ValueError) as error:
        key = record["key"].decode(errors="replace")
        raise UserError(f"the {feature} of {key} cannot be read: {error}") from error


def full_mask(record: dict[str, Any]) -> UInt8[np.ndarray, "h w"]:
    """Returns the mask of a record of `Examples` at its own size: 0 untouched, 1 manipulated."""
    return (np.asarray(decoded(record, "mask")) > 0).astype(np.uint8)


def full_image(record: dict[str, Any]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the RGB image of a record of `Examples` at its own size."""
    return np.asarray(decoding.to_rgb(decoded(record, "image")))
