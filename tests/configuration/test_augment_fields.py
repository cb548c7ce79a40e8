"""Recipes of augmentation by name, and values of config.augment that are refused."""

import pytest

from wsdl_jax import configuration
from wsdl_jax.configuration.augmentation import RECIPES
from wsdl_jax.runtime import variants
from wsdl_jax.runtime.errors import ConfigError


def config(**augment):
    config, _ = configuration.start("patches", None)
    config.augment.update(augment)
    return config


def test_recipes_are_valid_and_differ():
    made = {}
    for name in RECIPES:
        of_recipe = config(jpeg=0.9, noise_range=(0.0, 9.0))  # of which nothing stays
        configuration.set_augment(of_recipe, name)
        configuration.validate(of_recipe)
        made[name] = of_recipe.augment.to_dict()
        for field, value in RECIPES[name].items():
            assert made[name][field] == value
    assert list(made) == ["none", "light", "robust"]
    assert made["none"] == configuration.base().augment.to_dict()
    assert made["light"] != made["robust"] != made["none"] != made["light"]


def test_all_that_is_evaluated_is_in_the_robust_recipe():
    robust = config()
    configuration.set_augment(robust, "robust")
    for name in ("jpeg", "webp", "again", "scale", "blur", "noise", "gamma", "colour"):
        assert 0 < robust.augment[name] < 1


def test_the_robust_recipe_has_a_threshold_that_holds_for_perturbed_images():
    made = config()
    for name in ("robust", "light", "none"):
        configuration.set_augment(made, name)
        assert made.eval.perturbed == (name == "robust")


def test_the_variant_names_the_recipes():
    (augment,) = (variant for variant in configuration.VARIED if variant.key == "augment")
    assert variants.parse(None, [augment]) == {"augment": "none"}
    for name in RECIPES:
        assert variants.parse(f"augment={name}", [augment]) == {"augment": name}
    with pytest.raises(ConfigError, match=r"augment=none\|light\|robust"):
        variants.parse("augment=strong", [augment])
    with pytest.raises(ConfigError, match="augment='strong': choose from none, light, robust"):
        configuration.set_augment(config(), "strong")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"jpeg": 1.5}, "augment.jpeg = 1.5: a probability, from 0 to 1"),
        ({"cut_out": -0.1}, "augment.cut_out = -0.1: a probability"),
        ({"noise": float("nan")}, "augment.noise = nan: a probability"),
        ({"jpeg": 0.5, "quality_range": (0, 90)}, r"quality_range = \(0, 90\): .* from 1 to 100"),
        ({"webp": 0.5, "quality_range": (60.5, 90)}, "quality_range = .*: whole numbers"),
        ({"blur": 0.5, "blur_range": (2.0, 1.0)}, r"blur_range = \(2.0, 1.0\): the least and the"),
        ({"blur": 0.5, "blur_range": (2.0,)}, "blur_range = .* from 0 to 100"),
        ({"blur": 0.5, "blur_range": ("1", "2")}, "blur_range"),
        ({"noise": 0.5, "noise_range": (-1.0, 2.0)}, "noise_range = .* from 0 to 255"),
        ({"gamma": 0.5, "gamma_range": (0.0, 2.0)}, "gamma_range = .* from 0.1 to 10"),
        ({"gamma": 0.5, "gamma_range": (0.5, float("nan"))}, "gamma_range"),
        ({"crop": 0.5, "crop_range": (0.5, 1.5)}, "crop_range = .* from 0.1 to 1$"),
        ({"scale": 0.5, "scale_range": (0.0, 1.0)}, "scale_range = .* from 0.1 to 4"),
        ({"colour": 0.5, "colour_range": (0.0, 1.1)}, "colour_range = .* from 0 to 1"),
        ({"cut_out": 0.5, "cut_out_range": (0.0, 1.1)}, "cut_out_range = .* from 0 to 1"),
        ({"blur": 0.5, "again": 0.5}, "augment.again = 0.5: goes with augment.jpeg or augment.web"),
        ({"noise_range": (1.0, 2.0)}, "noise_range = .*: no image is changed, since all"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message) as raised:
        configuration.validate(config(**fields))
    assert "\n" not in str(raised.value)


def test_stored_and_read():
    made = config()
    configuration.set_augment(made, "robust")
    assert configuration.load(configuration.save(made)).augment == made.augment
