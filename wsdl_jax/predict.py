"""Localizes a user's images with a trained run: maps, overlays, a table and a page.

    python -m wsdl_jax.predict --run RUN --images photo.jpg scans/ 'more/*.png' --out found
    python -m wsdl_jax.predict --run RUN --images panorama.tif --mode tile --out found

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
from wsdl_jax.runtime import command
from wsdl_jax.runtime.errors import UserError

__all__ = ["Localizer", "main"]

log = logging.getLogger("wsdl_jax")


def main(arguments: list[str]) -> None:
    """Runs the command."""
    jax.config.parse_flags_with_absl()
    run, out = epath.Path(_RUN.value), epath.Path(_OUT.value)
    # A shell makes several arguments of --images *.png, of which the flag gets the first.
    rows = folder.predict(
        run,
        [*_IMAGES.value, *arguments[1:]],
        out,
        mode=_MODE.value,
        false_positive_rate=_FALSE_POSITIVE_RATE.value,
    )
    log.info("%s; written to %s", table.verdict_counts(rows), out)
    failed = [row for row in rows if row.error]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(rows)} images have no map, first "
            f"{table.printable(failed[0].file)}: {failed[0].error}; see {out / table.FILE}"
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
