"""The training of forgers."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from flax import nnx

from wsdl_jax import inputs, methods
from wsdl_jax.diffusion import trained, training
from wsdl_jax.diffusion.networks import structures
from wsdl_jax.diffusion.state import blank_state, initial_state
from wsdl_jax.runs import run_log
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.interruption import Interrupted
from wsdl_jax.runtime.parallel import Parallel


def restored(run, step=4):
    config = trained.load_config(run)
    like = blank_state(config)
    return Checkpoints(run, keep_best=config.train.keep_best).restore(step, like)


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("part", ["pixel", "autoencoder", "latent"])
def test_a_run_learns_and_says_so(part, trained_forgers):
    run = trained_forgers[part]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    valid = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert len(valid) == 2 and valid[1] != valid[0]
    state = restored(run)
    assert int(state["step"]) == 4
    started = initial_state(trained.load_config(run), None)["params"]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state["params"], started)
    assert max(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.slow
def test_training_lowers_the_loss(small_config, tmp_path):
    overrides = {"train.steps_per_epoch": 40, "train.epochs": 1, "train.learning_rate": 3e-3}
    training.train(small_config("autoencoder", **overrides), epath.Path(tmp_path) / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_an_interrupted_run_ends_as_one_that_nobody_disturbed(
    small_config, trained_forgers, tmp_path, monkeypatch
):
    config, run = small_config("pixel"), epath.Path(tmp_path) / "run"
    scalars = run_log.RunLog.scalars

    def interrupting(self, step, values):
        scalars(self, step, values)
        if step == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(run_log.RunLog, "scalars", interrupting)
        with pytest.raises(Interrupted, match=r"stopped at step [12]"):
            training.train(config, run)
    training.train(config, run)
    assert_same(restored(run), restored(trained_forgers["pixel"]))
    training.train(config, run)  # nothing is left to do


@pytest.mark.slow
def test_a_run_that_is_killed_before_its_first_checkpoint_begins_again(
    small_config, tmp_path, monkeypatch
):
    """Whatever it has written until then."""
    config, run = small_config("autoencoder", **{"train.epochs": 1}), epath.Path(tmp_path) / "run"
    for moment in ("newest", "save"):
        with monkeypatch.context() as patch:

            def killed(self, *arguments, **named):
                raise SystemExit

            patch.setattr(Checkpoints, moment, killed)
            with pytest.raises(SystemExit):
                training.train(config, run)
        assert (run / "config.json").exists() and (run / "data.json").exists()
    training.train(config, run)
    assert (run / "checkpoints/2").exists()


def test_a_run_is_not_continued_under_another_config(small_config, trained_forgers):
    config = small_config("pixel", **{"process.p2_gamma": 0.5})
    with pytest.raises(UserError, match=r"process\.p2_gamma: 1\.0 → 0\.5"):
        training.train(config, trained_forgers["pixel"])


def test_average_of_the_weights_is_the_recursion():
    def objective(params, frozen, images, keys):
        return jnp.broadcast_to((params["w"] - 1) ** 2, (len(images),))

    step = training.make_train_step(objective, optax.sgd(0.1), seed=0, ema=0.6)
    parallel = Parallel("shard_map")
    weight = jnp.zeros(())
    optimizer = optax.sgd(0.1).init({"w": weight})
    state = {
        "step": jnp.int32(0),
        "params": {"w": weight},
        "ema": {"w": weight},
        "optimizer": optimizer,
    }
    mapped, state = parallel.map(step), parallel.distribute(state)
    batch = {"image": np.zeros((8, 4, 4, 3), "f"), "place": np.arange(8, dtype=np.int32)}
    w = average = 0.0
    for number in range(12):
        (state, _), _ = mapped(state, parallel.shard(batch))
        w -= 0.1 * 2 * (w - 1)
        decay = min(0.6, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * w
        np.testing.assert_allclose(state["ema"]["w"], average, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["shard_map", "pmap"])
def test_eight_devices_train_as_one(backend, small_config):
    """An image's noise is that of its place in the batch, wherever it is computed."""
    config = small_config("pixel")
    objective, optimizer = training.make_objective(config), optax.sgd(0.1)
    step = training.make_train_step(objective, optimizer, seed=0, ema=0.9)
    loss_step = training.make_loss_step(objective, seed=0)
    images = np.random.default_rng(0).uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32)
    numbers = np.arange(16, dtype=np.int32)
    batch = {"image": images, "index": numbers, "place": numbers}
    batch["weight"] = np.r_[np.ones(13), np.zeros(3)].astype(np.float32)
    found = []
    for parallel in (Parallel(backend), Parallel("shard_map", jax.devices()[:1])):
        state = initial_state(config, None)
        state["optimizer"] = optimizer.init(state["params"])
        state, train_step = parallel.distribute(state), parallel.map(step)
        for _ in range(3):
            (state, metrics), _ = train_step(state, parallel.shard(batch))
        sums, _ = parallel.map(loss_step)(state, parallel.shard(batch))
        found.append(parallel.one((state["params"], state["ema"], metrics, sums)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), *found)
    assert found[0][3]["weight"] == 13


def test_latents_are_scaled_to_unit_deviation_and_the_autoencoder_stays(trained_forgers):
    state, config = (
        restored(trained_forgers["latent"]),
        trained.load_config(trained_forgers["latent"]),
    )
    autoencoder = trained.load(trained_forgers["autoencoder"])
    assert_same(state["frozen"]["autoencoder"], autoencoder.weights["autoencoder"])
    graph, _ = structures(config)["autoencoder"]
    network = nnx.merge(graph, autoencoder.weights["autoencoder"])
    examples = inputs.Examples(config.data.real, "train", config.data.dir)
    images = np.stack([inputs.full_image(example) for example in examples])
    latents = network.encode(methods.network_input(jnp.asarray(images)))[0]
    np.testing.assert_allclose(state["frozen"]["scale"], np.std(latents), rtol=1e-4)


def test_latent_training_wants_a_fitting_autoencoder(small_config, trained_forgers, tmp_path):
    wrong = {
        "pixel": ({}, "config.part = pixel, not autoencoder"),
        "autoencoder": ({"autoencoder.channels": 2}, "autoencoder.channels = 4, not 2"),
    }
    for part, (overrides, message) in wrong.items():
        overrides = overrides | {"autoencoder.path": str(trained_forgers[part])}
        with pytest.raises(UserError, match=message):
            training.train(small_config("latent", **overrides), epath.Path(tmp_path) / "run")
    config = small_config("latent", **{"autoencoder.path": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=r"no forger .*/nowhere"):
        training.train(config, epath.Path(tmp_path) / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"part": "pixels"}, "choose from pixel, autoencoder, latent"),
        ({"process.schedule": "sigmoid"}, "choose from linear, cosine"),
        ({"data.image_size": 34}, "must be a multiple of 4"),
        ({"network.widths": (8, 12)}, "multiples of 8"),
        ({"network.widths": ()}, "multiples of 8"),
        ({"autoencoder.widths": (8,)}, "must be two"),
        ({"train.ema": 1.0}, r"must be in \[0, 1\)"),
        ({"train.batch": 0}, "must be positive"),
        ({"process.p2_k": -1.0}, "must not be negative"),
        ({"data.real": ()}, "names the subsets to learn"),
        ({"part": "latent"}, "run directory of a trained autoencoder"),
    ],
)
def test_impossible_configs_are_refused_in_one_line(overrides, message, small_config):
    with pytest.raises(ConfigError, match=message) as error:
        small_config(**({"part": "pixel"} | overrides))
    assert "\n" not in str(error.value)
