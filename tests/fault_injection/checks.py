"""What has to hold of a command that a fault has struck, and of the same command afterwards."""

import dataclasses
import re
from typing import NamedTuple

import outcomes
from attempts import Ended
from commands import Place

# A sweep goes on after a run that has failed, and names it.
_RUN_FAILED = re.compile(r"^\S+: failed \(", re.MULTILINE)


class Undisturbed(NamedTuple):
    """A command that nothing has disturbed.

    Attributes:
      operations: (kind, path from the working folder), in order.
      before: what was there.
      after: what it has left.
    """

    operations: list[tuple[str, str]]
    before: outcomes.Outcome
    after: outcomes.Outcome


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What has become of one fault.

    Attributes:
      struck: kind and path of the operation that was struck; None where it was not reached.
      refused: whether the same command has refused afterwards, with nothing lost.
      problems: what should not be, in words; empty if the command stands.
      said: by both attempts.
    """

    struck: tuple[str, str] | None
    refused: bool
    problems: list[str]
    said: str


def undisturbed(place: Place, name: str) -> Undisturbed:
    """Runs a command without a fault. Raises RuntimeError if it fails."""
    place.reset(name)
    before = outcomes.read(place.work)
    ended = place.run(place.commands[name])
    if ended.code or ended.has_traceback:
        raise RuntimeError(f"{name}: {ended.code}: {ended.said}")
    if left := outcomes.leftovers(place.work):
        raise RuntimeError(f"{name} leaves {left}")
    operations = [(kind, _from_work(place, path)) for kind, path in ended.operations]
    return Undisturbed(operations, before, outcomes.read(place.work))


def check(place: Place, name: str, number: int, fault: str, expected: Undisturbed) -> Verdict:
    """Strikes a command at an operation, and runs it again.

    Args:
      place: where it works.
      name: of the command.
      number: of the operation, from 1.
      fault: one of attempts.FAULTS.
      expected: of the command without a fault.
    """
    place.reset(name)
    first = place.run(place.commands[name], number, fault)
    struck = None
    if len(first.operations) >= number:
        kind, path = first.operations[number - 1]
        struck = kind, _from_work(place, path)
    problems = [f"struck: {problem}" for problem in _of_first(place, name, first, fault, expected)]

    second = place.run(place.commands[name])
    after = outcomes.read(place.work)
    refused = second.code in (1, 2)
    if refused:
        wrong = _of_failure(name, second) + outcomes.losses(after, expected.before, expected.after)
    elif second.code:
        wrong = [f"exit code {second.code}"]
    else:
        wrong = outcomes.differences(after, expected.after)
    if second.hung:
        wrong.append("hung")
    if second.has_traceback:
        wrong.append("a traceback")
    wrong += [f"{path} is left over" for path in outcomes.leftovers(place.work)]
    problems += [f"afterwards: {problem}" for problem in wrong]
    said = f"{first.code}:\n{first.said}\n{second.code}:\n{second.said}"
    return Verdict(struck, refused, problems, said)


def _of_first(
    place: Place, name: str, ended: Ended, fault: str, expected: Undisturbed
) -> list[str]:
    if ended.hung:
        return ["hung"]
    problems = ["a traceback"] if ended.has_traceback else []
    if ended.code == -9 and fault == "kill":
        return problems
    found = outcomes.read(place.work)
    if ended.code == 0:
        return problems + [f"done, but {x}" for x in outcomes.differences(found, expected.after)]
    problems += _of_failure(name, ended)
    # It says that it has failed. What was there is there, or what was to come.
    return problems + outcomes.losses(found, expected.before, expected.after)


def _of_failure(name: str, ended: Ended) -> list[str]:
    if ended.code not in (1, 2):
        return [f"exit code {ended.code}"]
    lines = len(ended.errors)
    fitting = lines == 1
    if name == "sweep":  # it shows what its run says, too, and tells of it in words of its own
        fitting = lines in (1, 2) or _RUN_FAILED.search(ended.said) is not None
    return [] if fitting else [f"{lines} lines of errors"]


def _from_work(place: Place, path: str) -> str:
    return path.removeprefix(f"{place.work}/").removesuffix(" (deleted)")
