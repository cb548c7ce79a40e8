"""Localizes a user's images with a trained run: maps, overlays, a table and a page.

    python -m wsdl_jax.predict --run RUN --images photo.jpg scans/ 'more/*.png' --out found
    python -m wsdl_jax.predict --run RUN --images panorama.tif --mode tile --out found
    python -m wsdl_jax.predict --run RUN --calibrate my-own-real-photos/

Images are files, folders (searched to the bottom) and patterns: PNG, JPEG, WebP, TIFF,
BMP, GIF and AVIF, and with the extra `formats` HEIC and JPEG XL. Exit
codes: 0 done; 1 failed, or done but for images that cannot be read, whose reasons are in
predictions.csv; 2 wrong flags; 130 stopped by Ctrl-C, with nothing left behind.
"""

import logging

import jax
from absl import flags
from etils import epath

from wsdl_jax.evaluation import verdict
from wsdl_jax.prediction import folder, table
from wsdl_jax.prediction.localizer import MODES, Localizer
from wsdl_jax.runtime import command, storage
from wsdl_jax.runtime.errors import ConfigError, UserError, printable

__all__ = ["Localizer", "main"]

log = logging.getLogger("wsdl_jax")


def main(arguments: list[str]) -> None:
    """Runs the command."""
    jax.config.parse_flags_with_absl()
    run = epath.Path(_RUN.value)
    calibration = None if _CALIBRATION.value is None else epath.Path(_CALIBRATION.value)
    if _IMAGES.value is None and not _CALIBRATE.value:
        raise ConfigError("--images is missing; see --help")
    if (_IMAGES.value is None) != (_OUT.value is None):
        raise ConfigError("--images and --out go together")
    if _IMAGES.value is None and arguments[1:]:
        raise ConfigError(f"unexpected argument {arguments[1]!r}; see --help")
    out = None if _OUT.value is None else epath.Path(_OUT.value)
    if out is not None:
        storage.check_folder(out)  # before what takes long
    if _CALIBRATE.value:
        made = folder.calibrate(run, _CALIBRATE.value, calibration, mode=_MODE.value)
        log.info("calibrated on %d real images", made.images)
    if out is None:
        return
    # A shell makes several arguments of --images *.png, of which the flag gets the first.
    rows = folder.predict(
        run,
        [*_IMAGES.value, *arguments[1:]],
        out,
        mode=_MODE.value,
        false_positive_rate=_FALSE_POSITIVE_RATE.value,
        calibration=calibration,
        trust=_TRUST.value,
    )
    log.info("%s; written to %s", table.verdict_counts(rows), out)
    failed = [row for row in rows if row.error]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(rows)} images have no map, first "
            f"{printable(failed[0].file)}: {failed[0].error}; see {out / table.FILE}"
        )


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "A run directory.", required=True)
    _IMAGES = flags.DEFINE_multi_string("images", None, "Files, folders and patterns; any number.")
    _OUT = flags.DEFINE_string("out", None, "A new folder for what is found.")
    _MODE = flags.DEFINE_enum(
        "mode",
        "resize",
        MODES,
        "Squash images to the size trained on, or look at larger ones in tiles.",
    )
    _FALSE_POSITIVE_RATE = flags.DEFINE_float(
        "false_positive_rate",
        verdict.FALSE_POSITIVE_RATE,
        "The share of real images that may be called fake.",
        lower_bound=0.0,
        upper_bound=0.99,
    )
    _CALIBRATE = flags.DEFINE_multi_string(
        "calibrate",
        None,
        "Real images of your own, 200 if possible: what they score is kept, for verdicts.",
    )
    _CALIBRATION = flags.DEFINE_string(
        "calibration",
        None,
        "The file of --calibrate; default: calibration.json in the run, or else what the run's "
        "validation images score.",
    )
    _TRUST = flags.DEFINE_bool(
        "trust",
        None,
        "Find out where maps can be trusted, in six times the time; default: not in tiles.",
    )
    command.run(main, operands=("[IMAGES…]",))
