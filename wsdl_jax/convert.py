"""Published PyTorch weights ↔ networks and run directories of this project.

    python -m wsdl_jax.convert xcp_reg.tar --layout ffd-attention --out runs/ffd
    python -m wsdl_jax.convert runs/patches-c --layout dolos-patches --out patches.safetensors

The first makes a run directory of a weight file, the second a weight file of a run directory.
"""

import logging

from absl import flags
from etils import epath

from wsdl_jax import methods, runs
from wsdl_jax.runtime import command
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.weights import from_torch, to_torch, write

__all__ = ["from_torch", "to_torch"]

log = logging.getLogger("wsdl_jax")


def main(arguments: list[str]) -> None:
    """Runs the command."""
    source, out = epath.Path(arguments[1]), epath.Path(_OUT.value)
    if not source.is_dir():
        runs.make_run(source, _LAYOUT.value, out, _SETUP.value)
        return
    if _SETUP.value:
        raise UserError(f"--setup goes with a weight file; {source} is a run")
    write(to_torch(runs.load(source).model, _LAYOUT.value), out)
    log.info("%s: the best network of %s, in layout %s", out, source, _LAYOUT.value)


if __name__ == "__main__":
    _LAYOUT = flags.DEFINE_enum(
        "layout", None, list(methods.layouts()), "Of the weight file.", required=True
    )
    _OUT = flags.DEFINE_string("out", None, "A new run directory, or weight file.", required=True)
    _SETUP = flags.DEFINE_enum(
        "setup", None, list(methods.SETUPS), "What a published network was trained on; default: a."
    )
    command.run(main, operands=("FILE",))
