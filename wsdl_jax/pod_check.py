"""Compiles the real step for a TPU slice that is not here: what it costs, and whether it fits.

    python -m wsdl_jax.pod_check --config configs/attention.py:setup=a,source=celebahq \\
        --topology v5e:16x16 --per-chip-batch 32
    python -m wsdl_jax.pod_check --config configs/patches.py --topology v6e:4x4 --find-batch

The step is that of a run, mapped over all chips of the slice and compiled ahead of time by libtpu,
on any Linux machine and without touching a TPU it may have; no data and no weights are needed. The
package comes with the extra: pip install 'wsdl-jax[tpu]'. A step of the largest networks takes
minutes to compile.

Topologies: v5e and v6e with 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16 chips; v4 and v5p with
three sizes, as 4x4x8. Exit codes: 0 it fits, 1 failed, 2 wrong flags or config, 3 it does not fit.
"""

import sys

from absl import flags

from wsdl_jax import configuration
from wsdl_jax.pods import cost, topology
from wsdl_jax.pods.check import check
from wsdl_jax.runtime import command, shipped_files

DOES_NOT_FIT = 3  # exit code


def main(_: list[str]) -> None:
    """Runs the command."""
    configuration.validate(_CONFIG.value)
    topology.set_up_process()
    fits = check(
        _CONFIG.value,
        _TOPOLOGY.value,
        step=_STEP.value,
        batch=_BATCH.value,
        find_batch=_FIND.value,
    )
    if not fits:
        sys.exit(DOES_NOT_FIT)


if __name__ == "__main__":
    _CONFIG = shipped_files.define_config()
    _TOPOLOGY = flags.DEFINE_string("topology", None, "The slice, as v5e:16x16.")
    _BATCH = flags.DEFINE_integer(
        "per-chip-batch", 32, "Images of each chip; where --find-batch starts.", 1, 2**20
    )
    _STEP = flags.DEFINE_enum("step", "train", cost.STEPS, "Which step.")
    _FIND = flags.DEFINE_bool("find-batch", False, "Finds the largest batch that fits.")
    flags.mark_flags_as_required(["config", "topology"])
    command.run(main)
