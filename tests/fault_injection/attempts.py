"""Attempts at commands, with a fault in each: the library of faults, the server, the answers."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
FAULTS = ("kill", "ENOSPC", "EIO", "EACCES")
SECONDS = 300  # of a clock on the wall, after which an attempt counts as hung


class NoCompilerError(Exception):
    """There is no `cc` here, or it makes no such library."""


def compile_library(folder: Path) -> Path:
    """Compiles the library of faults. Raises NoCompilerError where that cannot be done."""
    if sys.platform != "linux":
        raise NoCompilerError("faults are preloaded on Linux alone")
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompilerError("there is no C compiler cc")
    library = folder / "faults.so"
    words = [compiler, "-O1", "-shared", "-fPIC", str(HERE / "faults.c"), "-o", str(library)]
    done = subprocess.run([*words, "-ldl"], capture_output=True, text=True)
    if done.returncode:
        raise NoCompilerError(f"cc cannot compile faults.c: {done.stderr.strip()}")
    return library


@dataclasses.dataclass(frozen=True)
class Ended:
    """How an attempt has ended.

    Attributes:
      code: exit code, negative for a signal.
      said: on standard output and error.
      operations: (kind, path) of the operations on the folder that was watched, in order.
      cpu: seconds of the processor.
      hung: whether it was killed because it took too long.
    """

    code: int
    said: str
    operations: list[tuple[str, str]]
    cpu: float
    hung: bool

    @property
    def errors(self) -> list[str]:
        """The lines that tell a user what went wrong."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]

    @property
    def has_traceback(self) -> bool:
        """Whether a traceback was shown, or an exception that nobody has caught."""
        return re.search(r"Traceback|Exception|Fatal Python error", self.said) is not None


class Server:
    """The process of fork_server.py. An attempt is made at a time."""

    def __init__(self, library: Path, folder: Path, cache: Path):
        """
        Args:
          library: of faults.
          folder: for what attempts say, and their logs.
          cache: of compiled programs.
        """
        self._said, self._log = folder / "said", folder / "operations"
        self._temporary = folder / "temporary"
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes most of the time
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        environment.pop("PYTHONWARNINGS", None)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            env=environment,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        watched: Path | None = None,
        temporary: Path | None = None,
        number: int = 0,
        fault: str = "kill",
        cpu_seconds: int = 0,
    ) -> Ended:
        """Runs `python -m MODULE ARGUMENTS`.

        Args:
          module: of the project's.
          arguments: of the command.
          watched: the folder on which operations are counted; None: nothing is.
          temporary: the folder for temporary files; one of the server's own by default.
          number: the operation to strike at, from 1; 0: none.
          fault: one of FAULTS.
          cpu_seconds: after which it is killed; 0: as many as it takes. With them, memory has a
            limit, too.
        """
        for path in (self._said, self._log):
            path.unlink(missing_ok=True)
        temporary = temporary or self._temporary
        temporary.mkdir(exist_ok=True)
        request = {
            "module": module,
            "arguments": list(arguments),
            "directory": str(REPOSITORY),
            "temporary": str(temporary),
            "said": str(self._said),
            "folder": str(watched),
            "log": None if watched is None else str(self._log),
            "number": number,
            "fault": fault,
            "seconds": SECONDS,
            "cpu_seconds": cpu_seconds,
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        operations = []
        if self._log.exists():
            for line in self._log.read_text().splitlines():
                _, kind, path = line.split(" ", 2)
                operations.append((kind, path))
        said = self._said.read_text(errors="replace") if self._said.exists() else ""
        return Ended(answer["code"], said, operations, answer["cpu"], answer["hung"])

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
