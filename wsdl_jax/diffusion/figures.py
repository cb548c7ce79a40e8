"""How good a forger's whole images are: a distance to real ones, copies, and a picture of some."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence

import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy import linalg

from wsdl_data import image_files
from wsdl_jax import inputs
from wsdl_jax.diffusion import trained
from wsdl_jax.diffusion.maker import Maker, Sampling
from wsdl_jax.runtime.errors import UserError, in_one_line

log = logging.getLogger("wsdl_jax")
_GRID = 8  # cells a side in which features are averaged
COLUMNS = 8  # of the contact sheet, at most
_ROWS = 4  # of made images in it, at most
_MADE_BY = "wsdl_jax.diffusion.quality"  # kept in the contact sheet
_COPY = 0.01  # share of fresh real images that are as near to a training image by chance


def features(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n 256"]:
    """Returns simple features of images: mean colour and variation in each of 8×8 cells.

    The variation is the logarithm of the standard deviation of the grey values, plus 1 level.
    """
    n, height, width, _ = images.shape
    cells = images[:, : height // _GRID * _GRID, : width // _GRID * _GRID].astype(np.float32)
    cells = cells.reshape(n, _GRID, height // _GRID, _GRID, width // _GRID, 3)
    colour = cells.mean(axis=(2, 4))
    variation = np.log(cells.mean(axis=-1).std(axis=(2, 4)) + 1)
    return np.concatenate([colour.reshape(n, -1) / 64, variation.reshape(n, -1)], axis=1)


def frechet_distance(one: Float[np.ndarray, "n d"], two: Float[np.ndarray, "m d"]) -> float:
    """Returns the Fréchet distance of two sets of features, taken as normally distributed.

    It is |μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½), by Heusel et al. (2017).
    """
    means = one.mean(axis=0), two.mean(axis=0)
    covariances = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    # The product's eigenvalues are those of a symmetric matrix, which has no complex ones.
    values, vectors = linalg.eigh(covariances[0])
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    inner = linalg.eigvalsh(root @ covariances[1] @ root)
    traces = sum(np.trace(covariance) for covariance in covariances)
    return float(
        ((means[0] - means[1]) ** 2).sum() + traces - 2 * np.sqrt(np.maximum(inner, 0)).sum()
    )


def nearest(
    images: UInt8[np.ndarray, "n h w 3"], others: UInt8[np.ndarray, "m h w 3"]
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Returns for each image its distance to the nearest of the others, and the index of that one.

    The distance is the root mean square difference of a quarter of the size, in levels of 255, so
    that noise does not hide a copy.
    """
    small, others_small = (_quartered(x).reshape(len(x), -1) for x in (images, others))
    squares = (
        (small**2).sum(axis=1)[:, None] + (others_small**2).sum(axis=1) - 2 * small @ others_small.T
    )
    places = squares.argmin(axis=1)
    least = np.maximum(squares[np.arange(len(small)), places], 0)
    return np.sqrt(least / small.shape[1]), places


def _quartered(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h4 w4 3"]:
    n, height, width, _ = images.shape
    whole = images[:, : height // 4 * 4, : width // 4 * 4].astype(np.float64)
    return whole.reshape(n, height // 4, 4, width // 4, 4, 3).mean(axis=(2, 4))


def measure(
    made: UInt8[np.ndarray, "n h w 3"],
    training: UInt8[np.ndarray, "m h w 3"],
    fresh: UInt8[np.ndarray, "k h w 3"],
) -> dict[str, float]:
    """Compares made images with those trained on, and with real ones that were not.

    Returns:
      frechet: distance of made and fresh images.
      frechet_real: of training and fresh ones, as many as were made: what remains by chance.
      nearest: median distance of a made image to its nearest training image.
      nearest_real: the same of fresh ones.
      copies: share of made images that are nearer to a training image than the nearest 1% of the
        fresh ones: 0.01 by chance, 1 if all are copies.
    """
    distances, _ = nearest(made, training)
    chance, _ = nearest(fresh, training)
    some = training[: len(made)]
    return {
        "frechet": frechet_distance(features(made), features(fresh)),
        "frechet_real": frechet_distance(features(some), features(fresh)),
        "nearest": float(np.median(distances)),
        "nearest_real": float(np.median(chance)),
        "copies": float((distances < np.quantile(chance, _COPY)).mean()),
    }


def sheet(rows: Iterable[Sequence[UInt8[np.ndarray, "h w 3"]]]) -> Image.Image:
    """Returns a picture of rows of images of one size, side by side."""
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))


@dataclasses.dataclass(frozen=True)
class Assessment:
    """How good a forger's images are.

    Attributes:
      step: of the forger's training.
      images: how many it has made.
      figures: see `measure`.
    """

    step: int
    images: int
    figures: dict[str, float]


def assess(
    path: epath.PathLike,
    out: epath.Path,
    *,
    sampling: Sampling,
    count: int = 500,
    batch: int = 16,
    seed: int = 0,
    data_dir: str | None = None,
) -> Assessment:
    """Makes whole images by a forger, measures them and writes a contact sheet.

    They are compared with the training and the validation images of the forger's own config. In the
    sheet's last rows are the training images that are nearest to the first row, and real ones.

    Args:
      path: file or run directory of the forger.
      out: the contact sheet, a PNG file.
      sampling: how images are made.
      count: how many images are made.
      batch: images at once.
      seed: of all randomness.
      data_dir: of the prepared datasets; None for the one that the forger was trained on.

    Raises:
      UserError: there is no such forger, its data has another size, or something else is at `out`.
    """
    with in_one_line():
        image_files.check_replaceable(out, _MADE_BY)
    forger = trained.load(path)
    config = forger.config
    config.data.dir = data_dir or config.data.dir
    maker = Maker(forger, sampling, "draw", batch=batch, seed=seed)
    training, fresh = (_read(config, split) for split in ("train", "valid"))
    batches = np.split(np.arange(count), range(maker.batch, count, maker.batch))
    made = np.concatenate(list(maker.map((numbers,) for numbers in batches)))
    figures = measure(made, training, fresh)
    columns = min(COLUMNS, len(training), len(fresh))
    _, places = nearest(made[:columns], training)
    starts = range(0, min(count // columns, _ROWS) * columns, columns)
    rows = [made[start : start + columns] for start in starts]
    picture = sheet([*rows, training[places], fresh[:columns]])
    with in_one_line():
        image_files.save_sheet(picture, out, _MADE_BY)
    log.info("%s: %d rows made, their nearest in training, real ones", out, len(rows))
    return Assessment(forger.step, count, figures)


def _read(config: ml_collections.ConfigDict, split: str) -> UInt8[np.ndarray, "n s s 3"]:
    examples = inputs.Examples(config.data.real, split, config.data.dir)
    images = np.stack([inputs.full_image(examples[i]) for i in range(len(examples))])
    if images.shape[1] != config.data.image_size:
        raise UserError(f"{config.data.real[0]}: its images are not {config.data.image_size} px")
    return images
