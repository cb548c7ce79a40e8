"""Runs of a sweep that differ only in the file of their backbone."""

from pathlib import Path

import pytest
from etils import epath
from planned_runs import finish

from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.sweeps import plan
from wsdl_jax.sweeps.run import Run

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
SWEEP = """
def get_sweep(arg):
    for name in {names}:
        fields = {{"model.backbone_path": "{folder}/" + name + ".pt"}}
        yield "file/" + name, "configs/declip.py:setup=c,source=celebahq", fields
"""


def planned(folder: Path, *names: str, overrides: tuple[str, ...] = ()) -> list[Run]:
    path = folder / "mine.py"
    path.write_text(SWEEP.format(names=names, folder=folder))
    return plan.read(str(path), epath.Path(folder / "w"), overrides)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of three names, two of which are the same."""
    for name, content in {"first": b"a", "copy": b"a", "other": b"b"}.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
    return tmp_path


def test_a_run_is_of_the_file_not_of_its_name(folder):
    first, copy, other = planned(folder, "first", "copy", "other")
    assert first.folder == copy.folder != other.folder
    finish(first)
    assert copy.is_done() and not other.is_done()
    (folder / "first.pt").write_bytes(b"c")
    again, copy, _ = planned(folder, "first", "copy", "other")
    assert copy.folder != again.folder == first.folder
    with pytest.raises(UserError, match=r"another config \(model\.backbone_sha256: ca97\w+ → 2e7"):
        again.is_done()
    wrong = ("model.backbone_sha256=" + "0" * 64,)
    with pytest.raises(ConfigError, match=r"file/other: .*other\.pt is not the file"):
        planned(folder, "other", overrides=wrong)


def test_a_file_that_is_not_here_is_told_by_its_path(folder, caplog):
    (first,) = planned(folder, "first")
    finish(first)
    for name in ("first", "copy"):
        (folder / f"{name}.pt").unlink()
    caplog.clear()
    gone, copy = planned(folder, "first", "copy")
    assert f"file/copy: config.model.backbone_path = {folder}/copy.pt: is not there" in caplog.text
    assert gone.folder == first.folder != copy.folder
    assert gone.is_done() and not copy.is_done()
    moved = copy._replace(folder=first.folder)
    with pytest.raises(UserError, match=r"first\.pt; whether \S+copy\.pt is the same file cannot"):
        moved.is_done()
