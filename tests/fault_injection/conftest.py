"""The place in which commands are disturbed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "place" in getattr(item, "fixturenames", ()) and Path(__file__).parent in (
            item.path.parents
        ):
            item.add_marker("faults")
            item.add_marker("slow")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Place"]:
    """Inputs, commands, and the server that runs them. Skipped where there is no C compiler."""
    import attempts
    from commands import Place

    folder = tmp_path_factory.mktemp("faults")
    try:
        library = attempts.compile_library(folder)
    except attempts.NoCompilerError as error:
        pytest.skip(str(error))
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    server = attempts.Server(library, folder, cache)
    yield Place(folder / "place", server)
    server.close()
