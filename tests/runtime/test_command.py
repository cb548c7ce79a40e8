"""What all commands share: Ctrl-C, programs that are compiled once, memory that is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from wsdl_jax.runtime import command
misses = []
jax.monitoring.register_event_listener(
    lambda event, **_: misses.append(event) if event.endswith("cache_misses") else None
)
def main(_):
    jax.config.parse_flags_with_absl()
    jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
    print(len(misses), jax.config.jax_compilation_cache_dir)
command.run(main)
"""

STEPS = """
import resource, sys
import jax
import jax.numpy as jnp
from wsdl_jax.runtime import settings

if sys.argv[1:] == ["keep"]:
    settings.keep_freed_memory()
step = jax.jit(lambda x: jnp.flip(x) + 1)
x = jnp.ones((16, 1024, 1024))
for _ in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(step(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

HEAP = """
import pathlib, re
import numpy as np
from wsdl_jax.runtime import settings

settings.keep_freed_memory()
def peak():  # of this program alone; getrusage knows that of its parent, too
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]) / 2**10
before, kept = peak(), []
for _ in range(10):
    large = np.ones(2**25)  # 256 MiB
    kept += [np.ones(2**17) for _ in range(4)]  # of 1 MiB, beyond the large one
    del large
    kept += [np.ones(2**17) for _ in range(4)]  # where it was, unless there is a better place
print(peak() - before)
"""


def execute(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:the load_module", "-c", code, *arguments],
        env={**inherited, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_what_was_compiled_is_kept(tmp_path: Path, variable: str):
    folder = tmp_path / ".cache" / "wsdl-jax"
    home = str(tmp_path / ".cache" if variable == "XDG_CACHE_HOME" else tmp_path)
    first = execute(PROGRAM, **{variable: home})
    assert first.returncode == 0 and not first.stderr, first.stderr
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    compiled, where = first.stdout.split()
    assert int(compiled) == len(kept) > 0 and where == str(folder)
    second = execute(PROGRAM, **{variable: home})
    assert second.stdout.split() == ["0", str(folder)] and not second.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept


def test_jax_settings_go_first(tmp_path: Path):
    chosen = tmp_path / "chosen"
    done = execute(PROGRAM, XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(chosen))
    assert done.stdout.split()[1] == str(chosen)
    assert not (tmp_path / "wsdl-jax").exists()


def test_without_a_folder_everything_works(tmp_path: Path):
    (tmp_path / "file").touch()
    done = execute(PROGRAM, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[1] == "None"


def test_ctrl_c_is_an_exit_code():
    code = (
        "from wsdl_jax.runtime import command\n"
        "def main(_): raise KeyboardInterrupt\n"
        "command.run(main)"
    )
    done = execute(code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_debug_shows_the_traceback():
    code = (
        "import sys; from wsdl_jax.runtime import command, errors\n"
        "def main(_): raise errors.UserError('no such\\nthing')\n"
        "command.run(main)"
    )
    done = execute(code)
    assert (done.returncode, done.stderr) == (1, "error: no such thing\n")
    done = execute(code.replace("import sys;", "import sys; sys.argv.append('--debug');"))
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and "UserError: no such" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_steps_take_the_memory_of_the_step_before():
    """The pages that the thirtieth step, of 64 MiB, has to be given by the system."""
    plain, keeping = (int(execute(STEPS, *mode).stdout) for mode in ((), ("keep",)))
    assert keeping < plain / 10


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_blocks_are_not_split():
    """Ten times 256 MiB, one after the other, and 80 MiB that stay: the peak, in MiB."""
    assert 300 < float(execute(HEAP).stdout) < 400
