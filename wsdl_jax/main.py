"""Trains and evaluates one config.

    python -m wsdl_jax.main --config configs/attention.py
    python -m wsdl_jax.main --config configs/patches.py:setup=b --config.train.epochs=4
    python -m wsdl_jax.main --config configs/patches.py:setup=c --also_on portraits/upsample

The same command again continues where the run has stopped. Exit codes: 0 done, 1 failed, 2 wrong
flags or config, 130 and 143 stopped by SIGINT (Ctrl-C) and SIGTERM with everything saved.
"""

import re

import jax
import ml_collections
from absl import flags
from etils import epath

from wsdl_jax import configuration, inputs, runs
from wsdl_jax.evaluation import evaluate
from wsdl_jax.runtime import command, hosts, shipped_files
from wsdl_jax.training import check_weights, train


def default_workdir(config: ml_collections.ConfigDict) -> str:
    """Returns runs/METHOD-SETUP-FAKE, by what is trained on, with what else the variant changes."""
    fakes = "+".join(config.data.fake)
    parts = filter(None, (config.method, config.setup, fakes, config.variant))
    return f"runs/{re.sub('[/:,]', '-', '-'.join(parts))}"


def main(_: list[str]) -> None:
    """Runs the command."""
    jax.config.parse_flags_with_absl()
    configuration.validate(_CONFIG.value)
    configuration.check_circumstances(_CONFIG.value)
    hosts.start_by_flags()
    config = configuration.for_devices(_CONFIG.value, jax.device_count())
    run = epath.Path(_WORKDIR.value or default_workdir(config))
    # What cannot work fails before the minutes that a dataset can take.
    config = runs.with_files(run, config)
    configuration.check_backbone_file(config)
    if not runs.RunDirectory(run).config.exists():
        check_weights(config)
    hosts.first_then_each(lambda: inputs.prepare(config, _ALSO_ON.value))
    data = config.data
    real = configuration.subsets(data.test_real)
    fake = (*configuration.subsets(data.test_fake), *_ALSO_ON.value)
    inputs.warn_of_changed_sources((*data.real, *data.fake, *real, *fake), data.dir)
    inputs.check_sides(real=real, fake=fake, data_dir=data.dir, splits=("test",))
    train(config, run)
    for fake in (None, *_ALSO_ON.value):
        evaluate(run, fake=fake)


if __name__ == "__main__":
    _CONFIG = shipped_files.define_config()
    _WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; default: a name under runs/.")
    _ALSO_ON = flags.DEFINE_list("also_on", [], "Further subsets of fakes to evaluate on.")
    flags.mark_flag_as_required("config")
    hosts.define_flags()
    flags.adopt_module_key_flags(hosts)  # for --help
    command.run(main)
