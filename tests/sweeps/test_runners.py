"""Runs that are started here, with a program in place of Python, and submitted elsewhere."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath
from planned_runs import read, two

from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.sweeps import runners

REPOSITORY = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """sbatch and sky that say their arguments into a file and answer as the real ones do."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    for name, answer in (("sbatch", "$((40 + n))"), ("sky", "Job ID: $((40 + n))")):
        (folder / name).write_text(
            f"""#!/usr/bin/env bash
[[ -e {tmp_path}/broken ]] && {{ echo 'Unable to contact the controller' >&2; exit 1; }}
printf '%s\\0' {name} "PYTHON=$PYTHON" "$@" >>{calls}
printf '\\n' >>{calls}
n=$(wc -l <{calls})
echo noise of {name} >&2
echo "{answer}"
"""
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return calls


def submit(planned, workdir, runner, *, resubmit=False):
    runners.submit(planned, workdir, runner, ["--partition=gpu"], resubmit)


def lines_of(calls: Path) -> list[list[str]]:
    return [line.split("\0")[:-1] for line in calls.read_text().splitlines()]


def test_slurm(programs, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHON", raising=False)
    workdir = epath.Path(tmp_path) / "w"
    planned = two(workdir=workdir)
    submit(planned, workdir, "slurm")
    calls = lines_of(programs)
    assert calls[0] == [
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
    words = runners.skypilot_command(run, ["--priority=9"])
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
        runners.skypilot_command(run, [])
    workdir = epath.Path("gs://bucket/w")
    run, _ = two(["data.manual_dir=a b"], workdir)
    with pytest.raises(UserError, match="a b"):
        runners.skypilot_command(run, [])


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


def test_options_that_a_shell_cannot_read(tmp_path):
    workdir = epath.Path(tmp_path) / "w"
    with pytest.raises(ConfigError, match='--runner_options "\'": No closing quotation'):
        runners.start([], workdir, "slurm", "'", resubmit=False)
    assert not workdir.exists()


# ----- Here ---------------------------------------------------------------------------------------


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
    assert runners.run_here(planned, workdir) == 1
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
    assert runners.run_here(planned[:1], workdir) == 0
    failures = json.loads((workdir / "failures.json").read_text())
    assert list(failures) == ["single/latent_ddpm/seed-0"]


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "failures.json").write_text("{")
    with pytest.raises(UserError, match=r"failures.json is damaged"):
        runners.run_here([], epath.Path(tmp_path))
