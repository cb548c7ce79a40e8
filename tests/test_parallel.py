"""Eight devices compute what one computes, by either way of mapping a step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from wsdl_jax import configuration, methods, runs, train
from wsdl_jax.errors import UserError
from wsdl_jax.parallel import AXIS, Parallel

BACKENDS = ("shard_map", "pmap")
BATCH, SIZE, STEPS = 16, 64, 3
CASES = {
    "patches": ("patches", "weak", "every"),
    "patches-max": ("patches", "weak", "max"),
    "patches-average": ("patches", "weak", "average"),
    "patches-full": ("patches", "full", "every"),
    "grad_cam": ("grad_cam", "weak", "every"),
    "attention": ("attention", "weak", "every"),
    "attention-full": ("attention", "full", "every"),
}


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    """What is compared are programs, not their speed."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def get_config(case: str) -> ml_collections.ConfigDict:
    config = configuration.base()
    config.method, config.supervision, config.loss.location = CASES[case]
    config.data.image_size = SIZE
    config.model.width, config.model.depth = 0.05, 1
    config.train.learning_rate = 1e-3
    return config


def get_model(config: ml_collections.ConfigDict) -> nnx.Module:
    """The network of a config without some of its many like layers, which only cost compilation.

    Blocks 1 to 4 keep their first convolution. Blocks 5 to 11 keep none: they double their input.
    """
    model = methods.build(config, AXIS)
    for index, block in enumerate(model.trunk.blocks[:11]):
        block.convs, block.norms = (
            nnx.List(list(layers)[: int(index < 4)]) for layers in (block.convs, block.norms)
        )
    return model


def batches(config: ml_collections.ConfigDict) -> list[dict[str, np.ndarray]]:
    """Global batches whose images differ in brightness, so that devices see unlike statistics."""
    rng = np.random.default_rng(7)
    out = []
    for _ in range(STEPS):
        level = np.linspace(-0.5, 0.5, BATCH)[:, None, None, None]
        images = (level + rng.uniform(-0.5, 0.5, (BATCH, SIZE, SIZE, 3))).astype(np.float32)
        batch = {"image": images, "label": np.arange(BATCH, dtype=np.int32) % 3 // 2}
        if config.supervision == "full":
            size = methods.map_size(config)
            batch["mask"] = rng.integers(0, 2, (BATCH, size, size), dtype=np.int32)
        out.append(batch)
    return out


def pieces(case: str):
    config = get_config(case)
    model = get_model(config)
    optimizer = runs.make_optimizer(config.train)
    state = jax.device_get(runs.initial_state(model, config.train))
    step = train.make_train_step(methods.from_config(config), model, optimizer, config.seed)
    return step, state, batches(config)


@functools.cache
def on_one_device(case: str) -> tuple[Any, list[Any]]:
    """The last state and the metrics of all steps; the axis is bound by `vmap` over one row."""
    step, state, data = pieces(case)
    one = jax.jit(jax.vmap(step, in_axes=(None, 0), out_axes=0, axis_name=AXIS, axis_size=1))
    history = []
    for batch in data:
        (state, metrics), _ = one(state, {k: v[None] for k, v in batch.items()})
        state = jax.tree.map(lambda x: x[0], state)
        history.append(jax.tree.map(lambda x: float(x[0]), metrics))
    return jax.device_get(state), history


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_eight_devices_train_as_one(case: str, backend: str):
    parallel = Parallel(backend)
    assert parallel.mesh.size == 8
    step, start, data = pieces(case)
    mapped = parallel.map(step, donate=True)
    state = parallel.replicate(start)
    history = []
    for batch in data:
        (state, metrics), images = mapped(state, parallel.shard(batch))
        assert images is None
        history.append(jax.tree.map(float, parallel.one(metrics)))
    expected, expected_history = on_one_device(case)
    final = parallel.one(state)
    assert final["step"] == STEPS
    for got, want in zip(history, expected_history, strict=True):
        assert got.keys() == want.keys() >= {"loss", "gradient_norm"}
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name
    assert jax.tree.structure(final) == jax.tree.structure(expected)
    for part, tolerance in (("params", 2e-5), ("stats", 2e-5)):
        paths = jax.tree.leaves_with_path(expected[part])
        for (path, want), got in zip(paths, jax.tree.leaves(final[part]), strict=True):
            scale = max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(
                got, want, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
            )
    # Three steps have moved the parameters by far more than the tolerance, on all devices alike.
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), final["params"], start["params"])
    assert np.mean(jax.tree.leaves(moved)) > 1e-3
    for leaf in jax.tree.leaves(state["params"]):
        shards = [np.asarray(s.data).tobytes() for s in leaf.addressable_shards]
        assert len(shards) == 8 and len(set(shards)) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_sums_weigh_images_not_devices(backend: str):
    config = get_config("patches")
    model = get_model(config)
    method = methods.from_config(config)
    parallel = Parallel(backend)
    step = parallel.map(train.make_loss_step(method, model))
    state = runs.initial_state(model, config.train)
    batch = {**batches(config)[0], "weight": (np.arange(BATCH) < 11).astype(np.float32)}
    sums, _ = step(parallel.replicate(jax.device_get(state)), parallel.shard(batch))
    sums = parallel.one(sums)
    assert sums["weight"] == 11
    model.eval()
    logits = np.asarray(model(jnp.asarray(batch["image"][:11])).map_logits, np.float64)
    log_sum = np.logaddexp(logits[..., 0], logits[..., 1])
    losses = [log_sum[i] - logits[i, ..., label] for i, label in enumerate(batch["label"][:11])]
    assert sums["loss"] / 11 == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_replicate_and_one(backend: str):
    parallel = Parallel(backend)
    tree = {
        "scalar": np.int32(3),
        "vector": np.arange(5, dtype=np.float32),
        "nested": [np.ones((2, 3, 4), np.float32), jnp.asarray(7.5)],
    }
    on_devices = parallel.replicate(tree)
    for leaf in jax.tree.leaves(on_devices):
        assert len(leaf.addressable_shards) == 8
    back = parallel.one(on_devices)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert not isinstance(a, jax.Array)
        assert (np.shape(a), a.dtype) == (np.shape(b), b.dtype)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shard_and_gather_keep_the_order(backend: str):
    parallel = Parallel(backend)

    def step(offset, batch):
        rows = batch["x"].shape[0]
        device = jnp.full((rows,), jax.lax.axis_index(AXIS))
        total = jax.lax.psum(batch["x"].sum(), AXIS)
        return total, {"x": batch["x"] + offset, "device": device, "label": batch["label"]}

    x = np.random.default_rng(0).integers(0, 1000, (24, 3, 2)).astype(np.float32)
    batch = {"x": x, "label": np.arange(24, dtype=np.int32)}
    total, rows = parallel.map(step)(parallel.replicate(np.float32(5)), parallel.shard(batch))
    assert parallel.one(total) == x.sum()
    rows = parallel.gather(rows)
    np.testing.assert_array_equal(rows["x"], x + 5)
    np.testing.assert_array_equal(rows["label"], np.arange(24))
    np.testing.assert_array_equal(rows["device"], np.repeat(np.arange(8), 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_refused_batch(backend: str):
    parallel = Parallel(backend)
    for batch in (8, 64):
        parallel.check_batch(batch, "train.batch")
    for batch in (1, 12, 63):
        with pytest.raises(UserError, match=rf"config\.eval\.batch = {batch} .* 8 devices"):
            parallel.check_batch(batch, "eval.batch")
