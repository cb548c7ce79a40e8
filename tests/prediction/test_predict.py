"""The command, and what it offers to Python."""

import subprocess
import sys
from typing import Any

import pytest
from made_images import smooth, table


def execute(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-W", "ignore:the load_module"]  # of ml_collections
    command += ["-m", "wsdl_jax.predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_command(trained, tmp_path):
    for name in ("a.png", "b.png"):
        smooth(30, 40).save(tmp_path / name)
    (tmp_path / "empty.png").touch()
    # As a shell expands --images *.png; flags may follow.
    images = [tmp_path / name for name in ("a.png", "b.png", "empty.png")]
    done = execute("--run", trained, "--images", *images, "--out", tmp_path / "out")
    assert done.returncode == 1
    warning, first, last = done.stderr.splitlines()
    assert warning.startswith(f"{trained} was never evaluated")
    assert first.startswith("3 images: ")
    assert last == (
        f"error: 1 of 3 images have no map, first {tmp_path}/empty.png: an empty file; see "
        f"{tmp_path}/out/predictions.csv"
    )
    assert done.stdout == ""
    assert [row["file"] for row in table(tmp_path / "out")] == list(map(str, images))


def test_command_done(trained, tmp_path):
    smooth(30, 40).save(tmp_path / "a.png")
    arguments = ("--images", tmp_path / "*.png", "--mode", "tile", "--out", tmp_path / "out")
    done = execute("--run", trained, *arguments)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(table(tmp_path / "out")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--out", "o"], 2, "--images"),
        (["--images", "a.png", "--out", "o"], 1, "--images a.png: there is no such file"),
        (["--images", "a.png"], 2, "--images and --out go together"),
        (["--calibrate", "d", "--out", "o"], 2, "--images and --out go together"),
        (["--calibrate", "d", "a.png"], 2, "unexpected argument 'a.png'"),
        (["--calibrate", "nowhere"], 1, "--calibrate nowhere: there is no such file"),
    ],
)
def test_command_refuses(trained, arguments, code, message):
    done = execute("--run", trained, *arguments)
    assert done.returncode == code
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ----- As Python ----------------------------------------------------------------------------------


def test_the_package_offers_the_localizer_and_imports_it_when_asked():
    code = """
import sys
import wsdl_jax.runtime.processes, wsdl_jax.runtime.threads
assert wsdl_jax.__all__ == ["Localizer"] and {"Localizer", "runtime"} <= set(dir(wsdl_jax))
assert not {"jax", "flax", "numpy", "absl", "PIL"} & set(sys.modules), sorted(sys.modules)
from wsdl_jax import Localizer
import wsdl_jax.predict
assert wsdl_jax.predict.Localizer is Localizer
assert "jax" in sys.modules
try:
    wsdl_jax.nothing
except AttributeError as error:
    print(error)
"""
    command = [sys.executable, "-W", "error", "-W", "ignore:the load_module", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "module 'wsdl_jax' has no attribute 'nothing'\n"
