"""The shipped sweeps, and a small one as a user runs it: stopped, continued, with a failure."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from wsdl_jax import configuration, evaluate, sweep
from wsdl_jax.evaluation import metrics, results
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runtime import locks
from wsdl_jax.runtime.errors import ConfigError, UserError

REPOSITORY = Path(__file__).parent.parent.parent
SWEEPS = REPOSITORY / "configs" / "sweeps"
WORKDIR = epath.Path("w")
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def read(name: str, overrides=(), workdir: epath.Path = WORKDIR) -> list[sweep.Run]:
    return sweep.read(f"configs/sweeps/{name}", workdir, overrides)


def two(overrides=(), workdir: epath.Path = WORKDIR) -> list[sweep.Run]:
    """Two runs, each tested on six subsets."""
    return read("cross_generator.py", overrides, workdir)[:2]


def what(run: sweep.Run) -> tuple:
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
    figures = sweep.published("configs/sweeps/cross_generator.py:source=celebahq")
    assert {figure.tested for figure in figures} == subsets | {"in-domain", "out-of-domain"}
    cells = {(f.tested[15:], f.trained[15:]): f.value for f in figures}
    assert cells["ldm", "pluralistic"] == 4.9 and cells["pluralistic", "ldm"] == 56.4


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
    assert folders["lambda/1"] == folders["method/attention"]
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
    assert steps == {"patches": 22800, "grad_cam": 2160, "attention": 2880}


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
        ("def get_sweep(arg):\n    yield 'a/b', 'configs/none.py', {}", ["configs/none.py"]),
        ("def get_sweep(arg):\n    return [('a/b', 'configs/patches.py', {})] * 2", ["twice"]),
        ("def get_sweep(arg):\n    yield 'a/b', 'configs/patches.py:setup=z', {}", ["setup=z"]),
        ("def get_sweep(arg):\n    yield 'a/b'", ["mine.py"]),
    ],
)  # fmt: skip
def test_a_sweep_file_that_is_wrong(tmp_path, body, parts):
    path = tmp_path / "mine.py"
    path.write_text(body)
    with pytest.raises(ConfigError) as caught:
        sweep.read(str(path), WORKDIR)
    for part in parts:
        assert part in str(caught.value)


# ----- Which runs are done ------------------------------------------------------------------------


STATE = {"x": np.zeros(3, np.float32)}


def save(run: sweep.Run, step: int, loss: float = 1.0) -> None:
    """Adds a checkpoint to a run."""
    checkpoints = Checkpoints(run.folder, keep_best=run.config.train.keep_best)
    checkpoints.newest(STATE)
    checkpoints.save(step, {"x": STATE["x"] + step}, loss)
    checkpoints.close()


def figures(run: sweep.Run, fake: str, step: int) -> dict[str, Any]:
    """Results of a checkpoint, of which all figures are 1."""
    numbers = (*metrics.LOCALIZATION, "manipulated_share", "threshold", "real_above", "fake_above")
    return {
        **dict.fromkeys((*numbers, *results.DETECTION), 1.0),
        **{"pixel_images": 1, "fake_images": 1, "real_images": 1, "trivial": {}},
        **{"test_fake": fake, "test_real": run.config.data.test_real, "predictions": ""},
        "iou_by_threshold": [{"threshold": 0.5, "iou_lg": 1.0}] * len(metrics.THRESHOLDS),
        "checkpoint": step,
        "weights": Checkpoints(run.folder, keep_best=1).checksum(step),
        "data": {"fake": "", "real": ""},
    }


def finish(run: sweep.Run, *, step: int | None = None) -> None:
    """Writes what a finished run leaves."""
    train = run.config.train
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text(configuration.save(run.config))
    last = train.epochs * train.steps_per_epoch if step is None else step
    save(run, last)
    for fake in run.tested:
        real = run.config.data.test_real
        folder = evaluate.results_folder(run.folder, run.config, fake=fake, real=real)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(figures(run, fake, last)))


def test_done_is_trained_to_the_end_and_evaluated_on_everything(tmp_path):
    first, second = two(workdir=epath.Path(tmp_path))
    assert not first.is_done()
    finish(first)
    assert first.is_done() and not second.is_done()
    assert first.results()["portraits/upsample"]["test_fake"] == "portraits/upsample"
    shutil.rmtree(first.folder / "evaluations")
    assert not first.is_done()
    assert first.results()["portraits/upsample"] is None
    finish(second, step=100)  # evaluated by hand half-way
    assert not second.is_done()
    assert set(second.results().values()) == {None}


def test_results_of_an_older_network_are_none(tmp_path, caplog):
    run, _ = two(workdir=epath.Path(tmp_path))
    finish(run, step=100)
    total = run.config.train.epochs * run.config.train.steps_per_epoch
    save(run, total, loss=2.0)
    assert run.is_done()  # the last one is not the best one
    shutil.rmtree(run.folder / f"checkpoints/{total}")
    save(run, total, loss=0.5)
    assert not run.is_done() and set(run.results().values()) == {None}
    # Nor are those of another training that ended at the same step.
    path = run.folder / "results.json"
    kept = figures(run, run.config.data.test_fake, total)
    path.write_text(json.dumps(kept))
    assert run.results()[run.config.data.test_fake] == kept
    path.write_text(json.dumps({**kept, "weights": kept["weights"] + 1}))
    assert run.results()[run.config.data.test_fake] is None
    path.write_text("{}")
    assert run.results()[run.config.data.test_fake] is None
    assert "results.json has no 'iou_lg': it is of another version" in caplog.text


def test_results_without_checkpoints_are_taken_and_told(tmp_path, caplog):
    """As when they were copied alone, or checkpoints were removed to save space."""
    run, _ = two(workdir=epath.Path(tmp_path))
    finish(run)
    shutil.rmtree(run.folder / "checkpoints")
    assert run.is_done()
    assert "seed-0 has no checkpoints: its results are taken as they are" in caplog.text


def test_results_of_different_images_do_not_stand_in_one_table(tmp_path):
    planned = two(workdir=epath.Path(tmp_path))
    for run in planned:
        finish(run)
    assert all(finding.results for finding in sweep.findings(planned))
    path = planned[1].folder / "results.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "data": {"fake": "of others", "real": ""}}))
    with pytest.raises(UserError, match=r"were evaluated on different images of portraits/latent"):
        sweep.findings(planned)


def test_a_directory_of_another_config_is_not_taken_for_the_run(tmp_path):
    workdir = epath.Path(tmp_path)
    first, _ = two(workdir=workdir)
    finish(first)
    again, _ = two(["data.dir=/elsewhere"], workdir)
    assert again.is_done()
    other, _ = two(["train.learning_rate=0.5"], workdir)
    with pytest.raises(UserError, match=r"learning_rate: 0.001 → 0.5"):
        other.is_done()


def test_a_batch_per_device_is_any_number_of_devices(tmp_path):
    run, _ = two(["train.per_device_batch=4"], epath.Path(tmp_path))
    finish(run._replace(config=configuration.for_devices(run.config, 8)))
    assert run.is_done()


# ----- Elsewhere ----------------------------------------------------------------------------------


def test_printed_commands_are_those_of_main(tmp_path):
    workdir = tmp_path / "a b"
    arguments = ["configs/sweeps/cross_generator.py", f"--workdir={workdir}", "--runner=print"]
    done = execute(*arguments, "--override=data.dir=/my data")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    others = "latent_ddpm", "telea", "navier_stokes", "regrain", "upsample"
    assert lines[0] == [
        *("python", "-m", "wsdl_jax.main"),
        "--config=configs/patches.py:setup=c,source=portraits,generator=ddpm_repaint",
        *("--config.seed=0", "--config.train.epochs=8", "--config.data.dir=/my data"),
        "--also_on=" + ",".join(f"portraits/{other}" for other in others),
        f"--workdir={workdir}/single/ddpm_repaint/seed-0",
    ]
    assert len(lines) == 12
    assert not workdir.exists()


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """sbatch and sky that say their arguments into a file and answer as the real ones do."""
    folder = tmp_path / "bin"
    folder.mkdir()
    said = tmp_path / "said"
    for name, answer in (("sbatch", "$((40 + n))"), ("sky", "Job ID: $((40 + n))")):
        (folder / name).write_text(
            f"""#!/usr/bin/env bash
[[ -e {tmp_path}/broken ]] && {{ echo 'Unable to contact the controller' >&2; exit 1; }}
printf '%s\\0' {name} "PYTHON=$PYTHON" "$@" >>{said}
printf '\\n' >>{said}
n=$(wc -l <{said})
echo noise of {name} >&2
echo "{answer}"
"""
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return said


def submit(planned, workdir, runner, *, resubmit=False):
    sweep.submit(planned, workdir, runner, ["--partition=gpu"], resubmit)


def lines_of(said: Path) -> list[list[str]]:
    return [line.split("\0")[:-1] for line in said.read_text().splitlines()]


def test_slurm(programs, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHON", raising=False)
    workdir = epath.Path(tmp_path) / "w"
    planned = two(workdir=workdir)
    submit(planned, workdir, "slurm")
    said = lines_of(programs)
    assert said[0] == [
        *("sbatch", f"PYTHON={sys.executable}", "--parsable"),
        *("--job-name=wsdl-single-ddpm_repaint-seed-0", "--partition=gpu", "launch/slurm.sbatch"),
        *(*planned[0].arguments, f"--workdir={workdir}/single/ddpm_repaint/seed-0"),
    ]
    assert (REPOSITORY / "launch/slurm.sbatch").exists()
    recorded = json.loads((workdir / "submitted.json").read_text())
    assert recorded == {"single/ddpm_repaint/seed-0": "41", "single/latent_ddpm/seed-0": "42"}
    # What is waiting there is not submitted again, unless asked for.
    submit(planned, workdir, "slurm")
    assert len(lines_of(programs)) == 2
    submit(planned[:1], workdir, "slurm", resubmit=True)
    recorded = json.loads((workdir / "submitted.json").read_text())
    assert recorded["single/ddpm_repaint/seed-0"] == "43"


def test_skypilot(programs):
    workdir = epath.Path("gs://bucket/some/where")
    run = read("cross_dataset.py", workdir=workdir)[0]
    words = sweep.skypilot_command(run, ["--priority=9"])
    assert words[:7] == [
        *("sky", "jobs", "launch", "launch/skypilot.yaml", "--yes", "--detach-run", "--name"),
    ]
    assert words[7] == "wsdl-portraits-128px-a-seed-0"
    environment = dict(word.split("=", 1) for word in words[9:14:2])
    assert environment["BUCKET"] == "gs://bucket"
    assert environment["RUN"] == "some/where/portraits-128px/a/seed-0"
    # As the launcher's shell splits it, main's arguments are what they were.
    given = subprocess.run(
        ["bash", "-c", "printf '%s\\n' $ARGUMENTS"],
        env={"ARGUMENTS": environment["ARGUMENTS"], "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert given.stdout.splitlines() == list(run.arguments)
    assert words[14:] == ["--priority=9"]


def test_skypilot_needs_a_bucket_and_plain_words(tmp_path):
    run, _ = two()
    with pytest.raises(UserError, match="gs://BUCKET"):
        sweep.skypilot_command(run, [])
    workdir = epath.Path("gs://bucket/w")
    run, _ = two(["data.manual_dir=a b"], workdir)
    with pytest.raises(UserError, match="a b"):
        sweep.skypilot_command(run, [])


def test_a_cluster_that_does_not_answer(programs, tmp_path, monkeypatch):
    workdir = epath.Path(tmp_path) / "w"
    planned = two(workdir=workdir)
    (tmp_path / "broken").touch()
    with pytest.raises(UserError, match=r"single/ddpm_repaint/seed-0.*sbatch: Unable to contact"):
        submit(planned, workdir, "slurm")
    assert not (workdir / "submitted.json").exists()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="sbatch is not installed"):
        submit(planned, workdir, "slurm")


# ----- Here, with a program in place of Python ----------------------------------------------------


@pytest.fixture
def program(tmp_path, monkeypatch) -> Path:
    """Ends as the name of the run's directory says, and says what it was given."""
    path = tmp_path / "python"
    path.write_text(
        """#!/usr/bin/env bash
echo "arguments $*"
case "$*" in
  *generator=ddpm_repaint*) echo 'error: no memory left' >&2; exit 1 ;;
  *) kill -SEGV $$ ;;
esac
"""
    )
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return path


def test_a_crash_is_recorded_and_the_next_one_runs(program, tmp_path, capfd):
    workdir = epath.Path(tmp_path) / "w"
    planned = two(workdir=workdir)
    before = signal.getsignal(signal.SIGTERM)
    assert sweep.run_here(planned, workdir) == 1
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((workdir / "failures.json").read_text()) == {
        "single/ddpm_repaint/seed-0": {"exit_code": 1, "error": "error: no memory left"},
        "single/latent_ddpm/seed-0": {"exit_code": -11, "error": "killed by SIGSEGV"},
    }
    log = (workdir / "single/ddpm_repaint/seed-0.log").read_text()
    assert log == f"arguments {' '.join(planned[0].command())}\nerror: no memory left\n"
    assert log in capfd.readouterr().err
    # A run that succeeds at last is no failure any more.
    program.write_text("#!/usr/bin/env bash\n")
    assert sweep.run_here(planned[:1], workdir) == 0
    failures = json.loads((workdir / "failures.json").read_text())
    assert list(failures) == ["single/latent_ddpm/seed-0"]


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "failures.json").write_text('{"a": 3}')
    with pytest.raises(UserError, match=r"failures.json is damaged"):
        sweep._collect("configs/sweeps/setups.py", [], epath.Path(tmp_path))
    (tmp_path / "failures.json").write_text("{")
    with pytest.raises(UserError, match=r"failures.json is damaged"):
        sweep.run_here([], epath.Path(tmp_path))


def test_a_directory_that_cannot_be_written():
    done = execute("configs/sweeps/cross_generator.py", "--workdir=/dev/null/w")
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: /dev/null/w: ") and "Not a directory" in line
    assert "Traceback" not in done.stderr


# ----- Here, as a user ----------------------------------------------------------------------------


def execute(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=600, env=environment()
    )


def command(*arguments: str) -> list[str]:
    ignored = ("-W", "error", "-W", "ignore:the load_module")  # of ml_collections
    return [sys.executable, *ignored, "-m", "wsdl_jax.sweep", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


MINE = """
def get_sweep(arg):
    fields = {fields!r}
    config = "configs/patches.py:setup=c,source=celebahq"
    for seed in (0, 1):
        yield "good/first", config, {{**fields, "seed": seed}}, ["dolos/celebahq_repaint_p2_9k"]
        if not seed:
            yield "bad/batch", config, {{**fields, "train.batch": 4096}}
    yield "good/again", config, {{**fields, "seed": 0}}, ["dolos/celebahq_repaint_p2_9k"]
"""


@pytest.fixture(scope="module")
def story(shrunk, tmp_path_factory):
    """A sweep that is stopped in its first run, continued and collected; what was said."""
    root = tmp_path_factory.mktemp("sweep")
    file, workdir = root / "mine.py", root / "w"
    fields = {**shrunk, "model.depth": 1, "train.epochs": 2, "train.steps_per_epoch": 60}
    file.write_text(MINE.format(fields=fields))
    arguments = (str(file), f"--workdir={workdir}")
    metrics = workdir / "good/first/seed-0/metrics.jsonl"
    with subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, text=True, env=environment(), cwd=REPOSITORY
    ) as process:
        deadline = time.monotonic() + 300
        while not (metrics.exists() and metrics.read_text()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stopped = process.stderr.read()
    os.chdir(REPOSITORY)
    said = [(process.returncode, stopped)]
    done = execute(*arguments)
    said.append((done.returncode, done.stderr))
    collected = execute(*arguments, "--collect")
    return workdir, said, collected


def test_ctrl_c_saves_the_run_in_hand_and_stops(story):
    _, said, _ = story
    code, text = said[0]
    assert code == 130, text
    assert "the same command continues the sweep" in text
    assert "stopped at step" in text
    assert "Traceback" not in text
    assert "[2 of 3]" not in text


def test_the_next_call_continues_and_a_failure_does_not_end_it(story):
    workdir, said, _ = story
    code, text = said[1]
    assert code == 1, text
    assert "4 runs" not in text and "3 runs, 3 not done" in text
    assert "continuing at step" in text
    assert "2 of 3 runs done, 1 failed" in text
    failures = json.loads((workdir / "failures.json").read_text())
    assert list(failures) == ["bad/batch/seed-0"]
    assert failures["bad/batch/seed-0"]["exit_code"] == 2
    assert failures["bad/batch/seed-0"]["error"].startswith("error: train.batch = 4096")
    for seed in (0, 1):
        run = workdir / f"good/first/seed-{seed}"
        assert (run / "results.json").exists()
        beside = "dolos-celebahq_repaint_p2_9k+dolos-celebahq_real"
        assert (run / "evaluations" / beside / "results.json").exists()
    assert not (workdir / "good/again").exists()  # it is good/first


def test_a_third_call_would_do_only_what_is_missing(story):
    workdir, _, _ = story
    planned = sweep.read(str(workdir.parent / "mine.py"), epath.Path(workdir))
    assert {run.name: run.is_done() for run in planned} == {
        "good/first": True,
        "good/again": True,
        "bad/batch": False,
    }


def test_tables(story):
    workdir, _, collected = story
    assert collected.returncode == 0, collected.stderr
    text = (workdir / "tables/results.md").read_text()
    assert text in collected.stderr
    runs = [workdir / f"good/first/seed-{seed}/results.json" for seed in (0, 1)]
    aps = [json.loads(path.read_text())["ap"] for path in runs]
    assert aps[0] != aps[1]
    mean, half = sum(aps) / 2, abs(aps[0] - aps[1]) / 2
    row = next(line for line in text.splitlines() if line.startswith("| good | first |"))
    assert "| 2 of 2 |" in row
    assert f"{mean:.1f} ± {half * 2**0.5:.1f}" in row
    row = next(line for line in text.splitlines() if line.startswith("| good | again |"))
    assert "| 1 of 1 |" in row and f"| {aps[0]:.1f} |" in row
    row = next(line for line in text.splitlines() if line.startswith("| bad | batch |"))
    assert row.endswith("| 0 of 1 |  |  |  |  |")
    assert "- bad/batch/seed-0: error: train.batch = 4096" in text
    assert (workdir / "tables/heatmaps.png").exists()


def test_a_killed_sweep_takes_its_run_with_it(shrunk, tmp_path):
    file, workdir = tmp_path / "mine.py", tmp_path / "w"
    fields = {**shrunk, "model.depth": 1, "train.epochs": 200, "train.steps_per_epoch": 20}
    file.write_text(MINE.format(fields=fields))
    lock = workdir / "good/first/seed-0/.lock"
    arguments = (str(file), f"--workdir={workdir}")
    with subprocess.Popen(
        command(*arguments), stderr=subprocess.DEVNULL, env=environment(), cwd=REPOSITORY
    ) as process:
        deadline = time.monotonic() + 300
        while not (lock.exists() and lock.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        second = execute(*arguments)
        assert second.returncode == 1
        told = f"error: {workdir} is in use by process {process.pid} on "
        assert second.stderr.splitlines()[-1].startswith(told)
        child = int(lock.read_text().split()[1])
        assert child != process.pid
        process.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with locks.locked(lock.parent, wait=True):  # as its last thread ends
        pass
