"""Scores a trained run on a dataset's test split, and writes predictions and results."""

import contextlib
import functools
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Bool, Float

from wsdl_data import provenance
from wsdl_jax import configuration, inputs, methods, runs
from wsdl_jax.evaluation import (
    calibration,
    likeness,
    map_threshold,
    measures,
    retention,
    sheet,
    summary,
    verdict,
)
from wsdl_jax.evaluation.figures import score
from wsdl_jax.evaluation.map_threshold import MapThreshold
from wsdl_jax.evaluation.measures import ImageMeasures
from wsdl_jax.evaluation.tested_run import TestedRun, load, localized
from wsdl_jax.evaluation.verdict import Calibration
from wsdl_jax.inputs import perturbations
from wsdl_jax.inputs.perturbations import Chain, Perturbation
from wsdl_jax.runtime import hosts, locks
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.storage import temporary_folder, write_whole

log = logging.getLogger("wsdl_jax")
T = TypeVar("T")
_NO_FEATURES = np.zeros((0, 0), np.float32)


def evaluate(
    run: epath.Path,
    *,
    fake: str | None = None,
    real: str | None = None,
    data_dir: str | None = None,
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
    threshold, cut = _threshold(run, test), _map_threshold(run, test)
    with temporary_folder() as folder:
        made = runs.ResultsFolder(epath.Path(folder))
        figures, maps = score(test, threshold, cut, made.predictions)
        results = {**figures, **_subject(test)}
        table = summary.text_table(
            results, title=f"{test.config.method}, setup {test.config.setup}"
        )

        def put() -> None:
            sheet.save(_examples(test.sides, maps), made.examples)
            made.text.write_text(table, encoding="utf-8")
            results["predictions"] = provenance.digest_of_file(made.predictions)
            _put(run, test, made, results)

        hosts.first(put)
    log.info("%s\nwritten to %s", table, test.out.path)
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
        test.out.path.mkdir(parents=True, exist_ok=True)
        picture = io.BytesIO()
        retention.save_picture(results, picture)
        with locks.locked(test.out.path, locks.RESULTS, wait=True):
            write_whole(test.out.everyday_table, table)
            write_whole(test.out.everyday_picture, picture.getvalue())
            write_whole(test.out.everyday, json.dumps(results, indent=2) + "\n")

    hosts.first(put)
    log.info("%s\nwritten to %s", table, test.out.everyday)
    return results


def _scored(
    run: epath.Path, test: TestedRun, series: Sequence[Perturbation | Chain]
) -> list[dict[str, Any]]:
    """Returns the figures of the images as they are, then after each perturbation of a series."""
    threshold, cut = _threshold(run, test), _map_threshold(run, test)
    names = ["clean", *map(str, series)]
    width = max(map(len, names))
    found = []
    with temporary_folder() as folder:
        table = runs.ResultsFolder(epath.Path(folder)).predictions
        for name, perturbation in zip(names, (None, *series), strict=True):
            figures, _ = score(test, threshold, cut, table, perturbation)
            iou = summary.figure(figures["iou_lg"])
            log.info("%-*s iou_lg %5s  ap %5.1f", width, name, iou, figures["ap"])
            found.append(figures)
    return found


def _without_comparison(figures: dict[str, Any]) -> dict[str, Any]:
    """Returns figures without those that only images as they are have."""
    fixed = "f1_best_fixed", "f1_best_fixed_at"
    compared = ("trivial", *fixed, "iou_by_threshold", "parts", "intervals")
    return {name: value for name, value in figures.items() if name not in compared}


def _put(
    run: epath.Path, test: TestedRun, made: runs.ResultsFolder, results: dict[str, Any]
) -> None:
    """Puts the files of an evaluation in their place, `results.json` last: it vouches for them."""
    out = test.out.path
    out.mkdir(parents=True, exist_ok=True)
    if out == run:
        sides = (examples.provenance for examples in test.sides.values())
        runs.keep_data(run, {name: kept for side in sides for name, kept in side.items()})
    with locks.locked(out, locks.RESULTS, wait=True):
        for path in sorted(made.path.iterdir()):
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
        "data": {
            side: _digest(provenance.digests(examples.provenance))
            for side, examples in test.sides.items()
        },
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


# ----- The threshold of a verdict -----------------------------------------------------------------


def _threshold(run: epath.Path, test: TestedRun) -> float | None:
    """Returns the score above which figures call an image fake, see `verdict.threshold`.

    It is None where the scores of real validation images are not known and cannot be measured.
    """
    known = _calibration(run, test)
    return None if known is None else verdict.threshold(known.real, verdict.FALSE_POSITIVE_RATE)


def _calibration(run: epath.Path, test: TestedRun) -> Calibration | None:
    """Returns what the network says of the run's validation images, and keeps it in the run.

    Real images are also scored after everyday perturbations, if the config has `eval.perturbed`.
    Fakes are those that the run was trained on, spliced as often as there; without them at hand,
    none are known.

    These images take part in the selection of the checkpoint; test images take part in neither.
    Where the images are not at hand, what was kept is used; None if there is nothing.
    """
    config = test.config
    perturbed = perturbations.EVERYDAY if config.eval.perturbed else ()
    changes = {verdict.CLEAN: None, **{str(chain): chain for chain in perturbed}}

    def measure(source: inputs.Examples) -> Calibration:
        scores, features = {}, {}
        for name, chain in changes.items():
            what = f"scoring real images, {name}"
            scores[name], features[name] = _seen(test, source, what, perturbation=chain)
        fake, of_fakes = _known_fakes(test)
        changed = [of_real for name, of_real in features.items() if name != verdict.CLEAN]
        classes = [
            features[verdict.CLEAN],
            of_fakes,
            *([np.concatenate(changed)] if changed else []),
        ]
        known = likeness.fit([one for one in classes if one.size])
        return Calibration({name: sorted(of) for name, of in scores.items()}, sorted(fake), known)

    return _kept_or_measured(
        run,
        test,
        lambda: inputs.Examples(_real_subsets(config), "valid", config.data.dir),
        functools.partial(calibration.load, kinds=changes.keys()),
        measure,
        calibration.save,
        "no threshold for a verdict from real validation images",
    )


def _real_subsets(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    return config.data.real or configuration.subsets(
        config.data.test_real
    )  # setup c trains without real images


def _known_fakes(test: TestedRun) -> tuple[list[float], Float[np.ndarray, "n d"]]:
    """Returns scores and features of the fakes of the validation split; of none, not at hand."""
    config = test.config
    spliced = config.train.splice if methods.targets(config) == "spliced" else 0.0
    subsets = (*_real_subsets(config), *config.data.fake)
    try:
        source = inputs.Examples(subsets, "valid", config.data.dir)
    except ConfigError as error:
        log.warning("no fakes are known to the verdict: %s", error)
        source = None
    if hosts.any_host(source is None):
        return [], _NO_FEATURES
    places = source.places(inputs.FAKE).tolist()
    return _seen(test, source, "scoring fakes", places=places, splice=spliced)


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
