"""What runs and their evaluations have written, read and checked for a report."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
from etils import epath

from wsdl_data import provenance
from wsdl_jax import runs
from wsdl_jax.evaluation import results as results_of
from wsdl_jax.inputs import perturbations
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.storage import is_remote


class ScoredImage(NamedTuple):
    """What is known of a test image: a row of predictions.csv.

    Attributes:
      place: its index in its side's test split.
      key: its name.
      score: of the run.
      share: how much of the image is manipulated, in [0, 1]; None without a mask.
      iou: `iou_lg` of its map, in [0, 1]; None without a mask.
    """

    place: int
    key: str
    score: float
    share: float | None
    iou: float | None


class EvaluatedRun(NamedTuple):
    """A run directory, read.

    Attributes:
      name: that tells it from the others.
      path: of the directory.
      config: the run's.
      losses: (step, loss) as logged, in training ("loss") and in validation ("valid_loss").
      results: what evaluations have written, the run's own first, then those of other subsets.
      predictions: the tables of images that these results are of.
      robustness: what evaluations on perturbed images have written, of one kind each.
      everyday: what evaluations after everyday perturbations have written.
      images: of the run's own test subsets, of sides "fake" and "real".
    """

    name: str
    path: epath.Path
    config: ml_collections.ConfigDict
    losses: dict[str, list[tuple[int, float]]]
    results: list[dict[str, Any]]
    predictions: list[epath.Path]
    robustness: list[dict[str, Any]]
    everyday: list[dict[str, Any]]
    images: dict[str, list[ScoredImage]]


def read(paths: Sequence[epath.Path]) -> list[EvaluatedRun]:
    """Reads run directories, each evaluated at least once.

    Raises UserError: not a run, not evaluated, a file that cannot be read, or results that are not
    of one network or not of the same test images.
    """
    evaluated = [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    results_of.check_same_data(
        (run.path, results)
        for run in evaluated
        for results in (*run.results, *run.robustness, *run.everyday)
    )
    return evaluated


def _names(paths: Sequence[epath.Path]) -> list[str]:
    """Returns the last parts of paths, as many as tell them from one another."""
    if len({str(path) for path in paths}) < len(paths):
        raise UserError("a run is given twice")
    paths = [path if is_remote(path) else path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _read_run(path: epath.Path, name: str) -> EvaluatedRun:
    config = runs.load_config(path)
    directory = runs.RunDirectory(path)
    if not directory.results.exists():
        raise UserError(
            f"{path} has no {directory.results.name}: run python -m wsdl_jax.evaluate --run {path}"
        )
    folders = directory.evaluations()
    evaluated = [folder for folder in folders if folder.results.exists()]
    results = [results_of.read(folder.results) for folder in evaluated]
    predictions = [folder.predictions for folder in evaluated]
    files = [folder.robustness(kind) for folder in folders for kind in perturbations.KINDS]
    robustness = [results_of.read_robustness(file) for file in files if file.exists()]
    files = [folder.everyday for folder in folders]
    everyday = [results_of.read_everyday(file) for file in files if file.exists()]
    for other in (*results, *robustness, *everyday):
        if results_of.network(other) != results_of.network(results[0]):
            subsets = f"--fake {other['test_fake']} --real {other['test_real']}"
            kind = f" --perturb {other['perturbation']}" if "perturbation" in other else ""
            raise UserError(
                f"{path} has results of steps {results[0]['checkpoint']} and "
                f"{other['checkpoint']}: run python -m wsdl_jax.evaluate --run {path} "
                f"{subsets}{kind} again"
            )
    images = _read_images(directory.predictions)
    counts = {side: len(rows) for side, rows in images.items()}
    digest = provenance.digest_of_file(directory.predictions)
    if (
        counts != {side: results[0][f"{side}_images"] for side in counts}
        or digest != results[0]["predictions"]
    ):
        raise UserError(
            f"{directory.predictions} is not of {directory.results.name}: evaluate it again"
        )
    losses = _read_losses(directory.metrics)
    return EvaluatedRun(
        name, path, config, losses, results, predictions, robustness, everyday, images
    )


def _read_images(path: epath.Path) -> dict[str, list[ScoredImage]]:
    """Returns the rows of a predictions.csv, of sides "fake" and "real"."""
    images: dict[str, list[ScoredImage]] = {"fake": [], "real": []}
    try:
        text = io.StringIO(path.read_bytes().decode(), newline="")
        for row in csv.DictReader(text):
            side = images[row["label"]]
            share, iou = (
                float(row[name]) if row[name] else None for name in ("manipulated_share", "iou_lg")
            )
            side.append(ScoredImage(len(side), row["key"], float(row["score"]), share, iou))
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: evaluate the run again") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error!r}): evaluate the run again") from error
    return images


def _read_losses(path: epath.Path) -> dict[str, list[tuple[int, float]]]:
    """Returns (step, loss) as logged; nothing of a run that was not trained here."""
    losses: dict[str, list[tuple[int, float]]] = {"loss": [], "valid_loss": []}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            step = int(entry["step"])
            found = {name: float(entry[name]) for name in losses if name in entry}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue  # half a line, of a process that was killed
        for name, value in found.items():
            losses[name].append((step, value))
    return losses
