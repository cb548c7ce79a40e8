"""Imports point downwards: each room knows only those below it, and the commands know all."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
# From below. Rooms of one line do not know one another, and no room knows a command.
FLOORS = (
    ("wsdl_jax.runtime", "wsdl_jax.models"),
    ("wsdl_data",),
    ("wsdl_jax.methods",),
    ("wsdl_jax.configuration",),
    ("wsdl_jax.inputs",),
    ("wsdl_jax.weights",),
    ("wsdl_jax.runs",),
    ("wsdl_jax.training",),
    ("wsdl_jax.evaluation", "wsdl_jax.diffusion"),
    ("wsdl_jax.prediction", "wsdl_jax.reporting", "wsdl_jax.sweeps", "wsdl_jax.pods"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# The one door that leads up, opened when portraits are forged.
DOORS = {("data/portraits/forged.py", "wsdl_jax.diffusion")}


def room_of(module: str) -> str | None:
    """The room that a module is in; None for a command, or code from elsewhere."""
    return next((room for room in FLOOR if f"{module}.".startswith(f"{room}.")), None)


def imported(path: Path) -> set[str]:
    """Every module of this project that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith(("wsdl_jax.", "wsdl_data."))}


def files() -> dict[str, str]:
    """Every file of the rooms, and its module."""
    found = {}
    for folder, package in (("wsdl_jax", "wsdl_jax"), ("data", "wsdl_data")):
        for path in (REPOSITORY / folder).rglob("*.py"):
            parts = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            found[str(path.relative_to(REPOSITORY))] = ".".join((package, *parts))
    return found


@pytest.mark.parametrize("room", FLOOR)
def test_a_room_knows_only_those_below(room):
    members = {path for path, module in files().items() if room_of(module) == room}
    assert members
    up = [
        f"{path} imports {module}"
        for path in sorted(members)
        for module in sorted(imported(REPOSITORY / path))
        if (other := room_of(module)) != room
        and (other is None or FLOOR[other] >= FLOOR[room])
        and (path, other) not in DOORS
    ]
    # Commands of a room may lie in it, and import from its own modules alone.
    assert not up


def test_every_file_is_in_a_room_or_a_command():
    outside = {path for path, module in files().items() if room_of(module) is None}
    # The package itself, and what starts the commands.
    for path in outside - {"wsdl_jax/__init__.py", "wsdl_jax/console_scripts.py"}:
        text = (REPOSITORY / path).read_text()
        assert "command.run(main" in text, f"{path} is in no room and is no command"
