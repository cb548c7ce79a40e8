"""Dolos (Țânțaru, Oneață and Oneață, WACV 2024), from the folder that its authors distribute.

A folder is listed and paired before anything is written, every image is decoded before it is kept,
and the first fault found stops the build with the file named.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import ImageOps

from wsdl_data import image_files, provenance
from wsdl_jax.runtime import threads

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False, kw_only=True)
class DolosConfig(tfds.core.BuilderConfig):
    """A subset of Dolos.

    Attributes:
        images: folder of the images, which holds a folder for each split; relative to the root.
        masks: folder of the masks, laid out like the images; None where the subset has none.
        label: "real" or "fake".
        counts: the paper's number of images for each split that the subset has.
    """

    images: str
    masks: str | None
    label: str
    counts: dict[str, int]


def _subset(name: str, folder: str, *counts: int, masks: bool = False) -> DolosConfig:
    """Returns the subset in `folder`, with the paper's counts of train, valid and maybe test."""
    return DolosConfig(
        name=name,
        images=f"{folder}/images" if masks else folder,
        masks=f"{folder}/masks" if masks else None,
        label="real" if folder.endswith("/real") else "fake",
        counts=dict(zip(("train", "valid", "test"), counts, strict=False)),
    )


class Builder(tfds.core.ShardBasedBuilder):
    """The ten subsets of Dolos.

    Shard-based, since TFDS's `GeneratorBasedBuilder` needs TensorFlow for the temporary files of a
    split above 1 GB. Examples are stored in the order of their file names.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "Initial release.",
        "1.1.0": "A hash of the files is kept with what was made of them; the images are the same.",
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Dolos is downloaded by hand (see data/dolos/README.md): manual_dir is the unpacked folder,"
        " which holds celebahq/ and ffhq/"
    )
    BUILDER_CONFIGS: ClassVar[list[DolosConfig]] = [
        _subset("celebahq_real", "celebahq/real", 9_000, 900, 900),
        _subset("ffhq_real", "ffhq/real", 9_000, 900),
        _subset("celebahq_p2", "celebahq/fake/p2", 9_000, 1_000),
        _subset("ffhq_p2", "ffhq/fake/p2", 9_000, 1_000),
        _subset(
            "celebahq_repaint_p2", "celebahq/fake/repaint-p2", 30_000, 3_000, 8_500, masks=True
        ),
        _subset("ffhq_repaint_p2", "ffhq/fake/repaint-p2", 30_000, 3_000, masks=True),
        _subset(
            "celebahq_repaint_p2_9k", "celebahq/fake/repaint-p2-9k", 9_000, 900, 900, masks=True
        ),
        _subset("celebahq_ldm", "celebahq/fake/ldm", 9_000, 900, 900, masks=True),
        _subset("celebahq_lama", "celebahq/fake/lama", 9_000, 900, 900, masks=True),
        _subset("celebahq_pluralistic", "celebahq/fake/pluralistic", 9_000, 900, 900, masks=True),
    ]

    # Images of the build under way, for its progress bar; None until the folder has been listed.
    num_examples: int | None = None

    @classmethod
    def config_for(cls, name: str) -> DolosConfig:
        """Returns the subset of a name. Raises ValueError, with the valid names, for another."""
        try:
            return cls.builder_configs[name]
        except KeyError:
            raise ValueError(
                f"dolos has no config {name!r}; choose from {', '.join(cls.builder_configs)}"
            ) from None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=["real", "fake"]),
            "key": tfds.features.Text(),
        }
        if self.builder_config.masks:
            features["mask"] = tfds.features.Image(
                shape=(None, None, 1), dtype=np.uint8, encoding_format="png"
            )
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),  # when it is built
            homepage="https://github.com/bit-ml/dolos",
            citation=(
                "@inproceedings{tantaru2024weakly,\n"
                "  title={Weakly-supervised deepfake localization in diffusion-generated images},\n"
                "  author={T\\,{a}n\\,taru, Drago\\c{s} and Onea\\c{t}\\u{a}, Elisabeta"
                " and Onea\\c{t}\\u{a}, Dan},\n"
                "  booktitle={WACV},\n"
                "  year={2024}\n"
                "}"
            ),
        )

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig | None = None,
    ) -> None:
        self._contents = provenance.Contents()
        super()._download_and_prepare(dl_manager, download_config)
        config = self.builder_config
        origin = provenance.Origin(
            {"images": config.images, "masks": config.masks, "label": config.label},
            {"sources": self._contents.digest()},
            {"source": os.path.abspath(dl_manager.manual_dir), **self._contents.recorded()},
        )
        self.info.metadata.update(origin.metadata())

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Sequence[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
        config = self.builder_config
        root = find_root(Path(dl_manager.manual_dir), config.images.split("/")[0])
        splits = {
            split: pair(
                root / config.images / split, root / config.masks / split if config.masks else None
            )
            for split in config.counts
        }
        counts = {split: len(pairs) for split, pairs in splits.items()}
        if counts != config.counts:
            _LOG.warning(
                "%s: %s images, where the paper has %s",
                root / config.images,
                ", ".join(f"{count} {split}" for split, count in counts.items()),
                ", ".join(f"{count} {split}" for split, count in config.counts.items()),
            )
        self.num_examples = sum(counts.values())
        return {
            split: [
                functools.partial(self._examples, split, shard)
                for shard in image_files.shards(pairs, _paths)
            ]
            for split, pairs in splits.items()
        }

    def _examples(self, split: str, shard: Sequence[Pair]) -> Iterator[tuple[str, dict[str, Any]]]:
        def read(pair: Pair) -> tuple[bytes, bytes | None]:
            self._contents.add(f"{split}/{pair.image.name}", pair)
            return read_pair(pair)

        for paths, (image, mask) in zip(shard, threads.map_ahead(read, shard), strict=True):
            example = {
                "image": image,
                "label": self.builder_config.label,
                "key": paths.image.name,
            }
            if mask is not None:
                example["mask"] = mask
            yield paths.image.name, example


class Pair(NamedTuple):
    """An image file and, where the subset has masks, its mask's file."""

    image: Path
    mask: Path | None


def find_root(manual_dir: Path, source: str) -> Path:
    """Returns the folder that holds `source`: `manual_dir` itself or a folder in it.

    Raises:
        FileNotFoundError: neither holds it; the message says what was tried.
        ValueError: several folders in `manual_dir` hold it.
    """
    if (manual_dir / source).is_dir():
        return manual_dir
    roots = sorted(path.parent for path in manual_dir.glob(f"[!.]*/{source}") if path.is_dir())
    if not roots:
        raise FileNotFoundError(
            f"no folder {source}/: tried {manual_dir / source} and {manual_dir / '*' / source};"
            " manual_dir must be the unpacked Dolos folder, or one that contains it"
        )
    if len(roots) > 1:
        raise ValueError(
            f"several folders hold {source}/: {', '.join(map(str, roots))};"
            " manual_dir must be one of them"
        )
    return roots[0]


def pair(images: Path, masks: Path | None) -> list[Pair]:
    """Lists a split: every image, in the order of the file names, with the mask of the same stem.

    A mask without an image is only warned of: nothing is lost with it.

    Raises:
        FileNotFoundError: a folder is missing or empty, or an image has no mask.
        ValueError: two files of a folder share a stem, or something in it is not a file.
    """
    image_files = _files(images, "images")
    if masks is None:
        return [Pair(path, None) for path in image_files.values()]
    mask_files = _files(masks, "masks")
    for stem, path in image_files.items():
        if stem not in mask_files:
            raise FileNotFoundError(f"{path}: no mask {masks / stem}.*")
    if unused := [path for stem, path in mask_files.items() if stem not in image_files]:
        _LOG.warning(
            "%s: %d masks without an image are left out, %s first",
            masks,
            len(unused),
            unused[0].name,
        )
    if lossy := [path for path in mask_files.values() if path.suffix.lower() in (".jpg", ".jpeg")]:
        _LOG.warning(
            "%s: %d masks are JPEG files, whose rounding near white counts as manipulated",
            masks,
            len(lossy),
        )
    return [Pair(path, mask_files[stem]) for stem, path in image_files.items()]


def _files(folder: Path, what: str) -> dict[str, Path]:
    """Returns the files of `folder` by stem, sorted by name, without those that systems leave."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of {what}")
    files = {}
    for path in sorted(folder.iterdir()):
        if image_files.is_left_by_a_system(path):
            continue
        if not path.is_file():
            raise ValueError(f"{path}: not a file, where only {what} are expected")
        if path.stem in files:
            raise ValueError(f"{path}: {files[path.stem].name} beside it has the same stem")
        files[path.stem] = path
    if not files:
        raise FileNotFoundError(f"{folder}: no {what} in this folder")
    return files


def read_pair(pair: Pair) -> tuple[bytes, bytes | None]:
    """Reads and checks an image and its mask.

    Returns:
        image: an encoded 8-bit RGB image, see `image_files.read_rgb`.
        mask: a single-channel PNG, 255 minus the first channel of the file, so that 0 is untouched
            and 255 manipulated; None if the pair has no mask.

    Raises:
        ValueError: a file cannot be decoded to its end, or the sizes differ.
    """
    encoded, mask = image_files.read_pair(pair.image, pair.mask)
    if mask is None:
        return encoded, None
    return encoded, image_files.png(ImageOps.invert(mask.getchannel(0)))


def _paths(pair: Pair) -> list[Path]:
    return [path for path in pair if path]
