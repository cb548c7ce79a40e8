"""Strikes each command at every one of its operations, once.

    python tests/fault_injection/campaign.py
    python tests/fault_injection/campaign.py --command report --first 20 --last 40
    python tests/fault_injection/campaign.py --tries 20 --folder DIR

The fault at the n-th operation is kill, ENOSPC, EIO or EACCES in turn, by n. It prints a line for
each that the command does not stand, and at the end a table of counts. A folder keeps the inputs
and, in record.json, what was tried; that is not tried again.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent))

import checks
from attempts import FAULTS, Server, compile_library
from commands import Place


@contextlib.contextmanager
def place(folder: Path | None) -> Iterator[Place]:
    """A place to run commands in, in a folder that stays or in a temporary one."""
    with tempfile.TemporaryDirectory(prefix="wsdl-jax-faults-") as temporary:
        folder = (folder or Path(temporary)).resolve()
        (folder / "cache").mkdir(parents=True, exist_ok=True)
        server = Server(compile_library(folder), folder, folder / "cache")
        try:
            yield Place(folder / "place", server)
        finally:
            server.close()


def table(record: dict[str, dict]) -> str:
    """Markdown: of each command its operations, and how many were tried, refused and fell."""
    lines = ["| command | operations | tried | refused afterwards | fell |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    sums = [0, 0, 0, 0]
    for name, of_command in record.items():
        tried = of_command["tried"].values()
        refused = sum(one["refused"] for one in tried)
        fell = sum(bool(one["problems"]) for one in tried)
        counts = [of_command["operations"], len(tried), refused, fell]
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join([*lines, f"| all | {' | '.join(map(str, sums))} |"])


def _step(arguments: argparse.Namespace, last: int) -> int:
    """Odd, so that all four faults have their turn."""
    if not arguments.tries:
        return 1
    step = -(-(last + 1 - arguments.first) // arguments.tries)
    return step | 1


def main() -> int:
    """The command. Returns its exit status: 0 all stood, 1 some fell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--command", action="append", help="this one only; may be repeated")
    parser.add_argument("--first", type=int, default=1, help="operation, from 1")
    parser.add_argument("--last", type=int, help="operation")
    parser.add_argument("--tries", type=int, help="at most, of each command, evenly spaced")
    parser.add_argument("--fault", choices=FAULTS, help="this one at all operations")
    parser.add_argument("--folder", type=Path, help="for inputs and record; default: temporary")
    parser.add_argument("--say", action="store_true", help="show what commands that fell have said")
    arguments = parser.parse_args()
    record: dict[str, dict] = {}  # command → how many operations, and what was tried
    file = arguments.folder and arguments.folder / "record.json"
    if file and file.exists():
        record = json.loads(file.read_text())
    fell = 0
    with place(arguments.folder) as where:
        for name in arguments.command or where.commands:
            expected = checks.undisturbed(where, name)
            count = len(expected.operations)
            tried = record.setdefault(name, {"tried": {}})["tried"]
            record[name]["operations"] = count
            last = min(arguments.last or count, count)
            for number in range(arguments.first, last + 1, _step(arguments, last)):
                fault = arguments.fault or FAULTS[number % len(FAULTS)]
                key = f"{number} {fault}"
                if key in tried:
                    continue
                verdict = checks.check(where, name, number, fault, expected)
                tried[key] = {
                    "struck": verdict.struck,
                    "refused": verdict.refused,
                    "problems": verdict.problems,
                }
                if verdict.problems:
                    fell += 1
                    kind, path = verdict.struck or ("nothing", "")
                    said = "; ".join(verdict.problems)
                    print(f"{name} {key} at {kind} {path}: {said}", flush=True)
                    if arguments.say:
                        print(re.sub("^", "    ", verdict.said, flags=re.MULTILINE), flush=True)
                if file:
                    file.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    return 1 if fell else 0


if __name__ == "__main__":
    sys.exit(main())
