"""Evaluates a trained run on a dataset's test split: predictions and results.

python -m wsdl_jax.evaluate --run runs/patches-a-portraits-ddpm_reconstructed
python -m wsdl_jax.evaluate --run RUN --fake dolos/celebahq_lama --real dolos/celebahq_real
python -m wsdl_jax.evaluate --run RUN --fake portraits/telea,portraits/upsample
python -m wsdl_jax.evaluate --run RUN --perturb jpeg --strengths 90,70,50
python -m wsdl_jax.evaluate --run RUN --perturb all
python -m wsdl_jax.evaluate --run RUN --save_maps
python -m wsdl_jax.evaluate --run RUN --exchange
python -m wsdl_jax.evaluate --maps DIR --fake SUBSET --real SUBSET --out DIR --scores scores.csv
"""

import jax
from absl import flags
from etils import epath

from wsdl_jax import configuration, inputs, runs
from wsdl_jax.evaluation import evaluate, evaluate_maps, everyday_robustness, exchanged, robustness
from wsdl_jax.inputs import perturbations
from wsdl_jax.runtime import command, hosts
from wsdl_jax.runtime.errors import ConfigError

__all__ = ["evaluate", "evaluate_maps", "everyday_robustness", "exchanged", "robustness"]
_ALL = "all"


def main(_: list[str]) -> None:
    """Runs the command with its flags."""
    jax.config.parse_flags_with_absl()
    hosts.start_by_flags()
    if _MAPS.value is not None:
        _evaluate_maps()
        return
    if _RUN.value is None:
        raise ConfigError("--run is missing, or --maps")
    for flag in (_OUT, _SCORES):
        if flag.value is not None:
            raise ConfigError(f"--{flag.name} goes with --maps")
    if _SAVE_MAPS.value and _PERTURB.value is not None:
        raise ConfigError("--save_maps keeps the maps of images as they are, without --perturb")
    perturbs = _PERTURB.value is not None or _STRENGTHS.value is not None
    if _EXCHANGE.value and (_SAVE_MAPS.value or perturbs):
        raise ConfigError("--exchange goes without --save_maps, --perturb and --strengths")
    run = epath.Path(_RUN.value)
    where = {"fake": _FAKE.value, "real": _REAL.value, "data_dir": _DATA_DIR.value}
    if _PERTURB.value == _ALL and _STRENGTHS.value is not None:
        raise ConfigError(f"--strengths goes with one kind, --perturb {_ALL} has its own")
    if _PERTURB.value is None and _STRENGTHS.value is not None:
        raise ConfigError("--strengths goes with --perturb")
    config = runs.load_config(run)
    sides = _FAKE.value or config.data.test_fake, _REAL.value or config.data.test_real
    tested = [name for side in sides for name in configuration.subsets(side)]
    inputs.warn_of_changed_sources(tested, _DATA_DIR.value or config.data.dir)
    if _EXCHANGE.value:
        exchanged(run, **where)
    elif _PERTURB.value == _ALL:
        everyday_robustness(run, **where)
    elif _PERTURB.value is not None:
        robustness(run, _PERTURB.value, _STRENGTHS.value, **where)
    else:
        evaluate(run, **where, save_maps=_SAVE_MAPS.value)


def _evaluate_maps() -> None:
    for flag in (_RUN, _PERTURB, _STRENGTHS):
        if flag.value is not None:
            raise ConfigError(f"--{flag.name} does not go with --maps")
    for flag in (_SAVE_MAPS, _EXCHANGE):
        if flag.value:
            raise ConfigError(f"--{flag.name} does not go with --maps")
    for flag in (_FAKE, _REAL, _OUT):
        if flag.value is None:
            raise ConfigError(f"--{flag.name} is missing, which --maps needs")
    tested = [name for side in (_FAKE, _REAL) for name in configuration.subsets(side.value)]
    inputs.warn_of_changed_sources(tested, _DATA_DIR.value)
    evaluate_maps(
        epath.Path(_MAPS.value),
        epath.Path(_OUT.value),
        fake=_FAKE.value,
        real=_REAL.value,
        scores=None if _SCORES.value is None else epath.Path(_SCORES.value),
        data_dir=_DATA_DIR.value,
    )


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "A run directory.")
    _FAKE = flags.DEFINE_string("fake", None, "Prepared subsets of fakes to test on, with commas.")
    _REAL = flags.DEFINE_string(
        "real", None, "Prepared subsets of real images to test on, with commas."
    )
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Prepared datasets; default: the run's.")
    _PERTURB = flags.DEFINE_enum(
        "perturb",
        None,
        [*perturbations.KINDS, _ALL],
        "Test on images perturbed in this way instead, or in each of the everyday ways.",
    )
    _STRENGTHS = flags.DEFINE_list("strengths", None, "Of the perturbation, from mild to strong.")
    _SAVE_MAPS = flags.DEFINE_bool("save_maps", False, "Keep all maps and scores, in maps/.")
    _EXCHANGE = flags.DEFINE_bool(
        "exchange", False, "Put original pixels back outside the masks, and score before and after."
    )
    _MAPS = flags.DEFINE_string("maps", None, "Score the maps of this folder, without a run.")
    _SCORES = flags.DEFINE_string("scores", None, "A CSV file of image scores, for --maps.")
    _OUT = flags.DEFINE_string("out", None, "The folder of the results, for --maps.")
    hosts.define_flags()
    flags.adopt_module_key_flags(hosts)  # for --help
    command.run(main)
