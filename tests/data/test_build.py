"""The command and its promises: a subset is complete or absent, whatever ends a build."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from dolos_folder import make_dolos_folder

from wsdl_data import build
from wsdl_data.dolos.dolos_dataset_builder import Builder

BUILD = (sys.executable, "-W", "error", "-m", "wsdl_data.build")
TRAIN, VALID = 800, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    return make_dolos_folder(root / "dolos", {"train": 3, "valid": 2, "test": 2}, size=32)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that takes seconds to build: hard links to two images."""
    root = make_dolos_folder(
        tmp_path_factory.mktemp("large"), {"train": 1, "valid": 1, "test": 1}, size=256
    )
    for split, count in (("train", TRAIN), ("valid", VALID)):
        images = root / "ffhq/real" / split
        for index in range(1, count):
            os.link(images / "00000.png", images / f"{index:05d}.png")
    return root


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str) -> tuple[int, str, str]:
    process = start(*BUILD, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def arguments(manual_dir: Path, data_dir: Path) -> Sequence[str]:
    return ("dolos/ffhq_real", "--manual_dir", str(manual_dir), "--data_dir", str(data_dir))


def wait_for_build(process: subprocess.Popen[str], subset: Path) -> Path:
    """The temporary folder of a build, as soon as its first ArrayRecord file is begun."""
    while process.poll() is None:
        if begun := list(subset.glob("incomplete.*/*array_record*")):
            return begun[0].parent
        time.sleep(0.005)
    raise AssertionError(f"the build ended too early: {process.communicate()}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_large(data_dir: Path) -> None:
    builder = build.make_builder("dolos/ffhq_real", str(data_dir))
    assert build.is_prepared(builder)
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert sizes == {"train": TRAIN, "valid": VALID}
    for split, count in sizes.items():
        source = builder.as_data_source(split)
        assert len(source) == count
        assert source[count - 1]["key"] == b"%05d.png" % (count - 1)
    assert names(Path(builder.data_dir).parent) == [".build.lock", "1.1.0"]


def test_a_build_then_the_same_again(folder: Path, tmp_path: Path) -> None:
    code, out, err = run(*arguments(folder, tmp_path))
    prepared = tmp_path / "dolos/ffhq_real/1.1.0"
    assert (code, out) == (0, f"dolos/ffhq_real: 3 train, 2 valid images in {prepared}\n")
    assert err == (
        f"warning: {folder}/ffhq/real: 3 train, 2 valid images,"
        " where the paper has 9000 train, 900 valid\n"
    )
    before = {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()}
    # No manual_dir: what is there needs none.
    code, out, err = run("dolos/ffhq_real", "--data_dir", str(tmp_path))
    already = f"dolos/ffhq_real: 3 train, 2 valid images already in {prepared}\n"
    assert (code, out, err) == (0, already, "")
    assert {path.name: path.stat().st_mtime_ns for path in prepared.iterdir()} == before


def test_inside_an_absl_program_only_the_datasets_warnings_are_seen(
    folder: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from absl import app; from wsdl_data import build;"
        "builder = build.make_builder('dolos/ffhq_real', sys.argv[1]);"
        "app.run(lambda argv: build.prepare(builder, argv[2]))"
    )
    process = start(sys.executable, "-W", "error", "-c", code, str(tmp_path), str(folder))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert err.count("\n") == 1 and "3 train, 2 valid images, where the paper has" in err


def test_all_configs_of_a_dataset(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main(["dolos", "--manual_dir", str(folder), "--data_dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"dolos/{c}" for c in Builder.builder_configs]


def test_config_may_be_repeated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--config", "ffhq_p2", "--config", "celebahq_lama"]
    places = ["--manual_dir", str(folder), "--data_dir", str(tmp_path)]
    assert build.main(["dolos", *chosen, *places]) == 0
    assert names(tmp_path / "dolos") == [".config", "celebahq_lama", "ffhq_p2"]
    out, _ = capsys.readouterr()
    assert "celebahq_lama: 3 train, 2 valid, 2 test images in" in out


def test_list_names_what_make_builder_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert build.main(["--list"]) == 0
    listed = capsys.readouterr().out.split()
    assert "dolos/celebahq_repaint_p2_9k" in listed and "portraits/real" in listed
    assert len(set(listed)) == len(listed)
    for name in listed:
        builder = build.make_builder(name, str(tmp_path))
        assert f"{builder.name}/{builder.builder_config_name}" == name
        assert not build.is_prepared(builder)
    assert names(tmp_path) == []


def test_a_custom_config_makes_no_noise(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    builder = build.make_builder("portraits/real-64px", str(tmp_path))
    assert builder.builder_config_name == "real-64px"
    assert not build.is_prepared(builder)
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize(
    ("command", "choice"),
    [
        (["faces"], "dolos, image_folder, manifest, portraits"),
        (["dolos", "--config", "ffhq_p4"], "ffhq_p2, celebahq_repaint_p2"),
        (["dolos/ffhq_ldm"], "celebahq_ldm, celebahq_lama"),
        (["dolos/ffhq_p2", "--config", "ffhq_p2"], "does not go with it"),
        (["portraits", "--config", "reel"], "real"),
        ([], "dolos, image_folder, manifest, portraits"),
        (["image_folder/mine"], "go alone, with --images SOURCE and --manipulated"),
        (["image_folder/a", "dolos", "--images", "x"], "go alone, with --images"),
        (["image_folder/a", "--config", "b", "--images", "x"], "go without --config"),
        (["dolos", "--manipulated", "white"], "go with image_folder/NAME"),
        (
            ["image_folder/a", "--images", "x", "--manipulated", "grey"],
            "choose white, black, green or above:N",
        ),
    ],
)
def test_usage_errors_list_the_choices(
    command: list[str], choice: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        build.main([*command, "--data_dir", str(tmp_path)])
    assert stopped.value.code == 2
    assert choice in capsys.readouterr().err
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["faces/real", "dolos", "dolos/", "dolos/ffhq_p4"])
def test_make_builder_refuses_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"choose from (dolos|celebahq_real), "):
        build.make_builder(name)


def test_a_failed_build_is_one_line_and_exit_1(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "nowhere"
    out = tmp_path / "out"
    assert build.main([*arguments(nowhere, out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: dolos/ffhq_real: no folder {nowhere}. Dolos is downloaded")
    assert error.count("\n") == 1 and not out.exists()

    # TFDS's own place, when none is given.
    assert build.main(["dolos/ffhq_real", "--data_dir", str(out)]) == 1
    assert f"no folder {out}/downloads/manual." in capsys.readouterr().err
    (out / "downloads").mkdir(parents=True)
    (out / "downloads/manual").symlink_to(folder)
    assert build.main(["dolos/ffhq_real", "--data_dir", str(out)]) == 0

    (tmp_path / "file").touch()
    assert build.main([*arguments(folder, tmp_path / "file")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: dolos/ffhq_real: ") and str(tmp_path / "file") in error


def test_a_damaged_dataset_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    builder = build.make_builder("dolos/ffhq_real", str(tmp_path))
    build.prepare(builder, str(folder))
    prepared = Path(builder.data_dir)
    shard = prepared / "dolos-valid.array_record-00000-of-00001"
    shard.rename(tmp_path / "away")
    assert not build.is_prepared(builder)
    with pytest.raises(build.BuildError, match=f"{prepared}: damaged .{shard.name} is missing"):
        build.prepare(builder, str(folder))

    (tmp_path / "away").rename(shard)
    assert build.is_prepared(builder)
    description = prepared / "dataset_info.json"
    description.write_text(description.read_text()[:100])
    with pytest.raises(build.BuildError, match=f"^dolos/ffhq_real: {prepared} cannot be read"):
        build.make_builder("dolos/ffhq_real", str(tmp_path))
    description.unlink()
    builder = build.make_builder("dolos/ffhq_real", str(tmp_path))
    with pytest.raises(build.BuildError, match="its description is missing"):
        build.prepare(builder, str(folder))


@pytest.mark.slow
def test_kill_9_leaves_nothing_that_is_read_and_the_next_build_cleans_up(
    large: Path, tmp_path: Path
) -> None:
    subset = tmp_path / "dolos/ffhq_real"
    process = start(*BUILD, *arguments(large, tmp_path))
    unfinished = wait_for_build(process, subset)
    process.kill()
    process.communicate()
    assert names(subset) == [".build.lock", unfinished.name]
    assert not build.is_prepared(build.make_builder("dolos/ffhq_real", str(tmp_path)))

    code, out, _ = run(*arguments(large, tmp_path))
    assert code == 0 and f"{TRAIN} train, {VALID} valid" in out
    check_large(tmp_path)


def test_control_c_leaves_nothing(large: Path, tmp_path: Path) -> None:
    subset = tmp_path / "dolos/ffhq_real"
    # Python does not install its handler in a process started with SIGINT ignored, as shells do
    # for background jobs.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from wsdl_data.build import main; sys.exit(main())"
    )
    process = start(sys.executable, "-W", "error", "-c", code, *arguments(large, tmp_path))
    wait_for_build(process, subset)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "dolos/ffhq_real: interrupted, nothing was kept of it"
    assert "Traceback" not in err
    assert names(subset) == [".build.lock"]


def test_two_builds_at_once(large: Path, tmp_path: Path) -> None:
    processes = [start(*BUILD, *arguments(large, tmp_path)) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    # One has built it and warned of the counts; the other has only waited.
    assert sum("where the paper has" in err for _, err in results) == 1
    check_large(tmp_path)


def test_the_second_waits_and_does_not_touch_the_first_ones_folder(
    folder: Path, tmp_path: Path
) -> None:
    subset = tmp_path / "dolos/ffhq_real"
    unfinished = subset / "incomplete.ABCDEF_1.1.0"
    unfinished.mkdir(parents=True)
    early = build.make_builder("dolos/ffhq_real", str(tmp_path))
    with (subset / ".build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start(*BUILD, *arguments(folder, tmp_path))
        assert process.stderr.readline() == (
            "dolos/ffhq_real: waiting for the process that is building it\n"
        )
        assert unfinished.is_dir() and process.poll() is None
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "3 train, 2 valid images in" in out
    assert names(subset) == [".build.lock", "1.1.0"]
    # A builder made before the other process was done sees what it has built.
    assert build.is_prepared(early)
    assert early.info.splits["train"].num_examples == 3


def test_an_error_inside_the_builder_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("shape\nlost")

    monkeypatch.setattr(Builder, "_shard_iterators_per_split", fail)
    builder = build.make_builder("dolos/ffhq_real", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"^dolos/ffhq_real: KeyError: 'shape"):
        build.prepare(builder, str(folder))


def test_progress_is_lines_with_the_share_done_off_a_terminal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(build, "_PACE", {"mininterval": 0, "miniters": 1, "ncols": 0})
    builder = build.make_builder("dolos/ffhq_real", str(tmp_path))
    build.prepare(builder, str(folder))
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.replace("\r", "").splitlines() if line]
    assert lines[0].startswith("dolos/ffhq_real:   0% 0/5 ")
    assert lines[-1].startswith("dolos/ffhq_real: 100% 5/5 ")
    assert len(lines) == 6
