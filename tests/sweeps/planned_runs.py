"""Runs of the shipped sweeps, and what they leave when they are done."""

import json
from typing import Any

import numpy as np
from etils import epath

from wsdl_jax import configuration, runs
from wsdl_jax.evaluation import metrics, results
from wsdl_jax.sweeps import plan
from wsdl_jax.sweeps.run import Run

WORKDIR = epath.Path("w")


def read(name: str, overrides=(), workdir: epath.Path = WORKDIR) -> list[Run]:
    return plan.read(f"configs/sweeps/{name}", workdir, overrides)


def two(overrides=(), workdir: epath.Path = WORKDIR) -> list[Run]:
    """Two runs, each tested on six subsets."""
    return read("cross_generator.py", overrides, workdir)[:2]


STATE = {"x": np.zeros(3, np.float32)}


def save(run: Run, step: int, loss: float = 1.0) -> None:
    """Adds a checkpoint to a run."""
    checkpoints = runs.Checkpoints(run.folder, keep_best=run.config.train.keep_best)
    checkpoints.newest(STATE)
    checkpoints.save(step, {"x": STATE["x"] + step}, loss)
    checkpoints.close()


def figures(run: Run, fake: str, step: int) -> dict[str, Any]:
    """Results of a checkpoint, of which all figures are 1."""
    numbers = (*metrics.LOCALIZATION, "manipulated_share", "threshold", "real_above", "fake_above")
    return {
        **dict.fromkeys((*numbers, *results.DETECTION), 1.0),
        **{"pixel_images": 1, "fake_images": 1, "real_images": 1, "trivial": {}},
        **{"test_fake": fake, "test_real": run.config.data.test_real, "predictions": ""},
        "iou_by_threshold": [{"threshold": 0.5, "iou_lg": 1.0}] * len(metrics.SHOWN_THRESHOLDS),
        "checkpoint": step,
        "weights": runs.Checkpoints(run.folder, keep_best=1).checksum(step),
        "data": {"fake": "", "real": ""},
    }


def finish(run: Run, *, step: int | None = None) -> None:
    """Writes what a finished run leaves."""
    train = run.config.train
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text(configuration.save(run.config))
    last = train.epochs * train.steps_per_epoch if step is None else step
    save(run, last)
    for fake in run.tested:
        real = run.config.data.test_real
        files = runs.RunDirectory(run.folder).evaluation(run.config, fake=fake, real=real)
        files.path.mkdir(parents=True, exist_ok=True)
        files.results.write_text(json.dumps(figures(run, fake, last)))
