"""Sweep files, the shipped ones and others, and which runs they are."""

from pathlib import Path

import pytest
from planned_runs import WORKDIR, read

from wsdl_jax import configuration
from wsdl_jax.runtime.errors import ConfigError
from wsdl_jax.sweeps import collected, plan, runners
from wsdl_jax.sweeps.run import Run

SWEEPS = Path(__file__).parent.parent.parent / "configs" / "sweeps"
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


def what(run: Run) -> tuple:
    """What a run is trained and tested on."""
    data = run.config.data
    return (*data.real, "vs", *data.fake, "on", *run.tested, "and", data.test_real)


# ----- The shipped sweeps -------------------------------------------------------------------------


def test_table_2():
    planned = read("setups.py:source=celebahq,seeds=3,imagenet=i.pth,ffd=f.tar")
    assert len(planned) == 27
    assert {run.config.seed for run in planned} == {0, 1, 2}
    real, repaint = "dolos/celebahq_real", "dolos/celebahq_repaint_p2"
    tested = ("on", repaint, "and", real)
    trained = {
        "a": (real, "vs", "dolos/celebahq_p2"),
        "b": (real, "vs", "dolos/celebahq_repaint_p2_9k"),
        "c": ("vs", repaint),
    }
    for run in planned:
        method, setup = run.name.split("/")
        assert (run.config.method, run.config.setup) == (method, setup)
        assert what(run) == (*trained[setup], *tested)
        weights = {"patches": None, "grad_cam": "i.pth", "attention": "f.tar"}
        assert run.config.init.path == weights[method]
    assert len({run.name for run in planned}) == 9


def test_table_3():
    found = {run.name: what(run) for run in read("cross_dataset.py:source=ffhq")}
    tested = ("on", "dolos/celebahq_repaint_p2", "and", "dolos/celebahq_real")
    assert found == {
        "ffhq/a": ("dolos/ffhq_real", "vs", "dolos/ffhq_p2", *tested),
        "ffhq/b": ("dolos/ffhq_real", "vs", "dolos/ffhq_repaint_p2", *tested),
        "ffhq/c": ("vs", "dolos/ffhq_repaint_p2", *tested),
    }


def test_figure_6():
    planned = read("cross_generator.py:source=celebahq")
    subsets = {f"dolos/celebahq_{name}" for name in ("repaint_p2_9k", "ldm", "lama", "pluralistic")}
    assert len(planned) == 8
    one = [run for run in planned if run.name.startswith("single/")]
    others = [run for run in planned if run.name.startswith("leave-one-out/")]
    assert {run.config.data.fake for run in one} == {(subset,) for subset in subsets}
    left_out = [subsets.difference(run.config.data.fake) for run in others]
    assert [f"without-{name[15:]}" for (name,) in left_out] == [
        run.name.removeprefix("leave-one-out/") for run in others
    ]
    assert set().union(*left_out) == subsets
    for run in planned:
        assert set(run.tested) == subsets and len(run.tested) == 4
        assert (run.config.method, run.config.supervision) == ("patches", "full")
        assert run.config.train.epochs == (50 if run in one else 150)


@pytest.mark.parametrize("source", ["portraits", "celebahq"])
def test_ablation(source):
    planned = read(f"ablation.py:source={source}")
    (base,) = [run for run in planned if run.name == "method/patches"]
    fields = {
        "block": {"model.depth"},
        "width": {"model.width"},
        "seed": {"seed"},
    }
    for group, varied in fields.items():
        for run in (run for run in planned if run.name.startswith(f"{group}/")):
            changed = configuration.differences(base.config, run.config)
            assert {line.split(":")[0] for line in changed} <= varied
    assert sorted(r.config.loss.mask_weight for r in planned if "lambda" in r.name) == [0, 1, 10]
    assert {r.config.supervision for r in planned if "supervision" in r.name} == {"weak", "full"}
    # What groups have in common is one run.
    folders = {run.name: run.folder for run in planned if run.config.seed == 0}
    assert folders["block/2"] == folders["seed/default"] == base.folder
    usual = {"portraits": "10", "celebahq": "1"}[source]
    assert folders[f"lambda/{usual}"] == folders["method/attention"]
    assert (len(planned), len({run.folder for run in planned})) == (17, 13)


def test_every_shipped_sweep_is_tested_and_has_a_small_form():
    names = {"setups.py", "cross_dataset.py", "cross_generator.py", "ablation.py"}
    assert {path.name for path in SWEEPS.glob("*.py")} == names
    # Steps of all four, for the time that their docstrings and the README tell.
    steps = {}
    for name in names:
        for run in {run.folder: run for run in read(name)}.values():
            assert {s.split("/")[0] for s in (*run.config.data.fake, *run.tested)} == {"portraits"}
            train = run.config.train
            method = run.config.method
            steps[method] = steps.get(method, 0) + train.epochs * train.steps_per_epoch
    assert steps == {"patches": 29800, "grad_cam": 2220, "attention": 2740}


# ----- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides", "parts"),
    [
        ("setups.py:source=mars", (), ["source=mars", "portraits|celebahq", "seeds="]),
        ("setups.py:seeds=0", (), ["seeds=0"]),
        ("setups.py:ffd=", (), ["'ffd='"]),
        ("nothing.py", (), ["no sweep file", "nothing.py"]),
        ("setups.py", ("train.bacth=3",), ["patches/a", "bacth"]),
        ("setups.py", ("train.batch=0",), ["patches/a", "train.batch = 0", "positive"]),
        ("setups.py", ("seed=1", "model.depth=99"), ["model.depth = 99"]),
    ],
)
def test_refused(name, overrides, parts):
    with pytest.raises(ConfigError) as caught:
        read(name, overrides)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("x = 1", ["no function get_sweep"]),
        ("def get_sweep(arg):\n    return []", ["has no runs"]),
        ("def get_sweep(arg):\n    return [1 / 0]", ["ZeroDivisionError"]),
        ("def get_sweep(arg):\n    yield 'a', 'configs/patches.py', {}", ["'a'", "GROUP/SETTING"]),
        ("def get_sweep(arg):\n    yield '../a', 'configs/patches.py', {}", ["GROUP/SETTING"]),
        (
            "def get_sweep(arg):\n    yield 'a/b', 'configs/none.py', {}",
            ["a/b: no config file configs/none.py"],
        ),
        ("def get_sweep(arg):\n    return [('a/b', 'configs/patches.py', {})] * 2", ["twice"]),
        ("def get_sweep(arg):\n    yield 'a/b', 'configs/patches.py:setup=z', {}", ["setup=z"]),
        ("def get_sweep(arg):\n    yield 'a/b'", ["mine.py"]),
    ],
)  # fmt: skip
def test_a_sweep_file_that_is_wrong(tmp_path, body, parts):
    path = tmp_path / "mine.py"
    path.write_text(body)
    with pytest.raises(ConfigError) as caught:
        plan.read(str(path), WORKDIR)
    for part in parts:
        assert part in str(caught.value)


def test_from_another_directory_the_shipped_sweeps_are_the_same(tmp_path, monkeypatch):
    here = read("cross_generator.py:source=celebahq")
    figures = collected.published("configs/sweeps/cross_generator.py")
    monkeypatch.chdir(tmp_path)
    elsewhere = read("cross_generator.py:source=celebahq")
    assert [run.arguments for run in elsewhere] == [run.arguments for run in here]
    assert collected.published("configs/sweeps/cross_generator.py") == figures
    script = runners.slurm_command(elsewhere[0], [])[3]
    assert Path(script).is_file() and script.endswith("/launch/slurm.sbatch")
