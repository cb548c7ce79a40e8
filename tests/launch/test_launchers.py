"""What the launchers have in common: sound shell and YAML, and flags and fields that exist."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from wsdl_jax import configuration

REPOSITORY = Path(__file__).parents[2]
LAUNCH = REPOSITORY / "launch"
SCRIPTS = ("tpu_pod.sh", "slurm.sbatch")
FILES = (*SCRIPTS, "gke_jobset.yaml", "skypilot.yaml")


def text_of(name: str) -> str:
    return (LAUNCH / name).read_text()


def usage(name: str) -> str:
    """The comment on top of a launcher."""
    lines = text_of(name).removeprefix("#!/usr/bin/env bash\n").splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:first])


@pytest.fixture(scope="module")
def jobset() -> dict[str, Any]:
    return yaml.safe_load(text_of("gke_jobset.yaml"))


@pytest.fixture(scope="module")
def skypilot() -> dict[str, Any]:
    return yaml.safe_load(text_of("skypilot.yaml"))


# ----- Shell --------------------------------------------------------------------------------------


def test_these_are_all():
    found = {path.name for path in LAUNCH.iterdir()} - {"README.md", "__pycache__"}
    assert found == {*FILES}
    assert os.access(LAUNCH / "tpu_pod.sh", os.X_OK)


@pytest.fixture(params=(*SCRIPTS, "gke_jobset.yaml", "skypilot.yaml setup", "skypilot.yaml run"))
def script(request, jobset, skypilot, tmp_path) -> Path:
    """Every shell script of the launchers."""
    name, _, key = request.param.partition(" ")
    if name in SCRIPTS:
        return LAUNCH / name
    path = tmp_path / "script"
    body = skypilot[key] if key else container(jobset)["args"][0]
    # Settings come from the environment, SkyPilot's ARGUMENTS are meant to be split, and GKE's
    # bash gets its options from the command line.
    top = "#!/usr/bin/env bash\n# shellcheck disable=SC2154,SC2086\nset -euo pipefail"
    path.write_text(f"{top}\n{body}")
    return path


def test_bash_reads_it(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck(script):
    places = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    program = shutil.which("shellcheck", path=places)
    if program is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


# ----- Flags and fields ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """The flags of wsdl_jax.main, as it says them."""
    command = [sys.executable, "-m", "wsdl_jax.main", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(re.findall(r"^  --(\w+):", done.stdout, re.MULTILINE))


def check(arguments: list[str], flags: set[str]) -> dict[str, str]:
    """Asserts that wsdl_jax.main takes the arguments; flags and fields with their values."""
    given: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        assert word.startswith("--"), f"{word} is no flag"
        name, equals, value = word[2:].partition("=")
        given[name] = value if equals else next(words)
    file, _, variant = given["config"].partition(":")
    config = runpy.run_path(str(REPOSITORY / file))["get_config"](variant)
    configuration.validate(config)
    for name in given:
        head, *fields = name.split(".")
        assert head in flags
        node = config
        for field in fields:
            node = node[field]  # KeyError where there is none
    return given


def examples(name: str) -> list[list[str]]:
    """Arguments of wsdl_jax.main in the commands that the top of a launcher shows."""
    joined = usage(name).replace("\\\n", " ")
    pattern = r"(?:launch/slurm\.sbatch|tpu_pod\.sh (?:run|resume)|ARGUMENTS=)\s*('[^']*'|--.*)"
    found = [shlex.split(match) for match in re.findall(pattern, joined)]
    found = [words[0].split() if len(words) == 1 else words for words in found]
    return [words for words in found if "…" not in words]


@pytest.mark.parametrize("name", ["tpu_pod.sh", "slurm.sbatch", "skypilot.yaml"])
def test_examples(flags, name):
    shown = examples(name)
    assert shown
    for arguments in shown:
        given = check(arguments, flags)
        assert "config" in given
        assert name == "skypilot.yaml" or "workdir" in given


def container(jobset: dict[str, Any]) -> dict[str, Any]:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    return container


def test_gke_arguments(flags, jobset):
    script = container(jobset)["args"][0].replace("\\\n", " ")
    _, command = script.split("exec python -m wsdl_jax.main ")
    given = check(shlex.split(command, comments=True), flags)
    assert given["workdir"].startswith("gs://")
    (mount,) = container(jobset)["volumeMounts"]
    assert given["config.data.dir"] == mount["mountPath"]
    config = runpy.run_path(str(REPOSITORY / given["config"].split(":")[0]))["get_config"](
        given["config"].split(":")[1]
    )
    slice_ = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    chips = slice_["parallelism"] * container(jobset)["resources"]["limits"]["google.com/tpu"]
    assert config.train.batch % chips == config.eval.batch % chips == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_skypilot_arguments(flags, skypilot, tmp_path, rank):
    """The script as SkyPilot runs it on each node, with a Python that says its arguments."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\nexit 143\n")
    python.chmod(0o755)
    environment = {
        "PATH": os.environ["PATH"],
        **skypilot["envs"],
        "BUCKET": "gs://bucket",
        "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.3",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": str(rank),
    }
    done = subprocess.run(
        ["bash", "-c", skypilot["run"]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (143, "")
    module, *arguments = done.stdout.splitlines()[1:]
    assert module == "wsdl_jax.main"
    assert check(arguments, flags) == {
        "config": "configs/patches.py:setup=a,source=celebahq",
        "config.data.dir": "/data",
        "workdir": "gs://bucket/runs/patches-a",
        "coordinator": "10.0.0.7:8476",
        "processes": "2",
        "process": str(rank),
    }


# ----- YAML ---------------------------------------------------------------------------------------


def test_jobset(jobset):
    """What has to agree for GKE to start a slice, and for JobSet to start it again."""
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = jobset["spec"]
    assert spec["network"]["enableDNSHostnames"] is True
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    # One pod a host, each with all chips of its host, which together are the topology.
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    resources = container(jobset)["resources"]
    assert resources["limits"] == resources["requests"]
    assert job["parallelism"] == job["completions"]
    assert job["parallelism"] * resources["limits"]["google.com/tpu"] == rows * columns
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v6e-slice"
    assert job["completionMode"] == "Indexed"
    # One host that fails ends the job, and the JobSet starts it again; but not a wrong config.
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert spec["failurePolicy"]["maxRestarts"] > 0
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (on_failure,) = job["podFailurePolicy"]["rules"]
    assert on_failure["onExitCodes"] == {
        "containerName": container(jobset)["name"],
        "operator": "In",
        "values": [2],
    }
    # SIGTERM reaches the program, and it has time to save.
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["shareProcessNamespace"] is True
    assert container(jobset)["command"][:1] == ["bash"]
    # The volume of the data is what is mounted, and the sidecar that mounts it is asked for.
    (volume,), (mount,) = pod["volumes"], container(jobset)["volumeMounts"]
    assert volume["name"] == mount["name"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}


def test_skypilot(skypilot):
    assert set(skypilot) == {
        *("name", "workdir", "num_nodes", "resources", "envs", "file_mounts", "setup", "run"),
    }
    assert skypilot["num_nodes"] == 2
    assert skypilot["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    assert skypilot["envs"]["BUCKET"] is None
    assert skypilot["file_mounts"] == {"/data": "${BUCKET}/tensorflow_datasets"}


def test_extras_exist(jobset, skypilot):
    """What the launchers install."""
    project = (REPOSITORY / "pyproject.toml").read_text()
    for text, extras in (
        (text_of("tpu_pod.sh"), ("tpu", "gcs")),
        (container(jobset)["args"][0], ("tpu", "gcs")),
        (skypilot["setup"], ("cuda", "gcs")),
    ):
        assert f"'.[{','.join(extras)}]'" in text
        for extra in extras:
            assert re.search(rf"^{extra} = ", project, re.MULTILINE)
