"""A trained run × a dataset's test split → predictions and results.

python -m wsdl_jax.evaluate --run runs/patches-a-portraits-ddpm_full
python -m wsdl_jax.evaluate --run RUN --fake dolos/celebahq_lama --real dolos/celebahq_real
python -m wsdl_jax.evaluate --run RUN --perturb jpeg --strengths 90,70,50
"""

import contextlib
import csv
import functools
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from flax import nnx
from jaxtyping import Float, Integer
from tqdm import tqdm

from wsdl_data import provenance
from wsdl_jax import configuration, inputs, methods, runs
from wsdl_jax.evaluation import metrics, summary, verdict
from wsdl_jax.inputs import perturbations
from wsdl_jax.inputs.perturbations import Perturbation
from wsdl_jax.runs import State
from wsdl_jax.runtime import command, hosts, locks
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.parallel import AXIS, Parallel, Step
from wsdl_jax.runtime.storage import temporary_folder, write_whole

log = logging.getLogger("wsdl_jax")
SHOWN = {"fake": 6, "real": 2}  # images on the sheet of examples
FIGURES = (*metrics.LOCALIZATION, "manipulated_share")  # of a fake image
COLUMNS = ("key", "label", "score", "probability", *FIGURES)  # of predictions.csv
TRIVIAL = ("all real", "all fake", "random")
AT_THRESHOLDS = tuple(f"iou_lg above {threshold:.2f}" for threshold in metrics.THRESHOLDS)
# What is known of an image: its place in its source, what the network says of it and, of a fake
# one, the figures of its map and of the trivial maps.
NUMBERS = (
    *("index", "score", "probability"),
    *FIGURES,
    *AT_THRESHOLDS,
    *(f"{name}: {figure}" for name in TRIVIAL for figure in metrics.LOCALIZATION),
)


class Test(NamedTuple):
    """A trained run and what it is tested on.

    Attributes:
      config: the run's, with the directory that the data is really in.
      names: the subsets, of sides "fake" and "real".
      sides: their test splits.
      step: (state, {"image": …}) → (None, Localization), on all devices.
      state: of the network, on all devices.
      parallel: the devices.
      checkpoint: step of the checkpoint that the network is from.
      weights: that checkpoint's checksum.
      out: where results belong: the run directory or, for other subsets than the config's,
        `evaluations/FAKE+REAL/` in it.
    """

    config: ml_collections.ConfigDict
    names: dict[str, str]
    sides: dict[str, inputs.Examples]
    step: Step
    state: State
    parallel: Parallel
    checkpoint: int
    weights: int | None
    out: epath.Path


def make_localize_step(method: methods.Method, model: nnx.Module) -> Step:
    """The step of one device: (state, its images) → (None, Localization of them)."""
    graphdef, _, _, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def step(state: State, batch: methods.Batch):
        network = nnx.merge(graphdef, state["params"], state["stats"], rest)
        network.eval()
        return None, method.localize(network, methods.network_input(batch["image"]))

    return step


def on_devices(method: methods.Method, model: nnx.Module, parallel: Parallel) -> tuple[Step, State]:
    """`make_localize_step` for all devices, and the state of the network on each of them."""
    state = {"params": nnx.state(model, nnx.Param), "stats": nnx.state(model, nnx.BatchStat)}
    return parallel.map(make_localize_step(method, model)), parallel.replicate(state)


def load(
    run: epath.Path,
    *,
    fake: str | None = None,
    real: str | None = None,
    data_dir: str | None = None,
) -> Test:
    """The best checkpoint of a run, and the test splits of a fake and a real subset.

    Args:
      run: a run directory.
      fake: a prepared subset; the config's own by default. Without masks, there are no figures of
        localization.
      real: a prepared subset of real images; the config's own by default.
      data_dir: the prepared datasets; where the run was trained on them by default.

    Raises:
      ConfigError: a subset that is unknown or not prepared, or real images that are fake.
      UserError: not a run, nothing trained yet, or data that is not what the run has used before.
    """
    config = runs.load_config(run)
    config.data.dir = data_dir or config.data.dir
    names = {"fake": fake or config.data.test_fake, "real": real or config.data.test_real}
    sides = {
        side: inputs.Examples((name,), "test", config.data.dir) for side, name in names.items()
    }
    inputs.check_sides(
        real=(names["real"],), fake=(names["fake"],), data_dir=config.data.dir, splits=("test",)
    )
    data = {**sides["fake"].provenance, **sides["real"].provenance}
    hosts.agree(config=configuration.essence(config), data=provenance.digests(data))
    runs.check_data(run, data)
    parallel = Parallel(config.parallel.backend)
    config.eval.batch = parallel.rounded_up(config.eval.batch)
    _, model, best, weights = runs.load(run, AXIS)
    hosts.agree(checkpoint=(best, weights))
    step, state = on_devices(methods.from_config(config), model, parallel)
    out = results_folder(run, config, **names)
    return Test(config, names, sides, step, state, parallel, best, weights, out)


def _threshold(run: epath.Path, test: Test) -> float | None:
    """The score above which the run calls an image fake, see `verdict`; None where the real images
    of its validation split are not at hand. What those score is kept in the run.

    They are the images of the checkpoint's selection, too; test images have no part in it.
    """
    data = test.config.data
    subsets = data.real or (data.test_real,)  # setup c trains without real images
    network = test.checkpoint, test.weights
    try:
        source = inputs.Examples(subsets, "valid", data.dir)
    except ConfigError as error:
        scores = verdict.load(run, network)
        if not hosts.any_host(scores is None):
            return verdict.threshold(scores, verdict.FALSE_POSITIVE_RATE)
        log.warning("no threshold for a verdict from real validation images: %s", error)
        return None
    runs.check_data(run, source.provenance)
    digests = provenance.digests(source.provenance)
    scores = verdict.load(run, network, digests)
    if not hosts.any_host(scores is None):
        return verdict.threshold(scores, verdict.FALSE_POSITIVE_RATE)
    scores = []
    with contextlib.closing(localized(test, source, "scoring real images")) as batches:
        for batch, found in batches:
            rows = np.stack([_places(batch), found.scores, found.probabilities], 1)
            scores += _of_all_hosts(rows.astype(np.float64), source)[:, 1].tolist()
    hosts.first(lambda: verdict.save(run, network, digests, scores))
    return verdict.threshold(scores, verdict.FALSE_POSITIVE_RATE)


def localized(
    test: Test,
    source: inputs.Examples,
    what: str,
    *,
    places: Sequence[int] | None = None,
    perturbation: Perturbation | None = None,
) -> Iterator[tuple[inputs.Batch, methods.Localization]]:
    """This host's rows of every batch and what the network says of them, one batch late: it works
    on the next one meanwhile.

    Args:
      test: the network.
      source: the images.
      what: is being done, beside the progress bar.
      places: of the images that are wanted; all by default.
      perturbation: of the images.
    """
    batches = inputs.eval_batches(
        source,
        inputs.Reading.of(test.config.data),
        batch=test.config.eval.batch,
        places=places,
        perturb=perturbation,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    total = -(-len(source if places is None else places) // test.config.eval.batch)
    silent = None if hosts.is_first() else True  # None: unless there is a terminal
    pending = None
    with contextlib.closing(batches):  # on Ctrl-C too: its threads must end before the program
        for batch in tqdm(batches, what, total, unit="batch", disable=silent, leave=False):
            _, found = test.step(test.state, test.parallel.shard({"image": batch["image"]}))
            if pending is not None:
                yield pending[0], test.parallel.gather(pending[1])
            pending = batch, found
    if pending is not None:
        yield pending[0], test.parallel.gather(pending[1])


def _places(batch: inputs.Batch) -> Integer[np.ndarray, " b"]:
    """Of the images of a batch in their source; -1 for padding."""
    return np.where(batch["weight"] > 0, batch["index"], -1)


def evaluate(
    run: epath.Path,
    *,
    fake: str | None = None,
    real: str | None = None,
    data_dir: str | None = None,
) -> dict:
    """Scores the best checkpoint of a run on the test splits of a fake and a real subset.

    Writes `results.json`, `results.txt`, `examples.png` and `predictions.csv` (a row an image) into
    the run directory, or, for other subsets than the config's, into `evaluations/FAKE+REAL/` in it,
    once every image has been scored: results that are there already stay until then. Of an image,
    only its score and probability are kept in memory.

    Args and Raises: as `load`.

    Returns:
      What results.json has: fractions times 100 (None where no image has the figure), counts, and
      `threshold`, the score above which the run calls an image fake, which `real_above` and
      `fake_above` of the images of either side exceed.
    """
    test = load(run, fake=fake, real=real, data_dir=data_dir)
    threshold = _threshold(run, test)
    with temporary_folder() as folder:
        figures, maps = _predict(test, threshold, folder / "predictions.csv")
        results = {**figures, **_tested(test)}
        table = summary.text_table(
            results, title=f"{test.config.method}, setup {test.config.setup}"
        )

        def put() -> None:
            summary.save_sheet(_examples(test.sides, maps), epath.Path(folder) / "examples.png")
            (folder / "results.txt").write_text(table, encoding="utf-8")
            results["predictions"] = provenance.digest_of_file(folder / "predictions.csv")
            _put(run, test, folder, results)

        hosts.first(put)
    log.info("%s\nwritten to %s", table, test.out)
    return results


def _put(run: epath.Path, test: Test, folder: Path, results: dict[str, Any]) -> None:
    """Puts the files of an evaluation in their place, `results.json` last: it vouches for them."""
    test.out.mkdir(parents=True, exist_ok=True)
    if test.out == run:
        sides = (examples.provenance for examples in test.sides.values())
        runs.keep_data(run, {name: kept for side in sides for name, kept in side.items()})
    with locks.locked(test.out, locks.RESULTS, wait=True):
        for path in sorted(folder.iterdir()):
            write_whole(test.out / path.name, path.read_bytes())
        write_whole(test.out / "results.json", json.dumps(results, indent=2) + "\n")


def results_folder(
    run: epath.Path, config: ml_collections.ConfigDict, *, fake: str, real: str
) -> epath.Path:
    """Where the results of a run on a fake and a real subset are: in the run directory itself for
    those of its config, else in a folder of `evaluations/`."""
    if (fake, real) == (config.data.test_fake, config.data.test_real):
        return run
    return run / "evaluations" / "+".join(name.replace("/", "-") for name in (fake, real))


def robustness(
    run: epath.Path,
    kind: str,
    strengths: Sequence[str | int | float] | None = None,
    *,
    fake: str | None = None,
    real: str | None = None,
    data_dir: str | None = None,
) -> dict:
    """Scores a run as `evaluate` does, on clean test images and on perturbed ones.

    Writes `robustness-KIND.json` where `evaluate` writes its results, once all is scored.

    Args:
      run, fake, real, data_dir: as for `load`.
      kind: one of `perturbations.KINDS`.
      strengths: of the perturbation, in its kind's unit; the kind's own list by default.

    Returns:
      What the file has: `clean`, the figures of the images as they are, and `points`, those at each
      `strength`; fractions times 100 (None where no image has the figure).

    Raises:
      ConfigError: a strength that the kind does not have.
      UserError: as `load`.
    """
    series = perturbations.series(kind, strengths)
    test = load(run, fake=fake, real=real, data_dir=data_dir)
    threshold = _threshold(run, test)
    with temporary_folder() as folder:
        points = []
        for perturbation in (None, *series):
            figures, _ = _predict(test, threshold, folder / "predictions.csv", perturbation)
            del figures["trivial"], figures["iou_by_threshold"]
            strength = "clean" if perturbation is None else f"{perturbation.strength:g}"
            iou = summary.figure(figures["iou_lg"])
            log.info("%s %-6s iou_lg %5s  ap %5.1f", kind, strength, iou, figures["ap"])
            points.append(figures)
        results = {
            "perturbation": kind,
            "unit": perturbations.KINDS[kind].unit,
            "clean": points[0],
            "points": [
                {"strength": perturbation.strength, **figures}
                for perturbation, figures in zip(series, points[1:], strict=True)
            ],
            **_tested(test),
        }
        name = f"robustness-{kind}.json"
        hosts.first(lambda: _put_robustness(test.out, name, results))
    log.info("written to %s", test.out / name)
    return results


def _put_robustness(out: epath.Path, name: str, results: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / name, json.dumps(results, indent=2) + "\n")


def _tested(test: Test) -> dict[str, Any]:
    """What figures are of: which images, with a hash of what they are, and which network."""
    return {
        "test_fake": test.names["fake"],
        "test_real": test.names["real"],
        "fake_images": len(test.sides["fake"]),
        "real_images": len(test.sides["real"]),
        "checkpoint": test.checkpoint,
        "weights": test.weights,
        "data": {
            side: provenance.digests(examples.provenance)[test.names[side]]
            for side, examples in test.sides.items()
        },
    }


def _predict(
    test: Test, threshold: float | None, path: Path, perturbation: Perturbation | None = None
) -> tuple[dict[str, Any], dict[str, dict[int, Float[np.ndarray, "h w"]]]]:
    """Writes predictions.csv, image by image; returns the figures, × 100, and the maps to show."""
    means = metrics.Means(NUMBERS[3:])
    told: dict[str, list[tuple[float, float]]] = {side: [] for side in test.sides}
    maps = {}
    keys: dict[int, str] = {}  # of the images that this host has measured
    with path.open("w", encoding="utf-8") as file, ThreadPoolExecutor() as pool:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for side, source in test.sides.items():
            maps[side] = {index: None for index in _shown(source, SHOWN[side])}
            for rows in _measure_all(test, side, perturbation, pool, maps[side], keys):
                for row in rows:
                    values = dict(zip(NUMBERS, row.tolist(), strict=True))
                    told[side].append((values["score"], values["probability"]))
                    if side == "fake":
                        means.add(values)
                    if hosts.is_first():
                        index = int(values["index"])
                        key = keys.pop(index, None) or source[index]["key"].decode()
                        has_mask = not math.isnan(values["manipulated_share"])
                        known = COLUMNS[2:] if has_mask else COLUMNS[2:4]
                        figures = {name: values[name] for name in known}
                        writer.writerow({"key": key, "label": side, **figures})
    (real_scores, real_probabilities), (fake_scores, fake_probabilities) = (
        np.array(told[side]).T for side in ("real", "fake")
    )
    detection = metrics.detection(
        real_scores,
        fake_scores,
        real_probabilities=real_probabilities,
        fake_probabilities=fake_probabilities,
    )
    mean = _percent(means.means())
    figures = {
        **{name: mean[name] for name in FIGURES},
        "pixel_images": means.count("pixel_auc"),
        **_percent(detection),
        "threshold": threshold,
        "real_above": _percent_above(real_scores, threshold),
        "fake_above": _percent_above(fake_scores, threshold),
        "iou_by_threshold": [
            {"threshold": at, "iou_lg": mean[name]}
            for at, name in zip(metrics.THRESHOLDS.tolist(), AT_THRESHOLDS, strict=True)
        ],
        "trivial": {
            name: {figure: mean[f"{name}: {figure}"] for figure in metrics.LOCALIZATION}
            for name in TRIVIAL
        },
    }
    return figures, maps


def _shown(source: inputs.Examples, count: int) -> list[int]:
    """Images for the sheet of examples, evenly spaced."""
    return np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()


def _measure_all(
    test: Test,
    side: str,
    perturbation: Perturbation | None,
    pool: ThreadPoolExecutor,
    maps: dict[int, Any],
    keys: dict[int, str],
) -> Iterator[Float[np.ndarray, "n k"]]:
    """`NUMBERS` of every image of a side, in order, in batches; the same on all hosts.

    The maps of the images that are keys of `maps` are put there, and the names of the images that
    this host has measured in `keys`. A batch is measured while the
    network works on the next one.
    """
    source = test.sides[side]
    pending: Iterator[np.ndarray] | None = None
    batches = localized(test, source, f"evaluating, {side}", perturbation=perturbation)
    with contextlib.closing(batches):
        for batch, found in batches:
            if pending is not None:
                yield _of_all_hosts(pending, source)
            places = _places(batch).tolist()
            # Perturbed images have the masks of the clean ones, and the same trivial figures.
            compared = perturbation is None
            measure = functools.partial(_measure, source, side, found, compared, keys)
            pending = pool.map(measure, range(len(places)), places)
            for row, index in enumerate(places):
                if index in maps:  # a copy, or the whole batch would be kept
                    maps[index] = found.maps[row].copy()
    if pending is not None:
        yield _of_all_hosts(pending, source)
    shape = found.maps.shape[1:]
    absent = np.full(shape, -np.inf, np.float32)
    mine = np.stack([absent if value is None else value for value in maps.values()])
    maps.update(zip(maps, hosts.gather(mine).max(0), strict=True))


def _of_all_hosts(
    measured: Iterable[Float[np.ndarray, " k"]], source: inputs.Examples
) -> Float[np.ndarray, "n k"]:
    """The rows of a batch, of which each host has measured some, in order and without padding."""
    mine = np.stack(list(measured))
    rows = hosts.gather(mine).reshape(-1, mine.shape[1])
    rows = rows[np.argsort(rows[:, 0])]
    rows = rows[rows[:, 0] >= 0]
    bad = rows[~np.isfinite(rows[:, 1:3]).all(1)]
    if len(bad):
        first = source[int(bad[0, 0])]["key"].decode()
        raise UserError(f"scores or maps are not finite, first those of {first}")
    return rows


def _measure(
    source: inputs.Examples,
    side: str,
    localized: methods.Localization,
    compared: bool,
    keys: dict[int, str],
    row: int,
    index: int,
) -> Float[np.ndarray, " k"]:
    """`NUMBERS` of the image at `index` of its source, which is at `row` of its batch.

    Padding has index -1, and what is not finite no numbers. Unless `compared`, those at other
    thresholds and of the trivial maps are left out, which take most of the time.
    """
    values = dict.fromkeys(NUMBERS, np.nan)
    values["index"] = index
    score, probability, localization_map = (part[row] for part in localized)
    if index >= 0 and np.isfinite(localization_map).all():
        record = source[index]
        keys[index] = record["key"].decode()
        values |= {"score": score, "probability": probability}
        if side == "fake" and "mask" in record:
            mask = inputs.full_mask(record)
            values |= metrics.localization(localization_map, mask)
            values["manipulated_share"] = mask.mean()
            if compared:
                at_thresholds = metrics.iou_by_threshold(localization_map, mask)
                values |= zip(AT_THRESHOLDS, at_thresholds, strict=True)
                for name, trivial in _trivial_maps(localization_map.shape, index).items():
                    figures = metrics.localization(trivial, mask)
                    values |= {f"{name}: {figure}": value for figure, value in figures.items()}
    return np.array([values[name] for name in NUMBERS], np.float64)


def _examples(
    sides: dict[str, inputs.Examples], maps: dict[str, dict[int, Float[np.ndarray, "h w"]]]
) -> list[summary.Example]:
    examples = []
    for side, source in sides.items():
        for index, localization_map in maps[side].items():
            record = source[index]
            mask = inputs.full_mask(record) if side == "fake" and "mask" in record else None
            image, key = inputs.full_image(record), record["key"].decode()
            examples.append(summary.Example(key, image, mask, localization_map))
    return examples


def _trivial_maps(shape: tuple[int, ...], index: int) -> dict[str, Float[np.ndarray, "h w"]]:
    """Maps that know nothing of the image: what a learned one has to beat."""
    values = (
        np.broadcast_to(np.float32(0), shape),
        np.broadcast_to(np.float32(1), shape),
        np.random.default_rng(index).random(shape, np.float32),
    )
    return dict(zip(TRIVIAL, values, strict=True))


def _percent(figures: dict[str, float]) -> dict[str, float | None]:
    """× 100; None for what no image has."""
    return {name: None if math.isnan(value) else 100 * value for name, value in figures.items()}


def _percent_above(scores: Float[np.ndarray, " n"], threshold: float | None) -> float | None:
    return None if threshold is None else 100 * float(np.mean(scores > threshold))


def main(_: list[str]) -> None:
    """The command."""
    jax.config.parse_flags_with_absl()
    hosts.start_by_flags()
    if not hosts.is_first():
        log.setLevel(logging.WARNING)
    run = epath.Path(_RUN.value)
    where = {"fake": _FAKE.value, "real": _REAL.value, "data_dir": _DATA_DIR.value}
    if _PERTURB.value is not None:
        robustness(run, _PERTURB.value, _STRENGTHS.value, **where)
    elif _STRENGTHS.value is not None:
        raise ConfigError("--strengths goes with --perturb")
    else:
        evaluate(run, **where)


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "A run directory.", required=True)
    _FAKE = flags.DEFINE_string("fake", None, "A prepared subset of fakes to test on.")
    _REAL = flags.DEFINE_string("real", None, "A prepared subset of real images to test on.")
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Prepared datasets; default: the run's.")
    _PERTURB = flags.DEFINE_enum(
        "perturb", None, list(perturbations.KINDS), "Test on images perturbed in this way instead."
    )
    _STRENGTHS = flags.DEFINE_list("strengths", None, "Of the perturbation, from mild to strong.")
    hosts.define_flags()
    flags.adopt_module_key_flags(hosts)  # for --help
    command.run(main)
