"""A trained run × a dataset's test split → predictions and results.

python -m wsdl_jax.evaluate --run runs/patches-a-regrain_full
python -m wsdl_jax.evaluate --run RUN --fake dolos/celebahq_lama --real dolos/celebahq_real
"""

import csv
import json
import logging
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from flax import nnx
from tqdm import tqdm

from wsdl_jax import command, configuration, methods, metrics, pipeline, report, train
from wsdl_jax.checkpoint import Checkpoints
from wsdl_jax.errors import UserError
from wsdl_jax.parallel import AXIS, Parallel, Step

log = logging.getLogger("wsdl_jax")
LOCALIZATION = ("iou_lg", "iou_sm", "pbca_lg", "pbca_sm", "f1")
SHOWN_FAKE, SHOWN_REAL = 6, 2  # images on the sheet of examples


def make_localize_step(method: methods.Method, model: nnx.Module) -> Step:
    """The step of one device: (state, its images) → (None, Localization of them)."""
    graphdef, _, _, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def step(state: train.State, batch: methods.Batch):
        network = nnx.merge(graphdef, state["params"], state["stats"], rest)
        network.eval()
        return None, method.localize(network, batch["image"])

    return step


def load_run(run: epath.Path) -> ml_collections.ConfigDict:
    """The config of a run directory. Raises UserError if it is not one."""
    path = epath.Path(run) / "config.json"
    if not path.exists():
        raise UserError(f"{run} is not a run directory: it has no config.json")
    return configuration.load(path.read_text())


def evaluate(run: epath.Path, *, fake: str | None = None, real: str | None = None) -> dict:
    """Scores the best checkpoint of a run on the test splits of a fake and a real subset.

    Writes `results.json`, `results.txt`, `examples.png` and `predictions.csv` (a row an image) into
    the run directory, or, for other subsets than the config's, into `evaluations/FAKE+REAL/` in it.

    Args:
      run: a run directory.
      fake: a prepared subset with masks; the config's own by default.
      real: a prepared subset of real images; the config's own by default.

    Returns:
      What results.json has: fractions times 100, and counts.

    Raises:
      UserError: not a run, nothing trained yet, or a subset that is not there or has no masks.
    """
    config = load_run(run)
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
    model = methods.build(config, AXIS)

    checkpoints = Checkpoints(run, keep_best=config.train.keep_best)
    best = checkpoints.best()
    if best is None:
        raise UserError(f"{run} has no checkpoint yet")
    like = train.initial_state(model, train.make_optimizer(config.train))
    state = parallel.replicate(checkpoints.restore(best, like))
    checkpoints.close()
    step = parallel.map(make_localize_step(method, model))

    rows: list[dict[str, Any]] = []
    trivial: dict[str, list[dict[str, float]]] = {"all real": [], "all fake": [], "random": []}
    examples: list[report.Example] = []
    for side, source in sides.items():
        shown = SHOWN_FAKE if side == "fake" else SHOWN_REAL
        shown_indices = set(np.linspace(0, len(source) - 1, shown).astype(int).tolist())
        for index, score, localization_map in _localize(config, source, step, state, parallel):
            key = source[index]["key"].decode()
            row: dict[str, Any] = {"key": key, "label": side, "score": score}
            mask = None
            if side == "fake":
                mask = source.mask(index)
                row["manipulated_share"] = float(mask.mean())
                row.update(metrics.localization(localization_map, mask))
                for name, value in _trivial_maps(localization_map.shape, index).items():
                    trivial[name].append(metrics.localization(value, mask))
            rows.append(row)
            if index in shown_indices:
                examples.append(report.Example(key, source.image(index), mask, localization_map))

    fakes = [row for row in rows if row["label"] == "fake"]
    scores = {
        side: np.array([row["score"] for row in rows if row["label"] == side]) for side in sides
    }
    results = {
        **_percent(_mean(fakes)),
        **_percent(metrics.detection(scores["real"], scores["fake"])),
        "manipulated_share": 100 * float(np.mean([row["manipulated_share"] for row in fakes])),
        "trivial": {name: _percent(_mean(figures)) for name, figures in trivial.items()},
        "test_fake": names["fake"],
        "test_real": names["real"],
        "fake_images": len(fakes),
        "real_images": len(rows) - len(fakes),
        "checkpoint": best,
    }
    own = names == {"fake": config.data.test_fake, "real": config.data.test_real}
    folder = "+".join(name.replace("/", "-") for name in names.values())
    out = run if own else run / "evaluations" / folder
    out.mkdir(parents=True, exist_ok=True)
    with (out / "predictions.csv").open("w") as file:
        writer = csv.DictWriter(file, list(fakes[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    report.save_sheet(examples, out / "examples.png")
    table = report.text_table(results, title=f"{config.method}, setup {config.setup}")
    (out / "results.txt").write_text(table)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    log.info("%s\nwritten to %s", table, out)
    return results


def _localize(
    config: ml_collections.ConfigDict,
    source: pipeline.Examples,
    step: Step,
    state: train.State,
    parallel: Parallel,
):
    """Yields (index, score, map) of every image."""
    batches = pipeline.eval_batches(source, config, mask_size=None)
    total = -(-len(source) // config.eval.batch)
    for batch in tqdm(batches, "evaluating", total, unit="batch", disable=None, leave=False):
        _, localized = step(state, parallel.shard({"image": batch["image"]}))
        scores, maps = parallel.gather(localized)
        if not (np.isfinite(scores).all() and np.isfinite(maps).all()):
            first = source[int(batch["index"][0])]["key"].decode()
            raise UserError(f"scores or maps are not finite in the batch that begins with {first}")
        for row in np.flatnonzero(batch["weight"]):
            yield int(batch["index"][row]), float(scores[row]), maps[row]


def _trivial_maps(shape: tuple[int, int], index: int) -> dict[str, np.ndarray]:
    """Maps that know nothing of the image: what a learned one has to beat."""
    return {
        "all real": np.zeros(shape, np.float32),
        "all fake": np.ones(shape, np.float32),
        "random": np.random.default_rng(index).random(shape, np.float32),
    }


def _mean(figures: list[dict[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean([f[name] for f in figures])) for name in LOCALIZATION}


def _percent(figures: dict[str, float]) -> dict[str, float]:
    return {name: 100 * value for name, value in figures.items()}


def main(_: list[str]) -> None:
    """The command."""
    jax.config.parse_flags_with_absl()
    evaluate(epath.Path(_RUN.value), fake=_FAKE.value, real=_REAL.value)


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "A run directory.", required=True)
    _FAKE = flags.DEFINE_string("fake", None, "A prepared subset with masks to test on.")
    _REAL = flags.DEFINE_string("real", None, "A prepared subset of real images to test on.")
    command.run(main)
