"""Evaluates a trained run on a dataset's test split: predictions and results.

python -m wsdl_jax.evaluate --run runs/patches-a-portraits-ddpm_reconstructed
python -m wsdl_jax.evaluate --run RUN --fake dolos/celebahq_lama --real dolos/celebahq_real
python -m wsdl_jax.evaluate --run RUN --fake portraits/telea,portraits/upsample
python -m wsdl_jax.evaluate --run RUN --perturb jpeg --strengths 90,70,50
python -m wsdl_jax.evaluate --run RUN --perturb all
"""

import jax
from absl import flags
from etils import epath

from wsdl_jax import configuration, inputs, runs
from wsdl_jax.evaluation import evaluate, everyday_robustness, robustness
from wsdl_jax.inputs import perturbations
from wsdl_jax.runtime import command, hosts
from wsdl_jax.runtime.errors import ConfigError

__all__ = ["evaluate", "everyday_robustness", "robustness"]
_ALL = "all"


def main(_: list[str]) -> None:
    """Runs the command with its flags."""
    jax.config.parse_flags_with_absl()
    hosts.start_by_flags()
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
    if _PERTURB.value == _ALL:
        everyday_robustness(run, **where)
    elif _PERTURB.value is not None:
        robustness(run, _PERTURB.value, _STRENGTHS.value, **where)
    else:
        evaluate(run, **where)


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "A run directory.", required=True)
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
    hosts.define_flags()
    flags.adopt_module_key_flags(hosts)  # for --help
    command.run(main)
