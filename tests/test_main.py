"""The command, as a user runs it: the real configs, shrunk, from a folder of files to results."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from wsdl_jax.runtime import locks

# Every setup with another method; DeCLIP is on a small transformer that is trained from nothing.
VARIANTS = {
    "attention": "source=celebahq",
    "patches": "setup=b,source=celebahq",
    "grad_cam": "setup=c,source=celebahq",
    "declip": "setup=c,source=celebahq,recipe=small",
}
REPOSITORY = Path(__file__).parent.parent
PYTHON = (sys.executable, "-W", "error", "-W", "ignore:the load_module")  # of ml_collections


def command(name: str, run: Path, shrunk: dict[str, Any], **overrides: Any) -> list[str]:
    fields = {**shrunk, **{key.replace("__", "."): value for key, value in overrides.items()}}
    return [
        *PYTHON,
        *("-m", "wsdl_jax.main"),
        *("--config", f"configs/{name}.py:{VARIANTS[name]}"),
        *("--workdir", str(run)),
        *(f"--config.{field}={value}" for field, value in fields.items()),
    ]


def execute(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    # Compilation takes most of the time of such short runs.
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run(
        arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name == "patches" else pytest.mark.slow) for name in VARIANTS
    ],
)
def finished(request, shrunk, dolos_folder, tmp_path_factory):
    """Method, run directory and what was said of a run that has built its datasets itself."""
    root = tmp_path_factory.mktemp(request.param)
    overrides = {"data__dir": root / "data", "data__manual_dir": dolos_folder}
    done = execute(command(request.param, root / "run", shrunk, **overrides))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return request.param, root / "run", done


def test_everything_is_there(finished):
    method, run, done = finished
    assert {path.name for path in run.iterdir()} == {
        *("config.json", "data.json", "checkpoints", "events", "metrics.jsonl"),
        *(locks.WRITER, locks.RESULTS),  # empty: nobody holds them
        *("predictions.csv", "results.json", "results.txt", "examples.png"),
        *("real_scores.json", "map_threshold.json"),
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"2", "4"}
    config = json.loads((run / "config.json").read_text())
    assert (config["method"], config["model"]["width"]) == (method, 0.05)
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries if "loss" in e] == [1, 2, 3, 4]
    assert [e["step"] for e in entries if "valid_loss" in e] == [2, 4]
    if method == "attention":
        for e in entries:
            prefix = "valid_" if "valid_loss" in e else ""
            parts = e[f"{prefix}label_loss"] + e[f"{prefix}mask_loss"]
            assert e[f"{prefix}loss"] == pytest.approx(parts, rel=1e-5)
    with Image.open(run / "examples.png") as sheet:
        sheet.verify()
    # What was measured is also said, and nothing goes to standard output.
    assert (run / "results.txt").read_text() in done.stderr
    assert done.stdout == ""


def test_results_are_figures_of_the_test_images(finished):
    _, run, _ = finished
    results = json.loads((run / "results.json").read_text())
    assert results["test_fake"] == "dolos/celebahq_repaint_p2"
    assert results["test_real"] == "dolos/celebahq_real"
    assert (results["fake_images"], results["real_images"]) == (11, 8)
    assert results["checkpoint"] in (2, 4)
    for name in ("iou_lg", "iou_sm", "pbca_lg", "pbca_sm", "f1", "ap", "auc"):
        assert 0 <= results[name] <= 100
    assert set(results["trivial"]) == {"all real", "all fake", "random"}
    assert len((run / "predictions.csv").read_text().splitlines()) == 1 + 11 + 8


@pytest.mark.slow
def test_the_same_command_elsewhere_gives_the_same_results(finished, shrunk, tmp_path):
    method, run, _ = finished
    done = execute(command(method, tmp_path / "run", shrunk))  # another folder of the same data
    assert done.returncode == 0, done.stderr
    for name in ("results.json", "predictions.csv", "examples.png"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize("finished", ["patches"], indirect=True)
def test_the_same_command_again_only_evaluates(finished, shrunk, dolos_folder):
    method, run, _ = finished
    kept = [run / "metrics.jsonl", *sorted((run / "checkpoints").rglob("*"))]
    before = [path.stat().st_mtime_ns for path in kept]
    results = (run / "results.json").read_bytes()
    (run / "results.json").unlink()
    overrides = {"data__dir": run.parent / "data", "data__manual_dir": dolos_folder}
    done = execute(command(method, run, shrunk, **overrides))
    assert done.returncode == 0, done.stderr
    assert (run / "results.json").read_bytes() == results
    assert [path.stat().st_mtime_ns for path in kept] == before


# Imports take seconds: one process imports the commands, and a fork of it runs each command line.
FORKS = """
import json, os, runpy, sys, traceback
import wsdl_jax.predict, wsdl_jax.report, wsdl_jax.training, wsdl_jax.runtime.command  # noqa
for name in ("evaluate", "convert", "predict", "report"):
    sys.modules.pop(f"wsdl_jax.{name}", None)
sys.modules.pop("wsdl_data.build", None)
for number, (module, *arguments) in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(f"{number}.{stream}", os.O_CREAT | os.O_WRONLY), stream)
        sys.argv = [module, *arguments]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        os._exit(code)
    with open(f"{number}.code", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""
CONVERT = ("wsdl_jax.convert", "--layout=ffd-attention", "--out=x")
PATCHES = ("wsdl_jax.main", "--config", str(REPOSITORY / "configs/patches.py"))
SWEEP = ("wsdl_jax.sweep", "--workdir=w")
FORGER = f"--config={REPOSITORY / 'configs/diffusion.py'}"
FORGE = ("wsdl_jax.diffusion.forge", "--name=x", "--images=.", "--masks=boxes", "--generator=telea")
PREDICT = ("wsdl_jax.predict", "--run=nowhere", "--images=.", "--out=x")
SETUPS = str(REPOSITORY / "configs/sweeps/setups.py")
BAD = {  # command line: exit code, and what the line on stderr has
    (*PATCHES, "--config.train.bacth=3"): (2, ["bacth", "batch"]),
    (*PATCHES, "--config.trian.batch=3"): (2, ["trian", "train"]),
    (*PATCHES, "--config.train.batch=many"): (2, ["train.batch", "many"]),
    (*PATCHES, "--config.train.batch=2.5"): (2, ["train.batch", "2.5"]),
    (*PATCHES, "--config.data.resize=cubic"): (2, ["data.resize", "cubic", "lanczos"]),
    (*PATCHES, "--config.data.image_size=32"): (2, ["image_size", "32", "64"]),
    (*PATCHES, "--config.data.test_fake=portraits/nobody"): (2, ["nobody", "regrain"]),
    (*PATCHES, "--nonsense=1"): (2, ["nonsense"]),
    (*PATCHES, "more"): (2, ["more"]),
    (*PATCHES[:2], f"{PATCHES[2]}:setup=z"): (2, ["setup=z", "a|b|c"]),
    (*PATCHES[:2], f"{PATCHES[2]}:colour=red"): (2, ["colour=red", "source=", "generator="]),
    (*PATCHES[:2], f"{PATCHES[2]}:source=ffhq,generator=lama,setup=b"): (2, ["lama", "ffhq"]),
    (*PATCHES[:2], "configs/none.py"): (2, ["configs/none.py"]),
    (*PATCHES[:2], "configs/none.py", "--config.seed=1"): (2, ["configs/none.py"]),
    ("wsdl_jax.main",): (2, ["--config"]),
    ("wsdl_jax.evaluate",): (2, ["--run"]),
    ("wsdl_jax.evaluate", "--run", "nowhere"): (1, ["nowhere", "not a run"]),
    ("wsdl_jax.evaluate", "--run", "nowhere", "--fakes=x"): (2, ["fakes"]),
    (*PATCHES, "--config.init.path=nowhere.pth"): (1, ["nowhere.pth is not there"]),
    (*PATCHES, "--config.init.path=."): (1, [". is not a run directory"]),
    (*PATCHES, "--config.init.layout=xception"): (2, ["xception", "choose from dolos-patches"]),
    (*CONVERT,): (2, ["FILE is missing; see --help"]),
    (*CONVERT, "a", "b"): (2, ["unexpected argument 'b'"]),
    (*CONVERT, "a.pth"): (1, ["a.pth is not there"]),
    (*CONVERT, "."): (1, [". is not a run directory"]),
    (*CONVERT, ".", "--setup=a"): (1, ["--setup goes with a weight file"]),
    (*CONVERT, "a", "--layout=xception"): (2, ["xception", "dolos-patches|timm-xception|"]),
    (*CONVERT[:2], "a"): (2, ["--out"]),
    ("wsdl_jax.convert", "a", "--out=x"): (2, ["--layout"]),
    ("wsdl_jax.sweep", SETUPS): (2, ["--workdir"]),
    (*SWEEP,): (2, ["FILE is missing"]),
    (*SWEEP, "none.py"): (2, ["no sweep file none.py"]),
    (*SWEEP, SETUPS, "--override=train.batch=0"): (2, ["patches/a: ", "train.batch = 0"]),
    (*SWEEP, f"{SETUPS}:source=mars"): (2, ["source=mars", "portraits|celebahq"]),
    (*SWEEP, SETUPS, "--runner=abacus"): (2, ["abacus", "here|print|slurm|skypilot"]),
    ("wsdl_jax.predict", "--run=nowhere", "--out=x"): (2, ["--images"]),
    ("wsdl_jax.predict", "--run=nowhere", "--images=.", "--out=x"): (1, ["nowhere", "not a run"]),
    (*PREDICT, "--false_positive_rate=5"): (2, ["false_positive_rate", "[0.0, 0.99]"]),
    (*PREDICT, "--mode=zoom"): (2, ["zoom", "resize|tile"]),
    ("wsdl_jax.report",): (2, ["RUN… is missing"]),
    ("wsdl_jax.report", "nowhere"): (1, ["nowhere", "not a run"]),
    ("wsdl_jax.report", "a", "b"): (2, ["--out is missing"]),
    ("wsdl_jax.pod_check", *PATCHES[1:]): (2, ["--topology"]),
    ("wsdl_jax.diffusion.train",): (2, ["--config"]),
    ("wsdl_jax.diffusion.train", "--config=nowhere.py"): (2, ["no config file nowhere.py"]),
    ("wsdl_jax.diffusion.train", FORGER + ":part=wing"): (2, ["part=wing", "pixel|autoencoder"]),
    ("wsdl_jax.diffusion.train", FORGER, "--config.train.batch=0"): (2, ["train.batch = 0"]),
    (*FORGE, "--dilate=1,x"): (2, ["--dilate", "FEWEST,MOST"]),
    (*FORGE, "--dilate=5,1"): (1, ["5,1", "FEWEST,MOST"]),
    (*FORGE, "--generator=magic"): (1, ["no generator 'magic'", "repaint"]),
    ("wsdl_jax.diffusion.forger", "--run=nowhere", "--out=x"): (1, ["nowhere"]),
    ("wsdl_jax.diffusion.quality", "--forger=nowhere", "--out=x"): (1, ["nowhere"]),
}
HELP = {  # of each command: what it has to tell of
    "wsdl_jax.main": ("--config", "--workdir", "--coordinator", "--config configs/patches.py"),
    "wsdl_jax.evaluate": ("--run", "--fake", "--real", "--coordinator", "--perturb jpeg"),
    "wsdl_jax.convert": ("--layout", "--out", "--setup", "xcp_reg.tar"),
    "wsdl_jax.predict": ("--run", "--images", "--mode", "--false_positive_rate", "photo.jpg"),
    "wsdl_jax.report": ("--out", "--gallery", "runs/patches-a-portraits-ddpm_reconstructed"),
    "wsdl_jax.sweep": ("--collect", "--runner", "--workdir", "configs/sweeps/setups.py"),
    "wsdl_jax.pod_check": ("--topology", "--find-batch", "v5e:16x16"),
    "wsdl_jax.diffusion.train": ("--config", "--workdir", "--config configs/diffusion.py"),
    "wsdl_jax.diffusion.forge": ("--images", "--masks", "--dilate", "--generator", "--name mine"),
    "wsdl_jax.diffusion.forger": ("--run", "--out", "runs/forger/pixel"),
    "wsdl_jax.diffusion.quality": ("--forger", "--steps", "--out", "sheet.png"),
    "wsdl_data.portraits.contact_sheet": ("PNG",),
    "wsdl_data.audit": ("--real", "--images", "--out", "audit image_folder/mine"),
    "wsdl_data.build": ("--manual_dir", "--images", "--manipulated", "build image_folder/NAME"),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[tuple[str, ...], tuple[int, str, str]]:
    """Exit code, standard output and standard error of each command line."""
    folder = tmp_path_factory.mktemp("said")
    lines = [*BAD, *((module, "--help") for module in HELP)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(
        [*PYTHON, "-W", "ignore:.*fork", "-c", FORKS],
        input=json.dumps(lines),
        cwd=folder,
        env=environment,
        text=True,
        check=True,
        timeout=120,
    )
    answers = {}
    for number, line in enumerate(lines):
        out, err, code = ((folder / f"{number}.{end}").read_text() for end in ("1", "2", "code"))
        answers[line] = int(code), out, err
        for end in ("1", "2", "code"):
            (folder / f"{number}.{end}").unlink()
    answers[()] = 0, " ".join(path.name for path in folder.iterdir()), ""
    return answers


@pytest.mark.parametrize("line", BAD, ids=lambda line: " ".join(line[-2:])[-60:])
def test_bad_command_line(said, line):
    expected, parts = BAD[line]
    code, out, err = said[line]
    assert code == expected, err
    assert out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    for part in parts:
        assert part in err


def test_bad_command_lines_write_nothing(said):
    assert said[()] == (0, "", "")


def test_what_takes_seconds_to_import_is_imported_when_needed():
    code = "import sys, wsdl_jax.main, wsdl_jax.predict; print(*sys.modules)"
    done = execute([*PYTHON, "-c", code])
    assert done.returncode == 0, done.stderr
    slow = {"sklearn", "scipy.stats", "tensorboardX", "tensorflow", "torch", "jinja2"}
    assert not slow & set(done.stdout.split())


@pytest.mark.parametrize("module", HELP)
def test_help_has_the_flags_and_an_example(said, module):
    code, out, err = said[module, "--help"]
    assert (code, err) == (0, "")
    assert f"python -m {module} " in out
    for part in HELP[module]:
        assert part in out


def test_every_command_is_tried():
    runnable = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__main__")
        for folder in ("wsdl_jax", "data")
        for path in (REPOSITORY / folder).rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert {
        name.replace("data.", "wsdl_data.", 1) if name.startswith("data.") else name
        for name in runnable
    } == set(HELP)


@pytest.mark.parametrize("finished", ["patches"], indirect=True)
def test_another_config_is_refused_before_anything_is_built(finished, shrunk, tmp_path):
    method, run, _ = finished
    overrides = {"data__dir": tmp_path, "train__learning_rate": 0.5}
    done = execute(command(method, run, shrunk, **overrides))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "train.learning_rate: 0.001 → 0.5" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_sides_are_checked_before_the_first_step(data_dir, shrunk, tmp_path):
    real, fakes = "dolos/celebahq_real", "dolos/celebahq_repaint_p2_9k"
    for field, name, told in (
        ("--also_on", real, f"{real} holds real images, where fake ones are needed"),
        ("--config.data.fake", f"('{real}',)", f"{real} holds real images, where fake ones"),
        ("--config.data.real", f"('{fakes}',)", f"{fakes} holds fake images, where real ones"),
        ("--config.data.test_real", fakes, f"{fakes} holds fake images, where real ones"),
    ):
        done = execute([*command("patches", tmp_path / "run", shrunk), f"{field}={name}"])
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"error: {told}") and done.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_what_the_system_says_is_told_in_one_line(shrunk, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = execute(command("patches", tmp_path / "file/run", shrunk))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: --workdir {tmp_path}/file/run: ")
    assert "Not a directory" in done.stderr and done.stderr.count("\n") == 1
