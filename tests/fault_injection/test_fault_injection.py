"""Commands are struck while they write: they say so in one line, and do it the next time."""

import random

import checks
import pytest
from attempts import FAULTS
from commands import NAMES, Place

COUNT = 48  # of the thousands that campaign.py tries
SEED = 0


def chosen() -> list[tuple[str, float, str]]:
    """(command, where in its operations, in [0, 1), fault), all commands about equally often."""
    rng = random.Random(SEED)
    commands = [NAMES[number % len(NAMES)] for number in range(COUNT)]
    return [(name, rng.random(), rng.choice(FAULTS)) for name in commands]


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> dict[str, checks.Undisturbed]:
    """What each command does without a fault, as it comes to be needed."""
    return {}


@pytest.mark.parametrize(("name", "where", "fault"), chosen())
def test_a_command_that_is_struck(place, undisturbed, name, where, fault):
    if name not in undisturbed:
        undisturbed[name] = checks.undisturbed(place, name)
    expected = undisturbed[name]
    number = 1 + int(where * len(expected.operations))
    verdict = checks.check(place, name, number, fault, expected)
    assert not verdict.problems, (
        f"operation {number} of {name}, {verdict.struck}, {fault}: {verdict.problems}\n"
        f"{verdict.said}"
    )
