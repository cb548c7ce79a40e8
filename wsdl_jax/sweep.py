"""Runs a list of configs, here or on a cluster, and makes tables of their results.

    python -m wsdl_jax.sweep configs/sweeps/setups.py --workdir runs/setups
    python -m wsdl_jax.sweep configs/sweeps/setups.py --workdir runs/setups --collect
    python -m wsdl_jax.sweep configs/sweeps/cross_generator.py:source=celebahq,seeds=3 \\
        --workdir runs/generators --runner slurm --runner_options="--partition=gpu --nodes=1"

The same command again does what is missing. Exit codes: 0 done, 1 a run has failed, 2 wrong flags
or sweep, 130 and 143 stopped by SIGINT (Ctrl-C) and SIGTERM, after the run in hand has saved.

A sweep file has a function `get_sweep(arg)`, of the text behind the file's colon or None, that
yields (name, config, overrides) or (name, config, overrides, also_on): a name GROUP/SETTING for the
tables; a config file and its variant; values by field, the seed among them; and the subsets with
masks on which the run is evaluated besides the config's own. Tuples of one name differ by their
seeds. The run directory is WORKDIR/NAME/seed-N; what two names have in common is run once.
"""

import sys

from absl import flags
from etils import epath

from wsdl_jax.runtime import command
from wsdl_jax.runtime.errors import UserError, reason
from wsdl_jax.sweeps import collected, plan, runners
from wsdl_jax.sweeps.plan import variant

__all__ = ["variant"]


def main(argv: list[str]) -> None:
    """Runs the command with its flags."""
    workdir = epath.Path(_WORKDIR.value)
    planned = plan.read(argv[1], workdir, _OVERRIDE.value)
    code = 0
    try:
        if _COLLECT.value:
            collected.collect(argv[1], planned, workdir)
        else:
            runner, options = _RUNNER.value, _RUNNER_OPTIONS.value
            code = runners.start(planned, workdir, runner, options, resubmit=_RESUBMIT.value)
    except OSError as error:
        raise UserError(f"{workdir}: {reason(error)}") from error
    sys.exit(code)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the sweep.", required=True)
    _RUNNER = flags.DEFINE_enum("runner", "here", runners.RUNNERS, "Who runs what is missing.")
    _RUNNER_OPTIONS = flags.DEFINE_string(
        "runner_options", "", "Further options of sbatch, or of sky jobs launch."
    )
    _RESUBMIT = flags.DEFINE_bool(
        "resubmit", False, "Submit again what was submitted and has no results."
    )
    _OVERRIDE = flags.DEFINE_multi_string(
        "override", [], "FIELD=VALUE of every run's config, such as data.dir=DIR; may be repeated."
    )
    _COLLECT = flags.DEFINE_bool("collect", False, "Run nothing: write tables of what is there.")
    command.run(main, operands=("FILE",))
