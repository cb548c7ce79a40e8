"""Checkpoints come back to the bit, the right ones are kept, and damage is named."""

import gc
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from flax import nnx

from wsdl_jax.checkpoint import Checkpoints
from wsdl_jax.errors import UserError

# When one array of a damaged checkpoint cannot be read, orbax closes the event loop in which it was
# reading the others; each of them then complains to nobody.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def complaints_stay_here():
    """What orbax leaves behind is collected under this file's filter, not in a later test."""
    yield
    gc.collect()


@pytest.fixture
def run(tmp_path) -> epath.Path:
    return epath.Path(tmp_path)


def make_state(seed: int) -> dict[str, Any]:
    """A state of the kinds of leaves that training has."""
    rng = np.random.default_rng(seed)
    params = nnx.State(
        {
            "kernel": nnx.Param(jnp.asarray(rng.normal(size=(3, 3, 4, 5)), jnp.float32)),
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


def test_the_best_and_the_latest_are_kept(run: epath.Path):
    write(run, [0.9, 0.3, 0.8, 0.1, 0.7, 0.2, 0.6, 0.95])
    assert kept(run) == {20, 40, 50, 60, 70, 80}  # five best: 0.1 0.2 0.3 0.6 0.7
    checkpoints = reopen(run)
    assert (checkpoints.latest(), checkpoints.best()) == (80, 40)
    # The metrics are read again from disk: what was the latest goes when it is neither.
    checkpoints.save(90, jax.device_get(make_state(9)), 0.65)
    checkpoints.close()
    assert kept(run) == {20, 40, 60, 70, 90}


def test_a_number_of_best(run: epath.Path):
    write(run, [0.3, 0.1, 0.2, 0.4], keep_best=1)
    assert kept(run) == {20, 40}


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


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_damage_is_named_and_never_loaded(run: epath.Path, damage):
    write(run, [0.5, 0.4])
    data = [
        path
        for path in Path(run / "checkpoints/20").rglob("*")
        if path.is_file() and path.stat().st_size > 200 and path.parent.name == "d"
    ]
    assert data
    for path in data:
        damage(path)
    checkpoints = reopen(run)
    with pytest.raises(UserError) as caught:
        checkpoints.restore(20, make_state(0))
    assert str(run / "checkpoints/20") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_same_bits(checkpoints.restore(10, make_state(0)), make_state(1))
    checkpoints.close()


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
