"""A method that is registered outside the package, in one place, goes through every command."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from wsdl_jax import configuration, methods, runs
from wsdl_jax.prediction.localizer import Localizer
from wsdl_jax.sweeps import collected, plan

METHOD = '''
"""A location is fake or real by its mean colour."""

from flax import nnx

from wsdl_jax import methods
from wsdl_jax.methods import objectives
from wsdl_jax.models.layers import Pointwise
from wsdl_jax.models.outputs import Outputs
from wsdl_jax.runtime.errors import ConfigError
from wsdl_jax.runtime.variants import Variant
import jax.numpy as jnp

CELL = 8


class Colours(nnx.Module):
    def __init__(self, *, rngs):
        self.classifier = Pointwise(3, 2, use_bias=True, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images):
        b, h, w, c = images.shape
        cells = images.reshape(b, h // CELL, CELL, w // CELL, CELL, c).mean((2, 4))
        return Outputs(map_logits=self.classifier(cells))


def bind(config):
    return methods.Method(
        network=lambda axis_name, rngs: Colours(rngs=rngs),
        loss=methods.map_loss(objectives.patches_weak, "label"),
        localize=methods.from_map_logits,
    )


def check(config):
    if config.data.image_size % CELL:
        raise ConfigError(f"config.data.image_size = {config.data.image_size}: not cells of {CELL}")


METHOD = methods.Definition(
    bind=bind, setups=("a", "b"), check=check, variants=(Variant("rate", ("low", "high"), "low"),)
)
'''
CONFIG = '''
"""Colours."""

from wsdl_jax import configuration


def get_config(arg=None):
    config, variant = configuration.start("colours:METHOD", arg)
    config.data.image_size = 64
    config.train.batch = 8
    config.train.epochs = 1
    config.train.steps_per_epoch = 2
    config.train.learning_rate = {"low": 0.01, "high": 0.1}[variant["rate"]]
    config.eval.batch = 8
    return config
'''
SWEEP = '''
"""One run."""


def get_sweep(arg=None):
    tested = ["dolos/celebahq_repaint_p2", "dolos/celebahq_repaint_p2_9k"]
    yield "own/colours", "colours_config.py:source=celebahq,rate=high", {}, tested
'''


# ml_collections reads a config file by a method that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a method, a config and a sweep of one's own, and nothing else."""
    files = {"colours.py": METHOD, "colours_config.py": CONFIG, "colours_sweep.py": SWEEP}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "colours", raising=False)
    return tmp_path


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
def test_a_fourth_method(place: Path, data_dir: Path, dolos_folder: Path):
    photographs = dolos_folder / "celebahq/real/test"

    def done(module: str, *words: str) -> str:
        command = (sys.executable, "-m", f"wsdl_jax.{module}", *words)
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stderr

    # The sweep starts main, which trains, evaluates, and evaluates on the other subset.
    override = f"data.dir={data_dir}"
    done("sweep", "colours_sweep.py", "--workdir=swept", f"--override={override}")
    workdir = epath.Path("swept")
    collected.collect(
        "colours_sweep.py", plan.read("colours_sweep.py", workdir, [override]), workdir
    )
    table = rows(place / "swept/tables/results.csv")
    assert [row["tested"] for row in table] == [
        "dolos/celebahq_repaint_p2",
        "dolos/celebahq_repaint_p2_9k",
    ]
    assert all(row["done"] == "1" and row["iou_lg"] for row in table)
    (config_file,) = place.glob("swept/**/config.json")
    run = config_file.parent
    assert json.loads(config_file.read_text())["method"] == "colours:METHOD"

    # Each command resolves the method that the run has stored.
    done("report", str(run), "--gallery=2")
    assert "colours:METHOD" in (run / "report/index.html").read_text()
    done("predict", f"--run={run}", f"--images={photographs}", "--out=found")
    found = rows(place / "found/predictions.csv")
    assert len(found) == len(list(photographs.iterdir()))
    assert not any(row["error"] for row in found)

    # So does Python; the map has a value for each cell.
    trained = runs.load(epath.Path(run))
    assert type(trained.model).__name__ == "Colours"
    localizer = Localizer.load(run)
    assert localizer.calibrations
    assert methods.map_size(trained.config) == 8


def test_variants_of_a_method_name_the_run(place: Path):
    from wsdl_jax.main import default_workdir

    names = set()
    for arg in ("", "rate=high", "setup=b", "setup=b,rate=high", "rate=high,source=celebahq"):
        config, values = configuration.start("colours:METHOD", arg)
        assert values["rate"] == ("high" if "rate=high" in arg else "low")
        names.add(default_workdir(config))
    assert len(names) == 5
    assert "runs/colours-METHOD-a-portraits-ddpm_reconstructed" in names
    assert "runs/colours-METHOD-a-portraits-ddpm_reconstructed-rate=high" in names


@pytest.mark.parametrize(
    ("arg", "fields", "reason"),
    [
        ("setup=c", {}, "config.setup = 'c': colours:METHOD is trained in a, b"),
        ("", {"data.image_size": 66}, "config.data.image_size = 66: not cells of 8"),
        ("", {"loss.location": "max"}, "config.loss.location = 'max': only for patches"),
        (
            "",
            {"train.splice": 0.5},
            "config.train.splice = 0.5: only for patches, grad_cam, attention, declip, dino",
        ),
        (
            "",
            {"score.pooling": "max"},
            "config.score.pooling = 'max': colours:METHOD in setup a pools no map",
        ),
        *(
            (
                "",
                {f"model.{name}": value},
                f"config.model.{name} = {value!r}: colours:METHOD has no backbone of this package",
            )
            for name, value in (
                ("backbone", "dinov2_s14"),
                ("backbone_path", "x.pth"),
                ("frozen", True),
                ("lora_rank", 3),
                ("registers", 4),
            )
        ),
    ],
)
def test_what_a_method_cannot_run_is_refused(place: Path, arg: str, fields: dict, reason: str):
    config, _ = configuration.start("colours:METHOD", arg)
    config.update_from_flattened_dict({"data.image_size": 64, **fields})
    with pytest.raises(configuration.ConfigError) as raised:
        configuration.validate(config)
    assert str(raised.value) == reason


def test_a_method_that_is_gone_is_named(place: Path):
    config, _ = configuration.start("colours:METHOD", "")
    text = configuration.save(config)
    os.remove(place / "colours.py")
    del sys.modules["colours"]
    with pytest.raises(configuration.ConfigError, match="no method colours:METHOD: No module"):
        configuration.load(text)
