"""Prepares datasets as TFDS folders of ArrayRecord files, without TensorFlow.

    python -m wsdl_data.build portraits
    python -m wsdl_data.build dolos --config celebahq_real --manual_dir DIR
    python -m wsdl_data.build image_folder/NAME --images SOURCE --manipulated white
    python -m wsdl_data.build manifest/NAME --images FILE.csv --manipulated white
    python -m wsdl_data.build image_folder/NAME --check

The last command says whether the files that a dataset was made of have changed since.

A split is complete or absent: it is built in a temporary folder, from which it is moved at the end.
The splits of portraits are built one by one where not all are needed:

    python -m wsdl_data.build portraits --config ddpm_repaint --split test
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import io
import json
import logging
import os
import shlex
import shutil
import sqlite3
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import UInt8
from tqdm import tqdm

from wsdl_data import provenance
from wsdl_data.own import sources
from wsdl_data.own.groups import Grouping
from wsdl_data.own.items import KINDS
from wsdl_data.own.masks import Manipulated
from wsdl_data.own.sources import Changes, Making, Sources
from wsdl_data.provenance import Origin
from wsdl_jax.runtime import storage
from wsdl_jax.runtime.errors import UserError

_MODULES = {
    "dolos": "wsdl_data.dolos.dolos_dataset_builder",
    "image_folder": "wsdl_data.image_folder.image_folder_dataset_builder",
    "manifest": "wsdl_data.manifest.manifest_dataset_builder",
    "portraits": "wsdl_data.portraits.portraits_dataset_builder",
}
# The datasets of a user's own images, whose configs are the user's to name.
_OWN = ("image_folder", "manifest")
_SPLITS = ("train", "valid", "test")
_LOOK = 5.0  # seconds that a look at the times of a dataset's sources takes at most
_LOG = logging.getLogger(__name__)
_DESCRIPTION = "dataset_info.json"  # TFDS's, in the folder of a subset


class BuildError(UserError):
    """A dataset could not be built or read. The message is one line that says what and where."""


@runtime_checkable
class MakesOriginals(Protocol):
    """A dataset that can make again what its fakes were made of."""

    def original(self, key: str) -> UInt8[np.ndarray, "h w 3"] | None:
        """Returns what the image of a key was made of; None where it is not made of another."""


def builder_class(dataset: str) -> type[tfds.core.DatasetBuilder]:
    """Imports and returns a dataset's TFDS builder, so that only one in use costs its import.

    Raises ValueError, with the valid names, for an unknown one.
    """
    if dataset not in _MODULES:
        raise ValueError(f"no dataset {dataset!r}; choose from {', '.join(_MODULES)}")
    return importlib.import_module(_MODULES[dataset]).Builder


def make_builder(
    name: str, data_dir: str | None = None, config: tfds.core.BuilderConfig | None = None
) -> tfds.core.DatasetBuilder:
    """Returns the builder of one subset, prepared or not.

    Args:
        name: dataset and config, such as "dolos/celebahq_real" or "portraits/real".
        data_dir: root of the prepared datasets; None for TFDS's own ($TFDS_DATA_DIR, or else
            ~/tensorflow_datasets).
        config: the config of that name, where it says more than the dataset's own. Without it, a
            subset of an earlier version is read that the dataset supports, if it is there alone.

    Raises:
        ValueError: there is no such dataset or config; the message lists the valid ones.
        BuildError: the subset is there, but its description cannot be read.
    """
    dataset, _, config_name = name.partition("/")
    cls = builder_class(dataset)
    earlier = cls.SUPPORTED_VERSIONS if config is None else []
    config = config or cls.config_for(config_name)
    if data_dir is not None:
        data_dir = os.fspath(epath.Path(data_dir).expanduser())
    folder = epath.Path(data_dir or tfds.core.constants.DATA_DIR) / dataset / config.name
    version = cls.VERSION
    try:
        if earlier:
            versions = (cls.VERSION, *earlier)
            version = next((v for v in versions if (folder / str(v)).exists()), version)
        with _tfds_silenced():
            return cls(config=config, data_dir=data_dir, version=version)
    except Exception as error:  # Of the file system, JSON, protobuf or TFDS.
        raise BuildError(
            f"{name}: {folder / str(version)} cannot be read"
            f" ({_line(error)}); delete this folder and build again"
        ) from error


def is_prepared(builder: tfds.core.DatasetBuilder, splits: Collection[str] | None = None) -> bool:
    """Returns whether a subset is on disk with all its files, also if another process built it.

    Args:
        builder: from `make_builder`.
        splits: that it must have; None for all. A split that the subset cannot have is not missed,
            and of a dataset that is built as a whole none is.
    """
    return (
        builder.data_path.exists() and not faults(builder) and not missing_splits(builder, splits)
    )


def has_any(builder: tfds.core.DatasetBuilder, splits: Collection[str] | None) -> bool:
    """Returns whether a subset can have any of these splits, as far as that is known unbuilt."""
    sizes = provenance.split_sizes(builder)
    return splits is None or not sizes or not sizes.keys().isdisjoint(splits)


def missing_splits(
    builder: tfds.core.DatasetBuilder, splits: Collection[str] | None = None
) -> list[str]:
    """Returns those of the splits, by default of all, that can be added to a subset on disk."""
    sizes = provenance.split_sizes(builder)
    wanted = [split for split in sizes if splits is None or split in splits]
    if not set(wanted) <= set(builder.info.splits) and builder.data_path.exists():
        with _tfds_silenced():  # Another process may have added some since `builder` was made.
            builder.info.read_from_directory(builder.data_dir)
    return [split for split in wanted if split not in builder.info.splits]


def command(builder: tfds.core.DatasetBuilder, split: str | None = None) -> str:
    """Returns the command that a user types to build a subset, or one split of it."""
    name = builder.builder_config_name
    if builder.name in _OWN:
        own = f"{builder.name}/{name.rpartition('_')[0]}"
        return f"python -m wsdl_data.build {own} --images SOURCE --manipulated white|black|none"
    only = f" --split {split}" if split in provenance.split_sizes(builder) else ""
    return f"python -m wsdl_data.build {builder.name} --config {name}{only}"


def prepare(
    builder: tfds.core.DatasetBuilder,
    manual_dir: str | None = None,
    splits: Collection[str] | None = None,
) -> None:
    """Builds what a subset lacks; returns when it is ready to be read.

    Of two processes that prepare the same subset the second waits for the first. What a killed
    build has left is removed. On failure, and on KeyboardInterrupt, nothing half-built stays, and
    splits that were there before are as they were.

    Args:
        builder: from `make_builder`.
        manual_dir: folder of the files downloaded by hand, for datasets that need them; None for
            TFDS's own, `downloads/manual` in the data directory.
        splits: that are needed; None for all. A dataset whose splits cannot be built one by one is
            built as a whole.

    Raises:
        BuildError: the build failed, or what is there is damaged.
    """
    _prepared_here(builder, manual_dir, splits)


def _prepared_here(
    builder: tfds.core.DatasetBuilder,
    manual_dir: str | None,
    splits: Collection[str] | None = None,
) -> bool:
    """Does what `prepare` says. Returns whether it is this call that has built something."""
    name = f"{builder.name}/{builder.builder_config_name}"
    try:
        if not has_any(builder, splits) or is_prepared(builder, splits):
            return False
        own = builder.name in _OWN
        if own and not builder.builder_config.splits and not builder.data_path.exists():
            raise BuildError(f"not prepared in {builder.data_dir}: run {command(builder)}")
        if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            manual_dir = _manual_dir(builder, manual_dir)
        folder = Path(builder.data_dir).parent
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / ".build.lock", name):
            if is_prepared(builder, splits):
                return False
            there = builder.data_path.exists()
            if there and (found := faults(builder)):
                raise BuildError(f"{builder.data_dir}: {found}; delete this folder and build again")
            _remove_unfinished(folder)
            try:
                if there:
                    _add(builder, name, missing_splits(builder, splits))
                else:
                    _build(builder, name, manual_dir, missing_splits(builder, splits))
            finally:
                with contextlib.suppress(OSError):  # the next build tries again
                    _remove_unfinished(folder)
            return True
    except BuildError as error:
        raise BuildError(f"{name}: {error}") from error.__cause__
    except Exception as error:
        raise BuildError(f"{name}: {_line(error)}") from error


def prepare_together(builders: Sequence[tfds.core.DatasetBuilder]) -> None:
    """Prepares subsets that belong together: where one fails, none that was built here stays."""
    built = []
    try:
        for builder in builders:
            if _prepared_here(builder, None):
                built.append(builder)
    except BaseException:
        for builder in built:
            shutil.rmtree(builder.data_dir, ignore_errors=True)
        raise


def _manual_dir(builder: tfds.core.DatasetBuilder, manual_dir: str | None) -> str:
    """Returns the folder of the files downloaded by hand. Raises BuildError if there is none."""
    folder = Path(manual_dir or builder.data_dir_root / "downloads" / "manual").expanduser()
    if not folder.is_dir():
        raise BuildError(f"no folder {folder}. {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    return os.fspath(folder)


def _build(
    builder: tfds.core.DatasetBuilder, name: str, manual_dir: str | None, splits: Sequence[str]
) -> None:
    """Builds a new subset, of a dataset whose splits are built one by one with these alone."""
    if splits:
        builder.chosen_splits = tuple(splits)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    with _tfds_silenced(), _progress(builder, name):
        builder.download_and_prepare(file_format="array_record", download_config=config)


def _add(builder: tfds.core.DatasetBuilder, name: str, splits: Sequence[str]) -> None:
    """Adds splits to a subset: first their records, and at last the description that names them."""
    folder = Path(builder.data_dir)
    with _tfds_silenced():
        made = type(builder)(
            config=builder.builder_config,
            data_dir=os.fspath(folder.parent / "incomplete.splits"),
            version=builder.version,
        )
    _build(made, name, None, splits)
    descriptions = [
        json.loads((Path(path) / _DESCRIPTION).read_text(encoding="utf-8"))
        for path in (folder, made.data_dir)
    ]
    order = list(provenance.split_sizes(builder))
    both = [split for description in descriptions for split in description["splits"]]
    both.sort(key=lambda split: order.index(split["name"]))
    text = json.dumps({**descriptions[0], "splits": both}, indent=2, sort_keys=True)
    added = []
    try:
        for split in made.info.splits.values():
            for path in map(Path, split.filepaths):
                added.append(folder / path.name)
                path.replace(added[-1])
        storage.write_whole(folder / _DESCRIPTION, text)
    except BaseException:
        if (folder / _DESCRIPTION).read_text(encoding="utf-8") != text:
            for path in added:
                path.unlink(missing_ok=True)
        raise
    with _tfds_silenced():
        builder.info.read_from_directory(builder.data_dir)


def faults(builder: tfds.core.DatasetBuilder) -> str:
    """Returns what is wrong with the folder of a prepared subset; empty if nothing is."""
    with _tfds_silenced():
        if not builder.is_prepared():
            return "damaged (its description is missing)"
        if not builder.info.splits:  # Built by another process after `builder` was made.
            builder.info.read_from_directory(builder.data_dir)
    for split in builder.info.splits.values():
        for path in split.filepaths:
            if not path.exists():
                return f"damaged ({path.name} is missing)"
    if not builder.info.splits:
        return "damaged (it has no splits)"
    origin = getattr(builder, "origin", None)  # of datasets that are made by what is installed
    if origin is None:
        return ""
    try:
        present = provenance.of(builder)
    except ValueError:
        return "damaged (its description cannot be read)"
    now = present | origin.metadata()
    now["content"] = present["content"] | now["content"]  # where a file is not there any more
    otherwise = provenance.differences(present, now)
    return f"made otherwise than it would be now ({'; '.join(otherwise)})" if otherwise else ""


def _remove_unfinished(folder: Path) -> None:
    """Removes what builds have left half-done. The lock says that none of them is alive."""
    for path in folder.glob("incomplete.*"):
        shutil.rmtree(path)


@contextlib.contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    """Holds a lock that the system frees when this process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: waiting for the process that is building it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _tfds_silenced() -> Iterator[None]:
    """Keeps back TFDS's own bars, prints and warnings; those of the datasets pass."""
    # TFDS logs through absl's logger. absl's own `set_verbosity` would set the root's level, too.
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        absl_logger.setLevel(level)


# Seconds between two lines, and before the first.
_PACE = {"mininterval": 10, "delay": 10, "ncols": 0}


class _Lines(tqdm):
    """Progress as whole lines, for logs and pipes."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Prints the state of the bar as a line."""
        if msg != "":  # Empty: tqdm clears the bar at the end.
            print(self, file=self.fp, flush=True)


@contextlib.contextmanager
def _progress(builder: tfds.core.DatasetBuilder, name: str) -> Iterator[None]:
    """Shows the examples that go by, at the one place where both kinds of TFDS builder pass.

    The number to come is the builder's `num_examples`, which it may know only once it has begun.
    """
    features, bar = builder.info.features, None
    encode_example = features.encode_example

    def counted(example: dict[str, Any]) -> dict[str, Any]:
        nonlocal bar
        if bar is None:
            total = getattr(builder, "num_examples", None)
            kind, pace = (tqdm, {}) if sys.stderr.isatty() else (_Lines, _PACE)
            bar = kind(desc=name, total=total, unit=" images", leave=False, **pace)
        encoded = encode_example(example)
        bar.update()
        return encoded

    features.encode_example = counted
    try:
        yield
    finally:
        del features.encode_example
        if bar is not None:
            bar.close()


def _line(error: BaseException) -> str:
    """Returns an exception as one line, with its type where the message may not say enough."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError)) and text:
        return text
    return f"{type(error).__name__}: {text}"


def own_folder(name: str, data_dir: str | None) -> Path:
    """Returns the folder of a user's dataset, beside which those of its kinds are built.

    name: of the dataset, "image_folder/NAME" or "manifest/NAME".
    """
    return Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / name


def own_prepared(
    name: str, origins: Mapping[str, Origin], data_dir: str | None, changes: str = ""
) -> list[str]:
    """Returns the subsets of a user's dataset that are prepared.

    Args:
        name: of the dataset, "image_folder/NAME" or "manifest/NAME".
        origins: how its subsets are to be made, by kind, "real" and "fake".
        data_dir: as of `make_builder`.
        changes: which of the files are others, where that is known.

    Raises:
        BuildError: a subset is there and made otherwise, or the name is not allowed.
    """
    dataset, _, own = name.partition("/")
    try:
        builder_class(dataset).check_name(own)
    except ValueError as error:
        raise BuildError(f"{name}: {error}") from error
    prepared = []
    for kind in KINDS:
        subset = f"{name}_{kind}"
        there = make_builder(subset, data_dir)
        if not is_prepared(there):
            continue
        present = provenance.of(there)
        if kind not in origins:
            other = ["there are no such images now"]
        else:
            other = provenance.differences(present, present | origins[kind].metadata())
        if other:
            source = present["recorded"].get("source", "another source")
            other += [changes] if changes else []
            raise BuildError(
                f"{name}: is there already, made of {source} otherwise ({'; '.join(other)});"
                f" choose another name, or delete {own_folder(name, data_dir)}_real and _fake there"
            )
        prepared.append(subset)
    return prepared


def own_builders(
    name: str,
    source: str,
    masks: str | None,
    data_dir: str | None,
    group: str | None = None,
    **options: Any,
) -> dict[str, tfds.core.DatasetBuilder]:
    """Returns the builders of a user's dataset, by the names of its subsets.

    Args:
        name: of the dataset, "image_folder/NAME" or "manifest/NAME".
        source: what it is made of, see data/image_folder/README.md and data/manifest/README.md.
        masks: what is manipulated in the masks, see `own.masks.Manipulated`; "none" to leave them
            out.
        data_dir: as of `make_builder`.
        group: a regular expression, see `own.groups.Grouping`.
        options: what else `configs_of` of the dataset's builder takes.

    Raises:
        BuildError: the source is not in order, or the name is that of a dataset made otherwise,
            files with other contents included.
    """
    dataset, _, own = name.partition("/")
    try:
        grouping = Grouping(group)
        configs = builder_class(dataset).configs_of(own, Path(source), masks, grouping, **options)
        subsets = {f"{dataset}/{config.name}": config for config in configs}
        builders = {subset: make_builder(subset, data_dir, subsets[subset]) for subset in subsets}
        # Hashing every file takes time: only to be compared.
        there = any(is_prepared(make_builder(f"{name}_{kind}", data_dir)) for kind in KINDS)
        if not there:
            return builders
        with contextlib.ExitStack() as stack:
            making = configs[0].making
            now = None if making is None else stack.enter_context(Sources(making))
            origins = {
                config.kind: config.made_by or config.origin(config.contents(now))
                for config in configs
            }
            if now is None:
                own_prepared(name, origins, data_dir)
                return builders
            tables, changes = _source_tables(name, data_dir), ""
            with contextlib.suppress(sqlite3.DatabaseError):  # a damaged one is replaced below
                changes = now.changes(tables).summary() if tables else ""
            own_prepared(name, origins, data_dir, changes)
            _keep(name, now, data_dir)
    except (ValueError, OSError, sqlite3.Error) as error:
        raise BuildError(f"{name}: {_line(error)}") from error
    return builders


# ----- Whether the sources of a user's dataset have changed ---------------------------------------


def _source_tables(name: str, data_dir: str | None) -> dict[str, Path]:
    """Returns the tables of the sources of a user's dataset, by kind, for each that has one."""
    folders = {
        kind: Path(make_builder(f"{name}_{kind}", data_dir).data_dir) / sources.FILE
        for kind in KINDS
    }
    return {kind: path for kind, path in folders.items() if path.exists()}


def _keep(name: str, now: Sources, data_dir: str | None) -> None:
    """Keeps what a dataset is made of, with its times, for each subset that lacks it.

    The contents are known to be the same. Where the folder cannot be written, it stays as it is,
    with a warning.
    """
    for kind in KINDS:
        builder = make_builder(f"{name}_{kind}", data_dir)
        if not is_prepared(builder):
            continue
        path = Path(builder.data_dir) / sources.FILE
        with contextlib.suppress(sqlite3.Error):  # damaged
            if path.exists() and now.is_kept(kind, path):
                continue
        try:
            now.save(path, kind)
        except (OSError, sqlite3.Error) as error:
            _LOG.warning("%s: the times of its sources are not kept: %s", name, _line(error))


def check_sources(name: str, data_dir: str | None) -> tuple[Making, int, Changes]:
    """Compares all that a user's dataset was made of with what is there now, byte by byte.

    Where all contents are the same, times that are not are kept for `changed_sources`.

    Args:
        name: of the dataset, "image_folder/NAME" or "manifest/NAME".
        data_dir: as of `make_builder`.

    Returns:
        How the dataset is made, the number of images that its source has now, and what is
        otherwise than when it was made.

    Raises:
        BuildError: it is not prepared, was not made of files that are known, these are not there
            any more or cannot be read, or nothing could be built of them as they are now.
    """
    dataset, _, own = name.partition("/")
    try:
        builder_class(dataset).check_name(own)
        tables, making = _kept_sources(name, data_dir)
        if not making.source.exists():
            raise BuildError(
                f"{name}: {making.source}, which it was made of, is not there any more; the dataset"
                " itself is as it was"
            )
        options = {"root": making.root, "layout": making.layout} if dataset == "manifest" else {}
        try:
            configs = builder_class(dataset).configs_of(
                own, making.source, making.masks, Grouping(making.group), **options
            )
        except (ValueError, OSError) as error:
            changes = sources.changes_by_time(tables.values(), None)
            by_time = f"; by size and time {changes.summary()}" if changes else ""
            raise BuildError(
                f"{name}: nothing could be built of its source now: {_line(error)}{by_time}"
            ) from error
        with Sources(making) as now:
            for config in configs:
                config.contents(now)
            changes = now.changes(tables)
            if not changes:
                _keep(name, now, data_dir)
            return making, now.count(), changes
    except (ValueError, OSError, sqlite3.Error) as error:
        raise BuildError(f"{name}: {_line(error)}") from error


def _kept_sources(name: str, data_dir: str | None) -> tuple[dict[str, Path], Making]:
    """Returns the tables of the sources of a dataset, by kind, and how it is made.

    Raises BuildError where it is not prepared, or one of its subsets has no such table.
    """
    made = [make_builder(f"{name}_{kind}", data_dir) for kind in KINDS]
    made = [builder for builder in made if is_prepared(builder)]
    if not made:
        unmade = make_builder(f"{name}_{KINDS[0]}", data_dir)
        raise BuildError(f"{name}: not prepared in {unmade.data_dir_root}: run {command(unmade)}")
    tables = _source_tables(name, data_dir)
    if len(tables) < len(made):
        origin = provenance.of(made[0])
        if origin["recipe"].keys() - {"masks"}:
            raise BuildError(f"{name}: was forged, not made of files that are kept to be compared")
        source = origin["recorded"].get("source", "SOURCE")
        raise BuildError(
            f"{name}: an earlier version has built it, which did not keep what each file was; the "
            f"command that built it, with --images {source}, compares all of them and adds that"
        )
    for path in tables.values():
        try:
            making = sources.making_of(path)
        except (ValueError, TypeError, KeyError, sqlite3.Error) as error:
            raise BuildError(
                f"{name}: {path} is damaged ({_line(error)}); delete it, and run the command that"
                " built the dataset again, which writes it anew"
            ) from error
    return tables, making


def changed_sources(subsets: Collection[str], data_dir: str | None) -> list[str]:
    """Returns a line for each user's dataset whose sources have changed, by their sizes and times.

    No file is read, and a look takes a few seconds at most, after which nothing is found. Sources
    that are not at hand, or cannot be looked at, are passed over, with a line for debugging.

    Args:
        subsets: names of prepared subsets, of any dataset.
        data_dir: as of `make_builder`.
    """
    chosen: dict[str, list[str]] = {}
    for subset in dict.fromkeys(subsets):
        own, _, kind = subset.rpartition("_")
        if subset.partition("/")[0] in _OWN:
            chosen.setdefault(own, []).append(kind)
    lines = []
    default = Path(tfds.core.constants.DATA_DIR).expanduser()
    given = default if data_dir is None else Path(data_dir).expanduser()
    where = "" if given == default else f" --data_dir {shlex.quote(os.fspath(given))}"
    for name, kinds in chosen.items():
        changes = None
        try:
            tables = _source_tables(name, data_dir)
            chosen_tables = [tables[kind] for kind in kinds if kind in tables]
            changes = sources.changes_by_time(chosen_tables, _LOOK)
            if changes is None:
                _LOG.debug("%s: its sources are not at hand", name)
        except (BuildError, ValueError, TypeError, KeyError, OSError, sqlite3.Error) as error:
            _LOG.debug("%s: its sources cannot be looked at: %s", name, _line(error))
        if changes:
            lines.append(
                f"{name} was made of files that have changed since, by size and time"
                f" ({changes.summary()}): what is used is as it was; python -m wsdl_data.build"
                f" {name} --check{where} compares all files, and says how to build it again"
            )
    return lines


def _check(name: str, data_dir: str | None) -> int:
    """Does what --check says. Returns the exit status: 0 unchanged, 1 changed."""
    making, count, changes = check_sources(name, data_dir)
    if not changes:
        print(f"{name}: unchanged, {count} images in {making.source}")
        return 0
    print("\n".join(f"{name}: {line}" for line in changes.lines()))
    folders = [f"{own_folder(name, data_dir)}_{kind}" for kind in _source_tables(name, data_dir)]
    raise BuildError(
        f"{name}: {making.source} has changed since it was built ({changes.summary()}); to build it"
        f" again: rm -r {shlex.join(folders)} && {making.command(name, data_dir)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit status.

    It is 0 where all is ready, or unchanged; 1 where a build failed, or sources have changed; 130
    where it was interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m wsdl_data.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{' or '.join(_MODULES)}, or dataset/config"
    )
    parser.add_argument(
        "--config", action="append", default=[], help="only this config of NAME; may be repeated"
    )
    parser.add_argument(
        "--split",
        action="append",
        choices=_SPLITS,
        help="only this split, of portraits; may be repeated",
    )
    parser.add_argument("--manual_dir", metavar="DIR", help="the unpacked Dolos folder")
    parser.add_argument(
        "--data_dir", metavar="DIR", help="where to write (default: ~/tensorflow_datasets)"
    )
    own_images = parser.add_argument_group(f"images of your own, {' and '.join(_OWN)}/NAME")
    own_images.add_argument(
        "--images",
        metavar="SOURCE",
        help="image_folder/NAME: a folder or a JSON list; manifest/NAME: a file that ends in .csv,"
        " .jsonl or .parquet, or a folder of Parquet files",
    )
    own_images.add_argument(
        *("--manipulated", "--masks"),
        dest="masks",
        type=_manipulated,
        metavar="white|black|green|above:N|none",
        help="what is manipulated in the masks, above:N: values above N; none: leave masks out",
    )
    own_images.add_argument(
        "--group",
        metavar="REGEX",
        help="images in whose paths it finds the same stay in one split, such as '^[^_]+'; its"
        " first parentheses, or all of it. By default those with the same name, without folders"
        " and ending",
    )
    own_images.add_argument(
        "--layout",
        metavar="NAME",
        help="manifest/NAME: --images is the unpacked download of a public dataset, see "
        "data/manifest/README.md, such as tgif or casia2",
    )
    own_images.add_argument(
        "--root",
        metavar="DIR",
        help="manifest/NAME: the folder that its paths are relative to (default: the manifest's)",
    )
    own_images.add_argument(
        "--check",
        action="store_true",
        help="build nothing: say whether the files that the dataset was made of have changed since",
    )
    parser.add_argument("--list", action="store_true", help="list datasets and configs, then stop")
    arguments = parser.parse_args(argv)
    data_dir = arguments.data_dir
    if arguments.list:
        print("\n".join(_expand(list(_MODULES), []) + _own_subsets(data_dir)))
        return 0
    if not arguments.names:
        parser.error(f"name a dataset: {', '.join(_MODULES)}")
    datasets = {name.partition("/")[0] for name in arguments.names}
    own = not datasets.isdisjoint(_OWN)
    names_own = " and ".join(f"{dataset}/NAME" for dataset in _OWN)
    chosen = arguments.images, arguments.masks, arguments.group, arguments.layout, arguments.root
    if arguments.check and (not own or len(arguments.names) > 1 or any(chosen)):
        parser.error(f"--check goes with one {' or '.join(names_own.split(' and '))}, and alone")
    if own and (len(arguments.names) > 1 or not (arguments.images or arguments.check)):
        parser.error(f"{names_own} go alone, with --images SOURCE and --manipulated")
    if own and (arguments.config or arguments.manual_dir):
        parser.error(f"{names_own} go without --config and --manual_dir")
    if not own and (arguments.images or arguments.masks or arguments.group):
        parser.error(f"--images, --manipulated and --group go with {names_own}")
    if (arguments.root or arguments.layout) and datasets != {"manifest"}:
        parser.error("--root and --layout go with manifest/NAME")
    options: dict[str, Any] = {}
    if arguments.root:
        options["root"] = Path(arguments.root)
    if arguments.layout:
        from wsdl_data.manifest.layouts import LAYOUTS

        if arguments.layout not in LAYOUTS:
            parser.error(f"no layout {arguments.layout!r}; choose from {', '.join(LAYOUTS)}")
        options["layout"] = arguments.layout
    try:
        names = [] if own else _expand(arguments.names, arguments.config)
    except ValueError as error:
        parser.error(str(error))
    splits = arguments.split
    if splits and any(name.partition("/")[0] != "portraits" for name in arguments.names):
        parser.error("--split goes with portraits: other datasets are built as a whole")

    logging.basicConfig(format="warning: %(message)s")
    name = arguments.names[0]
    try:
        if arguments.check:
            return _check(name, data_dir)
        if own:
            chosen = arguments.images, arguments.masks, data_dir, arguments.group
            builders = own_builders(name, *chosen, **options)
        else:
            builders = {name: make_builder(name, data_dir) for name in names}
        already = {name for name, builder in builders.items() if is_prepared(builder, splits)}
        if own:
            prepare_together(list(builders.values()))
        for name, builder in builders.items():
            if not has_any(builder, splits):
                print(
                    f"{name}: has no such split, only {', '.join(provenance.split_sizes(builder))}"
                )
                continue
            prepare(builder, arguments.manual_dir, splits)
            sizes = ", ".join(f"{s.num_examples} {k}" for k, s in builder.info.splits.items())
            groups = provenance.of(builder)["recorded"].get("groups")
            of = "" if groups is None else f" of {groups} groups"
            seen = " already" if name in already else ""
            print(f"{name}: {sizes} images{of}{seen} in {builder.data_dir}")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted, nothing was kept of it", file=sys.stderr)
        return 130
    return 0


def _manipulated(text: str) -> str:
    """Returns a value of --manipulated. Raises ArgumentTypeError for one that is not valid."""
    try:
        return text if text == "none" else Manipulated(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _own_subsets(data_dir: str | None) -> list[str]:
    """Returns the prepared subsets of a user's datasets."""
    names = []
    for dataset in _OWN:
        root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / dataset
        folders = sorted(root.iterdir()) if root.is_dir() else []
        names += [f"{dataset}/{found.name}" for found in folders if not found.name.startswith(".")]
    return [name for name in names if is_prepared(make_builder(name, data_dir))]


def _expand(names: Sequence[str], configs: Sequence[str]) -> list[str]:
    """Returns full names of subsets: a dataset alone stands for `configs`, or else for all.

    Raises ValueError for what does not exist, so that it is found before anything is built.
    """
    subsets = []
    for name in names:
        dataset, slash, config = name.partition("/")
        if slash and configs:
            raise ValueError(f"{name!r} already names a config: --config does not go with it")
        cls = builder_class(dataset)
        chosen = [config] if slash else list(configs) or list(cls.builder_configs)
        subsets += [f"{dataset}/{cls.config_for(chosen_config).name}" for chosen_config in chosen]
    return subsets


if __name__ == "__main__":
    # The module again under its own name, so that its BuildError is the one that others import.
    from wsdl_data.build import main as _main

    sys.exit(_main())
