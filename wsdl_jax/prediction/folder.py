"""A run and a user's image files in; a folder with maps, overlays, a table and a page out."""

import contextlib
import dataclasses
import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from wsdl_jax import runs
from wsdl_jax.evaluation import rendering, verdict
from wsdl_jax.prediction import images, page, table
from wsdl_jax.prediction.localizer import Localizer, Prediction, View
from wsdl_jax.prediction.memory import PixelBudget
from wsdl_jax.prediction.table import Row
from wsdl_jax.runtime import storage, threads

log = logging.getLogger("wsdl_jax")
# Pixels of an image by mode, above which it is taken for a decompression bomb. Resizing keeps
# Pillow's own limit. Tiling is for larger images than that, so its limit is what memory stands: 500
# megapixels are 2 GB when decoded.
MAX_PIXELS = {"resize": 2 * (1024**3 // 4 // 3), "tile": 500_000_000}
_PIXELS_IN_MEMORY = 2**27  # of images that threads are at, at one time; 4 to 8 bytes each
_OVERLAY_SIDE, _THUMBNAIL_SIDE = 4096, 160  # the most pixels


def predict(
    run: epath.Path,
    patterns: Sequence[str],
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
      patterns: paths of files, folders and patterns.
      out: a new or empty folder.
      mode: see `Localizer`.
      false_positive_rate: see `Localizer.load`.

    Returns:
      A row for each image, in the order of the files.

    Raises:
      UserError: not a run; no such files; `out` is there already or cannot be written; a network
        that gives no finite numbers.
    """
    storage.check_folder(out)
    files = images.find(patterns, out)
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
        with images.pillow_without_its_limit():
            rows = _localize_files(localizer, files, folder)
        table.write(rows, folder / table.FILE)
        (folder / "index.html").write_text(page.render(rows, mode, rule))
    return rows


def _localize_files(localizer: Localizer, files: dict[str, str], out: epath.Path) -> list[Row]:
    """Localizes files and writes what is found, but for the table and the page.

    Args:
      localizer: the network.
      files: by path, the name for the files that are made of the image.
      out: the folder.

    Returns:
      A row for each image, in the order of the files.
    """
    rows: dict[str, Row] = {}  # by path
    max_pixels = MAX_PIXELS[localizer.mode]
    # Images to be squashed are read ahead, and what is found is written, while the network works.
    # One to be tiled may be as large as memory allows.
    ahead = 2 * localizer.batch if localizer.mode == "resize" else 0
    budget = PixelBudget(_PIXELS_IN_MEMORY)
    bar = tqdm(
        desc="localizing",
        total=len(files),
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}]",
        disable=None,  # unless there is a terminal
        leave=False,
    )

    # No variable here has the image, so that it is gone when its pixels are given back. One to be
    # tiled is not, but of those there are two at most: one that is seen and one that is written.
    def view_file(file: str) -> tuple[str, View | str]:
        with budget.share() as reserve:
            try:
                return file, localizer.view(images.read(epath.Path(file), max_pixels, reserve)[0])
            except ValueError as error:
                return file, str(error)  # not the error, whose traceback has the image

    def readable(viewed: Iterable[tuple[str, View | str]]) -> Iterator[tuple[str, View]]:
        for file, view in viewed:
            if isinstance(view, str):
                rows[file] = Row(file, files[file], error=view)
                bar.update()
            else:
                yield file, dataclasses.replace(view, pixels=counted(view))

    def counted(view: View) -> Iterator[UInt8[np.ndarray, "s s 3"]]:
        for pixels in view.pixels:
            bar.update(1 / len(view.corners))
            yield pixels

    def write(localized: tuple[str, Prediction]) -> Row:
        file, prediction = localized
        with budget.share() as reserve:
            return _write(file, files[file], prediction, out, max_pixels, reserve)

    with contextlib.ExitStack() as stack:
        stack.callback(bar.close)
        viewed = threads.map_ahead(view_file, files, ahead)
        stack.enter_context(contextlib.closing(viewed))
        written = threads.map_ahead(write, localizer.stream(readable(viewed)), ahead)
        stack.enter_context(contextlib.closing(written))
        for row in written:
            rows[row.file] = row
    return [rows[file] for file in files]


def _write(
    file: str,
    name: str,
    prediction: Prediction,
    out: epath.Path,
    max_pixels: int,
    reserve: Callable[[int], None],
) -> Row:
    """Writes the files of one image. Its pixels are read again: keeping them would take memory.

    Args:
      file: of the image.
      name: of its files in the output's folders, without their suffix.
      prediction: of the image.
      out: the folder.
      max_pixels: see `images.read`.
      reserve: see `images.read`; what it reserves stands for the map at the image's size too.
    """
    height, width = prediction.size
    try:
        image, is_first = images.read(epath.Path(file), max_pixels, reserve)
        if image.size != (width, height):
            raise ValueError("the file has changed while it was looked at")
    except ValueError as error:
        return Row(file, name, error=str(error))
    image.thumbnail((_OVERLAY_SIDE, _OVERLAY_SIDE))
    values = Image.new("L", (width, height))
    top = 0
    for strip in prediction.strips():
        values.paste(Image.fromarray((strip * 255).round().astype(np.uint8)), (0, top))
        top += len(strip)
    shown = values if values.size == image.size else values.resize(image.size, Image.Resampling.BOX)
    overlay = rendering.overlay(image, shown)
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
    note = "the first of several pictures" if is_first else ""
    return Row(file, name, prediction.score, prediction.verdict, share, note=note)


def _save(path: epath.Path, write: Callable[[Any], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write(file)


def _save_jpeg(image: Image.Image, file: Any) -> None:
    image.save(file, "JPEG", quality=90, subsampling=0)


def _side_by_side(*pictures: Image.Image) -> Image.Image:
    """Returns thumbnails of pictures of one size in a row."""
    small = []
    for image in pictures:
        small.append(image.copy())
        small[-1].thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    width, height = small[0].size
    sheet = Image.new("RGB", (len(small) * width, height))
    for column, image in enumerate(small):
        sheet.paste(image, (column * width, 0))
    return sheet
