"""Run directories in a bucket, on an emulated Google Cloud Storage."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from PIL import Image
from test_main import PYTHON, REPOSITORY

from wsdl_jax import configuration, runs, storage
from wsdl_jax.errors import UserError

VARIANT = "source=celebahq"


@pytest.mark.parametrize(
    ("path", "remote"),
    [("gs://bucket/a", True), ("s3://a", True), ("/a/b", False), ("a", False), ("s3:/a", False)],
)
def test_urls_are_remote(path: str, remote: bool):
    assert storage.is_remote(path) == storage.is_remote(epath.Path(path)) == remote


def test_a_local_folder_stands_for_itself(tmp_path: Path):
    staged = storage.Staged(epath.Path(tmp_path))
    assert staged.local == epath.Path(tmp_path)
    (tmp_path / "file").write_text("a")
    staged.publish()
    staged.close()
    assert (tmp_path / "file").read_text() == "a"


@pytest.mark.parametrize("path", ["s3://bucket/run", "az://bucket/run"])
def test_where_orbax_cannot_write(path: str):
    with pytest.raises(UserError, match=rf"^{path}: a run directory is on a disk or in gs://"):
        runs.check(epath.Path(path), configuration.base())


# The emulator, with a header that it leaves out, and tensorstore relies on.
SERVER = """
import contextlib, sys
from gcp_storage_emulator import exceptions
from gcp_storage_emulator.handlers import objects
download = objects.download
def with_generation(request, response, storage, *arguments, **named):
    name = request.params["bucket_name"], request.params["object_id"]
    with contextlib.suppress(exceptions.NotFound):
        response["x-goog-generation"] = storage.get_file_obj(*name)["generation"]
    return download(request, response, storage, *arguments, **named)
objects.download = with_generation
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), True, "bucket").run()
"""


@pytest.fixture(scope="module")
def bucket(gcsfs: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An empty bucket of the name "bucket", as an environment in which it is found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)],
        cwd=tmp_path_factory.mktemp("server"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield {
            **os.environ,
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",  # of gcsfs
            "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{port}",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anything",  # of tensorstore
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
    finally:
        server.terminate()
        server.wait(timeout=60)


def execute(
    module: str, environment: dict[str, str], *arguments: str, **fields: Any
) -> subprocess.CompletedProcess[str]:
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    done = subprocess.run(
        # gcsfs warns of credentials that are not there.
        [*PYTHON, "-W", "ignore", "-m", module, *arguments, *given],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done


LIST = """
import sys, gcsfs
root = sys.argv[1].removeprefix("gs://")
print(*(path.removeprefix(root + "/") for path in gcsfs.GCSFileSystem().find(root)), sep="\\n")
"""
READ = "import sys; from etils import epath; print(end=epath.Path(sys.argv[1]).read_text())"


def python(environment: dict[str, str], code: str, path: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


# The command, told to stop while it validates.
STOPPED = """
import os, runpy, signal
from wsdl_jax import train
validate = train.validate
def stopping(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return validate(*arguments)
train.validate = stopping
runpy.run_module("wsdl_jax.main", run_name="__main__")
"""


def test_a_run_in_a_bucket_is_the_run_on_disk(
    bucket: dict[str, str], shrunk: dict[str, Any], tmp_path: Path
):
    fields = {**shrunk, "model.depth": 1}
    config = ("--config", f"configs/patches.py:{VARIANT}")
    run = "gs://bucket/runs/patches"
    execute("wsdl_jax.main", bucket, *config, "--workdir", str(tmp_path / "run"), **fields)
    # Half of it, and the rest by the same command.
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    arguments = [*config, "--workdir", run, *given]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, *arguments],
        cwd=REPOSITORY,
        env=bucket,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 143, done.stderr
    said = execute("wsdl_jax.main", bucket, *config, "--workdir", run, **fields).stderr
    assert f"{run}: continuing at step 2 of 4" in said

    files = set(python(bucket, LIST, run).splitlines())
    whole = {"config.json", "metrics.jsonl", "results.json", "results.txt", "predictions.csv"}
    assert whole | {"examples.png"} <= files
    assert {name.split("/")[1] for name in files if name.startswith("checkpoints/")} == {"2", "4"}
    assert sum(name.startswith("events/") for name in files) == 2  # one of each start
    for name in whole - {"metrics.jsonl"}:
        assert python(bucket, READ, f"{run}/{name}") == (tmp_path / "run" / name).read_text(), name
    timeless = [
        [
            {
                k: v
                for k, v in json.loads(line).items()
                if k not in ("images_per_second", "data_wait")
            }
            for line in text.splitlines()
        ]
        for text in (
            python(bucket, READ, f"{run}/metrics.jsonl"),
            (tmp_path / "run" / "metrics.jsonl").read_text(),
        )
    ]
    assert timeless[0] == timeless[1]
    # The other commands take it as well.
    execute("wsdl_jax.evaluate", bucket, "--run", run, "--fake", "dolos/celebahq_repaint_p2_9k")
    beside = "dolos-celebahq_repaint_p2_9k+dolos-celebahq_real/results.json"
    assert beside in python(bucket, LIST, f"{run}/evaluations").splitlines()
    execute("wsdl_jax.report", bucket, run, "--gallery", "3")
    pictures = python(bucket, LIST, f"{run}/report").splitlines()
    assert "index.html" in pictures and any(name.startswith("images/") for name in pictures)
    photo = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((80, 70)).save(photo)
    for out in ("gs://bucket/found", str(tmp_path / "found")):
        execute("wsdl_jax.predict", bucket, "--run", run, "--images", str(photo), "--out", out)
    found = set(python(bucket, LIST, "gs://bucket/found").splitlines())
    local = [path for path in (tmp_path / "found").rglob("*") if path.is_file()]
    assert found == {str(path.relative_to(tmp_path / "found")) for path in local}
    table = (tmp_path / "found/predictions.csv").read_text()
    assert python(bucket, READ, "gs://bucket/found/predictions.csv") == table
