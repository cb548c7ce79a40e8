"""Optimizer, loop and run directories: what is computed, and what survives interruption."""

import contextlib
import gc
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from etils import epath
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import jaccard_score

from wsdl_data import build, provenance
from wsdl_jax import configuration, inputs, methods, runs, training
from wsdl_jax.evaluation import evaluate
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runtime import locks
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.parallel import AXIS
from wsdl_jax.training import detector, loop
from wsdl_jax.training import step as step_module

GetConfig = Callable[..., ml_collections.ConfigDict]
SMALL = {"model.depth": 1}  # of Patches, on top of the shrunk config


# ----- The optimizer ------------------------------------------------------------------------------


def adam(
    parameters, gradients, rates, *, clip: float = math.inf, decay: float = 0.0
) -> list[np.ndarray]:
    """PyTorch's Adam in float64: the bias corrections as in its documentation, ε outside the root.

    Gradients are first scaled so that their norm over all parameters is at most `clip`. With a
    decay it is AdamW, which takes off that share of a parameter, times the rate.
    """
    p = [x.astype(np.float64) for x in parameters]
    m, v = [np.zeros_like(x) for x in p], [np.zeros_like(x) for x in p]
    for t, (step, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in step))
        for i, g in enumerate(step):
            g = g.astype(np.float64) * min(1.0, clip / norm)
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            m_hat, v_hat = m[i] / (1 - 0.9**t), v[i] / (1 - 0.999**t)
            p[i] = (1 - rate * decay) * p[i] - rate * m_hat / (np.sqrt(v_hat) + 1e-8)
    return p


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
@pytest.mark.parametrize(
    ("clip", "warmup", "decay"), [(0.0, 0, None), (0.5, 0, 0.3), (0.0, 2, None), (0.0, 0, 0.0)]
)
def test_three_steps_of_adam(schedule: str, clip: float, warmup: int, decay: float | None):
    config = configuration.base().train
    config.optimizer, config.weight_decay = "adam" if decay is None else "adamw", decay or 0.0
    config.learning_rate, config.clip_norm, config.schedule = 3e-3, clip, schedule
    config.warmup = warmup
    config.epochs, config.steps_per_epoch = 2, 2
    rng = np.random.default_rng(0)
    parameters = [rng.normal(size=shape).astype(np.float32) for shape in ((4, 3), (5,))]
    # From 1e-9, where ε counts, to norms of about 4, which are clipped.
    scales = [np.logspace(-9, 0, 12).reshape(4, 3), np.ones(5)]
    gradients = [
        [(rng.normal(size=s.shape) * s * k).astype(np.float32) for s in scales] for k in (1, 2, 0.1)
    ]
    total = 4
    rates = [
        3e-3 * (0.5 * (1 + math.cos(math.pi * t / total)) if schedule == "cosine" else 1)
        for t in range(3)
    ]
    rates = [rate * min(1, (t + 1) / (warmup or 1)) for t, rate in enumerate(rates)]
    optimizer = runs.make_optimizer(config)
    values = [jnp.asarray(x) for x in parameters]
    state = optimizer.init(values)
    for step in gradients:
        updates, state = optimizer.update([jnp.asarray(g) for g in step], state, values)
        values = [x + u for x, u in zip(values, updates, strict=True)]
    expected = adam(parameters, gradients, rates, clip=clip or math.inf, decay=decay or 0.0)
    for got, want, start in zip(values, expected, parameters, strict=True):
        np.testing.assert_allclose(got - start, want - start, rtol=1e-4, atol=3e-7)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_rate_that_has_fallen_divides_what_is_learned(optimizer: str):
    config = configuration.base().train
    config.schedule, config.optimizer, config.clip_norm = "plateau", optimizer, 1.0
    config.weight_decay = 0.1 if optimizer == "adamw" else 0.0
    rules = runs.make_optimizer(config)
    values, gradients = jnp.asarray([1.0, -2.0]), jnp.asarray([0.3, 0.1])
    state = rules.init(values)
    whole, _ = rules.update(gradients, state, values)
    for falls in (1, 2):
        now = runs.plateau_of(state)._replace(falls=np.int32(falls))
        updates, after = rules.update(gradients, runs.with_plateau(state, now), values)
        np.testing.assert_allclose(updates, whole / 10**falls, rtol=1e-5)
        assert runs.plateau_of(after).falls == falls


def optimizer_state(schedule: str) -> Any:
    config = configuration.base().train
    config.schedule = schedule
    return runs.make_optimizer(config).init(jnp.zeros(1))


def falls_after(values: list[float], patience: int) -> list[int]:
    """How often the rate has fallen after each of some validations, by looking back at them."""
    falls, since = [], []
    for value in values:
        since.append(value)
        lowest = [i for i, v in enumerate(since) if v <= min(since[:i], default=math.inf) - 1e-5]
        fell = len(since) - 1 - lowest[-1] >= patience
        since = [] if fell else since
        falls.append((falls[-1] if falls else 0) + fell)
    return falls


@settings(max_examples=200)
@given(st.lists(st.integers(0, 6).map(lambda n: n / 4), min_size=1, max_size=40), st.integers(1, 5))
def test_when_the_rate_falls(values: list[float], patience: int):
    plateau = runs.Plateau(np.float32(np.inf), np.int32(0), np.int32(0))
    found = []
    for value in values:
        plateau = runs.after_validation(plateau, value, patience)
        found.append(int(plateau.falls))
    assert found == falls_after(values, patience)


def test_the_rate_falls_to_its_lowest_and_then_training_ends():
    config = configuration.base().train
    config.schedule, config.learning_rate = "plateau", 1e-3
    state = optimizer_state("plateau")
    plateau, rates = runs.plateau_of(state), []
    while not runs.has_ended(runs.with_plateau(state, plateau), config):
        rates.append(runs.learning_rate(plateau, config))
        while plateau.falls < len(rates):
            # Lower by less than a thousandth of a point is not better; nor is what is no number.
            lower = min(float(plateau.best), 1.0) - 0.5e-5
            plateau = runs.after_validation(plateau, lower if len(rates) % 2 else math.nan, 3)
    np.testing.assert_allclose(rates, [1e-3, 1e-4, 1e-5, 1e-6], rtol=1e-6)
    assert not runs.has_ended(optimizer_state("constant"), config)
    assert runs.plateau_of(optimizer_state("cosine")) is None


# ----- The step -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("compile_quickly")
def test_dropout_differs_by_step_and_by_place_and_not_otherwise():
    config = configuration.base()
    config.method, config.supervision = "grad_cam", "full"
    config.data.image_size, config.model.width = 64, 0.05
    model = methods.build(config, AXIS)
    for index, block in enumerate(model.trunk.blocks):  # what repeats only costs compilation
        block.convs, block.norms = (
            nnx.List(list(layers)[: int(index < 3)]) for layers in (block.convs, block.norms)
        )
    optimizer = runs.make_optimizer(config.train)
    state = runs.initial_state(model, config.train)
    step = training.make_train_step(methods.from_config(config), model, optimizer, config.seed)

    @jax.jit
    def on_devices(state, batch):
        (after, metrics), _ = jax.vmap(step, in_axes=(None, 0), axis_name=AXIS)(state, batch)
        return after["step"], metrics["loss"]

    rng = np.random.default_rng(0)
    size = methods.map_size(config)
    images = rng.uniform(-1, 1, (4, 64, 64, 3)).astype(np.float32)
    masks = rng.integers(0, 2, (4, size, size), dtype=np.int32)

    def loss(number: int, devices: int) -> float:
        """Of a step, where every device has the same images."""
        batch = {"image": np.stack([images] * devices), "mask": np.stack([masks] * devices)}
        after, value = on_devices({**state, "step": jnp.asarray(number)}, batch)
        assert after[0] == number + 1
        return float(value[0])

    first = loss(0, devices=1)
    assert first == loss(0, devices=1)
    others = [loss(number, devices=1) for number in (1, 2, 3)]
    distances = np.abs(np.subtract.outer([first, *others], [first, *others]))
    assert (distances[~np.eye(4, dtype=bool)] > 1e-4).all()
    # With one mask for both, two devices with equal images would have the loss of one.
    assert abs(loss(0, devices=2) - first) > 1e-4


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_places_are_those_in_the_batch_of_all_hosts(hosts: int):
    whole = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 3), np.uint8)
    for host in range(hosts):
        part = {"image": whole[host::hosts]}  # see `test_pipeline`
        (placed,) = training.with_places(iter([part]), host, hosts)
        assert placed.keys() == {"image", "place"} and placed["place"].dtype == np.int32
        np.testing.assert_array_equal(whole[placed["place"]], part["image"])


def test_a_place_that_is_told_is_taken(monkeypatch: pytest.MonkeyPatch):
    told = []
    monkeypatch.setattr(step_module, "seed_dropout", lambda network, keys: told.append(keys))
    config = configuration.base()
    config.method = "patches"
    config.data.image_size, config.model.width, config.model.depth = 64, 0.05, 1
    model = methods.build(config, AXIS)
    optimizer = runs.make_optimizer(config.train)
    step = training.make_train_step(methods.from_config(config), model, optimizer, seed=3)
    state = {**runs.initial_state(model, config.train), "step": jnp.asarray(7)}
    batch = {"image": jnp.zeros((2, 64, 64, 3), jnp.uint8), "label": jnp.zeros(2, jnp.int32)}

    def keys(batch: dict[str, Any]) -> np.ndarray:
        def traced(state: Any, batch: Any) -> Any:
            step(state, batch)
            return jax.random.key_data(told.pop())

        devices = jax.tree.map(lambda x: jnp.stack([x, x]), batch)
        mapped = jax.vmap(traced, in_axes=(None, 0), axis_name=AXIS)
        return np.asarray(jax.jit(mapped)(state, devices)).reshape(4, -1)

    of_step = jax.random.fold_in(jax.random.key(3), 7)
    expected = [jax.random.key_data(jax.random.fold_in(of_step, place)) for place in range(4)]
    np.testing.assert_array_equal(keys(batch), expected)
    batch["place"] = jnp.asarray([3, 1], jnp.int32)
    np.testing.assert_array_equal(keys(batch), [expected[n] for n in (3, 1, 3, 1)])


def test_iou_of_a_validation():
    """Of two devices, with padding, and with maps and masks that are empty."""

    class Empty(nnx.Module):
        pass

    method = methods.Method(
        network=lambda axis_name, rngs: Empty(),
        loss=lambda model, batch: (jnp.float32(0.25), {}),
        localize=lambda model, images: methods.from_maps(images[..., 0]),
    )
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (2, 4, 5, 5, 3)).astype(np.float32)
    masks = rng.integers(0, 2, (2, 4, 5, 5), np.int32)
    images[0, 1], masks[0, 1], masks[1, 0] = 0, 0, 0
    weight = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.float32)
    ious = [
        jaccard_score(mask.ravel(), image[..., 0].ravel() > 0.5, zero_division=1.0)
        for mask, image in zip(masks.reshape(8, 5, 5), images.reshape(8, 5, 5, 3), strict=True)
    ]
    step = training.make_loss_step(method, Empty(), compares_maps=True)
    state = {"params": nnx.State({}), "stats": nnx.State({})}
    batch = {"image": images, "mask": masks, "weight": weight}
    sums, _ = jax.jit(jax.vmap(step, in_axes=(None, 0), axis_name=AXIS))(state, batch)
    assert sums.keys() == {"loss", "iou", "weight"}
    np.testing.assert_allclose(sums["iou"], np.dot(ious, weight.ravel()), rtol=1e-5)
    np.testing.assert_allclose(sums["loss"], 0.25 * 6, rtol=1e-6)
    # A map that is no number is no map below 0.5, and nor is it right where there is no mask.
    images[1, 0, 2, 3] = np.nan
    batch["image"] = images
    sums, _ = jax.jit(jax.vmap(step, in_axes=(None, 0), axis_name=AXIS))(state, batch)
    assert np.isnan(sums["iou"]).all() and np.isfinite(sums["loss"]).all()


# ----- The loop -----------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and times of all files below a folder."""
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in sorted(Path(folder).rglob("*"))
    }


def logged(run: Path) -> list[dict[str, Any]]:
    text = (Path(run) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def training_steps(run: Path) -> list[int]:
    return [entry["step"] for entry in logged(run) if "loss" in entry]


def saved(run: Path) -> set[int]:
    return {int(path.name) for path in (Path(run) / "checkpoints").iterdir()}


def restored(config: ml_collections.ConfigDict, run: Path, step: int) -> list[np.ndarray]:
    model = methods.build(config, AXIS)
    like = runs.initial_state(model, config.train)
    checkpoints = Checkpoints(epath.Path(run), keep_best=config.train.keep_best)
    state = checkpoints.restore(step, like)
    checkpoints.close()
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def test_what_a_finished_run_holds(trained: epath.Path):
    assert saved(trained) == {2, 4}
    assert training_steps(trained) == [1, 2, 3, 4]
    validated = [entry["step"] for entry in logged(trained) if "valid_loss" in entry]
    assert validated == [2, 4]
    for entry in logged(trained):
        assert all(math.isfinite(value) for value in entry.values())
        if "loss" in entry:
            assert entry.keys() >= {"gradient_norm", "images_per_second", "data_wait"}
            assert 0 <= entry["data_wait"] <= 1 and entry["images_per_second"] > 0
    stored = configuration.load((trained / "config.json").read_text())
    assert stored.method == "patches" and stored.train.learning_rate == 0.01
    assert list((trained / "events").iterdir())


def test_validation_loss_is_the_mean_over_the_split(trained: epath.Path):
    config = configuration.load((trained / "config.json").read_text())
    leaves = restored(config, trained, 4)
    model = methods.build(config, None)
    like = runs.initial_state(model, config.train)
    state = jax.tree.unflatten(jax.tree.structure(like), map(jnp.asarray, leaves))
    nnx.update(model, state["params"], state["stats"])
    model.eval()
    # Padded batches of 8 against one call with the 18 images.
    source = inputs.Examples((*config.data.real, *config.data.fake), "valid", config.data.dir)
    assert len(source) == 18
    (batch,) = inputs.eval_batches(source, inputs.Reading.of(config.data), batch=18)
    images = methods.network_input(jnp.asarray(batch["image"]))
    logits = np.asarray(model(images).map_logits, np.float64)
    logits -= logits.max(-1, keepdims=True)
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = [-log_probability[i, ..., label].mean() for i, label in enumerate(batch["label"])]
    reported = [entry["valid_loss"] for entry in logged(trained) if "valid_loss" in entry]
    assert reported[-1] == pytest.approx(np.mean(losses), rel=1e-4)


def poisoned(at: int):
    """`train_batches` whose batch of step `at` (from 1) has an image of no known weight."""
    clean = inputs.train_batches

    def batches(examples, reading, *, start_step, **kwargs):
        for step, batch in enumerate(
            clean(examples, reading, start_step=start_step, **kwargs), start=start_step + 1
        ):
            weight = np.ones(len(batch["label"]), np.float32)
            if step == at:
                weight[0] = np.nan
            yield {**batch, "weight": weight}

    return batches


def test_no_device_holds_the_state_a_second_time(
    real_config: GetConfig, tmp_path: Path, monkeypatch
):
    """What the steps begin with is on the host alone, and the network is a structure."""
    known, held = jax.live_arrays(), []

    def told(*args: Any, state: Any, **kwargs: Any) -> None:
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
        gc.collect()
        of_others = {id(array) for array in known}
        new = [array for array in jax.live_arrays() if id(array) not in of_others]
        held.append((sum(x.nbytes for x in new), sum(x.nbytes for x in jax.tree.leaves(state))))

    monkeypatch.setattr(detector, "run_loop", told)
    training.train(real_config("patches", "source=celebahq", SMALL), epath.Path(tmp_path / "run"))
    ((on_devices, whole),) = held
    assert on_devices < whole / 20


@pytest.mark.slow
def test_nan_stops_with_step_and_last_good_checkpoint(
    real_config: GetConfig, tmp_path: Path, monkeypatch
):
    overrides = {**SMALL, "train.learning_rate": 0.01, "train.log_every": 10}
    config = real_config("patches", "source=celebahq", overrides)
    run = epath.Path(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "train_batches", poisoned(1))
        with pytest.raises(UserError, match="the loss is nan at step 1; last good checkpoint: non"):
            training.train(config, run)
        assert saved(run) == set()
        patch.undo()
        patch.setattr(inputs, "train_batches", poisoned(4))
        with pytest.raises(UserError) as caught:
            training.train(config, run)
    assert "\n" not in str(caught.value)
    assert "the loss is nan at step 4" in str(caught.value)
    assert str(run / "checkpoints" / "2") in str(caught.value)
    assert saved(run) == {2}
    # With the cause mended the same command goes on from there.
    training.train(config, run)
    assert saved(run) == {2, 4}
    assert training_steps(run) == [2, 4]


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_stops_as_a_bad_loss(trained: epath.Path, name: str, bad: float):
    checkpoints = Checkpoints(trained, keep_best=5)
    good = {"loss": 1.0, "gradient_norm": 2.0}
    loop._check_finite([good, good], 11, checkpoints)
    with pytest.raises(UserError, match=rf"the {name.replace('_', ' ')} is {bad} at step 13;"):
        loop._check_finite([good, good, {**good, name: bad}], 11, checkpoints)
    checkpoints.close()


# ----- A training that ends before its last step --------------------------------------------------


@pytest.fixture(scope="module")
def plateaued(
    real_config: GetConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ml_collections.ConfigDict, epath.Path]:
    """A training with masks, whose first plateau is its last, after 3 of 9 epochs.

    Its validations get worse after the first one, whatever they are.
    """
    overrides = {
        **SMALL,
        "train.schedule": "plateau",
        "train.patience": 2,
        "train.learning_rate": 5e-6,
        "train.epochs": 9,
        "train.keep_best": 3,
    }
    config = real_config("patches", "setup=c,source=celebahq", overrides)
    run = epath.Path(tmp_path_factory.mktemp("plateaued") / "run")
    with worse_each_time():
        training.train(config, run)
    return config, run


@contextlib.contextmanager
def worse_each_time() -> Iterator[None]:
    validate = loop.validate

    def worse(setup, reading, loss_step, state):
        losses = validate(setup, reading, loss_step, state)
        epoch = int(setup.parallel.one(state["step"])) // 2
        return {**losses, "valid_iou": losses["valid_iou"] if epoch == 1 else -float(epoch)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "validate", worse)
        yield


def plateau_at(config: ml_collections.ConfigDict, run: epath.Path, step: int) -> runs.Plateau:
    like = runs.initial_state(methods.build(config, AXIS), config.train)
    return runs.plateau_of(Checkpoints(run, keep_best=3).restore(step, like)["optimizer"])


def test_a_plateau_ends_a_training(plateaued):
    config, run = plateaued
    assert training_steps(run) == [1, 2, 3, 4, 5, 6]
    assert plateau_at(config, run, 4)[1:] == (1, 0) and plateau_at(config, run, 6)[1:] == (0, 1)
    checkpoints = Checkpoints(run, keep_best=3)
    assert (checkpoints.latest(), checkpoints.best()) == (6, 2) and checkpoints.are_whole(18)
    # The same command has nothing to do.
    before = snapshot(run / "checkpoints"), (run / "metrics.jsonl").read_text()
    training.train(config, run)
    assert (snapshot(run / "checkpoints"), (run / "metrics.jsonl").read_text()) == before


@pytest.mark.parametrize(("name", "bad"), [("valid_iou", math.nan), ("valid_loss", math.inf)])
def test_a_validation_that_is_not_finite_is_no_plateau(
    plateaued, tmp_path: Path, monkeypatch, name: str, bad: float
):
    config, run = plateaued
    again = epath.Path(shutil.copytree(run, tmp_path / "run"))
    (again / "checkpoints/6").rmtree()
    losses = {"valid_loss": 0.5, "valid_iou": 0.1, name: bad}
    monkeypatch.setattr(loop, "validate", lambda *_: losses)
    with pytest.raises(UserError) as raised:
        training.train(config, again)
    assert str(raised.value) == (
        f"the {name.replace('_', ' ')} is {bad} after epoch 3, at step 6; last good checkpoint: "
        f"{again / 'checkpoints' / '4'}"
    )
    assert saved(again) == {2, 4}
    assert not Checkpoints(again, keep_best=3).are_whole(18)


def test_checkpoints_rank_by_what_is_watched(plateaued):
    _, run = plateaued
    ranks = {
        int(path.parent.parent.name): json.loads(path.read_text())["rank"]
        for path in run.glob("checkpoints/*/metrics/metrics")
    }
    logs = {entry["step"]: -entry["valid_iou"] for entry in logged(run) if "valid_iou" in entry}
    assert ranks == logs and len(ranks) == 3


def test_a_run_that_was_stopped_waits_on(plateaued, tmp_path: Path):
    """From the checkpoint of an epoch it ends where it has ended without a stop."""
    config, run = plateaued
    again = epath.Path(shutil.copytree(run, tmp_path / "run"))
    (again / "checkpoints/6").rmtree()
    assert not Checkpoints(again, keep_best=3).are_whole(18)
    with worse_each_time():
        training.train(config, again)
    assert training_steps(again) == [1, 2, 3, 4, 5, 6]
    assert Checkpoints(again, keep_best=3).are_whole(18)
    for a, b in zip(restored(config, again, 6), restored(config, run, 6), strict=True):
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())


# ----- Run directories ----------------------------------------------------------------------------


def test_another_config_is_refused_with_the_difference(trained: epath.Path, real_config: GetConfig):
    before = snapshot(trained)
    overrides = {**SMALL, "train.learning_rate": 0.02, "train.clip_norm": 1.0}
    other = real_config("patches", "source=celebahq", overrides)
    for attempt in (training.train, lambda config, run: runs.check(run, config)):
        with pytest.raises(UserError) as caught:
            attempt(other, trained)
        message = str(caught.value)
        assert "train.learning_rate: 0.01 → 0.02" in message
        assert "train.clip_norm: 0.0 → 1.0" in message
        assert str(trained) in message and "\n" not in message
        assert "train.batch" not in message and "data.fake" not in message
    assert snapshot(trained) == before


def test_a_finished_run_stays_as_it_is(trained: epath.Path, real_config: GetConfig, tmp_path: Path):
    run = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    before = snapshot(run / "checkpoints"), (run / "metrics.jsonl").read_text()
    overrides = {**SMALL, "train.learning_rate": 0.01, "data.workers": 1}  # only a circumstance
    training.train(real_config("patches", "source=celebahq", overrides), run)
    assert (snapshot(run / "checkpoints"), (run / "metrics.jsonl").read_text()) == before


def test_a_foreign_folder_is_refused(real_config: GetConfig, tmp_path: Path):
    config = real_config("patches", "source=celebahq", SMALL)
    (tmp_path / "thesis.tex").write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="is not empty and holds no run: choose another --workdir"):
        training.train(config, epath.Path(tmp_path))
    with pytest.raises(UserError, match=r"thesis\.tex is a file"):
        training.train(config, epath.Path(tmp_path / "thesis.tex"))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("content", "part"),
    [("{", "config"), ("[]", "config"), ('{"method": "patches", "nonsense": 1}', "nonsense")],
)
def test_a_damaged_config_file_is_refused(
    real_config: GetConfig, tmp_path: Path, content: str, part: str
):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as caught:
        training.train(real_config("patches", "source=celebahq", SMALL), epath.Path(tmp_path))
    assert part in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "config.json").read_text() == content


def test_a_batch_that_does_not_divide_leaves_no_run(real_config: GetConfig, tmp_path: Path):
    config = real_config("patches", "source=celebahq", {**SMALL, "train.batch": 12})
    with pytest.raises(ConfigError, match=r"train\.batch = 12 .* 8 devices"):
        training.train(config, epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_one_side_alone_is_refused(real_config: GetConfig, tmp_path: Path):
    fake = {"data.fake": ("dolos/celebahq_real",)}
    config = real_config("patches", "source=celebahq", {**SMALL, **fake})
    with pytest.raises(ConfigError, match="celebahq_real holds real images, where fake ones are"):
        training.train(config, epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_two_processes_do_not_write_to_one_run(
    trained: epath.Path, real_config: GetConfig, tmp_path: Path
):
    run = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    config = real_config("patches", "source=celebahq", {**SMALL, "train.learning_rate": 0.01})
    (run / "checkpoints/4").rmtree()  # or there would be nothing to write
    before = snapshot(run)
    with (
        locks.locked(run),
        pytest.raises(UserError, match=rf"^{run} is in use by process \d+ on \S+ since "),
    ):
        training.train(config, run)
    after = snapshot(run)
    del before[str(run / locks.WRITER)], after[str(run / locks.WRITER)]
    assert after == before
    training.train(config, run)
    assert saved(run) == {2, 4}


@pytest.mark.slow
def test_what_a_killed_start_has_left_is_a_new_run(real_config: GetConfig, tmp_path: Path):
    """Its lock, and half a config under a name of its own."""
    (tmp_path / ".lock").write_text("process 1")
    (tmp_path / ".config.json.0123abcd.partial").write_text("{")
    config = real_config("patches", "source=celebahq", SMALL)
    training.train(config, epath.Path(tmp_path))
    assert saved(tmp_path) == {2, 4}
    assert not list(tmp_path.glob(".*.partial"))


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(
    evaluated: epath.Path, real_config: GetConfig, tmp_path: Path
):
    run = epath.Path(shutil.copytree(evaluated, tmp_path / "run"))
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    config = runs.load_config(run)
    line = '{"step": 6, "valid_loss": 0.5}\n'
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() + line)
    for name in ("results.json", "metrics.jsonl"):  # either says that there were some
        before = snapshot(run / "events"), (run / "metrics.jsonl").read_text()
        with pytest.raises(UserError, match="and no checkpoint: bring its checkpoints back"):
            training.train(config, run)
        assert (snapshot(run / "events"), (run / "metrics.jsonl").read_text()) == before
        (run / name).unlink() if name == "results.json" else None


def test_the_config_is_written_once(trained: epath.Path, real_config: GetConfig, tmp_path: Path):
    run = epath.Path(shutil.copytree(trained, tmp_path / "run"))
    for path in (run / "config.json", run / "data.json"):
        os.utime(path, (1, 1))
    config = real_config("patches", "source=celebahq", {**SMALL, "train.learning_rate": 0.01})
    training.train(config, run)
    assert (run / "config.json").stat().mtime == (run / "data.json").stat().mtime == 1


# ----- Data that has changed ----------------------------------------------------------------------


@pytest.fixture
def own_images(tmp_path: Path) -> Callable[[str], None]:
    """Builds image_folder/own, of masks with this colour, in the place of an earlier one."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("valid", 2), ("test", 2)):
        for kind in ("real", "fake", "masks"):
            folder = tmp_path / "source" / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
                if kind == "masks":
                    pixels[:] = 0
                    pixels[:20] = 255
                Image.fromarray(pixels).save(folder / f"{number}.png")

    def make(manipulated: str) -> None:
        for folder in (tmp_path / "data/image_folder").glob("own_*"):
            shutil.rmtree(folder)
        names = ["image_folder/own", "--images", str(tmp_path / "source")]
        assert (
            build.main([*names, "--manipulated", manipulated, "--data_dir", f"{tmp_path}/data"])
            == 0
        )

    return make


@pytest.mark.slow
def test_a_rebuilt_dataset_is_not_the_one_that_a_run_began_with(
    own_images, real_config: GetConfig, tmp_path: Path
):
    own_images("white")
    run, overrides = epath.Path(tmp_path / "run"), {**SMALL, "data.dir": str(tmp_path / "data")}
    overrides |= {"train.batch": 8}
    config = real_config("patches", "setup=c,source=image_folder/own", overrides)
    training.train(config, run)
    evaluate(run)
    scores = json.loads((run / "real_scores.json").read_text())
    kept = json.loads((run / "data.json").read_text())
    assert set(kept) == {"image_folder/own_fake", "image_folder/own_real"}
    assert kept["image_folder/own_fake"]["recorded"]["source"] == str(tmp_path / "source")
    assert scores["real"] == {
        "image_folder/own_real": provenance.digests(kept)["image_folder/own_real"]
    }
    # Built again from the same files, later and elsewhere, it is the same.
    shutil.rmtree(tmp_path / "data")
    moved = (tmp_path / "source").rename(tmp_path / "moved")
    shutil.copytree(moved, tmp_path / "source", copy_function=shutil.copy)
    own_images("white")
    (run / "checkpoints/4").rmtree()
    training.train(config, run)

    own_images("black")
    (run / "checkpoints/4").rmtree()
    before = snapshot(run)
    told = r"own_fake is not what .*run was trained or tested with \(recipe.masks: white → black\)"
    for attempt in (lambda: training.train(config, run), lambda: evaluate(run)):
        with pytest.raises(UserError, match=told):
            attempt()
    assert snapshot(run) == before
    # One file with other pixels.
    own_images("white")
    shutil.rmtree(tmp_path / "data/image_folder/own_fake")
    path = tmp_path / "source/train/fake/3.png"
    Image.new("RGB", (64, 64)).save(path)
    names = ["image_folder/own", "--images", str(tmp_path / "source"), "--manipulated", "white"]
    assert build.main([*names, "--data_dir", f"{tmp_path}/data"]) == 0
    with pytest.raises(UserError, match=r"own_fake is not .*content.sources: \w{12}… → \w{12}…"):
        training.train(config, run)


# ----- Interruptions ------------------------------------------------------------------------------

LONG = {**SMALL, "train.epochs": 3, "train.steps_per_epoch": 40}


@pytest.fixture(scope="module")
def uninterrupted(real_config: GetConfig, tmp_path_factory: pytest.TempPathFactory):
    """Config, run directory and results of a run that nothing has disturbed."""
    config = real_config("patches", "source=celebahq", LONG)
    run = epath.Path(tmp_path_factory.mktemp("uninterrupted") / "run")
    training.train(config, run)
    return config, run, evaluate(run)


def wait_for_step(process: subprocess.Popen, run: Path, step: int) -> None:
    while process.poll() is None:
        if (run / "metrics.jsonl").exists():
            lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
            if any(json.loads(line)["step"] >= step for line in lines):
                return
        time.sleep(0.01)
    raise AssertionError(f"ended too early: {process.communicate()}")


@pytest.mark.slow
def test_interrupted_runs_continue_to_the_same_bits(uninterrupted, shrunk, tmp_path: Path):
    config, straight, results = uninterrupted
    run = tmp_path / "run"
    overrides = [f"--config.{field}={value}" for field, value in {**shrunk, **LONG}.items()]
    command = (
        *(sys.executable, "-W", "error", "-W", "ignore:the load_module"),  # of ml_collections
        *("-m", "wsdl_jax.main"),
        *("--config", "configs/patches.py:source=celebahq", "--workdir", str(run), *overrides),
    )

    def start() -> subprocess.Popen:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    stopped = 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start()
        wait_for_step(process, run, stopped + 5)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        assert "Traceback" not in err
        last = training_steps(run)[-1]
        assert f"stopped at step {last}; the same command continues it" in err
        assert stopped < last < 120 and max(saved(run)) == last
        assert training_steps(run) == list(range(1, last + 1))
        assert not (run / "results.json").exists()
        stopped = last

    process = start()
    wait_for_step(process, run, stopped + 5)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert max(saved(run) - {0}) >= stopped

    process = start()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"{run}: continuing at step" in err

    entries = [(e["step"], "loss" in e) for e in logged(run)]
    assert len(entries) == len(set(entries))
    assert training_steps(run) == list(range(1, 121))
    for key in ("loss", "gradient_norm", "valid_loss"):
        one, other = ([e[key] for e in logged(r) if key in e] for r in (run, straight))
        assert one == other
    for a, b in zip(restored(config, run, 120), restored(config, straight, 120), strict=True):
        assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())
    assert json.loads((run / "results.json").read_text()) == results
    assert (run / "predictions.csv").read_text() == (straight / "predictions.csv").read_text()


# The command, asked to stop by itself: a function of a module, its n-th call, and how.
ASKED = """
import os, runpy, signal, sys, threading, time
def more():
    for _ in range(int(os.environ["AGAIN"])):
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
module, name, number, *sys.argv = sys.argv[1:]
import importlib
module = importlib.import_module(module)
function, calls = getattr(module, name), 0
def asking(*arguments, **named):
    global calls
    calls += 1
    if calls == int(number):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=more, daemon=True).start()
    return function(*arguments, **named)
setattr(module, name, asking)
runpy.run_module("wsdl_jax.main", run_name="__main__")
"""


def asked(
    shrunk, run: Path, where: tuple[str, str, int], again: int = 0, **overrides: Any
) -> tuple[int, str]:
    """again: how many further signals follow, one every 20 ms."""
    fields = {**shrunk, **SMALL, **overrides}
    done = subprocess.run(
        [
            *(sys.executable, "-c", ASKED, *map(str, where), "wsdl_jax.main"),
            *("--config", "configs/patches.py:source=celebahq", "--workdir", str(run)),
            *(f"--config.{field}={value}" for field, value in fields.items()),
        ],
        env={**os.environ, "AGAIN": str(again)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stderr


@pytest.mark.slow
def test_a_signal_in_the_last_validation_is_heard(shrunk, tmp_path: Path):
    run = tmp_path / "run"
    code, err = asked(shrunk, run, ("wsdl_jax.training.loop", "validate", 2))
    assert code == 143 and "stopped at step 4; the same command continues it" in err, err
    assert saved(run) == {2, 4} and not (run / "results.json").exists()
    code, err = asked(shrunk, run, ("wsdl_jax.training.loop", "validate", -1))
    assert code == 0 and (run / "results.json").exists(), err


@pytest.mark.slow
def test_signals_while_it_saves_do_not_lose_the_save(shrunk, tmp_path: Path):
    """Schedulers send a second SIGTERM; a save goes on in the background meanwhile."""
    run = tmp_path / "run"
    code, err = asked(shrunk, run, ("wsdl_jax.runs.checkpoints", "_checksum", 1), again=50)
    assert code == 143 and "stopped at step 2" in err, err
    assert saved(run) == {2} and not list(run.glob("checkpoints/*tmp*"))


@pytest.mark.slow
def test_a_run_that_stops_while_it_is_traced_goes_on(shrunk, tmp_path: Path):
    run = tmp_path / "run"
    for number, code in ((2, 143), (-1, 0)):
        where = ("wsdl_jax.training.loop", "_check_finite", number)
        found, err = asked(shrunk, run, where, profile="2:5")
        assert found == code, err
        assert "Traceback" not in err
    assert "steps 2:5 are traced in" in err
    assert len(list((run / "profile").glob("plugins/profile/*/*.xplane.pb"))) == 2
    assert saved(run) == {2, 3, 4} or saved(run) == {2, 4}


@pytest.mark.slow
def test_steps_are_traced(trained: epath.Path, real_config: GetConfig, tmp_path: Path):
    config = real_config("patches", "source=celebahq", {"model.depth": 1, "profile": "2:4"})
    run = epath.Path(tmp_path / "run")
    training.train(config, run)
    (trace,) = (run / "profile").glob("plugins/profile/*/*.xplane.pb")
    names = {
        line.name
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
    }
    assert names
    # Tracing is no part of what a run computes.
    training.train(real_config("patches", "source=celebahq", {"model.depth": 1}), run)
