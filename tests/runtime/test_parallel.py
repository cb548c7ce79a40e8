"""Eight devices compute what one computes, by either way of mapping a step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from wsdl_jax import configuration, methods, runs, training
from wsdl_jax.evaluation.network import on_devices
from wsdl_jax.models.layers import BatchNorm
from wsdl_jax.runtime.errors import ConfigError
from wsdl_jax.runtime.parallel import (
    AXIS,
    Parallel,
    mean_gradient,
    norm,
    shapes_of,
    whole,
)

BACKENDS = ("shard_map", "pmap", "fsdp")
BATCH, SIZE, STEPS = 16, 64, 5
SMALLEST = 128  # values of an array that is in parts, of networks as small as these
CASES = {
    "patches": ("patches", "weak", "every"),
    "patches-max": ("patches", "weak", "max"),
    "patches-average": ("patches", "weak", "average"),
    "patches-full": ("patches", "full", "every"),
    "grad_cam": ("grad_cam", "weak", "every"),
    "grad_cam-full": ("grad_cam", "full", "every"),
    "attention": ("attention", "weak", "every"),
    "attention-full": ("attention", "full", "every"),
    "grad_cam-spliced": ("grad_cam", "weak", "every"),
}
# What the backends do alike is tested of one: others take a case of each method.
OTHERS = {
    "pmap": ("patches", "attention-full", "grad_cam-spliced"),
    "fsdp": ("patches",),
}


pytestmark = pytest.mark.usefixtures("compile_quickly")


def get_parallel(backend: str) -> Parallel:
    return Parallel("shard_map" if backend == "fsdp" else backend, fsdp=backend == "fsdp")


def get_config(case: str) -> ml_collections.ConfigDict:
    config = configuration.base()
    config.method, config.supervision, config.loss.location = CASES[case]
    config.data.image_size = SIZE
    config.model.width, config.model.depth = 0.05, 1
    if case in OTHERS["fsdp"]:
        config.model.width = 0.125  # so that channels divide over the devices
    config.train.learning_rate = 1e-3
    config.train.splice = 0.5 if case.endswith("spliced") else 0.0
    if case in ("grad_cam-full", "grad_cam-spliced"):
        config.seed = 3  # with others a ReLU or a maximum is decided by the last bit
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
    rng = np.random.default_rng(8)
    out = []
    for _ in range(STEPS):
        level = np.linspace(-0.5, 0.5, BATCH)[:, None, None, None]
        images = (level + rng.uniform(-0.5, 0.5, (BATCH, SIZE, SIZE, 3))).astype(np.float32)
        batch = {"image": images, "label": np.arange(BATCH, dtype=np.int32) % 3 // 2}
        if config.supervision == "full":
            size = methods.map_size(config)
            batch["mask"] = rng.integers(0, 2, (BATCH, size, size), dtype=np.int32)
        if config.train.splice:
            size = methods.map_size(config)
            batch["spliced"] = rng.random((BATCH, size, size), np.float32)
        out.append(batch)
    return out


def pieces(case: str, **fields: Any):
    config = get_config(case)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    model = get_model(config)
    optimizer = runs.make_optimizer(config.train)
    state = jax.device_get(runs.initial_state(model, config.train))
    step = training.make_train_step(
        methods.from_config(config), model, optimizer, config.seed, config.train.microbatches
    )
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


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(case, backend, marks=[] if case == "patches" else pytest.mark.slow)
        for backend in BACKENDS
        for case in OTHERS.get(backend, CASES)
    ],
)
def test_eight_devices_train_as_one(case: str, backend: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wsdl_jax.runtime.parallel.SMALLEST", SMALLEST)
    parallel = get_parallel(backend)
    assert parallel.mesh.size == 8
    step, start, data = pieces(case)
    mapped = parallel.map(step, donate=True)
    state = parallel.distribute(start)
    history = []
    for batch in data:
        (state, metrics), images = mapped(state, parallel.shard(batch))
        assert images is None
        history.append(jax.tree.map(float, parallel.one(metrics)))
    expected, expected_history = on_one_device(case)
    final = parallel.one(state)
    assert final["step"] == STEPS
    for i, (got, want) in enumerate(zip(history, expected_history, strict=True)):
        assert got.keys() == want.keys() >= {"loss", "gradient_norm"}
        # From a difference in the last bit, a ReLU may pass what the other stops.
        tolerance = 1e-5 if i < 2 else 1e-3
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=tolerance, abs=1e-6), (i, name)
    assert jax.tree.structure(final) == jax.tree.structure(expected)
    for part, tolerance in (("params", 2e-5), ("stats", 2e-5)):
        paths = jax.tree.leaves_with_path(expected[part])
        for (path, want), got in zip(paths, jax.tree.leaves(final[part]), strict=True):
            scale = max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(
                got, want, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
            )
    # The steps have moved the parameters by far more than the tolerance.
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), final["params"], start["params"])
    assert np.mean(jax.tree.leaves(moved)) > 1e-3
    if backend == "fsdp":
        assert_in_parts(parallel, state)
        return
    for leaf in jax.tree.leaves(state["params"]):
        shards = [np.asarray(s.data).tobytes() for s in leaf.addressable_shards]
        assert len(shards) == 8 and len(set(shards)) == 1


def assert_in_parts(parallel: Parallel, state: Any) -> None:
    """A device has an eighth of every large array that divides, of the optimizer's as well."""
    own = whole = 0
    for leaf in jax.tree.leaves((state["params"], state["optimizer"])):
        sizes = {shard.data.size for shard in leaf.addressable_shards}
        divides = any(side % 8 == 0 for side in leaf.shape)
        if leaf.ndim > 1 and leaf.size >= SMALLEST and divides:
            assert sizes == {leaf.size // 8}
            own, whole = own + leaf.size // 8, whole + leaf.size
        else:
            assert sizes == {leaf.size}
    assert whole > 0 and own == whole / 8


@pytest.mark.parametrize(
    ("shape", "dimension"),
    [
        *[((8, 128), 1), ((128, 8), 0), ((3, 3, 64, 64), 3), ((32, 3, 30), 0), ((1, 1000, 9), 1)],
        *[((8, 127), None), ((1024,), None), ((), None), ((33, 34), None)],  # small, no matrix, odd
    ],
)
def test_parts_are_along_the_largest_side_that_divides(shape, dimension):
    spec = get_parallel("fsdp").spec(shape)
    assert spec == PartitionSpec(*() if dimension is None else ([None] * dimension + [AXIS]))
    assert get_parallel("shard_map").spec(shape) == PartitionSpec()
    assert Parallel("shard_map", jax.devices()[:1], fsdp=True).spec(shape) == PartitionSpec()


def test_a_step_in_parts_clips_by_the_norm_of_the_whole():
    """Gradients are 1 + row number, summed over all images; a mean over devices is their mean."""
    parallel = get_parallel("fsdp")
    like = {"large": np.zeros((16, 128), np.float32), "small": np.zeros(3, np.float32)}
    shapes = shapes_of(like)
    train = configuration.base().train
    train.clip_norm, train.learning_rate = 10.0, 1.0
    clip = runs.make_optimizer(train)

    def step(state, batch):
        def loss(parts):
            large, small = whole(parts, shapes).values()
            return (large.sum(0)[0] + 2 * small.sum()) * batch["x"].mean()

        gradients = mean_gradient(jax.grad(loss)(state["params"]), shapes)
        length = norm(gradients, shapes)
        updates, optimizer = clip.update(gradients, state["optimizer"], norm=length)
        return ({"params": updates, "optimizer": optimizer}, length), None

    state = parallel.distribute({"params": like, "optimizer": clip.init(like)})
    batch = parallel.shard({"x": np.arange(16, dtype=np.float32)})
    (state, length), _ = parallel.map(step, donate=True)(state, batch)
    gradient = {"large": np.zeros((16, 128)), "small": np.full(3, 2 * 7.5)}
    gradient["large"][:, 0] = 7.5
    expected = np.sqrt(sum(np.square(part).sum() for part in gradient.values()))
    assert parallel.one(length) == pytest.approx(expected) and expected > 10
    mean = parallel.one(state["optimizer"])[1][0].mu  # Adam's first: a tenth of the gradient
    for name, value in gradient.items():
        np.testing.assert_allclose(mean[name], 0.1 * value * 10 / expected, rtol=1e-6)
    assert {s.data.shape for s in state["params"]["large"].addressable_shards} == {(16, 16)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_sums_weigh_images_not_devices(backend: str):
    config = get_config("patches")
    model = get_model(config)
    method = methods.from_config(config)
    parallel = get_parallel(backend)
    step = parallel.map(training.make_loss_step(method, model))
    state = runs.initial_state(model, config.train)
    batch = {**batches(config)[0], "weight": (np.arange(BATCH) < 11).astype(np.float32)}
    sums, _ = step(parallel.distribute(jax.device_get(state)), parallel.shard(batch))
    sums = parallel.one(sums)
    assert sums["weight"] == 11
    model.eval()
    logits = np.asarray(model(jnp.asarray(batch["image"][:11])).map_logits, np.float64)
    log_sum = np.logaddexp(logits[..., 0], logits[..., 1])
    losses = [log_sum[i] - logits[i, ..., label] for i, label in enumerate(batch["label"][:11])]
    assert sums["loss"] / 11 == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_network_in_parts_localizes_alike(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wsdl_jax.runtime.parallel.SMALLEST", SMALLEST)
    config = get_config("patches")
    model = get_model(config)
    images = batches(config)[0]["image"]
    found = []
    for backend in ("shard_map", "fsdp"):
        parallel = get_parallel(backend)
        step, state = on_devices(methods.from_config(config), model, parallel)
        found.append(parallel.gather(step(state, parallel.shard({"image": images}))[1]))
    np.testing.assert_allclose(found[0].maps, found[1].maps, atol=1e-6)
    np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-6)
    assert np.ptp(found[0].scores) > 1e-3
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state["params"]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_distribute_and_one(backend: str):
    parallel = get_parallel(backend)
    tree = {
        "scalar": np.int32(3),
        "vector": np.arange(5, dtype=np.float32),
        "large": np.random.default_rng(0).random((8, 128, 3), np.float32),
        "nested": [np.ones((2, 3, 4), np.float32), jnp.asarray(7.5)],
    }
    on_devices = parallel.distribute(tree)
    for leaf in jax.tree.leaves(on_devices):
        assert len(leaf.addressable_shards) == 8
    if backend == "fsdp":
        assert on_devices["large"].addressable_data(0).shape == (8, 16, 3)
    back = parallel.one(on_devices)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert not isinstance(a, jax.Array)
        assert (np.shape(a), a.dtype) == (np.shape(b), b.dtype)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shard_and_gather_keep_the_order(backend: str):
    parallel = get_parallel(backend)

    def step(offset, batch):
        rows = batch["x"].shape[0]
        device = jnp.full((rows,), jax.lax.axis_index(AXIS))
        total = jax.lax.psum(batch["x"].sum(), AXIS)
        return total, {"x": batch["x"] + offset, "device": device, "label": batch["label"]}

    x = np.random.default_rng(0).integers(0, 1000, (24, 3, 2)).astype(np.float32)
    batch = {"x": x, "label": np.arange(24, dtype=np.int32)}
    total, rows = parallel.map(step)(parallel.distribute(np.float32(5)), parallel.shard(batch))
    assert parallel.one(total) == x.sum()
    rows = parallel.gather(rows)
    np.testing.assert_array_equal(rows["x"], x + 5)
    np.testing.assert_array_equal(rows["label"], np.arange(24))
    np.testing.assert_array_equal(rows["device"], np.repeat(np.arange(8), 3))


def test_refused_batch():
    parallel = Parallel("shard_map")
    for batch, microbatches in ((8, 1), (64, 1), (64, 4), (24, 3)):
        parallel.check_batch(batch, microbatches)
    for batch, choices in ((1, "8"), (12, "8 or 16"), (63, "56 or 64")):
        with pytest.raises(ConfigError) as raised:
            parallel.check_batch(batch, 1)
        assert str(raised.value) == (
            f"config.train.batch = {batch} does not divide over 8 devices: choose {choices}, or "
            "set config.train.per_device_batch"
        )
    with pytest.raises(ConfigError, match=r"microbatches = 3 does not divide the 8 images of each"):
        parallel.check_batch(64, 3)


def test_padded_batches_divide():
    parallel = Parallel("shard_map")
    assert [parallel.rounded_up(batch) for batch in (1, 8, 50, 64)] == [8, 8, 56, 64]


# ----- Less memory --------------------------------------------------------------------------------


def stepped(step: Any, state: Any, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """State and metrics after a step on one device."""
    one = jax.jit(jax.vmap(step, in_axes=(None, 0), axis_name=AXIS, axis_size=1))
    (state, metrics), _ = one(state, {k: v[None] for k, v in batch.items()})
    return jax.device_get(jax.tree.map(lambda x: x[0], (state, metrics)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "backend"),
    [("patches", "fsdp"), ("patches-max", "shard_map"), ("patches-full", "shard_map")],
)
def test_microbatches_are_the_parts_one_by_one(
    case: str, backend: str, monkeypatch: pytest.MonkeyPatch
):
    """The gradient is the mean of those of the parts; statistics move from part to part."""
    monkeypatch.setattr("wsdl_jax.runtime.parallel.SMALLEST", SMALLEST)
    config = get_config(case)
    model, method = get_model(config), methods.from_config(config)
    descent = optax.sgd(1.0)  # the change of a parameter is its gradient
    state = {**runs.initial_state(model, config.train)}
    state["optimizer"] = descent.init(state["params"])
    state = jax.device_get(state)
    batch = batches(config)[0]
    whole = training.make_train_step(method, model, descent, config.seed)
    in_parts = training.make_train_step(method, model, descent, config.seed, microbatches=2)

    # Eight devices have two images each; the first part has the first of each.
    parallel = get_parallel(backend)
    mapped = parallel.map(in_parts, donate=True)
    (final, metrics), _ = mapped(parallel.distribute(state), parallel.shard(batch))
    final, metrics = parallel.one(final), parallel.one(metrics)

    changes, losses, moved = [], [], state
    for part in (0, 1):
        rows = {name: value[part::2] for name, value in batch.items()}
        after, told = stepped(whole, moved, rows)
        changes.append(jax.tree.map(np.subtract, after["params"], state["params"]))
        losses.append(told["loss"])
        moved = {**state, "stats": after["stats"]}
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *changes)
    change = jax.tree.map(np.subtract, final["params"], state["params"])
    for got, want in zip(*map(jax.tree.leaves, (change, expected)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
    for got, want in zip(*map(jax.tree.leaves, (final["stats"], moved["stats"])), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), *changes)
    assert np.mean(jax.tree.leaves(apart)) > 1e-3  # one part alone would not do


@pytest.mark.slow
def test_microbatches_drop_what_the_whole_batch_drops():
    """Without BatchNorm's statistics of a part, parts and devices change nothing at all."""
    config = get_config("grad_cam-full")
    model, method = get_model(config), methods.from_config(config)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.use_running_average = True
    optimizer = runs.make_optimizer(config.train)
    state = jax.device_get(runs.initial_state(model, config.train))
    batch = batches(config)[0]
    whole = training.make_train_step(method, model, optimizer, config.seed)
    _, metrics = stepped(whole, state, batch)
    _, later = stepped(whole, {**state, "step": state["step"] + 1}, batch)
    in_parts = training.make_train_step(method, model, optimizer, config.seed, microbatches=2)
    parallel = Parallel("shard_map")
    (_, got), _ = parallel.map(in_parts)(parallel.distribute(state), parallel.shard(batch))
    for name, value in parallel.one(got).items():
        assert value == pytest.approx(metrics[name], rel=1e-5)
        assert later[name] != pytest.approx(metrics[name], rel=1e-4)  # another draw would not do


@pytest.mark.slow
def test_rematerialization_changes_nothing():
    step, state, data = pieces("patches")
    again, *_ = pieces("patches", model__remat=True)
    text = [
        str(
            jax.make_jaxpr(jax.vmap(s, in_axes=(None, 0), axis_name=AXIS))(
                state, {k: v[None] for k, v in data[0].items()}
            )
        )
        for s in (step, again)
    ]
    assert "remat" not in text[0] and "remat" in text[1]
    (one, metrics), (other, others) = (stepped(s, state, data[0]) for s in (step, again))
    for name, value in metrics.items():
        assert others[name] == pytest.approx(value, rel=1e-4)
    for part in ("params", "stats"):
        for got, want in zip(*map(jax.tree.leaves, (other[part], one[part])), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_bfloat16_trains_alike():
    """Losses of five steps within 3 %; parameters and statistics stay float32."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        step, state, data = pieces("patches", model__dtype=dtype)
        losses[dtype] = []
        for batch in data:
            state, metrics = stepped(step, state, batch)
            losses[dtype].append(float(metrics["loss"]))
        assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {np.dtype("float32")}
        assert {leaf.dtype for leaf in jax.tree.leaves(state["stats"])} == {np.dtype("float32")}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)
    assert losses["bfloat16"] != losses["float32"]
