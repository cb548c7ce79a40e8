"""Runs and their results → one folder with a page for people, which needs no server and no network.

python -m wsdl_jax.report runs/patches-a-portraits-ddpm_full
python -m wsdl_jax.report RUN1 RUN2 RUN3 --out compared --gallery 90
"""

import contextlib
import csv
import importlib.resources
import io
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jinja2
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Float
from markupsafe import Markup
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_curve

from wsdl_data import provenance
from wsdl_jax import configuration, evaluate, inputs, runs
from wsdl_jax.evaluation import metrics, summary
from wsdl_jax.evaluation import results as results_of
from wsdl_jax.inputs import perturbations
from wsdl_jax.reporting import plots
from wsdl_jax.runtime import command, storage
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.storage import is_remote

log = logging.getLogger("wsdl_jax")
GALLERY = 60  # test images shown, by default
DETECTION = ("ap", "auc", "balanced_accuracy")
_ALIKE = 0.05  # scores differ by less, of one image on two kinds of device
_LONGEST = 384  # pixels of a side of a picture
_BINS = 30  # of a histogram of scores
_SIZES = 8  # groups of fake images by the size of their mask, of equal numbers
_MADE_BY = "report"  # in the manifest of the folder: the next report may replace it


class Prediction(NamedTuple):
    """What is known of a test image: a row of predictions.csv.

    Attributes:
      place: in its side's test split.
      key: its name.
      score: of the run.
      share: of its pixels that are manipulated, in [0, 1]; None without a mask.
      iou: `iou_lg` of its map, in [0, 1]; None without a mask.
    """

    place: int
    key: str
    score: float
    share: float | None
    iou: float | None


class Run(NamedTuple):
    """A run directory, read.

    Attributes:
      name: that tells it from the others.
      path: of the directory.
      config: the run's.
      losses: (step, training loss) and (step, validation loss), as logged.
      results: what evaluations have written, the run's own first, then those of other subsets.
      robustness: what evaluations on perturbed images have written.
      predictions: on the run's own test subsets, of sides "fake" and "real".
    """

    name: str
    path: epath.Path
    config: ml_collections.ConfigDict
    losses: dict[str, list[tuple[int, float]]]
    results: list[dict[str, Any]]
    robustness: list[dict[str, Any]]
    predictions: dict[str, list[Prediction]]


class Shown(NamedTuple):
    """What the gallery shows of one run on one image: file names, and figures."""

    run: int
    map: str
    overlay: str
    score: float
    iou: float | None


class Card(NamedTuple):
    """One image of the gallery, with what each run says of it."""

    key: str
    side: str
    subset: str
    image: str
    mask: str | None
    share: float | None
    shown: list[Shown]


# ---------------------------------------------------------------------------------------------
# What runs have written


def read(paths: Sequence[epath.Path]) -> list[Run]:
    """Run directories, each evaluated at least once.

    Raises UserError: not a run, not evaluated, or a file that cannot be read.
    """
    out, read_now = [], []
    for path, name in zip(paths, _names(paths), strict=True):
        config = runs.load_config(path)
        if not (path / results_of.FILE).exists():
            raise UserError(
                f"{path} has no results.json: run python -m wsdl_jax.evaluate --run {path}"
            )
        beside = path / "evaluations"
        folders = [path, *(sorted(beside.iterdir()) if beside.exists() else ())]
        found = [f / results_of.FILE for f in folders]
        results = [results_of.read(file) for file in found if file.exists()]
        robustness = [
            results_of.read(file)
            for folder in folders
            for kind in perturbations.KINDS
            if (file := folder / f"robustness-{kind}.json").exists()
        ]
        for found in (*results, *robustness):
            if results_of.network(found) != results_of.network(results[0]):
                subsets = f"--fake {found['test_fake']} --real {found['test_real']}"
                kind = f" --perturb {found['perturbation']}" if "perturbation" in found else ""
                raise UserError(
                    f"{path} has results of steps {results[0]['checkpoint']} and "
                    f"{found['checkpoint']}: run python -m wsdl_jax.evaluate --run {path} "
                    f"{subsets}{kind} again"
                )
        predictions = _predictions(path / "predictions.csv")
        counts = {side: len(rows) for side, rows in predictions.items()}
        digest = provenance.digest_of_file(path / "predictions.csv")
        if (
            counts != {side: results[0][f"{side}_images"] for side in counts}
            or digest != results[0]["predictions"]
        ):
            raise UserError(f"{path / 'predictions.csv'} is not of results.json: evaluate it again")
        read_now += ((path, figures) for figures in (*results, *robustness))
        losses = _losses(path / "metrics.jsonl")
        out.append(Run(name, path, config, losses, results, robustness, predictions))
    results_of.check_same_data(read_now)
    return out


def _names(paths: Sequence[epath.Path]) -> list[str]:
    """The last parts of paths, as many as tell them from one another."""
    if len({str(path) for path in paths}) < len(paths):
        raise UserError("a run is given twice")
    paths = [path if is_remote(path) else path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _predictions(path: epath.Path) -> dict[str, list[Prediction]]:
    out: dict[str, list[Prediction]] = {"fake": [], "real": []}
    try:
        text = io.StringIO(path.read_bytes().decode(), newline="")
        for row in csv.DictReader(text):
            side = out[row["label"]]
            share, iou = (
                float(row[name]) if row[name] else None for name in ("manipulated_share", "iou_lg")
            )
            side.append(Prediction(len(side), row["key"], float(row["score"]), share, iou))
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: evaluate the run again") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error!r}): evaluate the run again") from error
    return out


def _losses(path: epath.Path) -> dict[str, list[tuple[int, float]]]:
    """Without entries for a run that was not trained here."""
    out: dict[str, list[tuple[int, float]]] = {"loss": [], "valid_loss": []}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            step = int(entry["step"])
            found = {name: float(entry[name]) for name in out if name in entry}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue  # half a line, of a process that was killed
        for name, value in found.items():
            out[name].append((step, value))
    return out


# ---------------------------------------------------------------------------------------------
# Tables


def tables(all_runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One for each pair of test subsets: figures of every run that was tested on it.

    A table has `title`, `head`, and `rows` of (name, colour or None, cells). The trivial maps are
    scored at each run's own map size: where runs differ, the cell has the least and the largest.
    """
    out = []
    tested: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    for number, run in enumerate(all_runs):
        for results in run.results:
            names = results["test_fake"], results["test_real"]
            tested.setdefault(names, []).append((number, results))
    none = ("–", False)
    for (fake, real), entries in tested.items():
        found = [results for _, results in entries]
        rows = [
            (all_runs[number].name, number, _cells(results, found)) for number, results in entries
        ]
        for name in evaluate.TRIVIAL:
            cells = [
                (_range([results["trivial"][name][figure] for results in found]), False)
                for figure in metrics.LOCALIZATION
            ]
            rows.append((name, None, [*cells, *[none] * (len(DETECTION) + 2)]))
        chance = [("50.0", False)] * len(DETECTION)
        rows.append(("guessing", None, [*[none] * len(metrics.LOCALIZATION), *chance, none, none]))
        title = (
            f"{found[0]['fake_images']} images of {fake} ({summary.masks(found[0])}) and "
            f"{found[0]['real_images']} of {real}"
        )
        head = (*metrics.LOCALIZATION, *DETECTION, "called fake", "best iou_lg")
        out.append({"title": title, "head": head, "rows": rows})
    return out


def _cells(results: dict[str, Any], found: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """The texts of a run's row, each with whether it is the best of several runs."""
    cells = []
    for name in (*metrics.LOCALIZATION, *DETECTION):
        text = summary.figure(results[name])
        if name == "ap":
            text += f" ± {results['ap_2sd']:.1f}"
        known = [other[name] for other in found if other[name] is not None]
        cells.append((text, len(known) > 1 and results[name] == max(known)))
    above = (summary.figure(results[f"{side}_above"]) for side in ("fake", "real"))
    cells.append((" / ".join(above), False))
    if results["iou_lg"] is None:  # no masks
        return [*cells, ("–", False)]
    at = max(results["iou_by_threshold"], key=lambda point: point["iou_lg"])
    return [*cells, (f"{at['iou_lg']:.1f} at {at['threshold']:.2f}", False)]


def _range(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    low, high = summary.figure(min(known)), summary.figure(max(known))
    return low if low == high else f"{low}–{high}"


def settings(all_runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Fields of the configs with their values: all of one run, of several those that differ."""
    essences = [dict(configuration.essence(run.config)) for run in all_runs]
    rows = []
    for field in essences[0]:
        values = [_plain(essence[field]) for essence in essences]
        if len(values) == 1 or len(set(values)) > 1:
            rows.append((field, values))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------
# Curves

_REAL, _FAKE, _BASELINE = 2, 1, 7  # colours
_PERCENT = (0.0, 100.0)


def curves(all_runs: Sequence[Run]) -> list[tuple[str, list[Markup]]]:
    """Headings, each with its plots; those without data are left out."""
    sections = (
        ("Detection", _detection_plots(all_runs)),
        ("Localization", _localization_plots(all_runs)),
        ("Robustness", _robustness_plots(all_runs)),
        ("Training", _training_plots(all_runs)),
    )
    return [(heading, drawn) for heading, drawn in sections if drawn]


def _training_plots(all_runs: Sequence[Run]) -> list[Markup]:
    out = []
    for name, title in (("loss", "Training loss"), ("valid_loss", "Validation loss")):
        series = [
            plots.Series(run.name, *zip(*run.losses[name], strict=True), colour=number)
            for number, run in enumerate(all_runs)
            if any(math.isfinite(loss) for _, loss in run.losses[name])
        ]
        if series:
            out.append(plots.plot(series, title=title, x_label="step", y_label="loss"))
    return out


def precision_recall(
    predictions: dict[str, list[Prediction]],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], float]:
    """Recalls in rising order, their precisions, and average precision, over all test images."""
    scores = [row.score for side in ("real", "fake") for row in predictions[side]]
    labels = np.repeat([0, 1], [len(predictions["real"]), len(predictions["fake"])])
    precision, recall, _ = precision_recall_curve(labels, scores, drop_intermediate=True)
    return recall[::-1], precision[::-1], float(average_precision_score(labels, scores))


def _detection_plots(all_runs: Sequence[Run]) -> list[Markup]:
    series = []
    for number, run in enumerate(all_runs):
        recall, precision, ap = precision_recall(run.predictions)
        name = f"{run.name}, AP {100 * ap:.1f}"
        series.append(plots.Series(name, 100 * recall, 100 * precision, number))
    for share in sorted({_share_of_fakes(run) for run in all_runs}):
        name = f"guessing, {share:.1f}"
        series.append(plots.Series(name, (0, 100), (share, share), _BASELINE, "dashed"))
    out = [
        plots.plot(
            series,
            title="Precision and recall, all test images",
            x_label="recall, %",
            y_label="precision, %",
            x_range=_PERCENT,
            y_range=_PERCENT,
        )
    ]
    for run in all_runs:
        sides = {
            side: np.array([row.score for row in run.predictions[side]])
            for side in ("real", "fake")
        }
        edges = np.histogram_bin_edges(np.concatenate(list(sides.values())), _BINS)
        series = [
            plots.Series(side, edges, 100 * np.histogram(values, edges)[0] / len(values), c, "bars")
            for (side, values), c in zip(sides.items(), (_REAL, _FAKE), strict=True)
        ]
        title = f"Scores: {run.name}"
        out.append(plots.plot(series, title=title, x_label="score", y_label="images of a side, %"))
    return out


def _share_of_fakes(run: Run) -> float:
    counts = {side: len(rows) for side, rows in run.predictions.items()}
    return 100 * counts["fake"] / sum(counts.values())


def iou_by_size(
    predictions: Sequence[Prediction],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Images with masks, in groups of equal numbers by their size: mean share, mean IoU."""
    pairs = np.array(sorted((row.share, row.iou) for row in predictions))
    groups = np.array_split(pairs, min(_SIZES, len(pairs)))
    shares, ious = np.array([group.mean(0) for group in groups]).T
    return shares, ious


def _localization_plots(all_runs: Sequence[Run]) -> list[Markup]:
    by_size, by_threshold, trivial = [], [], []
    with_masks = [
        (number, run) for number, run in enumerate(all_runs) if run.results[0]["iou_lg"] is not None
    ]
    if not with_masks:
        return []
    for number, run in with_masks:
        shares, ious = iou_by_size(run.predictions["fake"])
        by_size.append(plots.Series(run.name, 100 * shares, 100 * ious, number, "dots"))
        # The map that calls everything manipulated has as IoU the share that is.
        trivial.append(plots.Series("all fake", 100 * shares, 100 * shares, _BASELINE, "dashed"))
        points = run.results[0]["iou_by_threshold"]
        thresholds, at = zip(*((p["threshold"], p["iou_lg"]) for p in points), strict=True)
        by_threshold.append(plots.Series(run.name, thresholds, at, number, "dots"))
    share = with_masks[0][1].results[0]["manipulated_share"]
    alike = len({run.results[0]["manipulated_share"] for _, run in with_masks}) == 1
    baseline = [plots.Series("all fake", (0, 1), (share, share), _BASELINE, "dashed")]
    return [
        plots.plot(
            [*by_size, *trivial[:1]],
            title="IoU against the size of the mask",
            x_label="manipulated, % of the image",
            y_label="iou_lg",
            y_range=_PERCENT,
        ),
        plots.plot(
            [*by_threshold, *(baseline if alike else [])],
            title="IoU against the threshold",
            x_label="a pixel is called manipulated above",
            y_label="iou_lg",
            x_range=(0.0, 1.0),
            y_range=_PERCENT,
        ),
    ]


def _robustness_plots(all_runs: Sequence[Run]) -> list[Markup]:
    groups: dict[tuple[str, str, str], list[tuple[int, dict[str, Any]]]] = {}
    for number, run in enumerate(all_runs):
        for found in run.robustness:
            key = found["perturbation"], found["test_fake"], found["test_real"]
            groups.setdefault(key, []).append((number, found))
    several = len({(fake, real) for _, fake, real in groups}) > 1
    out = []
    for (kind, fake, real), entries in groups.items():
        identity = perturbations.KINDS[kind].identity
        for figure in ("iou_lg", "ap"):
            series = []
            for number, found in entries:
                if found["clean"][figure] is None:  # no masks
                    continue
                name, clean = all_runs[number].name, found["clean"][figure]
                points = [(point["strength"], point[figure]) for point in found["points"]]
                if identity is not None:
                    points.append((identity, clean))
                x, y = zip(*sorted(points), strict=True)
                series.append(plots.Series(name, x, y, number, "dots"))
                if identity is None:
                    ends = (x[0], x[-1])
                    series.append(
                        plots.Series(f"{name}, clean", ends, (clean,) * 2, number, "dashed")
                    )
            if not series:
                continue
            out.append(
                plots.plot(
                    series,
                    title=f"{figure} after {kind}" + (f": {fake}, {real}" if several else ""),
                    x_label=f"{kind}: {perturbations.KINDS[kind].unit}",
                    y_label=figure,
                    y_range=_PERCENT,
                )
            )
    return out


# ---------------------------------------------------------------------------------------------
# Gallery


def chosen(predictions: dict[str, list[Prediction]], count: int) -> dict[str, list[int]]:
    """Places of about `count` images of a run: of each side the best, the worst and evenly spaced.

    Two thirds are fake, by IoU, or by score where they have no masks; the worst real ones are those
    of the highest scores.
    """
    fakes = sorted(predictions["fake"], key=lambda row: row.score if row.iou is None else row.iou)
    reals = sorted(predictions["real"], key=lambda row: -row.score)
    out = {}
    for side, rows, wanted in (
        ("fake", fakes, -(-2 * count // 3)),
        ("real", reals, count // 3),
    ):
        ends = wanted // 3
        evenly = np.linspace(0, len(rows) - 1, wanted - 2 * ends).astype(int)
        every = [row.place for row in (*rows[:ends], *rows[len(rows) - ends :])]
        out[side] = sorted({*every, *(predictions[side][k].place for k in evenly.tolist())})
    return out


def gallery(all_runs: Sequence[Run], count: int, data_dir: str | None, folder: Path) -> list[Card]:
    """Writes pictures into a folder and returns what belongs to them.

    The maps are computed anew, by the checkpoint that was evaluated. Runs with common test subsets
    are shown on the same images, those that any of them has chosen.

    Raises UserError: the test images are not there, or not those that were evaluated.
    """
    wanted: dict[tuple[str, str], set[int]] = {}
    for run in all_runs:
        for side, places in chosen(run.predictions, -(-count // len(all_runs))).items():
            wanted.setdefault((side, run.results[0][f"test_{side}"]), set()).update(places)
    cards: dict[tuple[str, str, int], Card] = {}
    for number, run in enumerate(all_runs):
        test = evaluate.load(run.path, data_dir=data_dir)
        if (test.checkpoint, test.weights) != results_of.network(run.results[0]):
            raise UserError(
                f"{run.path} was evaluated at step {run.results[0]['checkpoint']}, and is best at "
                f"step {test.checkpoint} now: evaluate it again"
            )
        log.info("maps of %s", run.name)
        for side, rows in run.predictions.items():
            subset, examples = test.names[side], test.sides[side]
            differs = f"{subset} is not what {run.path} was evaluated on (is --data_dir right?)"
            if len(examples) != len(rows):
                raise UserError(f"{differs}: {len(examples)} images, not {len(rows)}")
            places = sorted(wanted[side, subset])
            for place, score, values in _maps(test, side, places) if places else ():
                row, record = rows[place], examples[place]
                if record["key"].decode() != row.key:
                    raise UserError(f"{differs}: {record['key'].decode()}, not {row.key}")
                if not math.isclose(score, row.score, rel_tol=_ALIKE, abs_tol=_ALIKE):
                    raise UserError(
                        f"{differs}: {row.key} has score {score:.3f}, not {row.score:.3f}"
                    )
                if (side, subset, place) not in cards:
                    cards[side, subset, place] = _card(row, record, side, subset, folder)
                cards[side, subset, place].shown.append(
                    _shown(cards[side, subset, place].image, values, number, row, folder)
                )
    return list(cards.values())


def _maps(
    test: evaluate.Test, side: str, places: list[int]
) -> Iterator[tuple[int, float, Float[np.ndarray, "h w"]]]:
    """Place, score and localization map of some images of a side, in order."""
    batches = evaluate.localized(test, test.sides[side], f"maps, {side}", places=places)
    with contextlib.closing(batches):
        for batch, localized in batches:
            for row in np.flatnonzero(batch["weight"]):
                yield int(batch["index"][row]), float(localized.scores[row]), localized.maps[row]


def _card(row: Prediction, record: dict[str, Any], side: str, subset: str, folder: Path) -> Card:
    stem = f"{subset.replace('/', '-')}-{side}-{row.place:06d}"
    image = Image.fromarray(inputs.full_image(record))
    image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    image.save(folder / f"{stem}.jpg", quality=90, subsampling=0)
    mask = None
    if "mask" in record and side == "fake":
        mask = f"{stem}.mask.png"
        pixels = metrics.resize_mask(inputs.full_mask(record), *image.size[::-1])
        Image.fromarray(pixels * np.uint8(255)).convert("1").save(folder / mask, optimize=True)
    return Card(row.key, side, subset, f"{stem}.jpg", mask, row.share, [])


def _shown(
    image_name: str,
    values: Float[np.ndarray, "h w"],
    number: int,
    row: Prediction,
    folder: Path,
) -> Shown:
    with Image.open(folder / image_name) as image:
        width, height = image.size
        large = metrics.resize_map(values, height, width).clip(0, 1)
        grey = Image.fromarray((255 * large).round().astype(np.uint8))
        stem = f"{Path(image_name).stem}.{number}"
        summary.heat(grey).save(folder / f"{stem}.png", optimize=True)
        summary.overlay(image, grey).save(folder / f"{stem}.jpg", quality=90, subsampling=0)
    return Shown(number, f"{stem}.png", f"{stem}.jpg", row.score, row.iou)


# ---------------------------------------------------------------------------------------------
# The page


def report(
    paths: Sequence[epath.Path],
    out: epath.Path,
    *,
    count: int = GALLERY,
    data_dir: str | None = None,
) -> None:
    """Writes a folder with `index.html` and the pictures that it shows; an earlier one is replaced.

    Args:
      paths: of run directories, each evaluated.
      out: the folder.
      count: how many test images the gallery has, about; without any, no data is read.
      data_dir: the prepared datasets; where the runs were trained on them by default.

    Raises:
      UserError: what cannot be read, or a folder with anything else in it than an earlier report,
        as it was written.
    """
    storage.check_folder(out, replaces=_MADE_BY)
    all_runs = read(paths)
    with storage.whole_folder(out, replaces=_MADE_BY) as made:
        folder = Path(made)
        cards = gallery(all_runs, count, data_dir, _pictures(folder)) if count else []
        (folder / "index.html").write_text(_page(all_runs, cards), encoding="utf-8")
    log.info("written to %s", out / "index.html")


def _pictures(folder: Path) -> Path:
    (folder / "images").mkdir()
    return folder / "images"


def _page(all_runs: Sequence[Run], cards: Sequence[Card]) -> str:
    source = importlib.resources.files("wsdl_jax").joinpath("report.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    scale = summary.colour(np.linspace(0, 1, 9)[None])[0].tolist()
    return environment.from_string(source).render(
        runs=all_runs,
        tables=tables(all_runs),
        curves=curves(all_runs),
        settings=settings(all_runs),
        cards=cards,
        scale=", ".join(f"rgb({r} {g} {b})" for r, g, b in scale),
        colours=plots.COLOURS,
    )


def main(argv: list[str]) -> None:
    """The command."""
    jax.config.parse_flags_with_absl()
    paths = [epath.Path(path) for path in argv[1:]]
    if _OUT.value is None and len(paths) > 1:
        raise ConfigError("--out is missing: where the report of several runs goes")
    out = paths[0] / "report" if _OUT.value is None else epath.Path(_OUT.value)
    report(paths, out, count=_GALLERY.value, data_dir=_DATA_DIR.value)


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", None, "The folder; default: RUN/report, of a single run.")
    _GALLERY = flags.DEFINE_integer(
        "gallery", GALLERY, "About how many test images are shown.", lower_bound=0
    )
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Prepared datasets; default: the runs'.")
    command.run(main, operands=("RUN…",))
