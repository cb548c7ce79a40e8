"""Forges images: a dataset of fakes out of a prepared subset or a folder of images.

    python -m wsdl_jax.diffusion.forge --images portraits/regrain --masks own \\
        --generator repaint --steps 20 --jump 5 --times 2 --name mine
    python -m wsdl_jax.diffusion.forge --images photos --masks strokes --generator telea --name mine
    python -m wsdl_jax.main --config configs/patches.py:setup=b,source=image_folder/mine

With images that are made again as a whole, and of photographs crops in their own resolution:

    python -m wsdl_jax.diffusion.forge --images photos --generator reconstruct --strength 0.3 \\
        --steps 10 --crops 8 --name mine

The result is image_folder/NAME_fake, with masks, the sources' keys and, in its metadata.json, how
it was made; and, where the sources are real, image_folder/NAME_real with them at the same size.
"""

import logging

import jax
from absl import flags

from wsdl_jax.diffusion.forging import forge
from wsdl_jax.diffusion.maker import Sampling
from wsdl_jax.runtime import command

log = logging.getLogger("wsdl_jax")


def main(_: list[str]) -> None:
    """Runs the command."""
    jax.config.parse_flags_with_absl()
    dilation = [int(value) for value in _DILATE.value]
    sampling = Sampling(_STEPS.value, _ETA.value, _JUMP.value, _TIMES.value, _STRENGTH.value)
    made = forge(
        _NAME.value,
        _IMAGES.value,
        masks=_MASKS.value,
        generator=_GENERATOR.value,
        manipulated=_MANIPULATED.value,
        dilation=(dilation[0], dilation[-1]),
        path=_FORGER.value,
        size=_SIZE.value,
        crops=_CROPS.value,
        sampling=sampling,
        batch=_BATCH.value,
        seed=_SEED.value,
        limit=_LIMIT.value,
        data_dir=_DATA_DIR.value,
        diffusers=_PIPELINE.value,
    )
    log.info("%s: ready", " and ".join(made))


if __name__ == "__main__":
    _IMAGES = flags.DEFINE_string("images", None, "A prepared subset, or a folder.", required=True)
    _NAME = flags.DEFINE_string("name", None, "The result is image_folder/NAME.", required=True)
    _GENERATOR = flags.DEFINE_string(
        "generator",
        None,
        "full, reconstruct, autoencode, repaint, latent, telea, navier_stokes, diffusers or"
        " MODULE:FUNCTION.",
        required=True,
    )
    _MASKS = flags.DEFINE_string(
        "masks", None, "What is made anew: own, boxes, strokes, blobs, or a folder of masks."
    )
    _MANIPULATED = flags.DEFINE_enum(
        "manipulated", None, ("white", "black"), "What is made anew in a folder of masks."
    )
    _DILATE = flags.DEFINE_list(
        "dilate", ["0"], "Pixels by which masks grow: a number, or FEWEST,MOST (Dolos: 1,15)."
    )
    flags.register_validator(
        "dilate",
        lambda pixels: len(pixels) in (1, 2) and all(value.isdecimal() for value in pixels),
        "pixels are a number, or FEWEST,MOST",
    )
    _FORGER = flags.DEFINE_string(
        "forger", None, "A file or run directory; default: the embedded dataset's."
    )
    _SIZE = flags.DEFINE_integer(
        "size", None, "Pixels a side; default: a forger's own, else 256.", lower_bound=16
    )
    _CROPS = flags.DEFINE_integer(
        "crops",
        None,
        "The most crops of each image, in its own resolution, in place of the image squashed.",
        lower_bound=1,
    )
    _STRENGTH = flags.DEFINE_float(
        "strength",
        0.3,
        "How far images are noised that are reconstructed, as a share of the schedule.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    _STEPS = flags.DEFINE_integer("steps", 250, "Steps from noise to image.")
    _ETA = flags.DEFINE_float(
        "eta", None, "0 DDIM (default of whole images), 1 ancestral (RePaint)."
    )
    _JUMP = flags.DEFINE_integer("jump", 10, "RePaint's jump length, in steps.")
    _TIMES = flags.DEFINE_integer("times", 10, "How often RePaint goes down each stretch.")
    _BATCH = flags.DEFINE_integer("batch", 16, "Images at once.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "Of all randomness.", lower_bound=0)
    _LIMIT = flags.DEFINE_integer("limit", None, "The most images of a split.", lower_bound=1)
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Default: ~/tensorflow_datasets.")
    _PIPELINE = flags.DEFINE_string(
        "pipeline",
        None,
        "Of diffusers, for diffusers, reconstruct and autoencode: a folder or a name.",
    )
    command.run(main)
