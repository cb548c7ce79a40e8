"""A run's network on images of any size, squashed to its input or seen through tiles."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Float, UInt8
from PIL import Image

from wsdl_data import decoding
from wsdl_jax import methods, runs
from wsdl_jax.evaluation import map_threshold, metrics, on_devices, verdict
from wsdl_jax.inputs import squashed
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.parallel import AXIS, Parallel

MODES = ("resize", "tile")
_CELL_SIDE = 4  # pixels: where windows are blended, a map has no smaller cells
_STRIP_PIXELS = 2**22  # of a map at its image's size that are computed at once


@dataclasses.dataclass(frozen=True)
class View:
    """An image as the network sees it: one or several square windows.

    Attributes:
      size: height and width of the image.
      pixels: [S, S, 3] of each window. To be read once, as it may hold the image.
      corners: row and column of each window's top left corner in the map, in cells.
      window: side of a window's map, in cells.
      map_size: rows and columns of the image's map, in cells.
      covered: how many rows and columns of the map the image covers, from the top left. Not whole
        numbers where the last windows reach beyond the image.
    """

    size: tuple[int, int]
    pixels: Iterable[UInt8[np.ndarray, "s s 3"]]
    corners: list[tuple[int, int]]
    window: int
    map_size: tuple[int, int]
    covered: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a method says of one image.

    For an image of several windows, score and probability are means over the windows; or, where
    config.score pools maps by anything but their mean, they are pooled from the blended map of the
    whole image, of which a window would show only a part.

    Attributes:
      score: higher = more likely fake; a probability or a logit, by method.
      probability: that the image is fake, in [0, 1].
      verdict: "fake" or "real", see `Localizer`.
      raw: the localization map as the network gives it, of windows blended, in [0, 1].
      size: height and width of the image.
      covered: rows and columns of `raw` that the image covers, see `View`.
      cut: the probability above which a location is called manipulated.
    """

    score: float
    probability: float
    verdict: str
    raw: Float[np.ndarray, "h w"]
    size: tuple[int, int]
    covered: tuple[float, float]
    cut: float = metrics.THRESHOLD

    def strips(self) -> Iterator[Float[np.ndarray, "n width"]]:
        """Yields `map` in strips of whole rows, from the top, so that memory need not hold all."""
        height, width = self.size
        rows = max(1, _STRIP_PIXELS // width)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            box = (
                *(0.0, top * self.covered[0] / height),
                *(self.covered[1], bottom * self.covered[0] / height),
            )
            yield metrics.resize_map(self.raw, bottom - top, width, box).clip(0, 1)

    @property
    def map(self) -> Float[np.ndarray, "height width"]:
        """Returns each pixel's probability of manipulation, at the image's size; bicubic."""
        return np.concatenate(list(self.strips()))

    @functools.cached_property
    def manipulated_share(self) -> float:
        """Returns the share of the pixels whose probability is above `cut`, in [0, 1]."""
        height, width = self.size
        above = sum(np.count_nonzero(strip > self.cut) for strip in self.strips())
        return above / (height * width)


class Localizer:
    """A trained network, for images of any size.

        localizer = Localizer.load("runs/patches-a-portraits-ddpm_reconstructed")
        for prediction in localizer(images):
            print(prediction.score, prediction.verdict, prediction.map.shape)

    By mode "resize" an image is squashed to the size that was trained on, as in the evaluation. By
    "tile", images that are larger than that are seen in their own resolution, through windows of
    that size which overlap by half. Their maps are blended with weights that fall off smoothly from
    the centre (sin², in either direction). A window that reaches beyond the image sees it mirrored.

    An image is called fake where its score is above `threshold`, and without a threshold where its
    probability of being fake is above one half.

    Attributes:
      mode: "resize" or "tile".
      batch: images, or windows, that the network takes at once, over all devices.
      threshold: the score above which an image is called fake, or None.
      cut: the probability above which a location is called manipulated: as it was fitted when the
        run was evaluated, see wsdl_jax.evaluation.map_threshold; else one half.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model: nnx.Module,
        *,
        mode: str = "resize",
        batch: int | None = None,
        threshold: float | None = None,
        cut: float = metrics.THRESHOLD,
    ):
        """Takes a run's config and its network in evaluation mode; for the others, see `load`."""
        if mode not in MODES:
            raise UserError(f"mode {mode!r}: choose from {', '.join(MODES)}")
        self.threshold, self.cut = threshold, cut
        self.mode = mode
        self._size, self._resize = config.data.image_size, config.data.resize
        self._parallel = Parallel(config.parallel.backend)
        self.batch = self._parallel.rounded_up(batch or config.eval.batch)
        method = methods.from_config(config)
        self._step, self._state = on_devices(method, model, self._parallel)
        pools = methods.pools(config) and config.score.pooling != "mean"
        self._pool = methods.Pooling.of(config.score) if pools else None
        one = jax.ShapeDtypeStruct((1, self._size, self._size, 3), jnp.float32)
        self._map_size = jax.eval_shape(lambda x: method.localize(model, x), one).maps.shape[1]

    @classmethod
    def load(
        cls,
        run: epath.PathLike,
        *,
        mode: str = "resize",
        batch: int | None = None,
        false_positive_rate: float = verdict.FALSE_POSITIVE_RATE,
    ) -> "Localizer":
        """Returns the best network of a run, on all devices.

        Args:
          run: a run directory.
          mode: "resize" or "tile".
          batch: images, or windows, that the network takes at once, over all devices; fewer are
            padded. By default the run's config.eval.batch.
          false_positive_rate: the share of the real validation images, in [0, 1), that may be
            called fake, from which `threshold` follows. A run that was never evaluated does not
            know what they score, and has none.

        Raises:
          UserError: not a run, no checkpoint yet, or no such mode.
        """
        run = epath.Path(run)
        config, model, checkpoint, weights = runs.load(run, AXIS)
        scores = verdict.load(run, (checkpoint, weights))
        threshold = None if scores is None else verdict.threshold(scores, false_positive_rate)
        fitted = map_threshold.load(run, (checkpoint, weights))
        cut = metrics.THRESHOLD if fitted is None else fitted.value
        return cls(config, model, mode=mode, batch=batch, threshold=threshold, cut=cut)

    def __call__(self, images: Iterable[np.ndarray | Image.Image]) -> list[Prediction]:
        """Localizes images: uint8 arrays [H, W, 3] or Pillow's, of any size each.

        Raises ValueError for anything else, and UserError for a network that gives no finite
        numbers.
        """
        views = ((str(n), self.view(_checked(image, n))) for n, image in enumerate(images))
        return [prediction for _, prediction in self.stream(views)]

    def view(self, image: Image.Image) -> View:
        """Returns an RGB image as the network will see it."""
        size = image.height, image.width
        if self.mode == "resize" or max(size) <= self._size:
            pixels, side = squashed(image, self._size, self._resize), self._map_size
            return View(size, [pixels], [(0, 0)], side, (side, side), (float(side), float(side)))
        # Windows are whole cells apart, so that their maps can be added up cell by cell.
        per_window = min(self._map_size, self._size // _CELL_SIDE)
        pitch = self._size / per_window
        covered = size[0] / pitch, size[1] / pitch
        rows, columns = (_window_starts(side, per_window) for side in covered)
        corners = list(itertools.product(rows, columns))
        map_size = rows[-1] + per_window, columns[-1] + per_window
        pixels = (self._window(image, row * pitch, column * pitch) for row, column in corners)
        return View(size, pixels, corners, per_window, map_size, covered)

    def _window(self, image: Image.Image, top: float, left: float) -> UInt8[np.ndarray, "s s 3"]:
        top, left = round(top), round(left)
        bottom, right = min(top + self._size, image.height), min(left + self._size, image.width)
        pixels = np.asarray(image.crop((left, top, right, bottom)))
        beyond = (0, self._size - pixels.shape[0]), (0, self._size - pixels.shape[1]), (0, 0)
        window = Image.fromarray(np.pad(pixels, beyond, "symmetric"))
        return squashed(window, self._size, self._resize)

    def stream(self, views: Iterable[tuple[str, View]]) -> Iterator[tuple[str, Prediction]]:
        """Localizes (name, view) one after the other, in batches that are filled across images.

        Raises UserError naming the first image for which the network gives no finite numbers.
        """
        windows = (
            (blend, corner, pixels)
            for blend in (_Blend(name, view, self._pool) for name, view in views)
            for corner, pixels in zip(blend.view.corners, blend.view.pixels, strict=True)
        )
        pending = None  # the batch that the devices are at, while the next one is read
        while chunk := list(itertools.islice(windows, self.batch)):
            batch = np.zeros((self.batch, self._size, self._size, 3), np.uint8)
            for row, (_, _, pixels) in enumerate(chunk):
                batch[row] = pixels
            origins = [(blend, corner) for blend, corner, _ in chunk]
            del chunk
            _, localized = self._step(self._state, self._parallel.shard({"image": batch}))
            if pending is not None:
                yield from self._finished(*pending)
            pending = origins, localized
        if pending is not None:
            yield from self._finished(*pending)

    def _finished(
        self, origins: list[tuple["_Blend", tuple[int, int]]], localized: methods.Localization
    ) -> Iterator[tuple[str, Prediction]]:
        """Adds a batch to the images it is of, and yields those that are complete by it.

        Args:
          origins: the image, and the corner in its map, of each row of the batch but for padding.
          localized: what the network says of the batch.
        """
        scores, probabilities, maps = self._parallel.gather(localized)
        for row, (blend, corner) in enumerate(origins):
            if not (np.isfinite(scores[row]) and np.isfinite(maps[row]).all()):
                raise UserError(f"scores or maps are not finite, first those of {blend.name}")
            blend.add(corner, scores[row], probabilities[row], maps[row])
            if blend.complete:
                yield blend.name, blend.prediction(self.threshold, self.cut)


class _Blend:
    """One image's prediction, put together of its windows as the network is done with them."""

    def __init__(self, name: str, view: View, pool: methods.Pooling | None = None):
        """pool: of the blended map of several windows, to a score; None: their mean score."""
        self.name, self.view, self._pool = name, view, pool
        self._scores: list[float] = []  # of the windows so far
        self._probabilities: list[float] = []
        self._sum, self._weights = (np.zeros(view.map_size, np.float32) for _ in range(2))
        falloff = np.sin(np.pi * (np.arange(view.window, dtype=np.float32) + 0.5) / view.window)
        self._falloff = np.outer(falloff**2, falloff**2)

    @property
    def complete(self) -> bool:
        return len(self._scores) == len(self.view.corners)

    def add(
        self,
        corner: tuple[int, int],
        score: np.floating,
        probability: np.floating,
        window_map: Float[np.ndarray, "h h"],
    ) -> None:
        self._scores.append(float(score))
        self._probabilities.append(float(probability))
        if len(self.view.corners) == 1:
            self._sum, self._weights = window_map.copy(), np.ones_like(window_map)  # not rounded
            return
        side = self.view.window
        if window_map.shape != (side, side):
            small = Image.fromarray(window_map).resize((side, side), Image.Resampling.BOX)
            window_map = np.asarray(small)
        here = np.s_[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
        self._sum[here] += self._falloff * window_map
        self._weights[here] += self._falloff

    def prediction(self, threshold: float | None, cut: float) -> Prediction:
        windows = list(zip(self._scores, self._probabilities, strict=True))
        score, probability = np.mean(windows, axis=0).tolist()
        raw = self._sum / self._weights
        if self._pool is not None and len(windows) > 1:
            rows, columns = (math.ceil(side) for side in self.view.covered)
            score = probability = float(self._pool(raw[None, :rows, :columns])[0])
        fake = probability > metrics.THRESHOLD if threshold is None else score > threshold
        called = "fake" if fake else "real"
        return Prediction(score, probability, called, raw, self.view.size, self.view.covered, cut)


def _window_starts(covered: float, window: int) -> list[int]:
    """Returns where windows begin, so that they overlap by half and cover all; in cells.

    Args:
      covered: length that is to be covered.
      window: length of a window.
    """
    last = max(0, math.ceil(covered) - window)
    count = math.ceil(last / max(1, window // 2)) + 1
    return np.linspace(0, last, count).round().astype(int).tolist()


def _checked(image: np.ndarray | Image.Image, number: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return decoding.to_rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"image {number} is {image.dtype} {list(image.shape)}, where uint8 [H, W, 3] is needed"
        )
    return Image.fromarray(image)
