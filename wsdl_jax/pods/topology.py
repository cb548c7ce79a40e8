"""Slices of Cloud TPU that are not here, as libtpu compiles for them."""

import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from wsdl_jax.runtime.errors import ConfigError, UserError

# All slices that v5e and v6e have. libtpu judges the three sizes of v4 and v5p.
FLAT, CUBIC = ("v5e", "v6e"), ("v4", "v5p")
FLAT_SIZES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# libtpu assumes four chips a host, which is so but for these.
ONE_HOST = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}

# What libtpu needs to know to compile only: nothing here describes the machine it runs on, so it
# asks no metadata server, and takes no lock, as it takes no chip.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def set_up_process() -> None:
    """Makes this process one that compiles for TPUs and computes on none.

    Compiled programs are not kept: a compile time is what the compilation takes. To be called
    before JAX looks for devices.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("TPU_LOG_DIR", "disabled")


def make_devices(name: str) -> list[jax.Device]:
    """Returns the chips of a slice, to compile for.

    Args:
      name: kind and size of the slice, as "v5e:4x4".

    Raises:
      ConfigError: there is no such slice.
      UserError: libtpu is not installed.
    """
    kind, _, sizes = name.partition(":")
    flat = kind in FLAT and sizes in FLAT_SIZES
    if not flat and not (kind in CUBIC and re.fullmatch(r"\d+x\d+x\d+", sizes)):
        raise ConfigError(
            f"--topology {name}: choose {' or '.join(FLAT)} with {', '.join(FLAT_SIZES)}, as "
            f"v5e:4x4, or {' or '.join(CUBIC)} with three sizes, as v5p:4x4x8"
        )
    options: dict[str, Any] = {}
    if flat and sizes in ONE_HOST:
        options["chips_per_host_bounds"] = ONE_HOST[sizes]
    if kind in CUBIC:
        options["chip_config_name"] = "megacore"  # the two cores of a chip as one device
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:  # of libtpu
        raise ConfigError(f"--topology {name}: {error}") from error
    except RuntimeError as error:  # of JAX, which finds no libtpu
        raise UserError(
            "libtpu is not installed, which compiles for TPUs: pip install 'wsdl-jax[tpu]'"
        ) from error
