"""launch/tpu_pod.sh, with a gcloud that runs commands for "all workers" in two folders."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_pod.sh"
SETTINGS = {"TPU": "pod", "ZONE": "us-east5-b", "TYPE": "v6e-16"}
RUN = ("--config", "configs/patches.py:setup=a", "--workdir", "gs://bucket/it's a run")

GCLOUD = """#!{python}
import json, os, pathlib, shutil, subprocess, sys
arguments, here = sys.argv[1:], pathlib.Path("{folder}")
with open(here / "calls", "a") as calls:
    calls.write(json.dumps(["gcloud", *arguments]) + "\\n")
flags = dict(word.split("=", 1) for word in arguments if word.startswith("--") and "=" in word)
if arguments[2] == "queued-resources" and arguments[3] in os.environ.get("FAILING", ""):
    sys.exit("it does not work")
if arguments[3] == "describe":
    now, *later = (here / "states").read_text().split()
    (here / "states").write_text(" ".join(later))
    print(now)
if arguments[3] in ("ssh", "scp"):
    workers = [0, 1] if flags["--worker"] == "all" else [int(flags["--worker"])]
    for home in (here / f"worker-{{worker}}" for worker in workers):
        home.mkdir(exist_ok=True)
        if arguments[3] == "scp":
            shutil.copy(arguments[4], home)
        else:
            command = ["bash", "-c", flags["--command"]]
            subprocess.run(command, cwd=home, env={{**os.environ, "HOME": str(home)}}, check=True)
"""
RECORDER = """#!{python}
import json, sys
with open("{folder}/calls", "a") as calls:
    calls.write(json.dumps(["{name}", *sys.argv[1:]]) + "\\n")
"""
# What uv's installer is to do: put a uv there, whose environments have a Python that waits.
CURL = """#!/usr/bin/env bash
cat <<'INSTALLER'
mkdir -p ~/.local/bin
cat >~/.local/bin/uv <<'UV'
#!/usr/bin/env bash
echo "$PWD: $*" >>~/uv.log
[[ $1 == venv ]] || exit 0
mkdir -p .venv/bin
cat >.venv/bin/python <<'PYTHON'
#!/usr/bin/env bash
trap 'echo saved; exit 143' TERM
printf '<%s>' "$@"
echo
for ((i = 0; i < 2000; i++)); do sleep 0.05; done
PYTHON
chmod +x .venv/bin/python
UV
chmod +x ~/.local/bin/uv
INSTALLER
"""


class Pod:
    """The script in a small repository of its own, and what it calls."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._programs = folder / "bin"
        self._programs.mkdir()
        for name, text in (("gcloud", GCLOUD), ("curl", CURL), ("sleep-for", RECORDER)):
            values = {"python": sys.executable, "folder": folder, "name": "sleep"}
            path = self._programs / name
            path.write_text(text if name == "curl" else text.format(**values))
            path.chmod(0o755)
        self.repository = folder / "repository"
        (self.repository / "launch").mkdir(parents=True)
        self.script = Path(shutil.copy(SCRIPT, self.repository / "launch"))
        self.states()

    def states(self, *states: str) -> None:
        """What gcloud says, one after the other, when it is asked for the state."""
        (self.folder / "states").write_text(" ".join(states))

    def calls(self) -> list[list[str]]:
        """Words of the commands that were run since the last time."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def __call__(self, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        environment = {
            "HOME": str(self.folder),
            "PATH": f"{self._programs}:{os.environ['PATH']}",
            **{
                name: value for name, value in {**SETTINGS, **settings}.items() if value is not None
            },
        }
        return subprocess.run(
            [self.script, *arguments], env=environment, capture_output=True, text=True, timeout=60
        )


@pytest.fixture
def pod(tmp_path) -> Pod:
    return Pod(tmp_path)


@pytest.fixture
def patient(pod) -> Pod:
    """A pod for which waiting takes no time."""
    (pod.folder / "bin" / "sleep-for").rename(pod.folder / "bin" / "sleep")
    return pod


def commit(repository: Path) -> None:
    git = ["git", "-C", repository, "-c", "user.name=a", "-c", "user.email=b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=all"], check=True)


def printed(output: str) -> list[list[str]]:
    """Words of the commands that a dry run has printed."""
    lexer = shlex.shlex(output, posix=True, punctuation_chars="\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word.strip("\n"):
            commands[-1].append(word)
        else:
            commands.append([])
    return [command for command in commands if command and command[0] != "#"]


GCLOUD_TPUS = ["gcloud", "compute", "tpus"]
QUEUED = [*GCLOUD_TPUS, "queued-resources"]
DESCRIBE = [*QUEUED, "describe", "pod", "--zone=us-east5-b", "--format=value(state.state)"]
DELETE = [*QUEUED, "delete", "pod", "--zone=us-east5-b", "--force", "--quiet"]
CREATE = [
    *(*QUEUED, "create", "pod", "--node-id=pod", "--zone=us-east5-b"),
    *("--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--spot"),
]
ARCHIVE = [
    ["mkdir", "-p", "dist"],
    ["git", "archive", "--format=tar.gz", "--output=dist/wsdl-jax.tar.gz", "HEAD"],
]
COPY = [
    *(*GCLOUD_TPUS, "tpu-vm", "scp", "dist/wsdl-jax.tar.gz", "pod:"),
    *("--zone=us-east5-b", "--worker=all"),
]


def ssh(worker: str) -> list[str]:
    """All but the last word, --command=…"""
    return [*GCLOUD_TPUS, "tpu-vm", "ssh", "pod", "--zone=us-east5-b", f"--worker={worker}"]


# Each command with its arguments, what it prints, and what the shells of the workers are to do.
COMMANDS: dict[str, tuple[tuple[str, ...], list[list[str]], str]] = {
    "create": ((), [CREATE], ""),
    "wait": ((), [DESCRIBE], ""),
    "install": ((), [*ARCHIVE, COPY, ssh("all")], "-e '.[tpu,gcs]'"),
    "run": (RUN, [ssh("all")], "--workdir 'gs://bucket/it'\\''s a run' >>~/wsdl-jax.log"),
    "logs": ((), [ssh("0")], "tail -n 100 -F wsdl-jax.log"),
    "logs 3": ((), [ssh("3")], "tail -n 100 -F wsdl-jax.log"),
    "status": ((), [DESCRIBE[:-1]], ""),
    "stop": ((), [ssh("all")], "kill -TERM $(cat ~/wsdl-jax.pid)"),
    "delete": ((), [DELETE], ""),
    "resume": (
        RUN,
        [DESCRIBE, DELETE, CREATE, DESCRIBE, *ARCHIVE, COPY, ssh("all"), ssh("all")],
        "wsdl_jax.main --config configs/patches.py:setup=a --workdir",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_prints_everything_and_runs_nothing(pod, command):
    arguments, expected, shell = COMMANDS[command]
    before = sorted(pod.repository.rglob("*"))
    done = pod("--dry-run", *command.split(), *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert pod.calls() == []
    assert sorted(pod.repository.rglob("*")) == before
    commands = printed(done.stdout)
    assert shell in "".join(words[-1] for words in commands)
    stripped = [words[:-1] if words[-1].startswith("--command=") else words for words in commands]
    assert stripped == expected


@pytest.mark.parametrize("command", ["create", "wait", "status", "delete", "resume"])
def test_what_is_printed_is_what_is_run(patient, command):
    commit(patient.repository)
    arguments = COMMANDS[command][0]
    settings = {"DATA": "gs://bucket/my data", "CREATE_FLAGS": "--reserved --network=a"}
    expected = printed(patient("--dry-run", command, *arguments, **settings).stdout)
    patient.states(*(["SUSPENDED"] if command == "resume" else []), "ACTIVE")
    # On the workers, `gcloud storage` is found too.
    done = patient(command, *arguments, **settings)
    assert done.returncode == 0, done.stderr
    calls = [words for words in patient.calls() if words[1] != "storage"]
    assert calls == [words for words in expected if words[0] == "gcloud"]
    for home in patient.folder.glob("worker-*"):
        os.kill(int((home / "wsdl-jax.pid").read_text()), 15)


@pytest.mark.parametrize(
    ("type_", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-32", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_the_image_goes_with_the_type(pod, type_, runtime):
    assert pod("create", TYPE=type_).returncode == 0
    (call,) = pod.calls()
    assert {f"--accelerator-type={type_}", f"--runtime-version={runtime}"} <= set(call)
    pod("create", TYPE=type_, RUNTIME="another")
    (call,) = pod.calls()
    assert "--runtime-version=another" in call


def test_on_demand(pod):
    pod("create", CREATE_FLAGS="")
    assert pod.calls() == [CREATE[:-1]]


def test_waiting(patient):
    patient.states("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = patient("wait")
    assert done.returncode == 0
    assert done.stderr == "pod: WAITING_FOR_RESOURCES\npod: PROVISIONING\n"
    assert patient.calls() == [DESCRIBE, ["sleep", "30"], DESCRIBE, ["sleep", "30"], DESCRIBE]


def test_waiting_in_vain(patient):
    patient.states("PROVISIONING", "FAILED")
    done = patient("wait")
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == [
        "error: pod is FAILED: see status, then resume or delete"
    ]


def test_resume_of_what_is_being_suspended(patient):
    patient.states("SUSPENDING", "SUSPENDED")
    assert patient("resume", *RUN, FAILING="create").returncode != 0
    # And where a command fails, those after it are not run.
    assert patient.calls() == [DESCRIBE, ["sleep", "30"], DESCRIBE, DELETE, CREATE]


def test_resume_leaves_a_living_pod_alone(pod):
    pod.states("ACTIVE")
    done = pod("resume", *RUN)
    assert done.returncode == 2
    assert done.stderr == ("error: pod is ACTIVE, not preempted: use run, or delete and create\n")
    assert pod.calls() == [DESCRIBE]


def lines_of(path: Path, count: int) -> list[str]:
    """The lines of a file, once there are so many."""
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline, path
        time.sleep(0.05)
    return path.read_text().splitlines()


def test_a_run_on_all_workers(pod):
    (pod.repository / "configs").mkdir()
    (pod.repository / "configs" / "one.py").write_text("committed")
    commit(pod.repository)
    (pod.repository / "configs" / "two.py").write_text("not committed")
    for _ in range(2):  # over an older one too
        done = pod("install", DATA="gs://bucket/my data")
        assert done.returncode == 0, done.stderr
    homes = [pod.folder / f"worker-{index}" for index in (0, 1)]
    copies = [words for words in pod.calls() if words[1] == "storage"]
    assert {words.pop() for words in copies} == {f"{home}/tensorflow_datasets" for home in homes}
    assert copies == 4 * [["gcloud", "storage", "rsync", "--recursive", "gs://bucket/my data"]]
    for home in homes:
        assert (home / "wsdl-jax/configs/one.py").read_text() == "committed"
        assert not (home / "wsdl-jax/configs/two.py").exists()
        assert lines_of(home / "uv.log", 2)[:2] == [
            f"{home}/wsdl-jax: venv --quiet --python 3.12 .venv",
            f"{home}/wsdl-jax: pip install --quiet --python .venv/bin/python -e .[tpu,gcs]",
        ]

    odd = ("--config.data.dir=a  b", "--config.seed=$HOME", "*", "")
    assert pod("run", *RUN, *odd).returncode == 0
    words = "".join(f"<{word}>" for word in ("-m", "wsdl_jax.main", *RUN, *odd))
    for home in homes:
        assert lines_of(home / "wsdl-jax.log", 1) == [words]
    again = pod("run", *RUN)
    assert again.returncode != 0
    assert "error: a run is going on" in again.stderr
    assert pod("stop").returncode == 0
    for home in homes:
        assert lines_of(home / "wsdl-jax.log", 2) == [words, "saved"]
    deadline = time.monotonic() + 60
    while "error: a run is going on" in (done := pod("run", *RUN)).stderr:
        assert time.monotonic() < deadline  # it has spoken, and is about to end
    assert done.returncode == 0  # continues in the same log
    for home in homes:
        assert len(lines_of(home / "wsdl-jax.log", 3)) == 3
    assert pod("stop").returncode == 0
    for home in homes:
        assert lines_of(home / "wsdl-jax.log", 4)[-1] == "saved"


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((), {}, "'' is not one of create, wait, install, "),
        (("launch",), {}, "'launch' is not one of create, wait, "),
        (("create", "--dry-run"), {"TPU": None}, "TPU is not set: the name of the slice"),
        (("status",), {"ZONE": ""}, "ZONE is not set: us-east5-b, for example"),
        (("create",), {"TYPE": None}, "TYPE is not set: v6e-16, for example"),
        (("create",), {"TYPE": "v9-8"}, "TYPE=v9-8 is not known here: set RUNTIME, the image "),
        (("run", "--config", "a"), {}, "run needs --workdir=gs://…, which all workers see"),
        (("resume",), {}, "resume needs the arguments of run"),
    ],
)
def test_mistakes_are_told_in_one_line(pod, arguments, settings, message):
    done = pod(*arguments, **settings)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert pod.calls() == []


def test_help(pod):
    done = pod("--help", TPU=None)
    assert done.returncode == 0
    assert done.stdout.startswith("Trains on a slice of Cloud TPU")
    for name in ("TPU", "ZONE", "TYPE", "RUNTIME", "CREATE_FLAGS", "REF", "DATA"):
        assert f"\n  {name} " in done.stdout
    for command in COMMANDS:
        assert f"launch/tpu_pod.sh {command.split()[0]}" in done.stdout
