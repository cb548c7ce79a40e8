"""Checkpoints come back to the bit, the right ones are kept; damage and full disks are named."""

import contextlib
import grp  # noqa: F401 (who is not root may not be able to import it later)
import math
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath
from flax import nnx

from wsdl_jax.runs import checkpoints as checkpoints_module
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runtime.errors import UserError


@pytest.fixture
def run(tmp_path) -> epath.Path:
    return epath.Path(tmp_path)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        sorted(checkpoints_module.PAUSES) == [*checkpoints_module.PAUSES]
        and sum(checkpoints_module.PAUSES) < 10
    )
    monkeypatch.setattr(checkpoints_module, "PAUSES", (0.001, 0.002, 0.003))


def make_state(seed: int) -> dict[str, Any]:
    """A state of the kinds of leaves that training has."""
    rng = np.random.default_rng(seed)
    params = nnx.State(
        {
            "kernel": nnx.Param(jnp.asarray(rng.normal(size=(3, 3, 8, 64)), jnp.float32)),
            "layers": {0: {"bias": nnx.Param(jnp.asarray(rng.normal(size=5), jnp.float32))}},
        }
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    _, moments = optimizer.update(jax.tree.map(jnp.cos, params), optimizer.init(params), params)
    extremes = [0.0, -0.0, 1e-45, np.finfo(np.float32).max, -np.inf, 1 / 3]
    return {
        "step": jnp.asarray(seed, jnp.int32),
        "params": params,
        "stats": nnx.State({"var": nnx.BatchStat(jnp.asarray(extremes, jnp.float32))}),
        "optimizer": moments,
    }


def assert_same_bits(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def write(run: epath.Path, losses: list[float], keep_best: int = 5) -> None:
    """Checkpoints of steps 10, 20 … with these validation losses."""
    checkpoints = Checkpoints(run, keep_best=keep_best)
    for index, loss in enumerate(losses, start=1):
        checkpoints.save(10 * index, jax.device_get(make_state(index)), loss)
    checkpoints.close()


def kept(run: epath.Path) -> set[int]:
    return {int(path.name) for path in (run / "checkpoints").iterdir()}


def reopen(run: epath.Path, keep_best: int = 5) -> Checkpoints:
    return Checkpoints(run, keep_best=keep_best)


def test_restored_to_the_bit(run: epath.Path):
    write(run, [0.5, 0.4])
    checkpoints = reopen(run)
    like = jax.tree.map(jnp.zeros_like, make_state(0))
    assert_same_bits(checkpoints.restore(10, like), make_state(1))
    assert_same_bits(checkpoints.restore(20, like), make_state(2))
    checkpoints.close()


def test_a_rank_goes_before_the_loss(run: epath.Path):
    checkpoints = reopen(run, keep_best=1)
    for step, (loss, rank) in enumerate([(0.1, -0.2), (0.2, -0.7), (0.3, -0.5), (0.4, -0.6)], 1):
        checkpoints.save(step, jax.device_get(make_state(step)), loss, rank=rank)
    checkpoints.close()
    assert kept(run) == {2, 3, 4} and checkpoints.best() == 2
    # What stops between two validations ranks last.
    checkpoints.save(5, jax.device_get(make_state(5)), math.inf)
    checkpoints.close()
    assert kept(run) == {2, 4, 5} and checkpoints.best() == 2
    # A rank that is not the one that was written is a damage like any other.
    file = run / "checkpoints/2/metrics/metrics"
    file.write_text(file.read_text().replace("-0.7", "-0.9"))
    assert reopen(run).best_sound(make_state(0))[0] == 4


def test_the_end_of_a_training(run: epath.Path):
    checkpoints = reopen(run)
    assert not checkpoints.are_whole(3)
    for step, ended in ((1, False), (2, True), (3, False)):
        checkpoints.save(step, jax.device_get(make_state(step)), 0.5, ended=ended)
        assert checkpoints.are_whole(7) == ended
    assert checkpoints.are_whole(3)
    checkpoints.close()


def test_what_is_saved_is_a_snapshot(run: epath.Path):
    # Saving goes on in the background while training changes its arrays.
    state = jax.tree.map(np.array, make_state(1))
    checkpoints = reopen(run)
    checkpoints.save(1, state, 0.0)
    for leaf in jax.tree.leaves(state):
        leaf[...] = 0
    checkpoints.close()
    checkpoints = reopen(run)
    assert_same_bits(checkpoints.restore(1, make_state(0)), make_state(1))
    checkpoints.close()


def test_an_empty_run(run: epath.Path):
    checkpoints = reopen(run)
    assert checkpoints.latest() is None and checkpoints.best() is None
    checkpoints.close()


def test_the_best_and_the_latest_two_are_kept(run: epath.Path):
    write(run, [0.9, 0.3, 0.8, 0.1, 0.7, 0.2, 0.6, 0.95])
    assert kept(run) == {20, 40, 50, 60, 70, 80}  # five best: 0.1 0.2 0.3 0.6 0.7; and two
    checkpoints = reopen(run)
    assert (checkpoints.latest(), checkpoints.best()) == (80, 40)
    # The metrics are read again from disk: what was of the latest goes when it is of neither.
    checkpoints.save(90, jax.device_get(make_state(9)), 0.65)
    checkpoints.close()
    assert kept(run) == {20, 40, 60, 70, 80, 90}
    checkpoints.save(100, jax.device_get(make_state(9)), 0.85)
    checkpoints.close()
    assert kept(run) == {20, 40, 60, 70, 90, 100}


def test_a_number_of_best(run: epath.Path):
    write(run, [0.3, 0.1, 0.2, 0.4], keep_best=1)
    assert kept(run) == {20, 30, 40}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ranks_last(run: epath.Path, bad: float):
    write(run, [bad, 0.5, bad, 0.2, 0.4, bad], keep_best=2)
    assert kept(run) == {40, 50, 60}
    checkpoints = reopen(run, keep_best=2)
    assert (checkpoints.latest(), checkpoints.best()) == (60, 40)
    checkpoints.close()


def test_a_run_that_only_has_an_unvalidated_checkpoint(run: epath.Path):
    write(run, [math.inf])
    checkpoints = reopen(run)
    assert (checkpoints.latest(), checkpoints.best()) == (10, 10)
    checkpoints.close()


# ----- Damage -------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


DAMAGES = [truncate, flip, Path.unlink]


def files(folder: epath.Path) -> list[Path]:
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def snapshot(folder: epath.Path) -> dict[str, tuple[bytes, int]]:
    """Contents and times of all that is below a folder."""
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in sorted(Path(folder).rglob("*"))
    }


def damage_arrays(run: epath.Path, step: int, damage: Any = truncate) -> None:
    found = [path for path in files(run / f"checkpoints/{step}/state") if path.parent.name == "d"]
    assert found
    for path in found:
        damage(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_never_loaded(run: epath.Path, damage):
    write(run, [0.5, 0.4])
    damage_arrays(run, 20, damage)
    checkpoints = reopen(run)
    with pytest.raises(UserError) as caught:
        checkpoints.restore(20, make_state(0))
    assert str(run / "checkpoints/20") in str(caught.value)
    assert "\n" not in str(caught.value) and "tensorstore_spec" not in str(caught.value)
    assert_same_bits(checkpoints.restore(10, make_state(0)), make_state(1))
    checkpoints.close()


def test_no_flipped_bit_of_array_data_is_loaded(run: epath.Path):
    write(run, [0.5, 0.4])
    path = max(files(run / "checkpoints/20/state"), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    reasons = []
    for position in range(7, len(content), len(content) // 40):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(bytes(changed))
        try:
            assert_same_bits(reopen(run).restore(20, make_state(0)), make_state(2))
        except UserError as error:
            reasons.append(str(error))
    assert all(reason.startswith(f"checkpoint {run}/checkpoints/20 ") for reason in reasons)
    ours = [reason for reason in reasons if reason.endswith("is damaged: its checksum is wrong")]
    assert len(ours) > 20  # all of these orbax loads


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_harmless_or_noticed(run: epath.Path, damage, caplog):
    write(run / "whole", [0.5, 0.4])
    noticed = set()
    for path in files(run / "whole/checkpoints/20"):
        name = str(path.relative_to(run / "whole/checkpoints/20"))
        shutil.copytree(run / "whole", run / "copy")
        damage(Path(run / "copy/checkpoints/20" / name))
        for find in ("best_sound", "newest"):
            caplog.clear()
            checkpoints = reopen(run / "copy")
            step, state = getattr(checkpoints, find)(make_state(0))
            checkpoints.close()
            assert_same_bits(state, make_state(step // 10))
            assert (str(run / "copy/checkpoints/20") in caplog.text) == (step == 10), name
            if step == 10:
                noticed.add(name.split("/")[0])
        assert kept(run / "copy") == ({10} if step == 10 else {10, 20})
        (run / "copy").rmtree()
    assert noticed == {"state", "checksum", "metrics"}


def test_the_newest_sound_one_is_gone_on_from(run: epath.Path, caplog):
    write(run, [0.1, 0.2, 0.3, 0.4])
    damage_arrays(run, 30, flip)
    damage_arrays(run, 40)
    damaged = snapshot(run / "checkpoints/30")
    checkpoints = reopen(run)
    step, state = checkpoints.newest(make_state(0))
    assert step == 20
    assert_same_bits(state, make_state(2))
    assert {type(leaf) for leaf in jax.tree.leaves(state)} == {np.ndarray}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    for record, number in zip(caplog.records, (40, 30), strict=True):
        message = record.getMessage()
        assert message.startswith(f"checkpoint {run / 'checkpoints' / str(number)} ")
        assert "\n" not in message
    # They are out of the way, with nothing lost, and their steps can be saved again.
    assert kept(run) == {10, 20}
    moved = snapshot(run / "damaged_checkpoints/30")
    assert [*moved.values()] == [*damaged.values()]
    checkpoints.save(30, jax.device_get(make_state(5)), 0.3)
    checkpoints.close()
    checkpoints = reopen(run)
    step, state = checkpoints.newest(make_state(0))
    checkpoints.close()
    assert step == 30
    assert_same_bits(state, make_state(5))
    # A second one of the same step does not overwrite the first.
    damage_arrays(run, 30)
    checkpoints = reopen(run)
    assert checkpoints.newest(make_state(0))[0] == 20
    checkpoints.close()
    assert {path.name for path in (run / "damaged_checkpoints").iterdir()} == {"30", "30-2", "40"}
    assert snapshot(run / "damaged_checkpoints/30") == moved


def test_the_next_best_is_evaluated_if_the_best_is_damaged(run: epath.Path, caplog):
    write(run, [0.3, 0.1, 0.2, 0.2])
    damage_arrays(run, 20)
    before = snapshot(run)
    checkpoints = reopen(run)
    step, state = checkpoints.best_sound(make_state(0))
    assert step == 40  # of two that are equally good the newer one
    assert_same_bits(state, make_state(4))
    assert len(caplog.records) == 1 and str(run / "checkpoints/20") in caplog.text
    assert checkpoints.best() == 20
    checkpoints.close()
    assert snapshot(run) == before


@pytest.mark.parametrize("find", ["newest", "best_sound"])
def test_none_that_is_sound(run: epath.Path, find: str):
    write(run, [0.1, 0.2])
    for step in (10, 20):
        damage_arrays(run, step)
    before = snapshot(run)
    checkpoints = reopen(run)
    with pytest.raises(UserError) as caught:
        getattr(checkpoints, find)(make_state(0))
    checkpoints.close()
    first = run / "checkpoints" / ("20" if find == "newest" else "10")
    assert (
        f"no checkpoint in {run / 'checkpoints'} is sound: checkpoint {first} cannot be read"
        in (str(caught.value))
    )
    assert "\n" not in str(caught.value)
    assert snapshot(run) == before


@pytest.mark.parametrize("find", ["newest", "best_sound"])
def test_none_at_all(run: epath.Path, find: str):
    checkpoints = reopen(run)
    assert getattr(checkpoints, find)(make_state(0)) is None
    checkpoints.close()


def test_an_older_one_whose_loss_cannot_be_read(run: epath.Path, caplog):
    # It would otherwise break orbax, which ranks all of them.
    write(run, [0.1, 0.2, 0.3])
    truncate(Path(run / "checkpoints/10/metrics/metrics"))
    checkpoints = reopen(run)
    assert checkpoints.best() == 20
    assert checkpoints.newest(make_state(0))[0] == 30
    assert str(run / "checkpoints/10") in caplog.text
    checkpoints.save(40, jax.device_get(make_state(4)), 0.4)
    checkpoints.close()
    assert kept(run) == {20, 30, 40}
    assert (run / "damaged_checkpoints/10").exists()


def test_another_loss_than_was_saved(run: epath.Path, caplog):
    write(run, [0.1, 0.2])
    path = run / "checkpoints/20/metrics/metrics"
    path.write_text(path.read_text().replace("0.2", "0.0"))
    checkpoints = reopen(run)
    assert checkpoints.best_sound(make_state(0))[0] == 10
    assert "checkpoints/20 is damaged: its checksum is wrong" in caplog.text


# ----- Reading without permission to write --------------------------------------------------------


@pytest.fixture
def own_folder() -> Iterator[epath.Path]:
    """A folder that others can reach, and a user who is not root: root may write everywhere."""
    folder = Path(tempfile.mkdtemp(prefix="wsdl-jax-tests-"))
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield epath.Path(folder)
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(folder)


def read_only(folder: epath.Path) -> None:
    for path in [Path(folder), *Path(folder).rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def test_evaluation_of_what_may_only_be_read(own_folder: epath.Path, caplog):
    write(own_folder, [0.1, 0.2, 0.3])
    damage_arrays(own_folder, 10)
    leftover = own_folder / "checkpoints/40.orbax-checkpoint-tmp"
    leftover.mkdir()
    read_only(own_folder)
    before = snapshot(own_folder)
    with pytest.raises(PermissionError):
        (own_folder / "checkpoints/x").mkdir()
    checkpoints = reopen(own_folder)
    step, state = checkpoints.best_sound(make_state(0))
    assert (step, checkpoints.latest(), checkpoints.best()) == (20, 30, 10)
    assert_same_bits(state, make_state(2))
    checkpoints.close()
    assert snapshot(own_folder) == before


def test_a_folder_that_may_not_be_read(own_folder: epath.Path):
    write(own_folder, [0.1])
    Path(own_folder / "checkpoints").chmod(0)
    for find in (Checkpoints.newest, Checkpoints.best_sound):
        checkpoints = reopen(own_folder)
        with pytest.raises(UserError, match=rf"{own_folder}/checkpoints: Permission denied"):
            find(checkpoints, make_state(0))
        checkpoints.close()


# ----- What cannot be read now --------------------------------------------------------------------

TEXTS = {
    "UNAVAILABLE: Error reading gs://bucket/x: CURL error Couldn't resolve host name": None,
    "DEADLINE_EXCEEDED: Error opening zarr driver": None,
    "RESOURCE_EXHAUSTED: Quota exceeded [source locations='x.cc:3']": None,
    "UNKNOWN: Failed to read: Input/output error [os_error_code='5']": "Input/output error",
    "PERMISSION_DENIED: Failed to open [os_error_code='13']": "Permission denied",
}


def fail_to_read(patch: pytest.MonkeyPatch, step: int, error: Exception, times: float) -> list:
    """Lets so many attempts to read the arrays of a step fail; they are counted in a list."""
    restore, failed = ocp.StandardCheckpointHandler.restore, []

    def failing(self: Any, directory: epath.Path, *args: Any, **kwargs: Any) -> Any:
        if directory.parent.name == str(step) and len(failed) < times:
            failed.append(directory)
            raise error
        return restore(self, directory, *args, **kwargs)

    patch.setattr(ocp.StandardCheckpointHandler, "restore", failing)
    return failed


@pytest.mark.parametrize("find", ["newest", "best_sound"])
@pytest.mark.parametrize(
    "error",
    [*map(ValueError, TEXTS), OSError(5, "Input/output error"), TimeoutError(), MemoryError()],
    ids=str,
)
def test_a_failed_read_is_no_damage(run: epath.Path, find, error, monkeypatch, caplog):
    write(run, [0.4, 0.3])
    before = snapshot(run)
    with monkeypatch.context() as patch:
        failed = fail_to_read(patch, 20, error, math.inf)
        checkpoints = reopen(run)
        with pytest.raises(UserError) as caught:
            getattr(checkpoints, find)(make_state(0))
    message = str(caught.value)
    assert message.startswith(f"checkpoint {run}/checkpoints/20 could not be read: ")
    assert message.endswith("; nothing was moved")
    assert "\n" not in message and "source locations" not in message
    assert TEXTS.get(str(error)) is None or TEXTS[str(error)] in message
    assert len(failed) == 1 + len(checkpoints_module.PAUSES)
    assert snapshot(run) == before and not caplog.records
    # It may be over in a moment.
    with monkeypatch.context() as patch:
        fail_to_read(patch, 20, error, len(checkpoints_module.PAUSES))
        step, state = getattr(checkpoints, find)(make_state(0))
    assert step == 20
    assert_same_bits(state, make_state(2))
    checkpoints.close()
    assert kept(run) == {10, 20} and not caplog.records


@pytest.mark.parametrize("find", ["newest", "best_sound"])
def test_what_may_not_be_read_is_no_damage(own_folder: epath.Path, find: str, caplog):
    write(own_folder, [0.4, 0.3])
    before = snapshot(own_folder)
    said = set()
    for path in sorted(Path(own_folder / "checkpoints/20").rglob("*")):
        mode = path.stat().st_mode
        for permissions in (0, 0o444) if path.is_dir() else (0,):
            path.chmod(permissions)
            checkpoints = reopen(own_folder)
            try:
                step, _ = getattr(checkpoints, find)(make_state(0))
                said.add(f"step {step}")
            except UserError as error:
                said.add(str(error))
            finally:
                path.chmod(mode)
                checkpoints.close()
            assert snapshot(own_folder) == before and not caplog.records
    assert said == {
        "step 20",  # there are files that nobody needs
        f"checkpoint {own_folder}/checkpoints/20 could not be read: Permission denied; nothing was "
        "moved",
    }


def test_an_older_one_that_cannot_be_read_now(own_folder: epath.Path):
    write(own_folder, [0.4, 0.3])
    before = snapshot(own_folder)
    Path(own_folder / "checkpoints/10/metrics/metrics").chmod(0)
    checkpoints = reopen(own_folder)
    for ask in (lambda: checkpoints.newest(make_state(0)), checkpoints.best):
        with pytest.raises(UserError, match="10 could not be read: Permission denied; nothing was"):
            ask()
    Path(own_folder / "checkpoints/10/metrics/metrics").chmod(0o644)
    checkpoints.close()
    assert snapshot(own_folder) == before


def test_the_checksum_of_a_step(run: epath.Path, monkeypatch: pytest.MonkeyPatch):
    write(run, [0.4, 0.3, 0.2])
    checkpoints = reopen(run)
    found = [checkpoints.checksum(step) for step in (10, 20, 30)]
    assert len({*found}) == 3 and {type(crc) for crc in found} == {int}
    write(run / "again", [0.1, 0.3])
    assert reopen(run / "again").checksum(10) == found[0]
    (run / "checkpoints/10/checksum").rmtree()
    assert checkpoints.checksum(10) is None and checkpoints.checksum(40) is None
    truncate(Path(run / "checkpoints/20/checksum/metadata"))
    with pytest.raises(UserError, match=r"checkpoints/20 cannot be read: "):
        checkpoints.checksum(20)

    def fails(*args: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "restore", fails)
    with pytest.raises(UserError, match=r"checkpoints/30 could not be read: Input/output error;"):
        checkpoints.checksum(30)


# ----- Saving that fails --------------------------------------------------------------------------


def save_until_it_fails(checkpoints: Checkpoints, first: int) -> str:
    """Saves twice and closes, which has to fail once; its message."""

    def save() -> None:
        for step in (first, first + 10):
            checkpoints.save(step, jax.device_get(make_state(step // 10)), 0.0)
        checkpoints.close()

    with pytest.raises(UserError) as caught:
        save()
    checkpoints.close()  # as the loop does after an error
    message = str(caught.value)
    assert "\n" not in message and "tensorstore" not in message
    return message


def assert_intact(run: epath.Path, *steps: int) -> None:
    """These and no others are there, and nothing is left beside them."""
    assert kept(run) == set(steps)
    checkpoints = reopen(run)
    for step in steps:
        assert_same_bits(checkpoints.restore(step, make_state(0)), make_state(step // 10))
    checkpoints.close()


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A larger file of this process ends in an error, as it does on a full disk or with a quota."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 64, 1000, 10_000])
def test_files_that_cannot_be_written(run: epath.Path, size: int, capfd):
    # keep_best = 1: 20 would be deleted if 30 were complete, and so would 10 for the next.
    write(run, [0.2, 0.1, 0.3], keep_best=1)
    checkpoints = reopen(run, keep_best=1)
    assert checkpoints.newest(make_state(0))[0] == 30
    with largest_file(size):
        message = save_until_it_fails(checkpoints, 40)
    assert f"cannot save to {run / 'checkpoints'}: File too large; " in message
    assert message.endswith(f"newest intact checkpoint: {run / 'checkpoints/30'}")
    assert_intact(run, 20, 30)
    checkpoints = reopen(run, keep_best=1)
    checkpoints.save(40, jax.device_get(make_state(4)), 0.4)
    checkpoints.close()
    assert_intact(run, 20, 30, 40)
    # orbax and asyncio have not filled the terminal.
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "then",
    [
        Checkpoints.close,
        Checkpoints.latest,
        lambda checkpoints: checkpoints.save(30, jax.device_get(make_state(3)), 0.3),
    ],
)
def test_what_fails_in_the_background_is_raised_by_the_next_call(run: epath.Path, then):
    write(run, [0.1])
    checkpoints = reopen(run)
    with largest_file(1000):
        checkpoints.save(20, jax.device_get(make_state(2)), 0.2)  # returns before it is written
        with pytest.raises(UserError, match=r"cannot save .*newest intact .*checkpoints/10$"):
            then(checkpoints)
    checkpoints.close()
    assert_intact(run, 10)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[epath.Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(arguments, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield epath.Path(disk)
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: epath.Path, capfd):
    run, copy = small_disk / "run", small_disk / "copy"
    write(run, [0.1, 0.2], keep_best=1)
    page = os.statvfs(run).f_frsize
    saved = []
    for pages in range(0, 38, 3):  # each write of a save in turn finds the disk full
        shutil.copytree(run, copy)
        free = os.statvfs(run).f_bavail
        (small_disk / "filler").write_bytes(bytes((free - pages) * page))
        assert os.statvfs(run).f_bavail == pages
        checkpoints = Checkpoints(copy, keep_best=1)
        message = ""
        try:
            assert checkpoints.newest(make_state(0))[0] == 20
            checkpoints.save(30, jax.device_get(make_state(3)), 0.3)
            checkpoints.close()
        except UserError as error:
            message = str(error)
            checkpoints.close()
        if message:
            assert message == (
                f"cannot save to {copy / 'checkpoints'}: No space left on device; newest intact "
                f"checkpoint: {copy / 'checkpoints/20'}"
            )
            assert_intact(copy, 10, 20)
        else:
            saved.append(pages)
            assert_intact(copy, 10, 20, 30)
        (small_disk / "filler").unlink()
        copy.rmtree()
    assert 0 < len(saved) < 10 and saved[-1] == 36
    assert capfd.readouterr().err == ""


def test_a_folder_that_may_not_be_written(own_folder: epath.Path, capfd):
    write(own_folder, [0.1, 0.2])
    read_only(own_folder)
    checkpoints = reopen(own_folder)
    assert checkpoints.newest(make_state(0))[0] == 20
    message = save_until_it_fails(checkpoints, 30)
    assert f"cannot save to {own_folder / 'checkpoints'}: Permission denied; " in message
    assert message.endswith(str(own_folder / "checkpoints/20"))
    assert_intact(own_folder, 10, 20)
    assert capfd.readouterr().err == ""


def test_a_run_that_may_not_be_written(own_folder: epath.Path):
    read_only(own_folder)
    for first in (Checkpoints.newest, lambda checkpoints, state: checkpoints.save(1, state, 0.1)):
        checkpoints = reopen(own_folder)
        with pytest.raises(UserError, match=r"Permission denied; newest intact checkpoint: none$"):
            first(checkpoints, make_state(0))
        checkpoints.close()


def test_a_folder_that_vanishes(run: epath.Path):
    checkpoints = reopen(run)
    checkpoints.save(10, jax.device_get(make_state(1)), 0.1)
    assert checkpoints.latest() == 10
    (run / "checkpoints").rmtree()
    message = save_until_it_fails(checkpoints, 20)
    where = run / "checkpoints"
    assert f"{where}: the directory is gone; newest intact checkpoint: none" in message
    assert not (run / "checkpoints").exists()


def test_a_damaged_one_is_not_said_to_be_intact(run: epath.Path):
    write(run, [0.1, 0.2])
    checkpoints = reopen(run)
    damage_arrays(run, 20, flip)
    with largest_file(0):
        message = save_until_it_fails(checkpoints, 30)
    assert message.endswith(f"newest intact checkpoint: {run / 'checkpoints/10'}")


def test_a_step_is_never_saved_over_another(run: epath.Path):
    write(run, [0.1, 0.2])
    checkpoints = reopen(run)
    with pytest.raises(UserError, match=r"20 already exists; newest intact .*checkpoints/20$"):
        checkpoints.save(20, jax.device_get(make_state(9)), 0.2)
    checkpoints.close()
    assert_intact(run, 10, 20)


# ----- What a killed process leaves ---------------------------------------------------------------


def test_a_half_written_one_is_none_and_goes(run: epath.Path):
    write(run, [0.2, 0.1])
    shutil.copytree(run / "checkpoints/20", run / "checkpoints/30.orbax-checkpoint-tmp")
    checkpoints = reopen(run)
    assert (checkpoints.latest(), checkpoints.best()) == (20, 20)
    assert checkpoints.best_sound(make_state(0))[0] == 20
    assert (run / "checkpoints/30.orbax-checkpoint-tmp").exists()
    assert checkpoints.newest(make_state(0))[0] == 20
    checkpoints.save(30, jax.device_get(make_state(3)), 0.3)
    checkpoints.close()
    assert_intact(run, 10, 20, 30)


@pytest.mark.parametrize("left", ["state", "metrics"])
def test_a_half_deleted_one_goes(run: epath.Path, left: str, caplog):
    write(run, [0.9, 0.1, 0.2])
    for path in (run / "checkpoints/10").iterdir():
        if path.name != left:
            path.rmtree() if path.is_dir() else path.unlink()
    checkpoints = reopen(run, keep_best=1)
    assert checkpoints.newest(make_state(0))[0] == 30
    assert not caplog.records
    checkpoints.save(40, jax.device_get(make_state(4)), 0.4)
    checkpoints.close()
    assert_intact(run, 20, 30, 40)
    assert not (run / "damaged_checkpoints").exists()


# ----- Other surroundings -------------------------------------------------------------------------


def test_a_state_of_another_shape(run: epath.Path):
    write(run, [0.5])
    other = make_state(0)
    other["stats"]["var"].set_value(jnp.zeros(7))
    checkpoints = reopen(run)
    with pytest.raises(UserError, match="checkpoints/10"):
        checkpoints.restore(10, other)
    checkpoints.close()


def test_a_relative_directory(run: epath.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run)
    write(epath.Path("runs/relative"), [0.5])
    checkpoints = reopen(run / "runs" / "relative")
    assert_same_bits(checkpoints.restore(10, make_state(0)), make_state(1))
    checkpoints.close()
