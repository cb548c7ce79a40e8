"""How good a forger's whole images are: a distance to real ones, copies, and a picture of some.

    python -m wsdl_jax.diffusion.quality --forger runs/forger/pixel --steps 20 --out sheet.png

compares with the training and the validation images of the forger's own config.
"""

import json

import jax
from absl import flags
from etils import epath

from wsdl_jax.diffusion import figures
from wsdl_jax.diffusion.maker import Sampling
from wsdl_jax.runtime import command


def main(_: list[str]) -> None:
    """Runs the command."""
    jax.config.parse_flags_with_absl()
    found = figures.assess(
        _FORGER.value,
        epath.Path(_OUT.value),
        sampling=Sampling(steps=_STEPS.value, eta=_ETA.value),
        count=_COUNT.value,
        batch=_BATCH.value,
        seed=_SEED.value,
        data_dir=_DATA_DIR.value,
    )
    print(json.dumps({"step": found.step, "images": found.images, **found.figures}, indent=2))


if __name__ == "__main__":
    _FORGER = flags.DEFINE_string("forger", None, "A file or run directory.", required=True)
    _OUT = flags.DEFINE_string("out", None, "The contact sheet, a PNG file.", required=True)
    _COUNT = flags.DEFINE_integer("count", 500, "Images to make.", lower_bound=2 * figures.COLUMNS)
    _STEPS = flags.DEFINE_integer("steps", 250, "Steps from noise to image.")
    _ETA = flags.DEFINE_float("eta", None, "0 DDIM (default), 1 ancestral sampling.")
    _BATCH = flags.DEFINE_integer("batch", 16, "Images at once.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "Of all randomness.", lower_bound=0)
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Default: where the forger was trained on.")
    command.run(main)
