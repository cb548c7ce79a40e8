"""Features that are computed once: what is kept of them, and that training on them is the same."""

import errno
import itertools
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import test_hosts
from etils import epath
from flax import nnx
from safetensors.numpy import save_file

from wsdl_data import provenance
from wsdl_jax import configuration, inputs, methods, runs, training
from wsdl_jax.inputs import features as kept_features
from wsdl_jax.models import backbones
from wsdl_jax.models.backbone import freeze
from wsdl_jax.models.backbone_names import TOWERS
from wsdl_jax.models.initialization import initialize
from wsdl_jax.runtime import locks
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.parallel import AXIS, Parallel
from wsdl_jax.training import features
from wsdl_jax.training.setup import Setup

pytestmark = pytest.mark.usefixtures("compile_quickly")
GetConfig = Callable[..., ml_collections.ConfigDict]


@pytest.fixture
def data(data_dir: Path, tmp_path: Path) -> Path:
    """The small Dolos, beside which features may be kept."""
    return Path(shutil.copytree(data_dir, tmp_path / "data"))


@pytest.fixture
def config(real_config: GetConfig, data: Path, monkeypatch: Any) -> ml_collections.ConfigDict:
    """Patches in setup C, whose network rounds as features are rounded."""
    monkeypatch.setattr(kept_features, "IMAGES", 16)  # of a file: 40 training images have three
    fields = {"data.dir": str(data), "model.depth": 1, "model.dtype": "bfloat16"}
    return real_config("patches", "setup=c,source=celebahq", fields)


@pytest.fixture
def frozen(config: ml_collections.ConfigDict) -> nnx.Module:
    """Its network. Xception's random features stand for those of a file."""
    model = methods.build(config, AXIS)
    freeze(model.trunk)
    return model


def make_setup(config: ml_collections.ConfigDict) -> Setup:
    training_split, valid = (
        inputs.Examples(config.data.fake, split, config.data.dir) for split in ("train", "valid")
    )
    return Setup(Parallel("shard_map"), training_split, valid, 8)


def files(data: Path) -> dict[Path, bytes]:
    found = (path for path in (data / "features").rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in found}


def train_batches(config: ml_collections.ConfigDict, setup: Setup) -> list[inputs.Batch]:
    reading = inputs.Reading.of(config.data, methods.map_size(config))
    batches = inputs.train_batches(setup.training, reading, batch=16, seed=3)
    return list(itertools.islice(batches, 3))


def test_training_on_features_is_training_on_images(config, frozen):
    method, optimizer = methods.from_config(config), runs.make_optimizer(config.train)
    on_images = make_setup(config)
    ended, losses, valid = [], [], []
    for kept in (False, True):
        setup = features.once(config, frozen, on_images) if kept else on_images
        state = {**runs.variables(frozen), **runs.initial_state(frozen, config.train)}
        assert ("backbone" in state) != kept  # no device holds the backbone then
        step = training.make_train_step(method, frozen, optimizer, config.seed)
        mapped, state = setup.parallel.map(step), setup.parallel.distribute(state)
        for batch in train_batches(config, setup):
            assert (batch["image"].dtype == np.uint8) != kept
            (state, metrics), _ = mapped(state, setup.parallel.shard(batch))
            losses.append(float(setup.parallel.one(metrics)["loss"]))
        ended.append(setup.parallel.one(runs.kept(state)))
        loss_step = setup.parallel.map(training.make_loss_step(method, frozen))
        reading = inputs.Reading.of(config.data, methods.map_size(config))
        valid.append(training.loop.validate(setup, reading, loss_step, state))
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-5) and len(set(losses[:3])) == 3
    assert valid[1] == pytest.approx(valid[0], rel=1e-5)
    assert jax.tree.structure(ended[0]) == jax.tree.structure(ended[1])  # of a checkpoint
    for got, want in zip(*map(jax.tree.leaves, ended), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_what_is_kept(config, frozen, data, monkeypatch, caplog):
    """Features are those of the network, in order; of what is there nothing is computed again."""
    caplog.set_level("INFO")
    setup = features.once(config, methods_copy(frozen), make_setup(config))
    frozen.eval()
    for of_images, examples in (
        (make_setup(config).training, setup.training),
        (make_setup(config).valid, setup.valid),
    ):
        reading = inputs.Reading.of(config.data)
        pixels = np.concatenate(
            [b["image"][b["weight"] > 0] for b in inputs.eval_batches(of_images, reading, batch=8)]
        )
        expected = nnx.jit(lambda trunk, x: trunk(x))(frozen.trunk, pixels / 127.5 - 1)
        found = np.stack([examples[place]["features"] for place in range(len(examples))])
        assert found.dtype == jnp.bfloat16 and found.shape == expected.shape
        np.testing.assert_allclose(
            found.astype(np.float32), np.asarray(expected, np.float32), rtol=2e-2, atol=1e-2
        )
    written = files(data)
    locks = [path for path in written if path.name == ".0-of-1.lock"]
    assert [written.pop(path) for path in locks] == [b"", b""]
    assert len(written) == 2 + 3 + 1  # what they depend on, twice, and files of 40 and 9 images
    size = 8 + 2 * expected[0].size
    assert sum(len(content) for content in written.values()) > 49 * size
    facts = [json.loads(text) for path, text in written.items() if path.suffix == ".json"]
    assert {fact["split"] for fact in facts} == {"train", "valid"}
    assert "features of 40 images of dolos/celebahq_repaint_p2 are computed" in caplog.text
    # A killed process has left a file less, and half of it.
    lost = sorted(path for path in written if path.name.endswith("3.npy"))[1]
    lost.with_name(f".{lost.name}.0123abcd.partial").write_bytes(written[lost][:100])
    lost.unlink()
    caplog.clear()
    features.once(config, methods_copy(frozen), make_setup(config))
    assert files(data) == {**written, **dict.fromkeys(locks, b"")}
    assert "features of 16 images" in caplog.text and caplog.text.count("are computed") == 1
    monkeypatch.setattr(features._Compute, "__call__", None)
    features.once(config, methods_copy(frozen), make_setup(config))
    pickled = pickle.loads(pickle.dumps(setup.training))  # as a worker process has them
    np.testing.assert_array_equal(pickled[17]["features"], setup.training[17]["features"])


def methods_copy(model: nnx.Module) -> nnx.Module:
    return nnx.merge(*nnx.split(model), copy=True)


def test_damage_and_other_images_are_told(config, frozen, data, monkeypatch):
    once = features.once(config, methods_copy(frozen), make_setup(config))
    (path,) = (p for p in files(data) if p.name == "000001-of-000003.npy")
    whole = path.read_bytes()

    def told(place: int) -> str:
        examples = once.training.with_features(once.training.features)
        kept_features._mapped.cache_clear()
        with pytest.raises(UserError) as raised:
            examples[place]
        assert "\n" not in str(raised.value)
        return str(raised.value)

    path.write_bytes(whole[:-1])
    assert told(16) == f"{path} is damaged: delete it, and it is computed again"
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert told(31) == f"{path} is damaged: delete it, and it is computed again"
    # What says nothing of the file is not called damage.
    for number, why in ((errno.EMFILE, "Too many open files"), (errno.EIO, "Input/output error")):
        error = OSError(number, os.strerror(number), str(path))
        with monkeypatch.context() as patch:
            patch.setattr(np.lib.format, "open_memmap", Mock(side_effect=error))
            assert told(16) == f"{path} cannot be read: {why}"
    path.unlink()
    assert told(16) == f"{path} is gone: the same command computes it again"
    path.write_bytes((path.parent / "000000-of-000003.npy").read_bytes())
    assert told(16) == f"{path} is of other images than there are: delete {path.parent}"
    (path.parent / "features.json").write_text("{}")
    with pytest.raises(UserError, match=r"features\.json says other than what"):
        features.once(config, methods_copy(frozen), make_setup(config))


def test_a_file_that_is_too_short_is_computed_again(config, frozen, data):
    features.once(config, methods_copy(frozen), make_setup(config))
    written = files(data)
    for path, cut in zip(sorted(p for p in written if p.suffix == ".npy"), (1, 5000), strict=False):
        path.write_bytes(written[path][:-cut])
    assert files(data) != written
    features.once(config, methods_copy(frozen), make_setup(config))
    assert files(data) == written


def test_files_are_mapped_by_so_many_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_features, "IMAGES", 1)
    count = kept_features._OPEN + 8
    kept = inputs.KeptFeatures(str(tmp_path), {}, count, (1, 1, 1))
    kept.begin()
    kept.write(0, [b"image"], np.full((1, 1, 1, 1), 3, kept_features.DTYPE))
    for number in range(1, count):
        os.link(kept._path(0), kept._path(number))
    before = len(os.listdir("/proc/self/fd"))
    assert [kept.read(place, b"image").item() for place in range(count)] == [3.0] * count
    assert len(os.listdir("/proc/self/fd")) - before <= kept_features._OPEN
    kept_features._mapped.cache_clear()


def refuse_to_compute(*args: Any) -> None:
    raise AssertionError("an image was computed")


@pytest.mark.parametrize("what", ["folder", "lock", "space"])
def test_what_cannot_be_written_is_told_before_it_is_computed(
    config, frozen, data, monkeypatch, what: str
):
    monkeypatch.setattr(features._Compute, "__call__", refuse_to_compute)
    told = rf"features cannot be written to {data}/features/\w+ \(%s\): "
    if what == "folder":
        (data / "features").write_text("a file")
        told %= "Not a directory"
    elif what == "lock":  # of a folder that may only be read, and whose facts are there
        error = PermissionError(errno.EACCES, "Permission denied")
        monkeypatch.setattr(features.locks, "Lock", Mock(side_effect=error))
        told %= "Permission denied"
    else:
        usage = shutil.disk_usage(data)._replace(free=49 * 100)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        told = rf"features of 49 images take 0\.00 GiB, and {data}/features has 0\.00 GiB left: "
    with pytest.raises(UserError, match=told) as raised:
        features.once(config, frozen, make_setup(config))
    assert str(raised.value).endswith("--config.data.features=none trains without")
    assert "\n" not in str(raised.value)


def test_processes_that_start_together_compute_once(config, frozen, data, monkeypatch):
    features.once(config, methods_copy(frozen), make_setup(config))
    written = {path: content for path, content in files(data).items() if path.suffix == ".npy"}
    for path in written:
        path.unlink()
    monkeypatch.setattr(features._Compute, "__call__", refuse_to_compute)
    held = [locks.Lock(folder, ".0-of-1.lock") for folder in {path.parent for path in written}]

    class Other(logging.Handler):
        """The process that holds the locks ends its work when this one has said that it waits."""

        def emit(self, record: logging.LogRecord) -> None:
            if "another process computes features, this one waits" in record.getMessage():
                for path, content in written.items():
                    path.write_bytes(content)
                for lock in held:
                    lock.release()

    other = Other()
    features.log.addHandler(other)
    monkeypatch.setattr(features.log, "level", logging.INFO)
    try:
        setup = features.once(config, methods_copy(frozen), make_setup(config))
    finally:
        features.log.removeHandler(other)
    assert len(setup.training[39]["features"]) > 0


def test_a_stop_says_what_is_kept(config, frozen, data, monkeypatch, caplog):
    caplog.set_level("INFO")
    rows = features._Compute._rows

    def stopped(self, examples, places):
        yield from itertools.islice(rows(self, examples, places), 20)
        raise KeyboardInterrupt

    monkeypatch.setattr(features._Compute, "_rows", stopped)
    with pytest.raises(KeyboardInterrupt):
        features.once(config, frozen, make_setup(config))
    assert "1 of 3 files of features of dolos/celebahq_repaint_p2 are kept: the same" in caplog.text
    assert sum(path.suffix == ".npy" for path in files(data)) == 1


def test_a_subset_that_is_there_twice_has_its_features_once(config, frozen, data):
    config.data.fake = config.data.fake * 2
    setup = features.once(config, frozen, make_setup(config))
    assert sum(path.suffix == ".npy" for path in files(data)) == 3 + 1
    assert len(setup.training) == 80
    np.testing.assert_array_equal(setup.training[45]["features"], setup.training[5]["features"])


def test_whatever_changes_features_has_a_folder_of_its_own(config, data):
    made_of = make_setup(config).training.provenance["dolos/celebahq_repaint_p2"]

    def key(stage: int = 1, split: str = "train", made_of: Any = made_of, **fields: Any) -> str:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
        found = features.facts(changed, stage, "dolos/celebahq_repaint_p2", split, made_of)
        return inputs.KeptFeatures(str(data), found, 40, (2, 2, 8)).folder.name

    other = {**made_of, "version": "9.9.9"}
    assert provenance.identity(other) != provenance.identity(made_of)
    keys = [
        *(key(), key(2), key(split="valid"), key(made_of=other), key(data__image_size=80)),
        *(key(data__resize="lanczos"), key(model__dtype="float32"), key(model__width=0.5)),
        *(key(model__backbone="vit_tiny"), key(model__backbone_sha256="0" * 64)),
    ]
    assert len(set(keys)) == len(keys)
    same = {"model__backbone_path": "/elsewhere", "model__remat": True, "train__batch": 3}
    assert key(**same) == keys[0] == key(made_of={**made_of, "recorded": {"source": "there"}})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model.frozen": False}, r"model\.frozen = False: the backbone is trained"),
        ({"data.cache": True}, r"config\.data\.cache with config\.data\.features = 'cached': no"),
        ({"model.lora_rank": 4}, r"config\.model\.lora_rank = 4: features"),
        ({"data.flip": True}, r"config\.data\.flip = True: features are computed once"),
        ({"augment.blur": 0.1}, r"config\.augment: features"),
        ({"train.splice": 0.5}, r"config\.train\.splice = 0\.5: "),
        ({"train.self_blend": 0.5}, r"config\.train\.self_blend = 0\.5: "),
        ({"method": "attention"}, "the network of attention in setup a reads more of its backb"),
    ],
)
def test_features_that_are_not_the_same_at_every_step_are_refused(fields, told):
    config = configuration.base()
    config.method, config.model.frozen, config.data.features = "patches", True, "cached"
    configuration.check_circumstances(config)
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=told) as raised:
        configuration.check_circumstances(config)
    assert "\n" not in str(raised.value)


@pytest.fixture
def of_dinov2(data: Path, tmp_path: Path) -> dict[str, Any]:
    """Fields of DeCLIP on a file of DINOv2's first block, with random weights."""
    trunk = backbones.trunk("dinov2_s14", 1, rngs=nnx.Rngs(5))
    initialize(trunk, "torch", seed=5)
    tower = next(one for one in TOWERS if one.layout == "dinov2-transformers")
    places = {place.name: place for place in tower.places(trunk, "")}
    file = tmp_path / "dinov2.safetensors"
    save_file({k: v.to_torch(np.asarray(v.variable[...])) for k, v in places.items()}, file)
    return {
        **{"data.dir": str(data), "data.image_size": 70, "model.backbone_path": str(file)},
        **{"model.width": 1.0, "model.depth": 1, "model.decoder": "linear"},
        **{"train.learning_rate": 1e-2, "model.dtype": "bfloat16"},
    }


VARIANT = "setup=c,source=celebahq,backbone=dinov2_s14"


@pytest.mark.slow
def test_a_run_by_features_is_the_run_by_images(
    real_config: GetConfig, of_dinov2: dict[str, Any], data: Path, tmp_path: Path
):
    ended, logged = [], []
    for kept in ("none", "cached"):
        config = real_config("declip", VARIANT, {**of_dinov2, "data.features": kept})
        run = epath.Path(tmp_path / kept)
        training.train(config, run)
        entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        speeds = ("images_per_second", "data_wait")
        logged.append([{k: v for k, v in entry.items() if k not in speeds} for entry in entries])
        ended.append(runs.load(run).model)
    assert len(logged[0]) == 6  # four steps and two validations
    for of_images, of_features in zip(*logged, strict=True):
        assert of_features == pytest.approx(of_images, rel=1e-3)
    of_decoders = (nnx.state(model.decoder, nnx.Param) for model in ended)
    for want, got in zip(*map(jax.tree.leaves, of_decoders), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)
    # A run that has ended needs none of them any more.
    shutil.rmtree(data / "features")
    training.train(config, run)
    assert not (data / "features").exists()


# Files of 16 images: three of 40 images that are learned, and one of 9 for validation.
SMALL_FILES = """
import runpy
from wsdl_jax.inputs import features
features.IMAGES = 16
runpy.run_module("wsdl_jax.main", run_name="__main__")
"""


@pytest.mark.slow
def test_each_of_two_hosts_computes_its_share(
    of_dinov2: dict[str, Any], shrunk: dict[str, Any], data: Path, tmp_path: Path
):
    words = ("-c", SMALL_FILES, "--config", f"configs/declip.py:{VARIANT}")
    words = (*words, "--workdir", str(tmp_path / "run"))
    fields = {**shrunk, **of_dinov2, "data.features": "cached", "train.epochs": 1}
    said = test_hosts.finish(test_hosts.launch(words, fields, count=2, devices=4))
    assert [code for code, _ in said] == [0, 0], said
    names = sorted(path.name for path in files(data))
    assert [name for name in names if not name.endswith(".lock")] == [
        "000000-of-000001.npy",
        *(f"00000{number}-of-000003.npy" for number in range(3)),
        *["features.json"] * 2,
    ]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2]
    # Only the first host speaks; it computed the files 0 and 2, and 0 of validation.
    assert "features of 24 images" in said[0][1] and "features of 9 images" in said[0][1]
