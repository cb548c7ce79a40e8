"""Writes a trained forger as one file: all that forging needs.

    python -m wsdl_jax.diffusion.forger --run runs/forger/pixel --out pixel.safetensors

The file has the averaged weights of the run's best checkpoint as float16, and its config.
"""

import logging

import jax
from absl import flags
from etils import epath

from wsdl_jax.diffusion import trained
from wsdl_jax.runtime import command

log = logging.getLogger("wsdl_jax")


def main(_: list[str]) -> None:
    """Runs the command."""
    jax.config.parse_flags_with_absl()
    out = epath.Path(_OUT.value)
    forger = trained.load(_RUN.value)
    trained.save(forger, out)
    size = out.stat().length / 1e6
    log.info("%s of step %d: %.2f MB, %s", forger.config.part, forger.step, size, out)


if __name__ == "__main__":
    _RUN = flags.DEFINE_string("run", None, "A run directory of a forger.", required=True)
    _OUT = flags.DEFINE_string("out", None, "The safetensors file to write.", required=True)
    command.run(main)
