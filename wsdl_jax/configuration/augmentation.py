"""How training images are changed at random: fields, their limits, and recipes by name."""

import ml_collections

from wsdl_jax.runtime.errors import ConfigError
from wsdl_jax.runtime.variants import Variant

_LIMITS = {  # least and largest of each range
    "quality_range": (1, 100),
    "scale_range": (0.1, 4.0),
    "blur_range": (0.0, 100.0),
    "noise_range": (0.0, 255.0),
    "gamma_range": (0.1, 10.0),
    "colour_range": (0.0, 1.0),
    "crop_range": (0.1, 1.0),
    "cut_out_range": (0.0, 1.0),
}

# Strengths in pixels and 8-bit levels are those that leave a photograph as good as it was for a
# person; a 96-pixel image is changed visibly by the strongest. Every list says what it changes of
# the defaults.
RECIPES = {
    "none": {},
    "light": {
        "jpeg": 0.3,
        "quality_range": (75, 98),
        "scale": 0.1,
        "scale_range": (0.75, 1.25),
        "colour": 0.2,
        "crop": 0.2,
    },
    # Nearly all images are compressed: where a third of them is not, traces that compression
    # destroys are all that is learned.
    "robust": {
        "jpeg": 0.8,
        "webp": 0.1,  # takes four times as long as JPEG
        "again": 0.25,
        "scale": 0.3,
        "blur": 0.15,
        "noise": 0.2,
        "gamma": 0.2,
        "colour": 0.2,
    },
}
VARIANT = Variant("augment", tuple(RECIPES), "none")


def fields() -> ml_collections.ConfigDict:
    """Returns the fields of `config.augment`, with defaults by which nothing is changed."""
    augment = ml_collections.ConfigDict()
    # How often an image is changed in a way: probabilities. Strengths are drawn evenly.
    augment.jpeg = 0.0  # saved as JPEG
    augment.webp = 0.0  # saved as WebP
    augment.again = 0.0  # of those that are saved: once more, as either
    augment.quality_range = (50, 98)  # of JPEG and WebP, whole numbers
    augment.scale = 0.0  # resized; half of these then get their former size back
    augment.scale_range = (0.5, 1.25)  # factor of both sides
    augment.blur = 0.0  # by a Gaussian
    augment.blur_range = (0.2, 1.5)  # its sigma, pixels
    augment.noise = 0.0  # Gaussian
    augment.noise_range = (0.5, 4.0)  # its standard deviation, of 255
    augment.gamma = 0.0  # a power of pixels in [0, 1]
    augment.gamma_range = (0.6, 1.67)  # the exponent, drawn evenly in its logarithm
    augment.colour = 0.0  # contrast, saturation, brightness and white balance
    augment.colour_range = (0.0, 0.2)  # by which share each of them goes up or down
    augment.crop = 0.0  # cut out, and not scaled
    augment.crop_range = (0.67, 1.0)  # both sides, of the image's
    augment.cut_out = 0.0  # covered by a box of one colour, which counts as not manipulated
    augment.cut_out_range = (0.05, 0.25)  # each of its sides, of the image's
    return augment


def set_augment(config: ml_collections.ConfigDict, name: str) -> None:
    """Sets `config.augment` to a recipe of `RECIPES`, and what an evaluation measures with it.

    With "robust", the verdict's threshold is one that holds for perturbed images.

    Raises ConfigError for another name, listing those that there are.
    """
    if name not in RECIPES:
        raise ConfigError(f"augment={name!r}: choose from {', '.join(RECIPES)}")
    config.augment.update(fields())
    config.augment.update(RECIPES[name])
    config.eval.perturbed = name == "robust"


def check(augment: ml_collections.ConfigDict) -> None:
    """Raises ConfigError, in one line, for values of `config.augment` that cannot be used."""
    default = fields()
    probabilities = [name for name in default if name not in _LIMITS]
    for name in probabilities:
        value = augment[name]
        if not 0 <= value <= 1:
            raise ConfigError(f"config.augment.{name} = {value}: a probability, from 0 to 1")
    for name, (least, largest) in _LIMITS.items():
        given = augment[name]
        is_pair = len(given) == 2 and all(isinstance(end, int | float) for end in given)
        if not (is_pair and least <= given[0] <= given[1] <= largest):
            raise ConfigError(
                f"config.augment.{name} = {given}: the least and the largest strength, from "
                f"{least:g} to {largest:g}"
            )
    if not all(isinstance(end, int) for end in augment.quality_range):
        raise ConfigError(
            f"config.augment.quality_range = {augment.quality_range}: whole numbers from 1 to 100"
        )
    if not augment.jpeg and not augment.webp and augment.again:
        raise ConfigError(
            f"config.augment.again = {augment.again}: goes with augment.jpeg or augment.webp"
        )
    changed = [name for name in _LIMITS if tuple(augment[name]) != default[name]]
    if changed and not any(augment[name] for name in probabilities):
        name = changed[0]
        raise ConfigError(
            f"config.augment.{name} = {augment[name]}: no image is changed, since all "
            "probabilities in config.augment are 0"
        )
