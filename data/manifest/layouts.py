"""Public datasets, as their downloads lie on disk, as rows of a manifest. See README.md."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsdl_data.manifest import rows
from wsdl_data.manifest.rows import Row

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a dataset lies on disk.

    Attributes:
        read: reads the rows of an unpacked download. Raises OSError and ValueError.
        manipulated: what is manipulated in its masks, see `masks.Manipulated`; None where no
            document shows it, and the user has to look.
    """

    read: Callable[[Path], Iterable[Row]]
    manipulated: str | None


@dataclasses.dataclass(frozen=True)
class _Images:
    """Images of one kind, by their paths in the download, with slashes.

    What the pattern's named groups find stands for {NAME} in the other texts. Paths that are not
    found by a pattern are no images of the dataset.

    Attributes:
        pattern: of the whole path.
        mask: the path of the mask, in which * stands for any text; None for real images.
        group, generator, kind, split: see `rows.COLUMNS`.
    """

    pattern: str
    mask: str | None = None
    group: str = ""
    generator: str = ""
    kind: str = ""
    split: str = ""

    def texts(self, root: Path, path: str) -> dict[str, str] | None:
        """Returns the columns of an image; None where the path is that of another file.

        A mask that is not there is left out. Raises ValueError for two of them.
        """
        found = re.fullmatch(self.pattern, path, re.IGNORECASE)
        if found is None:
            return None
        named = {name: value or "" for name, value in found.groupdict().items()}
        texts = {"image": path, "label": "real" if self.mask is None else "fake"}
        for column in ("group", "generator", "kind", "split"):
            texts[column] = getattr(self, column).format_map(named)
        if self.mask is not None:
            mask = self.mask.format_map(named)
            there = sorted(root.glob(mask)) if "*" in mask else [root / mask]
            if len(there) > 1:
                raise ValueError(f"{path}: two masks, {there[0]} and {there[1]}")
            if there and there[0].is_file():
                texts["mask"] = there[0].relative_to(root).as_posix()
        return {column: text for column, text in texts.items() if text}


def _files(*kinds: _Images) -> Callable[[Path], Iterator[Row]]:
    """Returns what reads a folder whose images are known by their paths."""

    def read(root: Path) -> Iterator[Row]:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no folder")
        number, bare = 0, []
        for path in sorted(root.rglob("*")):
            if path.is_dir():
                if path.is_symlink():
                    raise ValueError(f"{path}: a link to a folder, which is not followed")
                continue
            name = path.relative_to(root).as_posix()
            found = (kind.texts(root, name) for kind in kinds)
            texts = next((texts for texts in found if texts is not None), None)
            if texts is None:
                continue
            if texts["label"] == "fake" and "mask" not in texts:
                bare.append(name)
                continue
            number += 1
            yield Row(number, name, texts)
        if bare:
            _LOG.warning(
                "%s: %d fakes without a mask are left out, the first %s", root, len(bare), bare[0]
            )

    return read


# ----- Groups of several sources ------------------------------------------------------------------


def _connected(
    read: Callable[[Path], Iterator[Row]], sources: Callable[[str], list[str]]
) -> Callable[[Path], Iterator[Row]]:
    """Returns a reader in which images that share a source, by whatever many steps, are a group.

    Args:
        read: reads the rows.
        sources: path of an image → the names of the photographs that are in it.
    """

    def grouped(root: Path) -> Iterator[Row]:
        found = list(read(root))
        parents: dict[str, str] = {}

        def first(name: str) -> str:
            while (parent := parents.setdefault(name, name)) != name:
                parents[name] = parents.setdefault(parent, parent)
                name = parent
            return name

        for row in found:
            one, *others = sources(row.texts["image"])
            for other in others:
                parents[first(other)] = first(one)
        for row in found:
            group = first(sources(row.texts["image"])[0])
            yield dataclasses.replace(row, texts={**row.texts, "group": group})

    return grouped


def _of_casia(path: str) -> list[str]:
    # Au_ani_00028.jpg is the photograph ani00028 of Tp_D_…_ani00028_cha00015_01234.jpg.
    name = Path(path).stem
    if name.startswith("Au_"):
        return [name.removeprefix("Au_").replace("_", "")]
    return re.findall(r"_([a-z]{3}\d{5})(?=_)", name) or [name]


def _of_fantastic_reality(path: str) -> list[str]:
    return re.findall(r"IMG_\d+", Path(path).stem) or [Path(path).stem]


# ----- Tables and Parquet files -------------------------------------------------------------------


def _open_sdi(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translates key, image, mask and label; key is {partial|entire}/GENERATOR/…/NUMBER.ending."""
    parts = Path(str(values.get("key", ""))).parts
    if len(parts) != 4 or parts[0] not in ("partial", "entire"):
        raise ValueError(f"key {values.get('key')!r} is not partial|entire/GENERATOR/…/NUMBER")
    is_fake = values.get("label") == 1
    return {
        "image": values.get("image"),
        "label": values.get("label"),
        "mask": values.get("mask") if is_fake else None,
        "group": Path(parts[3]).stem,
        "generator": parts[1] if is_fake else "",
        "kind": "full" if is_fake and parts[0] == "entire" else "",
    }


def _sid_set(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translates img_id, image, mask and label: 0 real, 1 whole, 2 tampered."""
    label = values.get("label")
    if label not in (0, 1, 2):
        raise ValueError(f"label {label!r} is none of 0, 1, 2")
    return {
        "image": values.get("image"),
        "label": min(label, 1),
        "mask": values.get("mask") if label == 2 else None,
        "group": values.get("img_id"),
        "kind": "full" if label == 1 else "",
    }


def _parquet(translated: rows.Translate) -> Callable[[Path], Iterator[Row]]:
    return lambda path: rows.parquet(path, translated)


_SAGI_COLUMNS = ("img_path", "mask_path", "src_path", "split", "type", "inpainting_model")


def _sagi_d(root: Path) -> Iterator[Row]:
    """Reads sagid.csv: a row is a fake, with the path of its original."""

    def check(path: Path, columns: Sequence[str]) -> None:
        if missing := [name for name in _SAGI_COLUMNS if name not in columns]:
            raise ValueError(f"{path}: no column {missing[0]!r}")

    seen, number = set(), 0
    for place, found in rows.csv_rows(root / "sagid.csv", check):
        paths = (found.get(name, "") for name in _SAGI_COLUMNS[:3])
        image, mask, source = (name.replace("\\", "/").removeprefix("sagid/") for name in paths)
        known = {"group": source, "split": found.get("split", "")}
        if source not in seen:
            seen.add(source)
            number += 1
            yield Row(number, place, {"image": source, "label": "real", **known})
        number += 1
        models = (found.get("inpainting_model"), found.get("diffusion_model"))
        kind = found.get("type", "")
        texts = {
            **{"image": image, "label": "fake", "mask": mask, **known},
            "generator": "+".join(filter(None, models)),
            "kind": {"sp": "spliced", "fr": "regenerated"}.get(kind, kind),
        }
        yield Row(number, place, {name: text for name, text in texts.items() if text})


# ----- The table ----------------------------------------------------------------------------------

_TGIF = r"/(?P<split>training|validation|testing)/(?P<category>[^/]+)/(?P<id>\d+)"
_TGIF_MASK = "masks/{split}/{category}/{id}_mask_{type}"
_TGIF_EDIT = r"_mask_(?P<type>bbox|segm)\.png"

LAYOUTS: dict[str, Layout] = {
    "autosplice": Layout(
        _files(
            _Images(r"Authentic/(?P<id>[^/_]+)\.jpg", group="{id}"),
            _Images(
                r"Forged_JPEG(100|90|75)/(?P<id>[^/_]+)_\d+\.jpg",
                mask="Mask/{id}_mask.png",
                group="{id}",
                generator="dall-e-2",
            ),
        ),
        "white",
    ),
    "br_gen_val": Layout(
        _files(
            _Images(r"Au/(?P<source>[^/]+)\.(png|jpe?g)", group="{source}"),
            _Images(
                r"Tp/(?P<stem>(?P<method>[^/_]+)_(Stuff|Background)_(?P<source>[^/]+))\.(png|jpe?g)",
                mask="Gt/{stem}_mask.png",
                group="{source}",
                generator="{method}",
            ),
        ),
        None,
    ),
    "casia2": Layout(
        _connected(
            _files(
                _Images(r"(CASIA 2\.0/)?Au/[^/]+\.(jpg|bmp|tif)"),
                _Images(
                    r"(CASIA 2\.0/)?Tp/(?P<stem>[^/]+)\.(jpg|bmp|tif)",
                    mask="*[Gg]*/{stem}_gt.png",
                    kind="spliced",
                ),
            ),
            _of_casia,
        ),
        "above:0",
    ),
    "coco_glide": Layout(
        _files(
            _Images(r"real/[^/]*_(?P<id>\d+)\.png", group="{id}"),
            _Images(
                r"fake/glide_inpainting_val2017_(?P<id>\d+)_up\.png",
                mask="mask/*_{id}_mask.png",
                group="{id}",
                generator="glide",
                kind="spliced",
            ),
        ),
        "white",
    ),
    "columbia": Layout(
        _files(
            _Images(r"(4cam_auth/)+[^/]+\.(tif|bmp)", split="test"),
            _Images(
                r"(?P<folder>(4cam_splc/)+)(?P<stem>[^/]+)\.(tif|bmp)",
                mask="{folder}edgemask/{stem}_edgemask.jpg",
                kind="spliced",
                split="test",
            ),
        ),
        "green",
    ),
    "fantastic_reality": Layout(
        _connected(
            _files(
                _Images(r"(dataset/)?ColorRealImages/[^/]+\.jpg"),
                _Images(
                    r"(?P<folder>(dataset/)?)ColorFakeImages/(?P<stem>[^/]+)\.jpg",
                    mask="{folder}SegmentationFake/{stem}.npz",
                    kind="spliced",
                ),
            ),
            _of_fantastic_reality,
        ),
        "above:0",
    ),
    "imd2020": Layout(
        _files(
            _Images(r"(?P<folder>[^/]+)/[^/]+_orig\.(jpe?g|png)", group="{folder}"),
            _Images(
                r"(?P<folder>[^/]+)/(?P<stem>[^/]+_(\d+|fake))\.(jpe?g|png)",
                mask="{folder}/{stem}_mask.png",
                group="{folder}",
            ),
        ),
        "above:0",
    ),
    "open_sdi": Layout(_parquet(_open_sdi), "white"),
    "sagi_d": Layout(_sagi_d, None),
    "sid_set": Layout(_parquet(_sid_set), None),
    "tgif": Layout(
        _files(
            _Images(rf"(orig|original){_TGIF}_orig\.png", group="{id}", split="{split}"),
            *(
                _Images(
                    rf"{folder}{_TGIF}{_TGIF_EDIT}_{model}_\d+\.png",
                    mask=_TGIF_MASK + mask,
                    group="{id}",
                    generator=generator,
                    kind="spliced" if folder.endswith("sp") else "regenerated",
                    split="{split}",
                )
                for folder, model, mask, generator in (
                    ("sd2-sp", r"ps_mask\.png_sd2", ".png_ps_mask.png", "sd2"),
                    ("ps-sp", "ps", ".png_ps_mask.png", "firefly"),
                    ("sd2-fr", "sd2-512", "_512.png", "sd2"),
                    ("sdxl-fr", "sdxl-1024", "_1024.png", "sdxl"),
                )
            ),
        ),
        "white",
    ),
}
