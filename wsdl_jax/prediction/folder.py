"""A run and a user's image files in; a folder with maps, overlays, a table and a page out."""

import contextlib
import dataclasses
import errno
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image
from tqdm import tqdm

from wsdl_jax import runs
from wsdl_jax.evaluation import calibration as calibrations
from wsdl_jax.evaluation import likeness, rendering, verdict
from wsdl_jax.evaluation.verdict import Calibration
from wsdl_jax.prediction import content_credentials, evidence, fingerprint, images, page, table
from wsdl_jax.prediction.fingerprint import Fingerprint
from wsdl_jax.prediction.localizer import Localizer, Prediction, View
from wsdl_jax.prediction.memory import PixelBudget
from wsdl_jax.prediction.table import Row
from wsdl_jax.runtime import storage, threads
from wsdl_jax.runtime.errors import UserError, printable
from wsdl_jax.runtime.parallel import AXIS

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
    calibration: epath.Path | None = None,
    trust: bool | None = None,
) -> list[Row]:
    """Localizes images of files with the best network of a run.

    Writes into `out`, which appears when all is done: predictions.csv, index.html, evidence.jsonl
    and, for each image that can be read,

    - maps/NAME.png: the map at the image's size, 8-bit grey, 255 = surely manipulated;
    - overlays/NAME.jpg: the map in colour over the image, 4096 pixels a side at most;
    - raw/NAME.npz: `map` float32 as the network gives it, `covered`: how many of its rows and
      columns the image covers, `size`: height and width of the image, `score`, `probability`;
    - trust/NAME.png: how far the map can be trusted, as `maps`, where that was asked for;
    - thumbnails/NAME.jpg: image, overlay and trust, small, for index.html.

    Args:
      run: a run directory.
      patterns: paths of files, folders and patterns.
      out: a new or empty folder.
      mode: see `Localizer`.
      false_positive_rate: see `Localizer.load`.
      calibration: see `Localizer.load`.
      trust: whether to find out where maps can be trusted, which takes six times as long; by
        default where images are squashed, and not in tiles.

    Returns:
      A row for each image, in the order of the files.

    Raises:
      UserError: not a run; no such files; `out` is there already or cannot be written; a network
        that gives no finite numbers; a calibration that cannot be used.
    """
    storage.check_folder(out)
    files = images.find(patterns, out)
    batch = runs.load_config(run).eval.batch
    if mode == "resize":
        batch = min(batch, len(files))
    trust = mode == "resize" if trust is None else trust
    localizer = Localizer.load(
        run,
        mode=mode,
        batch=batch,
        false_positive_rate=false_positive_rate,
        calibration=calibration,
        trust=trust,
    )
    rule = _rule(localizer, run)
    with storage.whole_folder(out) as folder:
        with images.pillow_without_its_limit():
            rows = _localize_files(localizer, files, folder)
        table.write(rows, folder / table.FILE)
        common = evidence.of_network(localizer, run)
        evidence.write(({**row.evidence(), **common} for row in rows), folder / evidence.FILE)
        (folder / "index.html").write_text(page.render(rows, mode, rule, has_trust=trust))
    return rows


def _rule(localizer: Localizer, run: epath.Path) -> str:
    """Returns in words how verdicts are found; warns where that is not as it should be."""
    rate = localizer.false_positive_rate
    if not localizer.calibrations:
        rule = "probability above 0.5"
        log.warning(
            "%s was never evaluated, so what real images score is not known: called fake by a %s",
            *(run, rule),
        )
        return f"called fake: {rule}"
    for known in localizer.calibrations:
        if rate < 1 / (1 + known.images):
            log.warning(
                "%d real images are too few for a false-positive rate of %g: none like %s is "
                "called fake",
                *(known.images, rate, known.source),
            )
        if known.mode != localizer.mode:
            log.warning(
                "what real images score is known of squashed ones, not of tiles: calibrate with "
                "--calibrate FOLDER --mode %s",
                localizer.mode,
            )
        if known.likeness is None:
            log.warning(
                "which images are unlike %s is not known: there were too few, or an earlier "
                "version has evaluated %s",
                *(known.source, run),
            )
    of = " and ".join(f"{known.images} like {known.source}" for known in localizer.calibrations)
    return f"called fake: what at most {100 * rate:g}% of real images score, by {of}"


def calibrate(
    run: epath.Path,
    patterns: Sequence[str],
    path: epath.Path | None = None,
    *,
    mode: str = "resize",
) -> Calibration:
    """Finds out what real images of one's own score, and keeps it, for verdicts on such images.

    A file that is there twice counts once. Of the images, one half at random says what they are
    like, and the other half how far apart they are.

    Args:
      run: a run directory.
      patterns: paths of files, folders and patterns, of real images: as they come from one's
        camera, and none that was looked at to choose a detector.
      path: of the file to be written, which must not be there; `calibration.json` in the run by
        default.
      mode: see `Localizer`. Verdicts follow from it in this mode alone.

    Returns:
      What was found.

    Raises:
      UserError: not a run; no such files, or one that cannot be read; fewer than 20 images; a file
        that is there; a network that gives no finite numbers.
    """
    path = runs.RunDirectory(run).calibration if path is None else path
    calibrations.check_new(path)
    files = images.find(patterns, path, "--calibrate")
    digests: dict[str, str] = {}  # of each file that is not there twice, by its SHA-256
    for file in files:
        try:
            images.check_file(epath.Path(file))
            digests.setdefault(fingerprint.of(epath.Path(file)).sha256, file)
        except (ValueError, OSError) as error:
            text = f"{printable(file)}: {error}"
            raise UserError(f"--calibrate {' '.join(patterns)}: {text}") from error
    if len(digests) < likeness.FEWEST:
        raise UserError(
            f"--calibrate {' '.join(patterns)}: {len(digests)} different files, where "
            f"{likeness.FEWEST} are needed, and 200 are better"
        )
    config, model, *network = runs.load(run, AXIS)
    localizer = Localizer(config, model, mode=mode)
    failed: dict[str, str] = {}
    found = []
    budget = PixelBudget(_PIXELS_IN_MEMORY)
    predictions = _predictions(localizer, list(digests.values()), failed, budget)
    with images.pillow_without_its_limit(), contextlib.closing(predictions):
        for _, prediction in predictions:
            found.append((prediction.score, prediction.features))
            if failed:
                break
    if failed:
        file, error = next(iter(failed.items()))
        raise UserError(f"--calibrate {' '.join(patterns)}: {printable(file)}: {error}")
    features = [one for _, one in found if one is not None]
    made = Calibration(
        {verdict.CLEAN: sorted(score for score, _ in found)},
        likeness=likeness.fit([np.stack(features)]) if features else None,
        source=f"the images of {printable(' '.join(patterns))}",
        mode=mode,
        files=tuple(digests),
    )
    calibrations.save_own(path, tuple(network), made)
    return made


def _localize_files(localizer: Localizer, files: dict[str, str], out: epath.Path) -> list[Row]:
    """Localizes files and writes what is found, but for the table and the page.

    Args:
      localizer: the network.
      files: by path, the name for the files that are made of the image.
      out: the folder.

    Returns:
      A row for each image, in the order of the files.
    """
    failed: dict[str, str] = {}
    taken: dict[str, Fingerprint] = {}
    budget = PixelBudget(_PIXELS_IN_MEMORY)
    max_pixels, ahead = MAX_PIXELS[localizer.mode], _ahead(localizer)

    def write(localized: tuple[str, Prediction]) -> Row:
        file, prediction = localized
        with budget.share() as reserve:
            return _write(file, files[file], prediction, taken.pop(file), out, max_pixels, reserve)

    predictions = _predictions(localizer, list(files), failed, budget, taken)
    with (
        contextlib.closing(predictions),
        contextlib.closing(threads.map_ahead(write, predictions, ahead)) as written,
    ):
        rows = {row.file: row for row in written}
    rows |= {file: Row(file, files[file], error=error) for file, error in failed.items()}
    return [rows[file] for file in files]


def _ahead(localizer: Localizer) -> int:
    """Returns how many images are read, and written, while the network works.

    One to be tiled may be as large as memory allows.
    """
    return 2 * localizer.batch if localizer.mode == "resize" else 0


def _predictions(
    localizer: Localizer,
    files: Sequence[str],
    failed: dict[str, str],
    budget: PixelBudget,
    taken: dict[str, Fingerprint] | None = None,
) -> Iterator[tuple[str, Prediction]]:
    """Yields the files that can be read, each with what is found in it.

    Args:
      localizer: the network.
      files: paths.
      failed: where the reason is put for which a file cannot be read, by its path.
      budget: of pixels that are decoded at one time.
      taken: where the fingerprint of each file is put, from before it was read.
    """
    max_pixels = MAX_PIXELS[localizer.mode]
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
            path = epath.Path(file)
            try:
                if taken is not None:
                    images.check_file(path)
                    taken[file] = fingerprint.of(path)
                return file, localizer.view(images.read(path, max_pixels, reserve)[0])
            except ValueError as error:
                return file, str(error)  # not the error, whose traceback has the image
            except OSError as error:
                return file, error.strerror or str(error)

    def readable(viewed: Iterable[tuple[str, View | str]]) -> Iterator[tuple[str, View]]:
        for file, view in viewed:
            if isinstance(view, str):
                failed[file] = view
                bar.update()
            else:
                yield file, dataclasses.replace(view, pixels=counted(view))

    def counted(view: View) -> Iterator[UInt8[np.ndarray, "s s 3"]]:
        for pixels in view.pixels:
            bar.update(1 / len(view.corners))
            yield pixels

    with contextlib.ExitStack() as stack:
        stack.callback(bar.close)
        viewed = threads.map_ahead(view_file, files, _ahead(localizer))
        stack.enter_context(contextlib.closing(viewed))
        yield from localizer.stream(readable(viewed))


def _write(
    file: str,
    name: str,
    prediction: Prediction,
    taken: Fingerprint,
    out: epath.Path,
    max_pixels: int,
    reserve: Callable[[int], None],
) -> Row:
    """Writes the files of one image. Its pixels are read again: keeping them would take memory.

    Args:
      file: of the image.
      name: of its files in the output's folders, without their suffix.
      prediction: of the image.
      taken: the file's fingerprint from before the image was localized.
      out: the folder.
      max_pixels: see `images.read`.
      reserve: see `images.read`; what it reserves stands for the map at the image's size too.
    """
    height, width = prediction.size
    try:
        image, is_first = images.read(epath.Path(file), max_pixels, reserve)
        if image.size != (width, height) or fingerprint.of(epath.Path(file)) != taken:
            raise ValueError("the file has changed while it was looked at")
    except (ValueError, OSError) as error:
        return Row(file, name, error=str(error))
    image.thumbnail((_OVERLAY_SIDE, _OVERLAY_SIDE))
    values = _grey(prediction.strips(), prediction.size)
    overlay = rendering.overlay(image, _fitted(values, image.size))
    pictures = [image, overlay]
    raw = {
        "map": prediction.raw,
        "covered": np.array(prediction.covered),
        "size": np.array(prediction.size),
        "score": np.array(prediction.score),
        "probability": np.array(prediction.probability),
    }
    trust = None
    if prediction.agreement is not None:
        raw["agreement"] = prediction.agreement
        trust = _grey(prediction.trusted_strips(), prediction.size)
        pictures.append(_fitted(trust, image.size).convert("RGB"))
    try:
        _save(out / "maps" / f"{name}.png", lambda f: values.save(f, "PNG"))
        _save(out / "overlays" / f"{name}.jpg", lambda f: _save_jpeg(overlay, f))
        _save(out / "raw" / f"{name}.npz", lambda f: np.savez_compressed(f, **raw))
        if trust is not None:
            _save(out / "trust" / f"{name}.png", lambda f: trust.save(f, "PNG"))
        _save(
            out / "thumbnails" / f"{name}.jpg",
            lambda f: _save_jpeg(_side_by_side(*pictures), f),
        )
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return Row(file, name, error="the names of its maps would be too long")
    notes = ["the first of several pictures"] if is_first else []
    credentials = None
    if taken.has_credentials:
        credentials = content_credentials.read(epath.Path(file))
        notes.append(content_credentials.in_words(credentials))
    return Row(
        file,
        name,
        prediction.score,
        prediction.verdict,
        prediction.p_value,
        prediction.manipulated_share,
        prediction.reason,
        note="; ".join(notes),
        probability=prediction.probability,
        size=prediction.size,
        fingerprint=taken,
        has_trust=trust is not None,
        credentials=credentials,
    )


def _grey(strips: Iterable[Float[np.ndarray, "n width"]], size: tuple[int, int]) -> Image.Image:
    """Returns values in [0, 1], in strips from the top, as an 8-bit picture of height and width."""
    picture, top = Image.new("L", size[::-1]), 0
    for strip in strips:
        picture.paste(Image.fromarray((strip * 255).round().astype(np.uint8)), (0, top))
        top += len(strip)
    return picture


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BOX)


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
