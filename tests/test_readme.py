"""What the READMEs name is there: links, files, commands with their flags and configs, imports.

Commands are run as far as their flags and configs are read and found valid, in this process.
"""

import argparse
import ast
import functools
import importlib
import itertools
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from absl import flags

from wsdl_jax import configuration
from wsdl_jax.diffusion import configuration as forgers
from wsdl_jax.runtime import command, shipped_files
from wsdl_jax.runtime.errors import UserError

REPOSITORY = Path(__file__).parent.parent
FOLDERS = ("configs", "data", "launch", "tests", "wsdl_jax")
PAGES = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text()
    for path in (
        REPOSITORY / "README.md",
        REPOSITORY / "CHANGELOG.md",
        *(path for folder in FOLDERS for path in sorted((REPOSITORY / folder).rglob("README.md"))),
    )
}
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
# Programs that are not of this project, whose arguments are theirs.
FOREIGN = {"apt-get", "export", "ruff"}
PLACEHOLDERS = {"--config": "configs/patches.py", "--workdir": "runs/a"}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str


def blocks() -> list[Block]:
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        Block(page, *found.groups())
        for page, text in PAGES.items()
        for found in fenced.finditer(text)
    ]


def without_blocks(text: str) -> str:
    """A text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@functools.cache
def prose(page: str) -> str:
    """The text of a page without its fenced blocks."""
    return without_blocks(PAGES[page])


def inline(page: str) -> list[str]:
    """What stands between backticks in the text of a page, on one line."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page, or of its beginning."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        for heading in headings
    }


# ----- Links and files ----------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (REPOSITORY / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./~%#?=&-]*)?", target), target
            continue
        path, _, anchor = target.partition("#")
        linked = (folder / path).resolve() if path else REPOSITORY / page
        assert linked.exists(), f"{page} links to {target}"
        if anchor:
            readme = linked.relative_to(REPOSITORY).as_posix()
            assert anchor in anchors(PAGES[readme]), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_below_is_further_down(page):
    text = PAGES[page]
    for found in re.finditer(r"\[(?:see )?(below|above)\]\(#([\w-]+)\)", text):
        is_above = found[2] in anchors(text[: found.start()])
        assert is_above == (found[1] == "above"), f"{page}: {found[0]}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page):
    for code in inline(page):
        if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*", code):
            assert (REPOSITORY / code).exists(), f"{page} names {code}"


def test_every_picture_is_shown_beside_its_page():
    shown = {
        ((REPOSITORY / page).parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^]]*\]\((\S+)\)", PAGES[page])
    }
    there = {path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.png")}
    assert shown == there | shown
    assert not list(REPOSITORY.glob("*.png"))


def test_the_readme_is_short_and_shows_the_rooms():
    text = PAGES["README.md"]
    assert len(text.splitlines()) <= 200
    tree = next(block.text for block in blocks() if block.text.startswith("configs/ "))
    named = set(re.findall(r"^ *([\w/]+)/ ", tree, re.MULTILINE))
    rooms = {path.parent.name for path in (REPOSITORY / "wsdl_jax").glob("*/__init__.py")}
    assert named >= rooms | set(FOLDERS) - {"wsdl_jax"}


# ----- Commands -----------------------------------------------------------------------------------


class Line(NamedTuple):
    """A command of a page, as words."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def lines() -> Iterator[Line]:
    """The commands of all pages: in blocks of bash, and Python's between backticks."""
    for block in blocks():
        if block.language == "bash":
            text = block.text.replace("\\\n", " ")
            for line in text.splitlines():
                words = shlex.split(line, comments=True)
                for last, part in itertools.groupby(words, lambda word: word == "&&"):
                    if not last:
                        yield Line(block.page, tuple(part))
    for page in PAGES:
        for code in inline(page):
            if code.startswith(("python -m ", "pytest ")) and "MODULE" not in code:
                yield Line(page, tuple(shlex.split(code)))


LINES = list(dict.fromkeys(lines()))


def module_of(line: Line) -> str | None:
    """The module, or script of this repository, that a command runs; None of another program."""
    program, *arguments = line.words
    if not re.fullmatch(r"(\.venv/bin/)?python3?", program):
        return None
    if arguments[0] == "-m":
        return None if arguments[1] == "venv" else arguments[1]
    return arguments[0]


def arguments_of(line: Line) -> list[str]:
    """The arguments of a module's command, with something valid in the place of "…"."""
    words = list(line.words[line.words.index(module_of(line)) + 1 :])
    return [
        PLACEHOLDERS[before] if word == "…" else word
        for before, word in zip(["", *words], words, strict=False)
    ]


def test_there_are_commands():
    assert len([line for line in LINES if module_of(line)]) > 40


@pytest.mark.parametrize("line", [line for line in LINES if module_of(line) is None], ids=str)
def test_other_programs(line):
    program, *arguments = line.words
    name = program.removeprefix(".venv/bin/")
    if name == "pip":
        extras = PYPROJECT["project"]["optional-dependencies"]
        wanted = re.findall(r"\[(.*)\]", " ".join(arguments))
        assert arguments[0] == "install"
        assert set(",".join(wanted).split(",")) - {""} <= extras.keys()
    elif name == "pytest":
        named = PYPROJECT["tool"]["pytest"]["ini_options"]["markers"]
        known = {marker.partition(":")[0] for marker in named}
        if "-m" in arguments:
            expression = arguments[arguments.index("-m") + 1]
            assert set(re.findall(r"\w+", expression)) <= known | {"and", "or", "not"}
        for word in arguments:
            assert not word.startswith("tests/") or (REPOSITORY / word).exists()
    elif name == "python3":
        assert arguments == ["-m", "venv", ".venv"]
    else:
        assert name in FOREIGN, f"{line}: what is {name}?"


@pytest.mark.parametrize("line", [line for line in LINES if module_of(line)], ids=str)
def test_paths_in_commands_are_there(line):
    for word in line.words:
        path = word.rpartition("=")[2] if word.startswith("--") else word
        file = path.partition(":")[0]
        if file.split("/")[0] in FOLDERS and "/" in file:
            assert (REPOSITORY / file).exists(), word


class ReadOnlyError(Exception):
    """The arguments of a command were read, and it is not to go on."""


@pytest.fixture
def reads(monkeypatch):
    """A function that lets a module read its command lines, and do nothing else.

    The flags that it defines are taken away again.
    """
    monkeypatch.chdir(REPOSITORY)
    before = set(flags.FLAGS)

    def read_all(module: str, arguments: list[list[str]]) -> None:
        def by_argparse(parser, args=None, namespace=None):
            for words in arguments:
                _, unknown = parser.parse_known_args(words)
                assert not unknown, (module, unknown)
            raise ReadOnlyError

        def by_flags(main, operands=()):
            defined = set(flags.FLAGS)
            for words in arguments:
                monkeypatch.setattr(sys, "argv", [module, *words])
                flags.FLAGS.unparse_flags()
                for name in defined - before:
                    flags.FLAGS[name].unparse()
                command._parse(sys.argv, operands)
                if "config" in defined:
                    check_config(flags.FLAGS["config"].value)
                remove(set(flags.FLAGS) - defined)  # fields of the config
            raise ReadOnlyError

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", by_argparse)
        monkeypatch.setattr(command, "run", by_flags)
        monkeypatch.setattr(sys, "argv", [module])
        runner = runpy.run_path if module.endswith(".py") else runpy.run_module
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*load_module", DeprecationWarning)
            warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
            try:
                with pytest.raises(ReadOnlyError):
                    runner(module, run_name="__main__")
            finally:
                remove(set(flags.FLAGS) - before)

    def remove(names: set[str]) -> None:
        for name in names:
            delattr(flags.FLAGS, name)

    yield read_all
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["pytest"])


def check_config(config) -> None:
    """Raises ConfigError for a config that cannot be run."""
    if "method" in config:
        configuration.validate(config)
    else:
        forgers.validate(config)


MODULES = sorted({module_of(line) for line in LINES} - {None})


@pytest.mark.parametrize("module", MODULES)
def test_commands_are_read(module, reads):
    given = [arguments_of(line) for line in LINES if module_of(line) == module]
    reads(module, [arguments for arguments in given if arguments])  # else its name alone is meant


def test_commands_that_are_wrong_are_not_read(reads, capsys):
    for words in (
        ["--config", "configs/patches.py:setup=z"],
        ["--config", "configs/patches.py", "--config.train.bacth=3"],
        ["--config", "configs/patches.py", "--nonsense=1"],
        ["--config", "configs/none.py"],
    ):
        with pytest.raises(SystemExit):
            reads("wsdl_jax.main", [words])
    with pytest.raises(UserError):
        reads("wsdl_jax.main", [["--config", "configs/patches.py", "--config.train.batch=0"]])
    assert "bacth" in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES)
def test_fields_that_are_named_are_in_the_configs(page):
    bases = configuration.base(), forgers.base()
    fields = {name for base in bases for name in fields_of(base.to_dict())}
    named = re.findall(r"(?:--config\.|`config\.(?!json))([a-z_]+(?:\.[a-z_]+)*)", PAGES[page])
    groups = "|".join(sorted({name.partition(".")[0] for name in fields if "." in name}))
    named += re.findall(rf"`((?:{groups})\.(?!json|csv)[a-z_]+)(?:`|=)", prose(page))
    assert set(named) <= fields


def fields_of(tree: dict, prefix: str = "") -> Iterator[str]:
    """The fields of a config and its groups, by their full names."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from fields_of(value, f"{prefix}{name}.")
        yield f"{prefix}{name}"


@pytest.mark.parametrize(
    "variant",
    sorted(set(re.findall(r"configs/\w+(?:/\w+)?\.py:[\w=,/]*[\w]", "\n".join(PAGES.values())))),
)
def test_variants_that_are_named_exist(variant, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    file, _, arg = variant.partition(":")
    functions = runpy.run_path(file)
    if "get_config" in functions:
        config = functions["get_config"](arg)
        if arg == "part=latent":  # it needs what no variant gives
            config.autoencoder.path = "runs/forger/autoencoder"
        check_config(config)
    else:
        assert list(functions["get_sweep"](arg))


# ----- Python -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block", [block for block in blocks() if block.language == "python"], ids=lambda b: b.page
)
def test_python_imports_what_is_there(block):
    tree = ast.parse(block.text)
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                importlib.import_module(alias.name)
        elif isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                try:
                    importlib.import_module(f"{statement.module}.{alias.name}")
                except ModuleNotFoundError:
                    assert hasattr(importlib.import_module(statement.module), alias.name)
    imported = {
        alias.asname or alias.name: statement.module
        for statement in ast.walk(tree)
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    for node in ast.walk(tree):  # convert.from_torch, Localizer.load
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            if name in imported:
                owner = importlib.import_module(imported[name])
                owner = getattr(owner, name, None) or importlib.import_module(
                    f"{imported[name]}.{name}"
                )
                assert hasattr(owner, node.attr), f"{block.page}: {name}.{node.attr}"


# ----- What else a checkout tells -----------------------------------------------------------------


def test_the_version_is_one():
    import yaml

    version = PYPROJECT["project"]["version"]
    assert f"\n## {version} " in PAGES["CHANGELOG.md"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert citation["preferred-citation"]["year"] == 2024
    assert len(citation["preferred-citation"]["authors"]) == 3


def test_constraints_are_of_what_is_required():
    text = (REPOSITORY / "constraints.txt").read_text()
    pinned = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", line) for line in pinned)
    names = {line.partition("==")[0] for line in pinned}
    for requirement in PYPROJECT["project"]["dependencies"]:
        name = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
        assert name in names


def test_what_travels_with_the_package_is_found():
    assert shipped_files._PACKAGE == REPOSITORY / "wsdl_jax"
    packages = PYPROJECT["tool"]["setuptools"]["packages"]
    for folder in ("configs", "launch"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            parts = path.parent.relative_to(REPOSITORY).parts
            assert ".".join(("wsdl_jax", *parts)) in packages
    data = PYPROJECT["tool"]["setuptools"]["package-data"]
    for path in (REPOSITORY / "wsdl_jax").rglob("*.html"):
        assert "*.html" in data[".".join(path.parent.relative_to(REPOSITORY).parts)]
    for path in (REPOSITORY / "wsdl_jax").rglob("*.py"):
        assert ".".join(path.parent.relative_to(REPOSITORY).parts) in packages
