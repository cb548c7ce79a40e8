"""The gallery: pictures of test images, their masks, and the maps of each run."""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from wsdl_jax import evaluation, inputs, runs
from wsdl_jax.evaluation import metrics, rendering
from wsdl_jax.evaluation import results as results_of
from wsdl_jax.reporting.evaluated_runs import EvaluatedRun, ScoredImage
from wsdl_jax.runtime.errors import UserError

log = logging.getLogger("wsdl_jax")
_TOLERANCE = 0.05  # scores differ by less, of one image on two kinds of device
_LONGEST = 384  # pixels of a side of a picture


class Shown(NamedTuple):
    """What the gallery shows of one run on one image.

    Attributes:
      run: its number.
      map: name of the picture of the localization map.
      overlay: name of the picture of the map over the image.
      score: of the run.
      iou: `iou_lg` of the map, in [0, 1]; None without a mask.
    """

    run: int
    map: str
    overlay: str
    score: float
    iou: float | None


class Card(NamedTuple):
    """One test image of the gallery, with what each run says of it.

    Attributes:
      key: the image's name.
      side: "fake" or "real".
      subset: that the image is of.
      image: name of its picture.
      mask: name of the picture of its true mask, if it has one.
      share: how much of the image is manipulated, in [0, 1]; None without a mask.
      shown: what each run says.
    """

    key: str
    side: str
    subset: str
    image: str
    mask: str | None
    share: float | None
    shown: list[Shown]


def chosen(images: dict[str, list[ScoredImage]], count: int) -> dict[str, list[int]]:
    """Returns places of about `count` images of a run, by side: best, worst and evenly spaced ones.

    Two thirds are fake, by IoU, or by score where they have no masks; the worst real ones are those
    of the highest scores.
    """
    fakes = sorted(images["fake"], key=lambda row: row.score if row.iou is None else row.iou)
    reals = sorted(images["real"], key=lambda row: -row.score)
    places = {}
    for side, ranked, wanted in (
        ("fake", fakes, -(-2 * count // 3)),
        ("real", reals, count // 3),
    ):
        ends = wanted // 3
        evenly = np.linspace(0, len(ranked) - 1, wanted - 2 * ends).astype(int)
        extreme = [row.place for row in (*ranked[:ends], *ranked[len(ranked) - ends :])]
        places[side] = sorted({*extreme, *(images[side][k].place for k in evenly.tolist())})
    return places


def gallery(
    all_runs: Sequence[EvaluatedRun], count: int, data_dir: str | None, folder: Path
) -> list[Card]:
    """Writes the pictures of the gallery and returns its cards.

    The maps are computed anew, by the checkpoint that was evaluated. Runs with common test subsets
    are shown on the same images, those that are chosen for any of them.

    Args:
      all_runs: the runs.
      count: of test images, about, over all runs.
      data_dir: the prepared datasets; where the runs were trained on them by default.
      folder: for the pictures.

    Raises:
      UserError: the test images are not there, or not those that were evaluated.
    """
    wanted: dict[tuple[str, str], set[int]] = {}
    for run in all_runs:
        for side, places in chosen(run.images, -(-count // len(all_runs))).items():
            wanted.setdefault((side, run.results[0][f"test_{side}"]), set()).update(places)
    cards: dict[tuple[str, str, int], Card] = {}
    for number, run in enumerate(all_runs):
        test = evaluation.load(run.path, data_dir=data_dir)
        if (test.checkpoint, test.weights) != results_of.network(run.results[0]):
            raise UserError(
                f"{run.path} was evaluated at step {run.results[0]['checkpoint']}, and is best at "
                f"step {test.checkpoint} now: evaluate it again"
            )
        log.info("maps of %s", run.name)
        for side, rows in run.images.items():
            subset, examples = test.names[side], test.sides[side]
            differs = f"{subset} is not what {run.path} was evaluated on (is --data_dir right?)"
            if len(examples) != len(rows):
                raise UserError(f"{differs}: {len(examples)} images, not {len(rows)}")
            places = sorted(wanted[side, subset])
            for place, score, values in _maps(test, side, places) if places else ():
                row, record = rows[place], examples[place]
                if record["key"].decode() != row.key:
                    raise UserError(f"{differs}: {record['key'].decode()}, not {row.key}")
                if not math.isclose(score, row.score, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
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
    test: evaluation.TestedRun, side: str, places: list[int]
) -> Iterator[tuple[int, float, Float[np.ndarray, "h w"]]]:
    """Yields place, score and localization map of some images of a side, in order."""
    batches = evaluation.localized(test, test.sides[side], f"maps, {side}", places=places)
    with contextlib.closing(batches):
        for batch, localized in batches:
            for row in np.flatnonzero(batch["weight"]):
                yield int(batch["index"][row]), float(localized.scores[row]), localized.maps[row]


def _card(row: ScoredImage, record: dict[str, Any], side: str, subset: str, folder: Path) -> Card:
    """Writes the pictures of an image and its mask, and returns its card, without any run yet."""
    stem = f"{runs.subsets_stem(subset)}-{side}-{row.place:06d}"
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
    row: ScoredImage,
    folder: Path,
) -> Shown:
    """Writes the pictures of a run's map of an image, in the size of the image's picture.

    Args:
      image_name: of the image's picture.
      values: the map, in [0, 1].
      number: of the run.
      row: what the run says of the image.
      folder: for the pictures.
    """
    with Image.open(folder / image_name) as image:
        width, height = image.size
        large = metrics.resize_map(values, height, width).clip(0, 1)
        grey = Image.fromarray((255 * large).round().astype(np.uint8))
        stem = f"{Path(image_name).stem}.{number}"
        rendering.heat(grey).save(folder / f"{stem}.png", optimize=True)
        rendering.overlay(image, grey).save(folder / f"{stem}.jpg", quality=90, subsampling=0)
    return Shown(number, f"{stem}.png", f"{stem}.jpg", row.score, row.iou)
