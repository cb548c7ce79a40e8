"""Scores a trained run on a dataset's test split, and writes predictions and results."""

import contextlib
import dataclasses
import functools
import io
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Bool, Float
from tqdm import tqdm

from wsdl_data import provenance
from wsdl_jax import configuration, inputs, methods, runs
from wsdl_jax.evaluation import (
    calibration,
    exchange,
    kept_maps,
    likeness,
    map_threshold,
    measures,
    retention,
    sheet,
    summary,
    verdict,
)
from wsdl_jax.evaluation.figures import FoundBatch, Localize, score
from wsdl_jax.evaluation.map_threshold import MapThreshold
from wsdl_jax.evaluation.measures import ImageMeasures
from wsdl_jax.evaluation.tested_run import TestedRun, load, localized
from wsdl_jax.evaluation.verdict import Calibration
from wsdl_jax.inputs import perturbations
from wsdl_jax.inputs.perturbations import Chain, Perturbation
from wsdl_jax.runtime import hosts, locks
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.storage import (
    MANIFEST,
    check_folder,
    temporary_folder,
    whole_folder,
    write_whole,
)

log = logging.getLogger("wsdl_jax")
T = TypeVar("T")
_NO_FEATURES = np.zeros((0, 0), np.float32)
_MAPS = "maps"  # in the manifest of a folder of maps: the next evaluation may replace it
_OF_MAPS = "evaluation of maps"  # likewise, of all that is written of another system's maps
_BATCH = 16  # maps that are read at a time, at most


def evaluate(
    run: epath.Path,
    *,
    fake: str | None = None,
    real: str | None = None,
    data_dir: str | None = None,
    save_maps: bool = False,
) -> dict[str, Any]:
    """Scores the best checkpoint of a run on the test splits of fake and real subsets.

    Writes `results.json`, `results.txt`, `examples.png` and `predictions.csv` (a row per image)
    into the run directory, or, for other subsets than the config's, into `evaluations/FAKE+REAL/`
    in it, once every image has been scored: results that are there already stay until then. Of each
    image, only the numbers that predictions.csv has are kept in memory.

    Args:
      run: a run directory.
      fake: prepared subsets of fake images, with commas between them; the config's own by default.
      real: prepared subsets of real images in the same way; the config's own by default.
      data_dir: the folder of the prepared datasets; the run's own by default.
      save_maps: whether to keep the maps and scores of all images, in the folder `maps/` beside the
        results, see `kept_maps`; those of an earlier evaluation are replaced.

    Returns:
      The content of results.json: fractions times 100 (None where no image has the figure), counts,
      and `threshold`, the score above which the run calls an image fake; `real_above` and
      `fake_above` are the shares of the images of each side that exceed it.

    Raises:
      ConfigError: a subset that is unknown or not prepared, or holds images of the other side.
      UserError: not a run, no checkpoint yet, data that differs from what the run used before, an
        image that cannot be read, or scores that are not finite.
    """
    test = load(run, fake=fake, real=real, data_dir=data_dir)
    if save_maps:
        check_folder(test.out.maps, replaces=_MAPS)
    known, cut = _calibration(run, test), _map_threshold(run, test)
    with temporary_folder() as folder:
        made = runs.ResultsFolder(epath.Path(folder))
        kept = folder / "maps"
        figures, maps = score(
            test.sides,
            _localize(test),
            known,
            cut,
            made.predictions,
            keep=functools.partial(kept_maps.save, kept) if save_maps else None,
        )
        results = {**figures, **_subject(test)}
        table = summary.text_table(
            results, title=f"{test.config.method}, setup {test.config.setup}"
        )

        def put() -> None:
            sheet.save(_examples(test.sides, maps), made.examples)
            made.text.write_text(table, encoding="utf-8")
            results["predictions"] = provenance.digest_of_file(made.predictions)
            _put(run, test, made, results, kept if save_maps else None)

        hosts.first(put)
    log.info("%s\nwritten to %s", table, test.out.path)
    return results


def evaluate_maps(
    maps: epath.Path,
    out: epath.Path,
    *,
    fake: str,
    real: str,
    scores: epath.Path | None = None,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Scores maps that any system has made of test images as `evaluate` scores a run's.

    Writes `results.json`, `results.txt`, `examples.png` and `predictions.csv` into a folder that
    appears when all is done. There are no thresholds of a run, and so no figures at them.

    Args:
      maps: a folder with `fake/` and `real/`, in which each image has a map, see `kept_maps`.
      out: a new folder, or one that this has written.
      fake: prepared subsets of fake images, with commas between them; each of several has a folder
        of maps of its own, see `kept_maps.folder_of`.
      real: prepared subsets of real images in the same way.
      scores: a table of image scores, see `kept_maps.read_scores`. Without it the files of the maps
        have scores, or else the score and the probability of an image are its map's maximum.
      data_dir: the folder of the prepared datasets; TFDS's own by default.

    Returns:
      The content of results.json, as of `evaluate`; `checkpoint` and `weights` are None.

    Raises:
      ConfigError: a subset that is unknown or not prepared, or holds images of the other side.
      UserError: maps or scores that are missing, ambiguous or not in [0, 1], or `out` is taken.
    """
    if jax.process_count() > 1:
        raise ConfigError("--maps are scored by one process alone")
    check_folder(out, replaces=_OF_MAPS)
    subsets = {"fake": configuration.subsets(fake), "real": configuration.subsets(real)}
    inputs.check_sides(**subsets, data_dir=data_dir, splits=("test",))
    sides = {side: inputs.Examples(names, "test", data_dir) for side, names in subsets.items()}
    reader = kept_maps.Reader(maps, sides, scores)

    def localize(side: str) -> Iterator[tuple[inputs.Batch, FoundBatch]]:
        def shown(images: range) -> Iterator[int]:
            yield from tqdm(
                images, f"evaluating, {side}", unit=" images", disable=None, leave=False
            )

        for indices, found in reader.in_batches(side, _BATCH, shown):
            batch = {"index": np.array(indices), "weight": np.ones(len(indices), np.float32)}
            yield (
                batch,
                FoundBatch(
                    np.array([one.score for one in found]),
                    np.array([one.probability for one in found]),
                    [one.localization_map for one in found],
                ),
            )

    with whole_folder(out, replaces=_OF_MAPS) as folder:
        made = runs.ResultsFolder(folder)
        figures, shown_maps = score(sides, localize, None, None, made.predictions)
        results = {
            **figures,
            "test_fake": ",".join(subsets["fake"]),
            "test_real": ",".join(subsets["real"]),
            "fake_images": len(sides["fake"]),
            "real_images": len(sides["real"]),
            "checkpoint": None,
            "weights": None,
            "data": _digests(sides),
            "maps": None,
            "predictions": provenance.digest_of_file(made.predictions),
        }
        table = summary.text_table(results, title=f"maps of {maps.name}")
        sheet.save(_examples(sides, shown_maps), made.examples)
        made.text.write_text(table, encoding="utf-8")
        made.results.write_text(json.dumps(results, indent=2) + "\n")
    log.info("%s\nwritten to %s", table, out)
    return results


def robustness(
    run: epath.Path,
    kind: str,
    strengths: Sequence[str | int | float] | None = None,
    *,
    fake: str | None = None,
    real: str | None = None,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Scores a run as `evaluate` does, on clean test images and on perturbed ones.

    Writes `robustness-KIND.json` where `evaluate` writes its results, once all is scored.

    Args:
      run: a run directory.
      kind: one of `perturbations.KINDS`.
      strengths: strengths of the perturbation, in its kind's unit; the kind's own list by default.
      fake: prepared subsets of fake images, with commas between them; the config's own by default.
      real: prepared subsets of real images in the same way; the config's own by default.
      data_dir: the folder of the prepared datasets; the run's own by default.

    Returns:
      The content of the file: `clean`, the figures of the images as they are, and `points`, the
      figures at each `strength`; fractions times 100 (None where no image has the figure).

    Raises:
      ConfigError: a strength that the kind does not have; otherwise as `evaluate`.
      UserError: as `evaluate`.
    """
    series = perturbations.series(kind, strengths)
    test = load(run, fake=fake, real=real, data_dir=data_dir)
    scored = _scored(run, test, series)
    results = {
        "perturbation": kind,
        "unit": perturbations.KINDS[kind].unit,
        "clean": _without_comparison(scored[0]),
        "points": [
            {"strength": perturbation.strength, **_without_comparison(figures)}
            for perturbation, figures in zip(series, scored[1:], strict=True)
        ],
        **_subject(test),
    }
    path = test.out.robustness(kind)

    def put() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(results, indent=2) + "\n")

    hosts.first(put)
    log.info("written to %s", path)
    return results


def exchanged(
    run: epath.Path,
    *,
    fake: str | None = None,
    real: str | None = None,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Scores fakes whose original is known, before and after its pixels are put back.

    Outside the mask a fake gets the pixels of what it was made of, see `exchange.find`. Writes
    `exchange.json` and `exchange.txt` where `evaluate` writes its results, once all is scored.

    Args:
      run: a run directory.
      fake: a prepared subset of fake images with masks; the config's own by default.
      real: a prepared subset of real images, with the originals; the config's own by default.
      data_dir: the folder of the prepared datasets; the run's own by default.

    Returns:
      The content of exchange.json: `before` and `after`, figures × 100 of the same fakes against
      all real images, and how many fakes there are of each sort of `exchange.Pairs`.

    Raises:
      ConfigError: fakes without masks, or of which no original is known; otherwise as `evaluate`.
      UserError: as `evaluate`.
    """
    test = load(run, fake=fake, real=real, data_dir=data_dir)
    fakes, reals = test.sides["fake"], test.sides["real"]
    if not fakes.have_masks:
        raise ConfigError(
            f"{test.names['fake']} has no masks: nothing says which pixels to put back"
        )
    pairs = exchange.find(fakes, reals)
    if not pairs.found:
        raise ConfigError(
            f"no image of {test.names['fake']} has its original in {test.names['real']}: of its "
            f"{len(fakes)} images {exchange.left_out(pairs.counts())}"
        )
    known, cut = _calibration(run, test), _map_threshold(run, test)
    figures = {}
    with temporary_folder() as folder:
        table = runs.ResultsFolder(epath.Path(folder)).predictions
        for name, put_back in (("before", False), ("after", True)):
            chosen = exchange.Exchanged(fakes, reals, pairs.found, put_back=put_back)
            of = dataclasses.replace(test, sides={"fake": chosen, "real": reals})
            found, _ = score(of.sides, _localize(of), known, cut, table, compared=False)
            figures[name] = _without_comparison(found)
    results = {
        "exchanged_images": len(pairs.found),
        **pairs.counts(),
        **figures,
        **_subject(test),
    }
    text = exchange.text_table(results, f"{test.config.method}, setup {test.config.setup}")

    content = json.dumps(results, indent=2) + "\n"
    files = {test.out.exchange_text: text, test.out.exchange: content}
    hosts.first(lambda: _put_together(test, files))
    log.info("%s\nwritten to %s", text, test.out.exchange)
    return results


def everyday_robustness(
    run: epath.Path,
    *,
    fake: str | None = None,
    real: str | None = None,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Scores a run as `evaluate` does, on clean test images and after each everyday perturbation.

    Writes `robustness-all.json`, `robustness-all.md` and `robustness-all.png` where `evaluate`
    writes its results, once all is scored.

    Args:
      run: a run directory.
      fake: prepared subsets of fake images, with commas between them; the config's own by default.
      real: prepared subsets of real images in the same way; the config's own by default.
      data_dir: the folder of the prepared datasets; the run's own by default.

    Returns:
      The content of the file: what `retention.results` has of `perturbations.EVERYDAY`, and what
      it is of.

    Raises:
      ConfigError, UserError: as `evaluate`.
    """
    test = load(run, fake=fake, real=real, data_dir=data_dir)
    chains = perturbations.EVERYDAY
    clean, *perturbed = _scored(run, test, chains)
    results = {
        "perturbation": "all",
        **retention.results(
            _without_comparison(clean),
            clean["trivial"]["all fake"]["iou_lg"],
            list(zip(chains, map(_without_comparison, perturbed), strict=True)),
        ),
        **_subject(test),
    }
    table = retention.markdown(results, f"{test.config.method}, setup {test.config.setup}")

    def put() -> None:
        picture = io.BytesIO()
        retention.save_picture(results, picture)
        files = {
            test.out.everyday_table: table,
            test.out.everyday_picture: picture.getvalue(),
            test.out.everyday: json.dumps(results, indent=2) + "\n",
        }
        _put_together(test, files)

    hosts.first(put)
    log.info("%s\nwritten to %s", table, test.out.everyday)
    return results


def _put_together(test: TestedRun, files: Mapping[epath.Path, str | bytes]) -> None:
    """Writes files where results belong, in their order, by one process at a time."""
    test.out.path.mkdir(parents=True, exist_ok=True)
    with locks.locked(test.out.path, locks.RESULTS, wait=True):
        for path, content in files.items():
            write_whole(path, content)


def _scored(
    run: epath.Path, test: TestedRun, series: Sequence[Perturbation | Chain]
) -> list[dict[str, Any]]:
    """Returns the figures of the images as they are, then after each perturbation of a series."""
    known, cut = _calibration(run, test), _map_threshold(run, test)
    names = ["clean", *map(str, series)]
    width = max(map(len, names))
    found = []
    with temporary_folder() as folder:
        table = runs.ResultsFolder(epath.Path(folder)).predictions
        for name, perturbation in zip(names, (None, *series), strict=True):
            localize = _localize(test, perturbation)
            figures, _ = score(
                test.sides, localize, known, cut, table, compared=perturbation is None
            )
            iou = summary.figure(figures["iou_lg"])
            log.info("%-*s iou_lg %5s  ap %5.1f", width, name, iou, figures["ap"])
            found.append(figures)
    return found


def _localize(test: TestedRun, perturbation: Perturbation | Chain | None = None) -> Localize:
    """Returns what finds the maps of a side's images by the run's network."""
    return lambda side: localized(
        test, test.sides[side], f"evaluating, {side}", perturbation=perturbation
    )


def _without_comparison(figures: dict[str, Any]) -> dict[str, Any]:
    """Returns figures without those that only images as they are have."""
    fixed = "f1_best_fixed", "f1_best_fixed_at"
    compared = ("trivial", *fixed, "iou_by_threshold", "parts", "intervals")
    return {name: value for name, value in figures.items() if name not in compared}


def _put(
    run: epath.Path,
    test: TestedRun,
    made: runs.ResultsFolder,
    results: dict[str, Any],
    maps: pathlib.Path | None,
) -> None:
    """Puts the files of an evaluation in their place, `results.json` last: it vouches for them."""
    out = test.out.path
    out.mkdir(parents=True, exist_ok=True)
    if out == run:
        sides = (examples.provenance for examples in test.sides.values())
        runs.keep_data(run, {name: kept for side in sides for name, kept in side.items()})
    with locks.locked(out, locks.RESULTS, wait=True):
        results["maps"] = None
        if maps is not None:
            with whole_folder(test.out.maps, replaces=_MAPS) as folder:
                shutil.copytree(maps, folder, dirs_exist_ok=True)
            results["maps"] = provenance.digest_of_file(test.out.maps / MANIFEST)
        for path in sorted(made.path.iterdir()):
            if path.is_file():
                write_whole(out / path.name, path.read_bytes())
        write_whole(test.out.results, json.dumps(results, indent=2) + "\n")


def _subject(test: TestedRun) -> dict[str, Any]:
    """Returns what figures are of: which images, with a hash of their files, and which network."""
    return {
        "test_fake": test.names["fake"],
        "test_real": test.names["real"],
        "fake_images": len(test.sides["fake"]),
        "real_images": len(test.sides["real"]),
        "checkpoint": test.checkpoint,
        "weights": test.weights,
        "data": _digests(test.sides),
    }


def _digests(sides: dict[str, inputs.Examples]) -> dict[str, str]:
    """Returns a hash of what the subset of each side was made of."""
    return {
        side: _digest(provenance.digests(examples.provenance)) for side, examples in sides.items()
    }


def _digest(of_subsets: dict[str, str]) -> str:
    """Returns the hash of a side of which the hash of each subset is known: of one subset its."""
    hashes = list(of_subsets.values())
    return hashes[0] if len(hashes) == 1 else provenance.digest_of(hashes)


def _examples(
    sides: dict[str, inputs.Examples], maps: dict[str, dict[int, Float[np.ndarray, "h w"]]]
) -> list[sheet.Example]:
    """Reads the images of the sheet of examples, which are the keys of `maps`."""
    examples = []
    for side, source in sides.items():
        for index, localization_map in maps[side].items():
            record = source[index]
            mask = inputs.full_mask(record) if side == "fake" and "mask" in record else None
            examples.append(sheet.Example(inputs.full_image(record), mask, localization_map))
    return examples


# ----- What is measured once of a network, on validation images -----------------------------------


def _kept_or_measured(
    run: epath.Path,
    test: TestedRun,
    open_source: Callable[[], inputs.Examples],
    load: Callable[..., T | None],
    measure: Callable[[inputs.Examples], T],
    save: Callable[..., None],
    unknown: str,
) -> T | None:
    """Returns what a run has kept of its network on these images, or measures and keeps it.

    Where the images are not at hand, that which was kept is taken; None if there is nothing, and a
    warning, `unknown`, says why. All hosts have to ask together.
    """
    network = test.checkpoint, test.weights
    source, reason = None, "another host has them not"
    try:
        source = open_source()
    except ConfigError as error:
        reason = str(error)
    if hosts.any_host(source is None):
        kept = load(run, network)
        if not hosts.any_host(kept is None):
            return kept
        log.warning("%s: %s", unknown, reason)
        return None
    runs.check_data(run, source.provenance)
    digests = provenance.digests(source.provenance)
    kept = load(run, network, digests)
    if not hosts.any_host(kept is None):
        return kept
    found = measure(source)
    hosts.first(lambda: save(run, network, digests, found))
    return found


# ----- What verdicts follow from ------------------------------------------------------------------


def _calibration(run: epath.Path, test: TestedRun) -> Calibration | None:
    """Returns what the network says of the run's validation images, and keeps it in the run.

    Real images are also scored after everyday perturbations, if the config has `eval.perturbed`.
    Fakes are those that the run was trained on, spliced as often as there; without them at hand,
    none are known, or those that were.

    These images take part in the selection of the checkpoint; test images take part in neither.
    Where the images are not at hand, what was kept is used; None if there is nothing.
    """
    config = test.config
    perturbed = perturbations.EVERYDAY if config.eval.perturbed else ()
    changes = {verdict.CLEAN: None, **{str(chain): chain for chain in perturbed}}
    fakes = _known_fakes(config)
    of_fakes = None
    if fakes is not None:
        runs.check_data(run, fakes.provenance)
        of_fakes = provenance.digests(fakes.provenance)

    def measure(source: inputs.Examples) -> Calibration:
        scores, classes, origins = {}, [], []
        for name, chain in changes.items():
            what = f"scoring real images, {name}"
            scores[name], features = _seen(test, source, what, perturbation=chain)
            classes.append(features)
            origins.append(np.arange(len(features)))
        fake = []
        if fakes is not None:
            spliced = config.train.splice if methods.targets(config) == "spliced" else 0.0
            places = fakes.places(inputs.FAKE).tolist()
            fake, features = _seen(test, fakes, "scoring fakes", places=places, splice=spliced)
            classes.append(features)
            origins.append(len(source) + np.arange(len(features)))
        has_features = all(one.size for one in classes)
        known = likeness.fit(classes, origins) if has_features else None
        return Calibration({name: sorted(of) for name, of in scores.items()}, sorted(fake), known)

    return _kept_or_measured(
        run,
        test,
        lambda: inputs.Examples(_real_subsets(config), "valid", config.data.dir),
        functools.partial(calibration.load, kinds=changes.keys(), fakes=of_fakes),
        measure,
        functools.partial(calibration.save, fakes=of_fakes),
        "no threshold for a verdict from real validation images",
    )


def _real_subsets(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    return config.data.real or configuration.subsets(
        config.data.test_real
    )  # setup c trains without real images


def _known_fakes(config: ml_collections.ConfigDict) -> inputs.Examples | None:
    """Returns the validation images that a run was trained with, real ones beside the fakes.

    It is None, and a warning says so, where a host does not have them.
    """
    source = None
    try:
        subsets = (*_real_subsets(config), *config.data.fake)
        source = inputs.Examples(subsets, "valid", config.data.dir)
    except ConfigError as error:
        log.warning("no fakes are known to the verdict: %s", error)
    return None if hosts.any_host(source is None) else source


def _seen(
    test: TestedRun, source: inputs.Examples, description: str, **kwargs: Any
) -> tuple[list[float], Float[np.ndarray, "n d"]]:
    """Returns scores and features of images of all hosts, in their order, see `localized`."""
    scores, features = [], [_NO_FEATURES]
    with contextlib.closing(localized(test, source, description, **kwargs)) as batches:
        for batch, found in batches:
            indices = measures.image_indices(batch)
            rows = zip(indices, found.scores, found.probabilities, strict=True)
            own = [ImageMeasures(index, float(value), float(p)) for index, value, p in rows]
            scores += [one.score for one in measures.of_all_hosts(own, source)]
            if found.features is not None:
                order = hosts.gather(np.asarray(indices)).ravel()
                everywhere = hosts.gather(found.features).reshape(len(order), -1)
                kept = order != measures.PADDING
                features.append(everywhere[kept][np.argsort(order[kept])])
    return scores, np.concatenate(features[1:] or features)


# ----- The threshold of a map ---------------------------------------------------------------------


def _map_threshold(run: epath.Path, test: TestedRun) -> float | None:
    """Returns the probability above which the run calls a location manipulated, and keeps it.

    It is fitted on validation images, see `map_threshold`: spliced ones, or, under full
    supervision, those with masks. Where they are not at hand, one that was kept is used; None if
    there is none.
    """
    config = test.config
    masked = config.supervision == "full"
    fakes = config.data.fake if masked else config.data.spliced_fake or config.data.fake

    def open_source() -> inputs.Examples:
        source = inputs.Examples((*config.data.real, *fakes), "valid", config.data.dir)
        if masked and not source.have_masks:
            raise ConfigError(f"{', '.join(fakes)} has no masks")
        if not masked and not _are_whole(config):
            raise ConfigError(f"{', '.join(fakes)}: not fake everywhere, and no others are named")
        return source

    def fit(source: inputs.Examples) -> MapThreshold:
        fitted_on = map_threshold.MASKED if masked else map_threshold.SPLICED
        found = map_threshold.fit(_maps_with_masks(test, source, masked), fitted_on)
        log.info(
            "maps are cut at %.3g, where those of %d %s validation images have an IoU of %.1f",
            *(found.value, found.images, found.fitted_on, 100 * found.iou),
        )
        return found

    found = _kept_or_measured(
        run,
        test,
        open_source,
        map_threshold.load,
        fit,
        map_threshold.save,
        "no threshold for maps from validation images",
    )
    return None if found is None else found.value


def _are_whole(config: ml_collections.ConfigDict) -> bool:
    """Returns whether the fakes that validation images are spliced from are fake everywhere.

    Those that are said to be for that are; those with masks, or of setup b, are not.
    """
    if config.data.spliced_fake:
        return True
    fakes = inputs.Examples(config.data.fake, "valid", config.data.dir)
    return config.setup == "a" and not fakes.have_masks


def _maps_with_masks(
    test: TestedRun, source: inputs.Examples, masked: bool
) -> Iterator[tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "H W"]]]:
    """Yields the maps of validation fakes of all hosts, and where these are fake."""
    spliced = None if masked else inputs.Spliced(source)
    batches = localized(
        test,
        source,
        "fitting the maps' threshold",
        places=source.places(inputs.FAKE).tolist(),
        splice=0.0 if masked else 1.0,
    )
    with contextlib.closing(batches):
        for batch, found in batches:
            indices = hosts.gather(np.asarray(measures.image_indices(batch))).ravel()
            maps = hosts.gather(found.maps).reshape(-1, *found.maps.shape[1:])
            for index, localization_map in zip(indices.tolist(), maps, strict=True):
                if index == measures.PADDING:
                    continue
                if not np.isfinite(localization_map).all():
                    key = measures.key(source, index)
                    raise UserError(f"scores or maps are not finite, first those of {key}")
                if spliced is None:
                    yield localization_map, inputs.full_mask(source[index]) > 0
                else:
                    yield localization_map, spliced[index]["region"] > 0.5
