"""A trained run × a user's images → maps, overlays and a table.

    python -m wsdl_jax.predict --run RUN --images photo.jpg scans/ 'more/*.png' --out found
    python -m wsdl_jax.predict --run RUN --images panorama.tif --mode tile --out found

Images are files, folders (searched to the bottom) and patterns: PNG, JPEG, WebP, TIFF and BMP. Exit
codes: 0 done; 1 failed, or done but for images that cannot be read, whose reasons are in
predictions.csv; 2 wrong flags; 130 stopped by Ctrl-C, with nothing left behind.
"""

import collections
import contextlib
import csv
import dataclasses
import errno
import functools
import glob
import html
import io
import itertools
import logging
import math
import os
import string
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from flax import nnx
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from wsdl_jax import methods, runs
from wsdl_jax.evaluate import on_devices
from wsdl_jax.evaluation import metrics, summary, verdict
from wsdl_jax.inputs import squashed
from wsdl_jax.runtime import command, storage
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.parallel import AXIS, Parallel

log = logging.getLogger("wsdl_jax")
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
# Pixels of an image, above which it is taken for a decompression bomb. Resizing keeps Pillow's own
# limit. Tiling is for larger images than that, so its limit is what memory stands: 500 megapixels
# are 2 GB when decoded.
MAX_PIXELS = {"resize": 2 * (1024**3 // 4 // 3), "tile": 500_000_000}
MODES = tuple(MAX_PIXELS)
COLUMNS = ("file", "score", "verdict", "manipulated_share", "error")  # of predictions.csv
_CELL = 4  # pixels: where windows are blended, a map has no smaller cells
_STRIP = 2**22  # pixels of a map at its image's size that are computed at once
# Pixels of the images that threads have in memory at one time, 4 to 8 bytes each. A transparent
# image counts four times: it is laid over white by copies of it with four channels.
_IN_FLIGHT = 2**27
_OVERLAY, _THUMBNAIL = 4096, 160  # the most pixels a side

A, B = TypeVar("A"), TypeVar("B")


# ----- Reading images -----------------------------------------------------------------------------


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB, upright as its EXIF orientation says.

    16 bits are scaled to 8, and what is transparent is laid over white. Raises ValueError for
    pixels of 32 bits, whose range is not known.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip; for colours it takes the high byte too
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, of unknown range")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


class _Budget:
    """Pixels that all threads together may have in memory, so that memory is not theirs times an
    image's.

    An image of more than all of them takes all, and so is alone.
    """

    def __init__(self, pixels: int):
        self._all = self._left = pixels
        self._given_back = threading.Condition()

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """A function, to be called once, that waits for so many pixels and takes them.

        They are given back at the end. Until then a thread must not wait for another one's.
        """
        taken = 0

        def take(pixels: int) -> None:
            nonlocal taken
            pixels = min(pixels, self._all)
            with self._given_back:
                self._given_back.wait_for(lambda: self._left >= pixels)
                self._left -= pixels
            taken = pixels

        try:
            yield take
        finally:
            with self._given_back:
                self._left += taken
                self._given_back.notify_all()


def read(
    path: epath.Path, max_pixels: int, take: Callable[[int], None] | None = None
) -> Image.Image:
    """The (first) image of a file, by `to_rgb`.

    take: called with the number of pixels once the header says it, before they are decoded; what it
    raises is taken for a fault of the file.

    Raises ValueError, whose text is the reason, for whatever is not an image of `FORMATS`, is
    damaged, or has more than `max_pixels`; Pillow's own limit is to be switched off.
    """
    try:
        # etils takes a pipe for a file, and opening one would wait for its writer.
        if not (path.is_file() if "://" in str(path) else os.path.isfile(path)):
            raise ValueError("not a file")
        with path.open("rb") as file:
            if not file.read(1):
                raise ValueError("empty")
            file.seek(0)
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise ValueError(
                    f"{image.width}×{image.height} pixels, taken for a decompression bomb: the "
                    f"limit is {max_pixels / 1e6:.0f} megapixels"
                )
            if take is not None:
                take(image.width * image.height * (4 if image.has_transparency_data else 1))
            image.load()
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise ValueError("not a PNG, JPEG, WebP, TIFF or BMP image") from error
    # Decoders raise what a damaged file leads them to: OSError, SyntaxError, struct.error, …
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ValueError(" ".join(str(reason or error or type(error).__name__).split())) from error


# ----- The network on images of any size ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class View:
    """An image as the network sees it: one or several windows.

    Attributes:
      size: height and width of the image.
      pixels: [S, S, 3] of each window. To be read once, as it may hold the image.
      places: row and column of each window in the map, in cells.
      window: cells of the map that a window has a side.
      cells: of the map, rows and columns.
      covered: how many of them the image covers, from the top left: not a whole number where the
        last windows reach beyond the image.
    """

    size: tuple[int, int]
    pixels: Iterable[UInt8[np.ndarray, "s s 3"]]
    places: list[tuple[int, int]]
    window: int
    cells: tuple[int, int]
    covered: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a method says of one image.

    Attributes:
      score: higher = more likely fake; a probability or a logit, by method.
      probability: of being fake.
      verdict: "fake" or "real", see `Localizer`.
      raw: the localization map as the network gives it, of windows blended, in [0, 1].
      size: height and width of the image.
      covered: rows and columns of `raw` that the image covers, see `View`.

    Of an image of several windows score and probability are means over the windows.
    """

    score: float
    probability: float
    verdict: str
    raw: Float[np.ndarray, "h w"]
    size: tuple[int, int]
    covered: tuple[float, float]

    def strips(self) -> Iterator[Float[np.ndarray, "n width"]]:
        """`map` in strips of whole rows, from the top, so that it need not be in memory at once."""
        height, width = self.size
        rows = max(1, _STRIP // width)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            box = (
                *(0.0, top * self.covered[0] / height),
                *(self.covered[1], bottom * self.covered[0] / height),
            )
            yield metrics.resize_map(self.raw, bottom - top, width, box).clip(0, 1)

    @property
    def map(self) -> Float[np.ndarray, "height width"]:
        """Probability of having been manipulated, in [0, 1], at the image's size; bicubic."""
        return np.concatenate(list(self.strips()))

    @functools.cached_property
    def manipulated_share(self) -> float:
        """The share of pixels, at the image's size, whose probability is over one half."""
        height, width = self.size
        above = sum(np.count_nonzero(strip > metrics.THRESHOLD) for strip in self.strips())
        return above / (height * width)


class Localizer:
    """A trained network, for images of any size.

        localizer = Localizer.load("runs/patches-a-portraits-ddpm_full")
        for prediction in localizer(images):
            print(prediction.score, prediction.verdict, prediction.map.shape)

    By mode "resize" an image is squashed to the size that was trained on, as in the evaluation. By
    "tile", images that are larger than that are seen in their own resolution, through windows of
    that size which overlap by half. Their maps are blended with weights that fall off smoothly from
    the centre (sin², in either direction). A window that reaches beyond the image sees it mirrored.

    An image is called fake where its score is above `threshold`, and without a threshold where its
    probability of being fake is above one half.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model: nnx.Module,
        *,
        mode: str = "resize",
        batch: int | None = None,
        threshold: float | None = None,
    ):
        """See `load`, for a config and its network in evaluation mode."""
        if mode not in MODES:
            raise UserError(f"mode {mode!r}: choose from {', '.join(MODES)}")
        self.threshold = threshold
        self.mode = mode
        self._size, self._resize = config.data.image_size, config.data.resize
        self._parallel = Parallel(config.parallel.backend)
        self.batch = self._parallel.rounded_up(batch or config.eval.batch)
        method = methods.from_config(config)
        self._step, self._state = on_devices(method, model, self._parallel)
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
        """The best network of a run, on all devices.

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
        return cls(config, model, mode=mode, batch=batch, threshold=threshold)

    def __call__(self, images: Iterable[np.ndarray | Image.Image]) -> list[Prediction]:
        """Localizes images: uint8 arrays [H, W, 3] or Pillow's, of any size each.

        Raises ValueError for anything else, and UserError for a network that gives no finite
        numbers.
        """
        views = ((str(n), self.view(_checked(image, n))) for n, image in enumerate(images))
        return [prediction for _, prediction in self.stream(views)]

    def view(self, image: Image.Image) -> View:
        """An RGB image as the network will see it."""
        size = image.height, image.width
        if self.mode == "resize" or max(size) <= self._size:
            pixels, side = squashed(image, self._size, self._resize), self._map_size
            return View(size, [pixels], [(0, 0)], side, (side, side), (float(side), float(side)))
        # Windows are whole cells apart, so that their maps can be added up cell by cell.
        per_window = min(self._map_size, self._size // _CELL)
        pitch = self._size / per_window
        covered = size[0] / pitch, size[1] / pitch
        rows, columns = (_starts(side, per_window) for side in covered)
        places = list(itertools.product(rows, columns))
        cells = rows[-1] + per_window, columns[-1] + per_window
        pixels = (self._window(image, row * pitch, column * pitch) for row, column in places)
        return View(size, pixels, places, per_window, cells, covered)

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
            (parts, place, pixels)
            for parts in (_Parts(name, view) for name, view in views)
            for place, pixels in zip(parts.view.places, parts.view.pixels, strict=True)
        )
        pending = None  # the batch that the devices are at, while the next one is read
        while chunk := list(itertools.islice(windows, self.batch)):
            images = np.zeros((self.batch, self._size, self._size, 3), np.uint8)
            for row, (_, _, pixels) in enumerate(chunk):
                images[row] = pixels
            whose = [(parts, place) for parts, place, _ in chunk]
            del chunk
            _, localized = self._step(self._state, self._parallel.shard({"image": images}))
            if pending is not None:
                yield from self._finished(*pending)
            pending = whose, localized
        if pending is not None:
            yield from self._finished(*pending)

    def _finished(
        self, whose: list[tuple["_Parts", tuple[int, int]]], localized: methods.Localization
    ) -> Iterator[tuple[str, Prediction]]:
        scores, probabilities, maps = self._parallel.gather(localized)
        for row, (parts, place) in enumerate(whose):
            if not (np.isfinite(scores[row]) and np.isfinite(maps[row]).all()):
                raise UserError(f"scores or maps are not finite, first those of {parts.name}")
            parts.add(place, scores[row], probabilities[row], maps[row])
            if parts.complete:
                yield parts.name, parts.prediction(self.threshold)


class _Parts:
    """What the network says of the windows of an image, as it comes in."""

    def __init__(self, name: str, view: View):
        self.name, self.view = name, view
        self._told: list[tuple[float, float]] = []  # score and probability of each window
        self._sum, self._weights = (np.zeros(view.cells, np.float32) for _ in range(2))
        falloff = np.sin(np.pi * (np.arange(view.window, dtype=np.float32) + 0.5) / view.window)
        self._falloff = np.outer(falloff**2, falloff**2)

    @property
    def complete(self) -> bool:
        return len(self._told) == len(self.view.places)

    def add(
        self,
        place: tuple[int, int],
        score: np.floating,
        probability: np.floating,
        part: Float[np.ndarray, "h h"],
    ) -> None:
        self._told.append((float(score), float(probability)))
        if len(self.view.places) == 1:
            self._sum, self._weights = part.copy(), np.ones_like(part)  # not to be rounded
            return
        side = self.view.window
        if part.shape != (side, side):
            part = np.asarray(Image.fromarray(part).resize((side, side), Image.Resampling.BOX))
        here = np.s_[place[0] : place[0] + side, place[1] : place[1] + side]
        self._sum[here] += self._falloff * part
        self._weights[here] += self._falloff

    def prediction(self, threshold: float | None) -> Prediction:
        score, probability = np.mean(self._told, axis=0).tolist()
        fake = probability > metrics.THRESHOLD if threshold is None else score > threshold
        called = "fake" if fake else "real"
        raw = self._sum / self._weights
        return Prediction(score, probability, called, raw, self.view.size, self.view.covered)


def _starts(covered: float, window: int) -> list[int]:
    """Where windows of so many cells begin, so that they overlap by half and cover all."""
    last = max(0, math.ceil(covered) - window)
    count = math.ceil(last / max(1, window // 2)) + 1
    return np.linspace(0, last, count).round().astype(int).tolist()


def _checked(image: np.ndarray | Image.Image, number: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"image {number} is {image.dtype} {list(image.shape)}, where uint8 [H, W, 3] is needed"
        )
    return Image.fromarray(image)


# ----- Files in, files out ------------------------------------------------------------------------


class Row(NamedTuple):
    """What predictions.csv has of an image. Without a score there is an error.

    Attributes:
      file: as it was given or found.
      name: of its files in the output's folders, without their suffix.
      score, verdict, manipulated_share: see `Prediction`.
      error: why there is no prediction, or "".
    """

    file: str
    name: str
    score: float | None = None
    verdict: str | None = None
    manipulated_share: float | None = None
    error: str = ""


def find(patterns: Sequence[str], out: epath.Path) -> dict[str, str]:
    """The files that paths of files, folders and patterns stand for, each once, in order.

    Of a folder these are all that it has, to the bottom, but for hidden ones and what is in `out`.

    Returns:
      The name for the files that are made of it, by path as given or found. It is the path from the
      folder that all have in common, so that no two are alike.

    Raises:
      UserError: a path that is not there or cannot be listed, or nothing is left.
    """
    found: dict[str, str] = {}  # by absolute path
    for pattern in patterns:
        path = epath.Path(pattern)
        if path.exists():
            matches = [pattern]
        elif "://" in pattern:
            matches = sorted(map(str, path.parent.glob(path.name)))
        else:
            matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise UserError(f"--images {pattern}: there is no such file")
        for match in matches:
            folder = epath.Path(match).is_dir()
            for file in _files_of(epath.Path(match), out) if folder else [match]:
                found.setdefault(_absolute(file), file)
    if not found:
        raise UserError(f"--images {' '.join(patterns)}: no files in there")
    root = os.path.commonpath([os.path.dirname(path) for path in found])
    return {file: os.path.relpath(path, root) for path, file in found.items()}


def _absolute(path: str) -> str:
    return f"/{path.replace('://', '/')}" if "://" in path else os.path.abspath(path)


def _files_of(folder: epath.Path, out: epath.Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise UserError(f"{folder} cannot be listed: {error}") from error

    for parent, folders, files in folder.walk(on_error=fail):
        shown = [name for name in folders if not name.startswith(".")]
        # In place: this decides where the walk goes on.
        folders[:] = sorted(n for n in shown if _absolute(str(parent / n)) != _absolute(str(out)))
        yield from (str(parent / name) for name in sorted(files) if not name.startswith("."))


def predict(
    run: epath.Path,
    images: Sequence[str],
    out: epath.Path,
    *,
    mode: str = "resize",
    false_positive_rate: float = verdict.FALSE_POSITIVE_RATE,
) -> list[Row]:
    """Localizes images of files with the best network of a run.

    Writes into `out`, which appears when all is done: predictions.csv, index.html and, for each
    image that can be read,

    - maps/NAME.png: the map at the image's size, 8-bit grey, 255 = surely manipulated;
    - overlays/NAME.jpg: the map in colour over the image, 4096 pixels a side at most;
    - raw/NAME.npz: `map` float32 as the network gives it, `covered`: how many of its rows and
      columns the image covers, `size`: height and width of the image, `score`, `probability`;
    - thumbnails/NAME.jpg: image and overlay, small, for index.html.

    Args:
      run: a run directory.
      images: paths of files, folders and patterns.
      out: a new or empty folder.
      mode: see `Localizer`.
      false_positive_rate: see `Localizer.load`.

    Returns:
      A row an image, in the order of the files.

    Raises:
      UserError: not a run; no such files; `out` is there already or cannot be written; a network
        that gives no finite numbers.
    """
    storage.check_folder(out)
    files = find(images, out)
    batch = runs.load_config(run).eval.batch
    if mode == "resize":
        batch = min(batch, len(files))
    localizer = Localizer.load(run, mode=mode, batch=batch, false_positive_rate=false_positive_rate)
    if localizer.threshold is None:
        rule = "probability above 0.5"
        log.warning(
            "%s was never evaluated, so what real images score is not known: called fake by a %s",
            *(run, rule),
        )
    else:
        share = f"{100 * false_positive_rate:g}%"
        rule = f"score above {localizer.threshold:.4g}, as {share} of real validation images have"
    with storage.whole_folder(out) as folder:
        with _pillow_without_its_limit():
            rows = _localize_files(localizer, files, folder)
        _write_table(rows, folder / "predictions.csv")
        (folder / "index.html").write_text(_page(rows, mode, rule))
    return rows


@contextlib.contextmanager
def _pillow_without_its_limit() -> Iterator[None]:
    """Switches off Pillow's limit of pixels, as `read` has its own, and its warnings.

    They are about parts of a file, like a broken EXIF block, without which an image can be shown.
    """
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _localize_files(localizer: Localizer, files: dict[str, str], out: epath.Path) -> list[Row]:
    rows: dict[str, Row] = {}
    max_pixels = MAX_PIXELS[localizer.mode]
    # Images to be squashed are read ahead, and what is found is written, while the network works.
    # One to be tiled may be as large as memory allows.
    ahead = 2 * localizer.batch if localizer.mode == "resize" else 0
    bar = tqdm(
        desc="localizing",
        total=len(files),
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]",
        disable=None,  # unless there is a terminal
        leave=False,
    )
    pool, budget = ThreadPoolExecutor(), _Budget(_IN_FLIGHT)

    # No variable here has the image, so that it is gone when its pixels are given back. One to be
    # tiled is not, but of those there are two at most: one that is seen and one that is written.
    def see(file: str) -> tuple[str, View | str]:
        with budget.share() as take:
            try:
                return file, localizer.view(read(epath.Path(file), max_pixels, take))
            except ValueError as error:
                return file, str(error)  # not the error, whose traceback has the image

    def views() -> Iterator[tuple[str, View]]:
        for file, view in _mapped_ahead(pool, see, files, ahead):
            if isinstance(view, str):
                rows[file] = Row(file, files[file], error=view)
                bar.update()
            else:
                yield file, dataclasses.replace(view, pixels=counted(view))

    def counted(view: View) -> Iterator[UInt8[np.ndarray, "s s 3"]]:
        for pixels in view.pixels:
            bar.update(1 / len(view.places))
            yield pixels

    def write(found: tuple[str, Prediction]) -> Row:
        file, prediction = found
        with budget.share() as take:
            return _write(file, files[file], prediction, out, max_pixels, take)

    try:
        for row in _mapped_ahead(pool, write, localizer.stream(views()), ahead):
            rows[row.file] = row
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    return [rows[file] for file in files]


def _mapped_ahead(
    pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], ahead: int
) -> Iterator[B]:
    """`map`, in threads, that is at most so many items ahead of what has been asked for."""
    waiting = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _write(
    file: str,
    name: str,
    prediction: Prediction,
    out: epath.Path,
    max_pixels: int,
    take: Callable[[int], None],
) -> Row:
    """The files of one image. Its pixels are read again: keeping them would take memory.

    take: see `read`; what it takes stands for the map at the image's size too.
    """
    height, width = prediction.size
    try:
        image = read(epath.Path(file), max_pixels, take)
        if image.size != (width, height):
            raise ValueError("the file has changed while it was looked at")
    except ValueError as error:
        return Row(file, name, error=str(error))
    image.thumbnail((_OVERLAY, _OVERLAY))
    values = Image.new("L", (width, height))
    top = 0
    for strip in prediction.strips():
        values.paste(Image.fromarray((strip * 255).round().astype(np.uint8)), (0, top))
        top += len(strip)
    shown = values if values.size == image.size else values.resize(image.size, Image.Resampling.BOX)
    overlay = summary.overlay(image, shown)
    raw = {
        "map": prediction.raw,
        "covered": np.array(prediction.covered),
        "size": np.array(prediction.size),
        "score": np.array(prediction.score),
        "probability": np.array(prediction.probability),
    }
    try:
        _save(out / "maps" / f"{name}.png", lambda f: values.save(f, "PNG"))
        _save(out / "overlays" / f"{name}.jpg", lambda f: _save_jpeg(overlay, f))
        _save(out / "raw" / f"{name}.npz", lambda f: np.savez_compressed(f, **raw))
        _save(
            out / "thumbnails" / f"{name}.jpg",
            lambda f: _save_jpeg(_side_by_side(image, overlay), f),
        )
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return Row(file, name, error="the names of its maps would be too long")
    share = prediction.manipulated_share
    return Row(file, name, prediction.score, prediction.verdict, share)


def _save(path: epath.Path, write: Callable[[Any], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write(file)


def _save_jpeg(image: Image.Image, file: Any) -> None:
    image.save(file, "JPEG", quality=90, subsampling=0)


def _side_by_side(*images: Image.Image) -> Image.Image:
    small = []
    for image in images:
        small.append(image.copy())
        small[-1].thumbnail((_THUMBNAIL, _THUMBNAIL))
    width, height = small[0].size
    sheet = Image.new("RGB", (len(small) * width, height))
    for column, image in enumerate(small):
        sheet.paste(image, (column * width, 0))
    return sheet


def _printable(text: str) -> str:
    """A file's name as UTF-8 can have it."""
    return text.encode("utf-8", "backslashreplace").decode()


def _write_table(rows: list[Row], path: epath.Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(row._asdict() | {"file": _printable(row.file)} for row in rows)
    path.write_text(text.getvalue())


_PAGE = string.Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Localizations</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; }
  body { padding: 0 1rem; }
  .table { overflow-x: auto; }
  table { border-collapse: collapse; width: 100%; }
  th, td { text-align: left; padding: .4rem .8rem; border-bottom: 1px solid #8884; }
  td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
  td.file { overflow-wrap: anywhere; min-width: 10rem; }
  tr:has(img) { height: 11rem; }
  td:has(img) { min-width: 20rem; }
  img { display: block; margin: auto; }
  .fake { color: light-dark(#b3261e, #ff8a80); font-weight: 600; }
  .error { color: light-dark(#7a5b00, #ffcf66); }
</style>
</head>
<body>
<h1>Localizations</h1>
<p>$summary</p>
<div class="table">
<table>
<thead><tr><th>image, and overlay</th><th>file</th><th class="number">score</th><th>verdict</th>
<th class="number">manipulated</th><th>files</th></tr></thead>
<tbody>
$rows
</tbody>
</table>
</div>
</body>
</html>
""")


def _page(rows: list[Row], mode: str, rule: str) -> str:
    """index.html: one table, without scripts, and without anything that is not beside it."""
    return _PAGE.substitute(
        summary=html.escape(
            f"{counts(rows)}. Mode: {mode}. Called fake: {rule}. Bright is manipulated."
        ),
        rows="\n".join(map(_table_row, rows)),
    )


def _table_row(row: Row) -> str:
    file = html.escape(_printable(row.file))
    if row.error:
        return (
            f'<tr><td></td><td class="file">{file}</td>'
            f'<td class="error" colspan="4">{html.escape(row.error)}</td></tr>'
        )

    def link(folder: str, suffix: str) -> str:
        return urllib.parse.quote(os.fsencode(f"{folder}/{row.name}.{suffix}"))

    overlay = link("overlays", "jpg")
    return (
        f'<tr><td><a href="{overlay}"><img src="{link("thumbnails", "jpg")}" alt="" '
        f'loading="lazy"></a></td><td class="file">{file}</td>'
        f'<td class="number">{row.score:.4f}</td><td class="{row.verdict}">{row.verdict}</td>'
        f'<td class="number">{100 * row.manipulated_share:.1f}%</td>'
        f'<td><a href="{link("maps", "png")}">map</a> <a href="{overlay}">overlay</a> '
        f'<a href="{link("raw", "npz")}">raw</a></td></tr>'
    )


def counts(rows: list[Row]) -> str:
    """How many images have which verdict, in words."""
    number = collections.Counter(row.verdict or "without a map" for row in rows)
    told = ", ".join(f"{number[kind]} {kind}" for kind in ("fake", "real", "without a map"))
    return f"{len(rows)} images: {told}"


# ----- Command ------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """The command."""
    jax.config.parse_flags_with_absl()
    run, out = epath.Path(_RUN.value), epath.Path(_OUT.value)
    # A shell makes several arguments of --images *.png, of which the flag gets the first.
    rows = predict(
        run,
        [*_IMAGES.value, *arguments[1:]],
        out,
        mode=_MODE.value,
        false_positive_rate=_FALSE_POSITIVE_RATE.value,
    )
    log.info("%s; written to %s", counts(rows), out)
    failed = [row for row in rows if row.error]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(rows)} images have no map, first "
            f"{_printable(failed[0].file)}: {failed[0].error}; see {out / 'predictions.csv'}"
        )


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "A run directory.", required=True)
    _IMAGES = flags.DEFINE_multi_string(
        "images", None, "Files, folders and patterns; any number.", required=True
    )
    _OUT = flags.DEFINE_string("out", None, "A new folder for what is found.", required=True)
    _MODE = flags.DEFINE_enum(
        "mode",
        "resize",
        MODES,
        "Squash images to the size trained on, or look at larger ones in tiles.",
    )
    _FALSE_POSITIVE_RATE = flags.DEFINE_float(
        "false_positive_rate",
        verdict.FALSE_POSITIVE_RATE,
        "The share of the run's real validation images that may be called fake.",
        lower_bound=0.0,
        upper_bound=0.99,
    )
    command.run(main, operands=("[IMAGES…]",))
