"""A trained run × a dataset's test split → predictions and results.

python -m wsdl_jax.evaluate --run runs/patches-a-regrain_full
python -m wsdl_jax.evaluate --run RUN --fake dolos/celebahq_lama --real dolos/celebahq_real
"""

import csv
import functools
import json
import logging
import math
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from flax import nnx
from jaxtyping import Float
from tqdm import tqdm

from wsdl_jax import command, methods, metrics, pipeline, report, runs
from wsdl_jax.errors import UserError
from wsdl_jax.parallel import AXIS, Parallel, Step
from wsdl_jax.runs import State

log = logging.getLogger("wsdl_jax")
SHOWN = {"fake": 6, "real": 2}  # images on the sheet of examples
FIGURES = (*metrics.LOCALIZATION, "manipulated_share")  # of a fake image
COLUMNS = ("key", "label", "score", "probability", *FIGURES)  # of predictions.csv
TRIVIAL = ("all real", "all fake", "random")


class Measured(NamedTuple):
    """What is kept of one image.

    Attributes:
      row: of predictions.csv.
      trivial: figures of the `TRIVIAL` maps; none for a real image.
      example: for the sheet; None for most images.
    """

    row: dict[str, Any]
    trivial: dict[str, dict[str, float]]
    example: report.Example | None


def make_localize_step(method: methods.Method, model: nnx.Module) -> Step:
    """The step of one device: (state, its images) → (None, Localization of them)."""
    graphdef, _, _, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def step(state: State, batch: methods.Batch):
        network = nnx.merge(graphdef, state["params"], state["stats"], rest)
        network.eval()
        return None, method.localize(network, batch["image"])

    return step


def evaluate(
    run: epath.Path,
    *,
    fake: str | None = None,
    real: str | None = None,
    data_dir: str | None = None,
) -> dict:
    """Scores the best checkpoint of a run on the test splits of a fake and a real subset.

    Writes `results.json`, `results.txt`, `examples.png` and `predictions.csv` (a row an image) into
    the run directory, or, for other subsets than the config's, into `evaluations/FAKE+REAL/` in it.

    Args:
      run: a run directory.
      fake: a prepared subset with masks; the config's own by default.
      real: a prepared subset of real images; the config's own by default.
      data_dir: the prepared datasets; where the run was trained on them by default.

    Returns:
      What results.json has: fractions times 100, and counts.

    Raises:
      UserError: not a run, nothing trained yet, or a subset that is not there or has no masks.
    """
    config = runs.load_config(run)
    config.data.dir = data_dir or config.data.dir
    names = {"fake": fake or config.data.test_fake, "real": real or config.data.test_real}
    sides = {
        side: pipeline.Examples((name,), "test", config.data.dir) for side, name in names.items()
    }
    if "mask" not in sides["fake"][0]:
        raise UserError(f"{names['fake']} has no masks to compare a localization map with")
    if sides["real"][0]["label"] != pipeline.REAL:
        raise UserError(f"{names['real']} holds fake images, where real ones are needed")
    parallel = Parallel(config.parallel.backend)
    parallel.check_batch(config.eval.batch, "eval.batch")
    method = methods.from_config(config)
    _, model, best = runs.load(run, AXIS)
    state = parallel.replicate(
        {"params": nnx.state(model, nnx.Param), "stats": nnx.state(model, nnx.BatchStat)}
    )
    step = parallel.map(make_localize_step(method, model))

    with tempfile.TemporaryDirectory(prefix="wsdl-jax-") as temporary:
        folder = Path(temporary)
        figures, examples = _predict(
            config, sides, step, state, parallel, folder / "predictions.csv"
        )
        results = {
            **figures,
            "test_fake": names["fake"],
            "test_real": names["real"],
            "fake_images": len(sides["fake"]),
            "real_images": len(sides["real"]),
            "checkpoint": best,
        }
        report.save_sheet(examples, epath.Path(folder) / "examples.png")
        table = report.text_table(results, title=f"{config.method}, setup {config.setup}")
        (folder / "results.txt").write_text(table, encoding="utf-8")
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")

        own = names == {"fake": config.data.test_fake, "real": config.data.test_real}
        beside = "+".join(name.replace("/", "-") for name in names.values())
        out = run if own else run / "evaluations" / beside
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            _place(path, out / path.name)
    log.info("%s\nwritten to %s", table, out)
    return results


def _predict(
    config: ml_collections.ConfigDict,
    sides: dict[str, pipeline.Examples],
    step: Step,
    state: State,
    parallel: Parallel,
    path: Path,
) -> tuple[dict[str, Any], list[report.Example]]:
    """Writes predictions.csv, image by image; returns the figures, × 100, and the examples."""
    means = metrics.Means(FIGURES)
    trivial = {name: metrics.Means(metrics.LOCALIZATION) for name in TRIVIAL}
    scores: dict[str, list[float]] = {side: [] for side in sides}
    probabilities: dict[str, list[float]] = {side: [] for side in sides}
    examples = []
    with path.open("w", encoding="utf-8") as file, ThreadPoolExecutor() as pool:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for side, source in sides.items():
            for row, trivial_figures, example in _measure_all(
                config, side, source, step, state, parallel, pool
            ):
                writer.writerow(row)
                scores[side].append(row["score"])
                probabilities[side].append(row["probability"])
                if side == "fake":
                    means.add({name: row[name] for name in FIGURES})
                for name, figures in trivial_figures.items():
                    trivial[name].add(figures)
                if example:
                    examples.append(example)
    detection = metrics.detection(
        np.array(scores["real"]),
        np.array(scores["fake"]),
        real_probabilities=np.array(probabilities["real"]),
        fake_probabilities=np.array(probabilities["fake"]),
    )
    figures = {
        **_percent(means.means()),
        "pixel_images": means.count("pixel_auc"),
        **_percent(detection),
        "trivial": {name: _percent(part.means()) for name, part in trivial.items()},
    }
    return figures, examples


def _measure_all(
    config: ml_collections.ConfigDict,
    side: str,
    source: pipeline.Examples,
    step: Step,
    state: State,
    parallel: Parallel,
    pool: ThreadPoolExecutor,
) -> Iterator[Measured]:
    """Every image of a side, in order. A batch is measured while the network works on the next."""
    shown = set(np.linspace(0, len(source) - 1, SHOWN[side]).astype(int).tolist())
    batches = pipeline.eval_batches(source, config, mask_size=None)
    total = -(-len(source) // config.eval.batch)
    pending: Iterator[Measured] = iter(())
    for batch in tqdm(batches, "evaluating", total, unit="batch", disable=None, leave=False):
        _, localized = step(state, parallel.shard({"image": batch["image"]}))
        yield from pending
        localized = parallel.gather(localized)
        if not all(np.isfinite(values).all() for values in localized):
            first = source[int(batch["index"][0])]["key"].decode()
            raise UserError(f"scores or maps are not finite in the batch that begins with {first}")
        rows = np.flatnonzero(batch["weight"])
        measure = functools.partial(_measure, source, side, shown, localized)
        pending = pool.map(measure, rows.tolist(), batch["index"][rows].tolist())
    yield from pending


def _measure(
    source: pipeline.Examples,
    side: str,
    shown: set[int],
    localized: methods.Localization,
    row: int,
    index: int,
) -> Measured:
    """Measures the image at `index` of its source, which is at `row` of its batch."""
    record = source[index]
    prediction = {
        "key": record["key"].decode(),
        "label": side,
        "score": float(localized.scores[row]),
        "probability": float(localized.probabilities[row]),
    }
    localization_map = localized.maps[row]
    mask, trivial, example = None, {}, None
    if side == "fake":
        mask = pipeline.full_mask(record)
        prediction |= metrics.localization(localization_map, mask)
        prediction["manipulated_share"] = float(mask.mean())
        maps = _trivial_maps(localization_map.shape, index)
        trivial = {name: metrics.localization(value, mask) for name, value in maps.items()}
    if index in shown:
        image = pipeline.full_image(record)
        # A copy of the map, or the whole batch would be kept.
        example = report.Example(prediction["key"], image, mask, localization_map.copy())
    return Measured(prediction, trivial, example)


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


def _place(source: Path, target: epath.Path) -> None:
    """Copies a file that is there as a whole or not at all."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        epath.Path(source).copy(partial, overwrite=True)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def main(_: list[str]) -> None:
    """The command."""
    jax.config.parse_flags_with_absl()
    run = epath.Path(_RUN.value)
    evaluate(run, fake=_FAKE.value, real=_REAL.value, data_dir=_DATA_DIR.value)


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "A run directory.", required=True)
    _FAKE = flags.DEFINE_string("fake", None, "A prepared subset with masks to test on.")
    _REAL = flags.DEFINE_string("real", None, "A prepared subset of real images to test on.")
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Prepared datasets; default: the run's.")
    command.run(main)
