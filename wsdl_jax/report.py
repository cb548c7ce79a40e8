"""Writes a folder with a page on runs and their results, which needs no server and no network.

python -m wsdl_jax.report runs/patches-a-portraits-ddpm_reconstructed
python -m wsdl_jax.report RUN1 RUN2 RUN3 --out compared --gallery 90
"""

import jax
from absl import flags
from etils import epath

from wsdl_jax import runs
from wsdl_jax.reporting import page
from wsdl_jax.runtime import command
from wsdl_jax.runtime.errors import ConfigError


def main(argv: list[str]) -> None:
    """Runs the command."""
    jax.config.parse_flags_with_absl()
    paths = [epath.Path(path) for path in argv[1:]]
    if _OUT.value is None and len(paths) > 1:
        raise ConfigError("--out is missing: where the report of several runs goes")
    default = runs.RunDirectory(paths[0]).report
    out = default if _OUT.value is None else epath.Path(_OUT.value)
    page.report(paths, out, count=_GALLERY.value, data_dir=_DATA_DIR.value)


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", None, "The folder; default: RUN/report, of a single run.")
    _GALLERY = flags.DEFINE_integer(
        "gallery", page.GALLERY, "About how many test images are shown.", lower_bound=0
    )
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Prepared datasets; default: the runs'.")
    command.run(main, operands=("RUN…",))
