"""Trains a forger: a U-Net on pixels, an autoencoder, or a U-Net on its latents.

    python -m wsdl_jax.diffusion.train --config configs/diffusion.py --workdir runs/forger/pixel

The same command again continues where the run has stopped, also after Ctrl-C. Exit codes are those
of wsdl_jax.main.
"""

import jax
from absl import flags
from etils import epath

from wsdl_jax import configuration, inputs, runs
from wsdl_jax.diffusion import configuration as forgers
from wsdl_jax.diffusion.trained import load_config
from wsdl_jax.diffusion.training import train
from wsdl_jax.runtime import command, hosts, shipped_files


def main(_: list[str]) -> None:
    """Runs the command."""
    jax.config.parse_flags_with_absl()
    config = _CONFIG.value
    forgers.validate(config)
    configuration.check_circumstances(config)
    hosts.start_by_flags()
    run = epath.Path(_WORKDIR.value or f"runs/forger/{config.part}")
    runs.check(run, config, load_config)
    data = config.data
    needed = dict.fromkeys(data.real, ("train", "valid"))
    hosts.first_then_each(lambda: inputs.prepare_subsets(needed, data.dir, data.manual_dir))
    inputs.warn_of_changed_sources(needed, data.dir)
    train(config, run)


if __name__ == "__main__":
    _CONFIG = shipped_files.define_config()
    _WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; default: runs/forger/PART.")
    flags.mark_flag_as_required("config")
    hosts.define_flags()
    flags.adopt_module_key_flags(hosts)  # for --help
    command.run(main)
