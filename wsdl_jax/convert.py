"""Published PyTorch weights ↔ networks and run directories of this project.

    python -m wsdl_jax.convert xcp_reg.tar --layout ffd-attention --out runs/ffd
    python -m wsdl_jax.convert both.pth --layout declip --out runs/both \\
        --backbone ViT-L-14.pt --beside RN50.pt
    python -m wsdl_jax.convert runs/patches-c --layout dolos-patches --out patches.safetensors

The first two make a run directory of a weight file, the third a weight file of a run directory.
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
        backbone, beside = (flag.value and epath.Path(flag.value) for flag in (_BACKBONE, _BESIDE))
        runs.make_run(source, _LAYOUT.value, out, _SETUP.value, backbone=backbone, beside=beside)
        return
    for name, flag in (("setup", _SETUP), ("backbone", _BACKBONE), ("beside", _BESIDE)):
        if flag.value:
            raise UserError(f"--{name} goes with a weight file; {source} is a run")
    write(to_torch(runs.load(source).model, _LAYOUT.value), out)
    log.info("%s: the best network of %s, in layout %s", out, source, _LAYOUT.value)


if __name__ == "__main__":
    _LAYOUT = flags.DEFINE_enum(
        "layout", None, list(methods.layouts()), "Of the weight file.", required=True
    )
    _OUT = flags.DEFINE_string("out", None, "A new run directory, or weight file.", required=True)
    _SETUP = flags.DEFINE_enum(
        "setup",
        None,
        list(methods.SETUPS),
        "What a published network was trained on; default: the usual.",
    )
    _BACKBONE, _BESIDE = (
        flags.DEFINE_string(name, None, f"Of a decoder of two backbones: the file of the {which}.")
        for name, which in (("backbone", "first"), ("beside", "second"))
    )
    command.run(main, operands=("FILE",))
