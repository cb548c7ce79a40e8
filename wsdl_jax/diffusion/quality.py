"""How good a forger's whole images are: a distance to real ones, copies, and a picture of some.

    python -m wsdl_jax.diffusion.quality --forger runs/forger/pixel --steps 20 --out sheet.png

compares with the training and the validation images of the forger's own config.
"""

import json
import logging
from collections.abc import Iterable, Sequence

import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy import linalg

from wsdl_data import image_files
from wsdl_jax import inputs
from wsdl_jax.diffusion import forger
from wsdl_jax.runtime import command
from wsdl_jax.runtime.errors import UserError, in_one_line

log = logging.getLogger("wsdl_jax")
_GRID = 8  # cells a side in which features are averaged
_COLUMNS = 8  # of the contact sheet
_MADE_BY = "wsdl_jax.diffusion.quality"
_COPY = 0.01  # share of fresh real images that are as near to a training image by chance


def features(images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n 256"]:
    """Simple features, in a grid of 8×8 cells: mean colour, and how much it varies in the cell.

    The variation is the logarithm of the standard deviation of the grey values, plus 1 level.
    """
    n, height, width, _ = images.shape
    cells = images[:, : height // _GRID * _GRID, : width // _GRID * _GRID].astype(np.float32)
    cells = cells.reshape(n, _GRID, height // _GRID, _GRID, width // _GRID, 3)
    colour = cells.mean(axis=(2, 4))
    variation = np.log(cells.mean(axis=-1).std(axis=(2, 4)) + 1)
    return np.concatenate([colour.reshape(n, -1) / 64, variation.reshape(n, -1)], axis=1)


def frechet_distance(one: Float[np.ndarray, "n d"], two: Float[np.ndarray, "m d"]) -> float:
    """|μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½) of two sets of features (Heusel et al., 2017)."""
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
    """Of each image the nearest of the others: its distance, and its place among them.

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
    """Figures of made images against those trained on, and real ones that were not.

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
    """Rows of images of one size, side by side."""
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows]))


def _read(config: ml_collections.ConfigDict, split: str) -> UInt8[np.ndarray, "n s s 3"]:
    examples = inputs.Examples(config.data.real, split, config.data.dir)
    images = np.stack([inputs.full_image(examples[i]) for i in range(len(examples))])
    if images.shape[1] != config.data.image_size:
        raise UserError(f"{config.data.real[0]}: its images are not {config.data.image_size} px")
    return images


def main(_: list[str]) -> None:
    """The command."""
    jax.config.parse_flags_with_absl()
    out = epath.Path(_OUT.value)
    with in_one_line():
        image_files.check_replaceable(out, _MADE_BY)
    one = forger.load(_FORGER.value)
    config = one.config
    config.data.dir = _DATA_DIR.value or config.data.dir
    sampling = forger.Sampling(steps=_STEPS.value, eta=_ETA.value)
    make = forger.Maker(one, sampling, whole=True, batch=_BATCH.value, seed=_SEED.value)
    training, fresh = (_read(config, split) for split in ("train", "valid"))
    count = _COUNT.value
    batches = np.split(np.arange(count), range(make.batch, count, make.batch))
    made = np.concatenate(list(make.map((numbers,) for numbers in batches)))
    figures = measure(made, training, fresh)
    columns = min(_COLUMNS, len(training), len(fresh))
    _, places = nearest(made[:columns], training)
    rows = [made[i : i + columns] for i in range(0, min(count // columns, 4) * columns, columns)]
    # Below: the training images that are nearest to the first row, and real ones.
    picture = sheet([*rows, training[places], fresh[:columns]])
    with in_one_line():
        image_files.save_sheet(picture, out, _MADE_BY)
    print(json.dumps({"step": one.step, "images": count, **figures}, indent=2))
    log.info("%s: %d rows made, their nearest in training, real ones", out, len(rows))


if __name__ == "__main__":
    _FORGER = flags.DEFINE_string("forger", None, "A file or run directory.", required=True)
    _OUT = flags.DEFINE_string("out", None, "The contact sheet, a PNG file.", required=True)
    _COUNT = flags.DEFINE_integer("count", 500, "Images to make.", lower_bound=2 * _COLUMNS)
    _STEPS = flags.DEFINE_integer("steps", 250, "Steps from noise to image.")
    _ETA = flags.DEFINE_float("eta", None, "0 DDIM (default), 1 ancestral sampling.")
    _BATCH = flags.DEFINE_integer("batch", 16, "Images at once.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "Of all randomness.", lower_bound=0)
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Default: where the forger was trained on.")
    command.run(main)
