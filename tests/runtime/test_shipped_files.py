"""Where the files of configs/ and launch/ are found, from a checkout and from a wheel."""

from pathlib import Path

import pytest
from absl import flags

from wsdl_jax.runtime import shipped_files
from wsdl_jax.runtime.errors import ConfigError

REPOSITORY = Path(__file__).parent.parent.parent
CONFIG = "configs/patches.py"
LAUNCHER = "launch/slurm.sbatch"


def test_a_file_of_the_current_directory_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path(CONFIG).touch()
    assert shipped_files.find(CONFIG) == CONFIG
    assert shipped_files.find(LAUNCHER) == str(REPOSITORY / LAUNCHER)


def test_a_wheel_has_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "site-packages" / "wsdl_jax"
    (package / "configs").mkdir(parents=True)
    (package / CONFIG).touch()
    (package.parent / "launch").mkdir()
    monkeypatch.setattr(shipped_files, "_PACKAGE", package)
    assert shipped_files.find(CONFIG) == str(package / CONFIG)
    assert shipped_files.find(LAUNCHER) == LAUNCHER


@pytest.mark.parametrize("path", ["/configs/patches.py", "wsdl_jax/main.py", "configs/none.py", ""])
def test_other_files_are_not_looked_up(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped_files.find(path) == path


def test_the_flag_reads_the_file_that_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["main", "--config", f"{CONFIG}:setup=b", "--config.train.batch=3"]
    values = flags.FlagValues()
    holder = shipped_files.define_config(values, argv)
    with pytest.warns(DeprecationWarning, match="load_module"):
        values(argv)
    assert (holder.value.method, holder.value.setup, holder.value.train.batch) == (
        "patches",
        "b",
        3,
    )


@pytest.mark.parametrize("argument", ["configs/none.py:setup=b", "configs", "configs/none.py", ""])
def test_no_such_file(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["main", f"--config={argument}", "--config.train.batch=3"]
    values = flags.FlagValues()
    shipped_files.define_config(values, argv)
    with pytest.raises(ConfigError, match=f"no config file {argument.partition(':')[0]}$"):
        values(argv)
