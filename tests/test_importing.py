"""What importing the package does to the process that imports it: nothing."""

import subprocess
import sys

IMPORT_ALL = """
import logging, pkgutil, signal, sys, warnings
# These have settings of their own.
import absl.flags, absl.logging, grain, jax, orbax.checkpoint, tensorflow_datasets
import scipy.special, sklearn.metrics

def settings():
    loggers = [logging.getLogger(name) for name in (None, "absl", "asyncio", "wsdl_jax")]
    return {
        "unraisable": sys.unraisablehook,
        "exceptions": sys.excepthook,
        "signals": [signal.getsignal(n) for n in sorted(signal.valid_signals())],
        "loggers": [(l.level, list(l.filters), list(l.handlers)) for l in loggers],
        "warnings": list(warnings.filters),
        "flags": sorted(absl.flags.FLAGS),
        "jax": {name: jax.config._read(name) for name in jax.config.values},
        "path": list(sys.path),
    }

before = settings()
import wsdl_data, wsdl_jax
for package in (wsdl_data, wsdl_jax):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        __import__(module.name)
after = settings()
print([name for name in before if before[name] != after[name]])
print(sorted({"tensorflow", "torch"} & sys.modules.keys()))
"""


def test_importing_changes_nothing():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr
