"""A run's network on images of any size, squashed to its input or seen through tiles."""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

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
from wsdl_jax.evaluation import calibration as stored
from wsdl_jax.evaluation import map_threshold, metrics, on_devices, verdict
from wsdl_jax.evaluation.verdict import Calibration, Verdict
from wsdl_jax.inputs import squashed
from wsdl_jax.prediction import agreement
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.parallel import AXIS, Parallel

log = logging.getLogger("wsdl_jax")
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
      verdict: "real", "fake" or "unsure", see `Localizer`.
      p_value: the share of real images that score as high, see `verdict.Verdict`; None for a run
        that does not know what they score.
      reason: of the verdict, in words.
      raw: the localization map as the network gives it, of windows blended, in [0, 1].
      size: height and width of the image.
      covered: rows and columns of `raw` that the image covers, see `View`.
      cut: the probability above which a location is called manipulated.
      features: what the image is like to the network, see `Method.embed`; of windows their mean.
      agreement: of each location of `raw`, the share of views of the image, moved and scaled, that
        call it the same, see `agreement`; None where that was not asked for, and where nothing is
        called manipulated, or all: there is no place then to agree on.
    """

    score: float
    probability: float
    verdict: str
    p_value: float | None
    reason: str
    raw: Float[np.ndarray, "h w"]
    size: tuple[int, int]
    covered: tuple[float, float]
    cut: float = metrics.THRESHOLD
    features: Float[np.ndarray, " d"] | None = None
    agreement: Float[np.ndarray, "h w"] | None = None

    def strips(self) -> Iterator[Float[np.ndarray, "n width"]]:
        """Yields `map` in strips of whole rows, from the top, so that memory need not hold all."""
        yield from self._strips(self.raw)

    def trusted_strips(self) -> Iterator[Float[np.ndarray, "n width"]]:
        """Yields `trust` in strips as `strips` does. Raises ValueError without `agreement`."""
        if self.agreement is None:
            raise ValueError(
                "no agreement: load the localizer with trust=True, and see whether it is None"
            )
        yield from self._strips(self.agreement)

    def _strips(self, of_cells: Float[np.ndarray, "h w"]) -> Iterator[Float[np.ndarray, "n w"]]:
        height, width = self.size
        rows = max(1, _STRIP_PIXELS // width)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            box = (
                *(0.0, top * self.covered[0] / height),
                *(self.covered[1], bottom * self.covered[0] / height),
            )
            yield metrics.resize_map(of_cells, bottom - top, width, box).clip(0, 1)

    @property
    def map(self) -> Float[np.ndarray, "height width"]:
        """Returns each pixel's probability of manipulation, at the image's size; bicubic."""
        return np.concatenate(list(self.strips()))

    @property
    def trust(self) -> Float[np.ndarray, "height width"]:
        """Returns the share of views of the image that agree with each pixel, at its size.

        Raises ValueError without `agreement`.
        """
        return np.concatenate(list(self.trusted_strips()))

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

    An image is called real or fake, or it is said to be unsure, by what real images and known fakes
    score, see `verdict.judge`; where that is not known, an image is called fake if its probability
    of being fake is above one half, and else real.

    Attributes:
      mode: "resize" or "tile".
      batch: images, or windows, that the network takes at once, over all devices.
      calibrations: what is known of the network's scores, on images of one kind each; empty where
        nothing is.
      false_positive_rate: the share of real images that may be called fake.
      weights_digest: the SHA-256 of the network's weights, see `runs.weights_digest`.
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
        calibrations: Sequence[Calibration] = (),
        false_positive_rate: float = verdict.FALSE_POSITIVE_RATE,
        cut: float = metrics.THRESHOLD,
        trust: bool = False,
    ):
        """Takes a run's config and its network in evaluation mode; for the others, see `load`."""
        if mode not in MODES:
            raise UserError(f"mode {mode!r}: choose from {', '.join(MODES)}")
        if not 0 <= false_positive_rate < 1:
            raise UserError(f"false_positive_rate {false_positive_rate}: not in [0, 1)")
        self.calibrations, self.false_positive_rate = tuple(calibrations), false_positive_rate
        self.cut, self.mode = cut, mode
        self.weights_digest = runs.weights_digest(model)
        self._size, self._resize = config.data.image_size, config.data.resize
        self._parallel = Parallel(config.parallel.backend, fsdp=config.parallel.fsdp)
        self.batch = self._parallel.rounded_up(batch or config.eval.batch)
        method = methods.from_config(config)
        if trust:
            method = dataclasses.replace(method, localize=agreement.checked(method.localize, cut))
        self._step, self._state = on_devices(method, model, self._parallel, embeds=True)
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
        calibration: epath.PathLike | None = None,
        trust: bool = False,
    ) -> "Localizer":
        """Returns the best network of a run, on all devices.

        Args:
          run: a run directory.
          mode: "resize" or "tile".
          batch: images, or windows, that the network takes at once, over all devices; fewer are
            padded. By default the run's config.eval.batch.
          false_positive_rate: the share of real images, in [0, 1), that may be called fake.
          calibration: a file of `predict --calibrate`; by default the run's own, if it has one.
            Images like those of the validation split are judged by these, whose scores a run knows
            that was evaluated; with such a file only if it was made by mode "resize".
          trust: whether predictions have `agreement`, which takes six times as long.

        Raises:
          UserError: not a run, no checkpoint yet, no such mode, or a calibration that cannot be
            read, or is of another network or mode.
        """
        run = epath.Path(run)
        config, model, checkpoint, weights = runs.load(run, AXIS)
        network = checkpoint, weights
        own = runs.RunDirectory(run).calibration
        known = []
        if (validated := stored.load(run, network)) is not None:
            known.append(validated)
        if calibration is not None or own.exists():
            path = own if calibration is None else epath.Path(calibration)
            found = stored.load_own(path, network)
            said = f"{path} is of --mode {found.mode}: calibrate with --mode {mode} as well, into "
            said += "another file, and name that with --calibration"
            if found.mode == mode:
                # Beside those that can be told apart, and were looked at in the same way.
                known = [one for one in known if one.likeness is not None and one.mode == mode]
                known.append(found)
            elif calibration is None:
                log.warning("not used: %s", said)
            else:
                raise UserError(said)
        fitted = map_threshold.load(run, network)
        return cls(
            config,
            model,
            mode=mode,
            batch=batch,
            calibrations=known,
            false_positive_rate=false_positive_rate,
            cut=metrics.THRESHOLD if fitted is None else fitted.value,
            trust=trust,
        )

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
        found = self._parallel.gather(localized)
        for row, (blend, corner) in enumerate(origins):
            of_row = methods.Localization(*(None if a is None else a[row] for a in found))
            if not (np.isfinite(of_row.scores) and np.isfinite(of_row.maps).all()):
                raise UserError(f"scores or maps are not finite, first those of {blend.name}")
            blend.add(corner, of_row)
            if blend.complete:
                yield blend.name, blend.prediction(self._judge, self.cut)

    def _judge(
        self, score: float, probability: float, features: Float[np.ndarray, " d"] | None
    ) -> Verdict:
        if self.calibrations:
            return verdict.judge(self.calibrations, score, features, self.false_positive_rate)
        answer = verdict.FAKE if probability > metrics.THRESHOLD else verdict.REAL
        return Verdict(answer, None, "not calibrated: by a probability above 0.5")


class _Blend:
    """One image's prediction, put together of its windows as the network is done with them."""

    def __init__(self, name: str, view: View, pool: methods.Pooling | None = None):
        """pool: of the blended map of several windows, to a score; None: their mean score."""
        self.name, self.view, self._pool = name, view, pool
        self._scores: list[float] = []  # of the windows so far
        self._probabilities: list[float] = []
        self._features: Float[np.ndarray, " d"] | None = None  # their sum
        self._map, self._agreement = (np.zeros(view.map_size, np.float32) for _ in range(2))
        self._weights = np.zeros(view.map_size, np.float32)
        self._is_checked = False
        falloff = np.sin(np.pi * (np.arange(view.window, dtype=np.float32) + 0.5) / view.window)
        self._falloff = np.outer(falloff**2, falloff**2)

    @property
    def complete(self) -> bool:
        return len(self._scores) == len(self.view.corners)

    def add(self, corner: tuple[int, int], found: methods.Localization) -> None:
        """Adds what the network says of the window at a corner: scalars, and a map."""
        self._scores.append(float(found.scores))
        self._probabilities.append(float(found.probabilities))
        if found.features is not None:
            before = 0 if self._features is None else self._features
            self._features = before + found.features.astype(np.float64)
        self._is_checked = found.agreement is not None
        if len(self.view.corners) == 1:  # not rounded
            self._map, self._weights = found.maps.copy(), np.ones_like(found.maps)
            if self._is_checked:
                self._agreement = found.agreement.copy()
            return
        side = self.view.window
        here = np.s_[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
        self._map[here] += self._falloff * _box(found.maps, side)
        if self._is_checked:
            self._agreement[here] += self._falloff * _box(found.agreement, side)
        self._weights[here] += self._falloff

    def prediction(
        self,
        judge: Callable[[float, float, Float[np.ndarray, " d"] | None], Verdict],
        cut: float,
    ) -> Prediction:
        """judge: score, probability and features → verdict."""
        windows = list(zip(self._scores, self._probabilities, strict=True))
        score, probability = np.mean(windows, axis=0).tolist()
        raw = self._map / self._weights
        if self._pool is not None and len(windows) > 1:
            rows, columns = (math.ceil(side) for side in self.view.covered)
            score = probability = float(self._pool(raw[None, :rows, :columns])[0])
        features = None if self._features is None else self._features / len(windows)
        said = judge(score, probability, features)
        seen = raw[tuple(slice(math.ceil(side)) for side in self.view.covered)] > cut
        is_placed = self._is_checked and seen.any() and not seen.all()
        return Prediction(
            score=score,
            probability=probability,
            verdict=said.answer,
            p_value=said.p_value,
            reason=said.reason,
            raw=raw,
            size=self.view.size,
            covered=self.view.covered,
            cut=cut,
            features=features,
            agreement=self._agreement / self._weights if is_placed else None,
        )


def _box(window_map: Float[np.ndarray, "h w"], side: int) -> Float[np.ndarray, "{side} {side}"]:
    """Returns a window's map of fewer cells, each the mean of those that it covers."""
    if window_map.shape == (side, side):
        return window_map
    small = Image.fromarray(window_map).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small)


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
