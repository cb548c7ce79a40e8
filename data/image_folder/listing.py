"""A user's images and masks: which there are, what belongs together, and in which split.

A source is a folder or a JSON list, in one of the layouts of README.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from wsdl_data import image_files
from wsdl_data.own.groups import Grouping
from wsdl_data.own.items import KINDS, SHARES, Item, none_in, split_of

# Folders by what they hold, in lower case: the plain names, and those of CASIA.
_FOLDERS = {"real": ("real", "au"), "fake": ("fake", "tp"), "masks": ("masks", "gt")}
_SPLITS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
_ENDINGS = ("", "_gt", "_mask")  # of a mask's name, after its image's


def read(
    source: Path, *, masks: bool | None, grouping: Grouping
) -> dict[str, dict[str, list[Item]]]:
    """Lists the real and the fake images of a source, by split, in the order of their names.

    Args:
        source: a folder or a JSON file.
        masks: whether the fake images are to have masks; None if that was left open, which is
            refused where there are any.
        grouping: which images stay in one split.

    Returns:
        kind → split → images, without kinds and splits that have none.

    Raises:
        OSError: a file or a folder is missing, or cannot be read.
        ValueError: the source has none of the layouts, masks and images do not fit together, or
            a group that was asked for is in two splits.
    """
    listing = {kind: {} for kind in KINDS}
    for split, place in _places(source).items():
        items = _of_list(place, masks) if place.is_file() else _of_folder(place, masks)
        for kind in KINDS:
            if split is not None and items[kind]:
                listing[kind][split] = items[kind]
            elif items[kind]:
                listing[kind] = _by_hash(items[kind], place, kind, grouping)
    listing = {kind: splits for kind, splits in listing.items() if splits}
    _check_once(item for splits in listing.values() for items in splits.values() for item in items)
    if grouping.is_given:
        placed = [pair for splits in listing.values() for pair in splits.items()]
        _check_groups([(split, item) for split, items in placed for item in items], grouping)
    if not listing:
        raise ValueError(f"{source}: no images in it")
    if masks and "fake" not in listing:
        raise ValueError(f"{source}: no fake images that could have masks; leave out --manipulated")
    return listing


def has_splits(source: Path) -> bool:
    """Returns whether a source says itself in which split its images are. Raises as `read`."""
    return None not in _places(source)


def listed_in(source: Path, *, masks: bool) -> dict[str, list[Path]]:
    """Returns the lists and folders that say which images there are, by kind. Raises as `read`.

    Args:
        source: a folder or a JSON file.
        masks: whether the fake images have masks, whose folders are among them then.
    """
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for place in _places(source).values():
        if place.is_file():
            for paths in found.values():
                paths.append(place)
            continue
        for what, kind in (("real", "real"), ("fake", "fake"), *([("masks", "fake")] * masks)):
            if folder := _entry(place, _FOLDERS[what]):
                found[kind].append(folder)
    return found


def images_of(folder: Path) -> dict[str, list[Item]]:
    """Lists the images of a folder that does not tell real from fake, by split.

    They are split by the folders train/, valid/ and test/ that it has, one or more of them, or else
    by their names.

    Raises:
        OSError: a folder is missing, empty, or cannot be read.
        ValueError: by their names no image falls to one of the splits.
    """
    listing = {}
    for split, place in _places(folder).items():
        if place.is_file():
            raise ValueError(f"{place}: a folder of images is expected, not a list")
        items = [Item(place / name, None, _text(name)) for name in files(place)]
        if split is None:
            return _by_hash(items, place, "given", Grouping())
        listing[split] = items
    return listing


def _by_hash(
    items: Sequence[Item], place: Path, kind: str, grouping: Grouping
) -> dict[str, list[Item]]:
    splits: dict[str, list[Item]] = {split: [] for split in SHARES}
    for item in items:
        splits[split_of(grouping.of(item.key))].append(item)
    for split, chosen in splits.items():
        if not chosen:
            raise none_in(place, split, kind, len(items), has_groups=grouping.is_given)
    return splits


def _check_once(items: Iterable[Item]) -> None:
    """Raises ValueError for a file that is listed twice, by whatever name."""
    seen: dict[str, str] = {}
    for item in items:
        if (other := seen.setdefault(os.path.realpath(item.image), item.key)) != item.key:
            raise ValueError(f"{item.image}: is listed twice, as {item.key} and as {other}")


def _check_groups(splits: Sequence[tuple[str, Item]], grouping: Grouping) -> None:
    """Raises ValueError for a group that was asked for and is in two splits."""
    homes: dict[str, tuple[str, Item]] = {}
    for split, item in splits:
        other, first = homes.setdefault(group := grouping.of(item.key), (split, item))
        if other != split:
            raise ValueError(
                f"{item.image}: group {group} is in {split} and, with {first.image}, in {other}"
            )


def _places(source: Path) -> dict[str | None, Path]:
    """Returns where the images of each split are listed; None stands for all splits together."""
    if not (source.is_file() or source.is_dir()):
        raise FileNotFoundError(f"{source}: neither a folder nor a JSON file")
    if source.is_file():
        return {None: source}
    places = {}
    for split, names in _SPLITS.items():
        valid = (*names, *(f"{name}.json" for name in names))
        if place := _entry(source, valid):
            places[split] = place
    if not places:
        return {None: source}
    for names in _FOLDERS.values():
        if folder := _entry(source, names):
            beside = ", ".join(place.name for place in places.values())
            raise ValueError(f"{folder}: beside {beside}, which split the images, and in no split")
    return places


def _entry(folder: Path, names: Sequence[str]) -> Path | None:
    """Returns what has one of these names, in any case, in `folder`. Raises ValueError for two."""
    found = [path for path in sorted(folder.iterdir()) if path.name.lower() in names]
    if len(found) > 1:
        raise ValueError(f"{folder}: both {found[0].name} and {found[1].name}; one must go")
    return found[0] if found else None


def _of_folder(place: Path, masks: bool | None) -> dict[str, list[Item]]:
    folders = {what: _entry(place, names) for what, names in _FOLDERS.items()}
    if not (folders["real"] or folders["fake"]):
        raise FileNotFoundError(
            f"{place}: neither real/ nor fake/ in it (nor Au/ nor Tp/), and no train/, valid/ or"
            " test/ with them"
        )
    items = {}
    for kind in KINDS:
        names = files(folders[kind]) if folders[kind] else []
        items[kind] = [Item(folders[kind] / name, None, _text(name)) for name in names]
    if folders["masks"] and masks is None:
        raise _open_question(folders["masks"])
    if masks and items["fake"]:
        if not folders["masks"]:
            raise FileNotFoundError(f"{place}: no folder masks/ (or Gt/) beside fake/ (or Tp/)")
        items["fake"] = _paired(items["fake"], folders["fake"], folders["masks"])
    return items


def files(folder: Path) -> list[Path]:
    """Lists the files in `folder` and below, relative to it, without those that systems leave.

    Raises FileNotFoundError if there are none, and ValueError for folders that do not belong there.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(image_files.is_left_by_a_system(Path(part)) for part in name.parts):
            continue
        if path.is_dir():
            if path.is_symlink():
                raise ValueError(f"{path}: a link to a folder, which is not followed")
            if any(name.parts[0].lower() in names for names in _SPLITS.values()):
                raise ValueError(
                    f"{path}: splits are outermost: {name.parts[0]}/{folder.name},"
                    f" not {folder.name}/{name.parts[0]}"
                )
        else:
            found.append(name)
    if not found:
        raise FileNotFoundError(f"{folder}: no images in this folder")
    return found


def _paired(items: Sequence[Item], fakes: Path, folder: Path) -> list[Item]:
    """Returns the items with their masks: files of the same name, but for its ending.

    Raises ValueError for an image without a mask and a mask without an image.
    """
    masks: dict[Path, Path] = {}
    for name in files(folder):
        if (other := masks.setdefault(name.with_suffix(""), name)) != name:
            raise ValueError(f"{folder / name}: {other} has the same name, but for its ending")
    paired: dict[Path, Item] = {}
    bare = []
    for item in items:
        name = item.image.relative_to(fakes).with_suffix("")
        names = (name.with_name(name.name + ending) for ending in _ENDINGS)
        mask = next((name for name in names if name in masks), None)
        if mask is None:
            bare.append(item.image)
        elif mask in paired:
            raise ValueError(f"{item.image}: has the same mask as {paired[mask].image}")
        else:
            paired[mask] = item._replace(mask=folder / masks[mask])
    if bare:
        raise ValueError(f"{bare[0]}: no mask in {folder}{_more(bare)}")
    if unused := [folder / name for stem, name in masks.items() if stem not in paired]:
        raise ValueError(f"{unused[0]}: a mask without an image in {fakes}{_more(unused)}")
    return list(paired.values())


def _of_list(path: Path, masks: bool | None) -> dict[str, list[Item]]:
    """Lists the images of a JSON list of [image, mask or "Negative"]."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(entries, list):
        raise ValueError(f'{path}: not a list of [image, mask or "Negative"]')
    items: dict[str, list[Item]] = {kind: [] for kind in KINDS}
    seen, missing = set(), []
    for number, entry in enumerate(entries, start=1):
        if not (
            isinstance(entry, list) and len(entry) == 2 and all(isinstance(x, str) for x in entry)
        ):
            raise ValueError(f'{path}: entry {number} is not [image, mask or "Negative"]')
        name, other = entry
        if name in seen:
            raise ValueError(f"{path}: entry {number}: {name} is listed twice")
        seen.add(name)
        real = other.lower() == "negative"
        if not real and masks is None:
            raise _open_question(path)
        mask = None if real or not masks else path.parent / other
        item = Item(path.parent / name, mask, name)
        items["real" if real else "fake"].append(item)
        missing += [file for file in (item.image, mask) if file and not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{path}: no file {missing[0]}{_more(missing)}")
    return items


def _open_question(where: Path) -> ValueError:
    return ValueError(
        f"{where} has masks: say what is manipulated in them, --manipulated white, black or"
        " above:N, or leave them out, --manipulated none"
    )


def _more(paths: Sequence[Path]) -> str:
    return f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""


def _text(name: Path) -> str:
    """Returns a path as it is stored: with slashes, and valid Unicode."""
    return os.fsencode(name.as_posix()).decode(errors="replace")
