"""The console scripts: `wsdl-train` is `python -m wsdl_jax.main`, and so on.

A script runs its module as `python -m` does, with the current directory on the path, so that both
have the same flags, messages and exit codes, and both find a method given as `MODULE:NAME`.
"""

import functools
import os
import runpy
import sys


def _run(module: str) -> None:
    if not sys.flags.safe_path:  # `python -m` leaves it out as well, where it is told to
        sys.path.insert(0, os.getcwd())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


train = functools.partial(_run, "wsdl_jax.main")
evaluate = functools.partial(_run, "wsdl_jax.evaluate")
predict = functools.partial(_run, "wsdl_jax.predict")
report = functools.partial(_run, "wsdl_jax.report")
sweep = functools.partial(_run, "wsdl_jax.sweep")
convert = functools.partial(_run, "wsdl_jax.convert")
pod_check = functools.partial(_run, "wsdl_jax.pod_check")
build = functools.partial(_run, "wsdl_data.build")
audit = functools.partial(_run, "wsdl_data.audit")
train_forger = functools.partial(_run, "wsdl_jax.diffusion.train")
forge = functools.partial(_run, "wsdl_jax.diffusion.forge")
forger_quality = functools.partial(_run, "wsdl_jax.diffusion.quality")
forger_file = functools.partial(_run, "wsdl_jax.diffusion.forger")
