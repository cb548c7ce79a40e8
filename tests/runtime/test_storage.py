"""Whole files and folders on a disk, and run directories in an emulated bucket."""

import contextlib
import fcntl
import hashlib
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

from wsdl_jax import configuration, runs
from wsdl_jax.runtime import storage
from wsdl_jax.runtime.errors import UserError

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


# ----- Files --------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["text with é\n", b"bytes\0", "", b"x" * 100_000])
def test_a_file_is_written_whole(tmp_path: Path, content: str | bytes):
    path = tmp_path / "file"
    path.write_text("before")
    storage.write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == ["file"]


def test_what_is_there_already_is_not_touched(tmp_path: Path):
    path = tmp_path / "file"
    storage.write_whole(path, "same")
    os.utime(path, (1, 1))
    storage.write_whole(path, b"same")
    assert path.stat().st_mtime == 1
    storage.write_whole(path, "else")
    assert path.read_text() == "else" and path.stat().st_mtime > 1


WRITE = """
import sys
from wsdl_jax.runtime.storage import write_whole
for n in range(200):
    write_whole(sys.argv[1], f"{sys.argv[2]} {n}\\n" * 3000)
"""


def test_two_writers_and_a_reader(tmp_path: Path):
    """No writer fails, and no reader sees anything but what one of them has written whole."""
    path = tmp_path / "file"
    path.write_text("a 0\n" * 3000)
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(path), who]) for who in "ab"]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        lines = path.read_text().splitlines()
        assert len(lines) == 3000 and len(set(lines)) == 1
        seen += 1
    assert [writer.wait() for writer in writers] == [0, 0] and seen > 100
    assert names(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        storage.write_whole(path, "after")
    assert path.read_text() == "before" and names(tmp_path) == ["file"]


def test_only_what_nobody_writes_is_removed(tmp_path: Path):
    abandoned, alive = (tmp_path / f".file.{digit * 8}.partial" for digit in "01")
    folder = tmp_path / ".folder.00000000.partial"
    (folder / "below").mkdir(parents=True)
    others = {".file.partial", ".file.0000000g.partial", "file", ".fil[e].00000000.old"}
    for name in (abandoned.name, alive.name, *others):
        (tmp_path / name).write_text("")
    with alive.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        storage.remove_abandoned(tmp_path, "file")
        assert set(names(tmp_path)) == {alive.name, folder.name, *others}
        storage.remove_abandoned(tmp_path)
        assert set(names(tmp_path)) == {alive.name, *others}


# ----- Folders ------------------------------------------------------------------------------------


def make(out: Path, files: dict[str, str], replaces: str | None = "report") -> None:
    with storage.whole_folder(out, replaces=replaces) as folder:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != storage.MANIFEST
    }


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_whole_and_is_replaced(tmp_path: Path, there: bool):
    out = tmp_path / "some/where/out"
    if there:
        out.mkdir(parents=True)
    make(out, {"a": "1", "b/c": "2"})
    assert content(out) == {"a": "1", "b/c": "2"}
    manifest = json.loads((out / storage.MANIFEST).read_text())
    assert manifest["made_by"] == "report"
    assert manifest["files"]["a"] == [hashlib.sha256(b"1").hexdigest()]
    make(out, {"a": "3"})
    assert content(out) == {"a": "3"}
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda out: (out / "notes.txt").write_text("mine"), r"notes.txt is not of the report"),
        (lambda out: (out / "b/.hidden").write_text("mine"), r"b/.hidden is not of the report"),
        (lambda out: (out / "a").write_text("mine"), r"out/a was changed since the report"),
        (lambda out: (out / "link").symlink_to(out.parent), r"link is not of the report"),
        (lambda out: (out / "gone").symlink_to("nowhere"), r"gone is not of the report"),
        (lambda out: (out / "empty/er").mkdir(parents=True), r"empty/er is not of the report"),
    ],
)
def test_what_a_user_has_put_there_stays(tmp_path: Path, change, told: str):
    out = tmp_path / "out"
    make(out, {"a": "1", "b/c": "2"})
    change(out)
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match=told):
        make(out, {"a": "3"})
    assert sorted(out.rglob("*")) == before and names(tmp_path) == ["out"]


def test_what_comes_while_the_new_one_is_made_stays_too(tmp_path: Path):
    out = tmp_path / "out"
    make(out, {"a": "1"})
    with (  # noqa: PT012
        pytest.raises(UserError, match=r"notes.txt is not of the report"),
        storage.whole_folder(out, replaces="report") as folder,
    ):
        (folder / "a").write_text("2")
        (out / "notes.txt").write_text("mine")
    assert content(out) == {"a": "1", "notes.txt": "mine"} and names(tmp_path) == ["out"]


@pytest.mark.parametrize("replaces", [None, "report", "sweep"])
def test_what_is_of_nobody_or_of_another_command_stays(tmp_path: Path, replaces: str | None):
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("mine")
    with pytest.raises(UserError, match=rf"^{out} is there"):
        make(out, {"a": "1"}, replaces)
    (out / "index.html").unlink()
    make(out, {"a": "1"}, "report")
    if replaces != "report":
        with pytest.raises(UserError, match=rf"^{out} is there"):
            make(out, {"a": "2"}, replaces)
    assert content(out) == {"a": "1"}


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        make(tmp_path / "out", {"a": "1"})
    with pytest.raises(UserError, match=r"out/below.* cannot be written: .*out: File exists"):
        make(tmp_path / "out/below", {"a": "1"})
    assert (tmp_path / "out").read_text() == "mine"


def test_a_block_that_fails_changes_nothing(tmp_path: Path):
    out = tmp_path / "out"
    make(out, {"a": "1"})
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        storage.whole_folder(out, replaces="report") as folder,
    ):
        (folder / "a").write_text("2")
        raise KeyboardInterrupt
    told = rf"^{out} cannot be written: {out}/a/b: Not a directory"
    with (  # noqa: PT012
        pytest.raises(UserError, match=told),
        storage.whole_folder(out, replaces="report") as folder,
    ):
        (folder / "a").write_text("2")
        (folder / "a/b").mkdir()
    assert content(out) == {"a": "1"} and names(tmp_path) == ["out"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_loses_nothing(tmp_path: Path, monkeypatch, failing: int):
    out = tmp_path / "out"
    make(out, {"a": "1"})
    renames, rename = [], Path.rename

    def renamed(self: Path, target: Path) -> Path:
        renames.append(self)
        if len(renames) == failing:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(UserError, match="cannot be written"):
        make(out, {"a": "2"})
    assert content(out) == {"a": "1"} and names(tmp_path) == ["out"]


DIE = """
import os, pathlib, signal, sys
from wsdl_jax.runtime import storage
number, out = int(sys.argv[1]), sys.argv[2]
rename = pathlib.Path.rename
count = 0
def renamed(self, target):
    global count
    count += 1
    if count == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
pathlib.Path.rename = renamed
with storage.whole_folder(out, replaces="report") as folder:
    (folder / "a").write_text("2")
"""


@pytest.mark.parametrize("number", [1, 2])
def test_a_kill_between_two_renames_is_mended(tmp_path: Path, number: int):
    out = tmp_path / "out"
    make(out, {"a": "1"})
    done = subprocess.run([sys.executable, "-c", DIE, str(number), str(out)])
    assert done.returncode == -9
    assert len(names(tmp_path)) == 2
    with storage.whole_folder(out, replaces="report") as folder:
        assert content(out) == {"a": "1"}  # brought back before anything else
        (folder / "a").write_text("3")
    assert content(out) == {"a": "3"} and names(tmp_path) == ["out"]


def test_what_cannot_be_renamed_is_refused_before_the_work(tmp_path: Path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", "..", tmp_path, "/proc"):
        with pytest.raises(UserError, match="cannot be replaced as a whole: name a new folder in"):
            storage.check_folder(out)


def test_a_link_stays_one_and_a_file_keeps_its_mode(tmp_path: Path):
    (tmp_path / "file").write_text("before")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    storage.write_whole(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "after"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    name = "ü" * 120 + ".json"  # 245 bytes, of at most 255
    storage.write_whole(tmp_path / name, "long")
    assert (tmp_path / name).read_text() == "long"


@pytest.mark.parametrize("length", [8, 200, 240])
def test_what_is_of_another_name_is_nobody_elses(tmp_path: Path, length: int):
    """What a killed process has left of one name is not taken for that of one that begins alike."""
    one, other = (tmp_path / ("x" * (length - 1) + end) for end in "ab")
    make(one, {"a": "1"})
    aside = storage._temporary_name(one, "old")
    one.rename(aside)
    make(other, {"a": "2"})
    assert content(other) == {"a": "2"} and aside.exists()
    make(one, {"a": "3"})
    assert content(one) == {"a": "3"} and not aside.exists()


def test_staged_is_removed_in_the_end_or_by_the_next(tmp_path: Path):
    target = tmp_path / "data/a[1]"
    abandoned = target.with_name(".a[1].01234567.partial")
    (abandoned / "below").mkdir(parents=True)
    with storage.staging_folder(target) as stage:
        assert names(target.parent) == [stage.name]
        (stage / "file").write_text("x")
    assert names(target.parent) == []


# ----- In a bucket --------------------------------------------------------------------------------


@pytest.mark.parametrize("replaces", [None, "report"])
def test_an_upload_that_was_killed_is_gone_on_with(tmp_path: Path, monkeypatch, replaces):
    """With a folder on a disk in place of one in a bucket."""
    monkeypatch.setattr(storage, "is_remote", lambda path: Path(path) == tmp_path / "out")
    out = tmp_path / "out"
    out.mkdir()
    if replaces:
        make(out, {"a": "1", "b": "1", "old": "1"}, replaces)
    copies, copy = [], type(epath.Path(out)).copy

    def killed(self, *arguments, **named):
        copies.append(self)
        if len(copies) == 2:
            raise KeyboardInterrupt
        return copy(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(out)), "copy", killed)
        with pytest.raises(KeyboardInterrupt):
            make(out, {"a": "2", "b": "2"}, replaces)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes.txt is not of the"):
        make(out, {"a": "2", "b": "2"}, replaces)
    (out / "notes.txt").unlink()
    make(out, {"a": "2", "b": "2"}, replaces)
    assert content(out) == {"a": "2", "b": "2"}
    assert (out / storage.MANIFEST).exists() == bool(replaces)


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
from wsdl_jax.training import loop
validate = loop.validate
def stopping(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return validate(*arguments)
loop.validate = stopping
runpy.run_module("wsdl_jax.main", run_name="__main__")
"""


@pytest.mark.slow
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
