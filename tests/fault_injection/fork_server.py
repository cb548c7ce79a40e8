"""Runs the project's commands in forks of one process, which has imported the program already.

A line of standard input is a request in JSON, one of standard output its answer; see attempts.py.
The library of faults is preloaded, and armed in the fork alone.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from typing import Any

warnings.filterwarnings("ignore", ".*fork")  # JAX: no backend is there yet
for _name in (
    *("wsdl_jax.convert", "wsdl_jax.evaluate", "wsdl_jax.predict", "wsdl_jax.report"),
    *(
        "wsdl_jax.sweep",
        "wsdl_jax.training",
        "wsdl_jax.diffusion.train",
        "wsdl_jax.diffusion.forge",
    ),
    *("wsdl_jax.diffusion.quality", "wsdl_data.dolos.dolos_dataset_builder"),
    *("wsdl_data.image_folder.image_folder_dataset_builder", "tensorboardX"),
):
    __import__(_name)
with contextlib.suppress(ImportError):
    import torch  # noqa: F401 (it takes seconds)
from absl import flags  # noqa: E402

_MEMORY = 16 << 30  # bytes of addresses, of which glibc and JAX take six without using them
_OWN_FLAGS = set(flags.FLAGS)


def _run(module: str, arguments: list[str]) -> None:
    """What `python -m` does."""
    sys.modules.pop(module, None)  # or runpy warns that it is imported twice
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _run_and_exit(module: str, arguments: list[str]) -> None:
    """Runs a command, and all that is to run at the end of a program; then the process is gone.

    To take the interpreter apart would take longer than most of these commands.
    """
    code: Any = 0
    try:
        _run(module, arguments)
    except SystemExit as stop:
        code = stop.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Forked:
    """In place of subprocess.Popen: a command of the project's as a fork, without the imports."""

    def __init__(self, arguments: list[str], **_: Any):
        reader, writer = os.pipe()
        self.returncode: int | None = None
        self._process = os.fork()
        if not self._process:
            os.close(reader)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for name in set(flags.FLAGS) - _OWN_FLAGS:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
            _run_and_exit(arguments[2], arguments[3:])
        os.close(writer)
        self.stdout = os.fdopen(reader, "r", errors="replace")

    def __enter__(self) -> "_Forked":
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.wait()

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
        return self.returncode

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        os.kill(self._process, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self._process, signal.SIGKILL)


_popen = subprocess.Popen


def _forking(arguments: list[str], *rest: Any, **named: Any) -> Any:
    if arguments[:2] == [sys.executable, "-m"]:
        return _Forked(arguments, **named)
    return _popen(arguments, *rest, **named)


def _begin(request: dict[str, Any]) -> None:
    """In the fork: the surroundings of a command, and the fault."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if request["cpu_seconds"]:
        resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_seconds"],) * 2)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY,) * 2)
    for stream, path, mode in ((0, os.devnull, os.O_RDONLY), (1, request["said"], os.O_WRONLY)):
        os.dup2(os.open(path, os.O_CREAT | os.O_APPEND | mode), stream)
    os.dup2(1, 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.chdir(request["directory"])
    os.environ["TMPDIR"] = request["temporary"]
    tempfile.tempdir = None  # asked for anew
    subprocess.Popen = _forking
    if request["log"] is not None:
        library = ctypes.CDLL(None)
        folder, fault, log = (request[name].encode() for name in ("folder", "fault", "log"))
        if library.faults_arm(folder, ctypes.c_long(request["number"]), fault, log):
            os._exit(98)


def _wait(process: int, seconds: float) -> dict[str, Any]:
    until, hung = time.monotonic() + seconds, False
    while True:
        ended, status, used = os.wait4(process, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > until and not hung:
            hung = True
            os.killpg(process, signal.SIGKILL)
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):  # what it has left running
        os.killpg(process, signal.SIGKILL)
    cpu = used.ru_utime + used.ru_stime
    return {"code": os.waitstatus_to_exitcode(status), "cpu": cpu, "hung": hung}


def _serve() -> None:
    """Answers requests until there are no more."""
    gc.collect()
    gc.freeze()  # forks need not look at it again
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if not process:
            _begin(request)
            _run_and_exit(request["module"], request["arguments"])
        print(json.dumps(_wait(process, request["seconds"])), flush=True)


if __name__ == "__main__":
    _serve()
