import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.plugins import resolve


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; what a test imports from it and the path are forgotten after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [x for x in sys.path if x not in ("", os.getcwd())])
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_module_of_an_installed_package_is_imported():
    assert resolve("os.path:join", "joiner") is os.path.join


def test_a_module_of_the_current_directory_is_found_and_so_are_its_neighbours(current: Path):
    (current / "a_plugin_of_mine.py").write_text(
        "def late():\n    import a_neighbour_of_mine\n    return a_neighbour_of_mine.ANSWER\n"
    )
    (current / "a_neighbour_of_mine.py").write_text("ANSWER = 42\n")
    assert resolve("a_plugin_of_mine:late", "function")() == 42
    assert sys.path.count(str(current)) == 1
    resolve("a_plugin_of_mine:late", "function")
    assert sys.path.count(str(current)) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere_at_all:it", "No module named 'nowhere_at_all'"),
        ("os:nothing_of_this_name", "has no attribute 'nothing_of_this_name'"),
        ("os", "has no attribute ''"),
        (":it", "Empty module name"),
        (".relative:it", "relative import"),
        ("broken_plugin:it", "SyntaxError"),
        ("raising_plugin:it", "KeyError: 'of its own'"),
        ("importing_plugin:it", "No module named 'a_missing_dependency'"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(current: Path, name: str, reason: str):
    (current / "broken_plugin.py").write_text("def it(:\n")
    (current / "raising_plugin.py").write_text("raise KeyError('of its own')\n")
    (current / "importing_plugin.py").write_text("import a_missing_dependency\n")
    with pytest.raises(UserError) as raised:
        resolve(name, "inpainter")
    message = str(raised.value)
    assert message.startswith(f"no inpainter {name}: ")
    assert reason in message
    assert "\n" not in message
