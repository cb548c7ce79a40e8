"""Trained forgers: their files, and what they make."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from hypothesis import given, settings
from hypothesis import strategies as st

from wsdl_jax import configuration, methods
from wsdl_jax.diffusion import forger
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.parallel import Parallel

SAMPLING = forger.Sampling(steps=4, jump=2, times=2)
SIZE = 32
CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.fixture(scope="module")
def forgers(trained_forgers):
    """Part → a forger whose U-Net says something: four steps have hardly moved it from zero."""
    made = {}
    for part in ("pixel", "latent"):
        one = forger.load(trained_forgers[part])
        rng = np.random.default_rng(0)

        def louder(x, rng=rng):
            return x + jnp.asarray(0.1 * rng.standard_normal(x.shape), jnp.float32)

        made[part] = forger.Forger(
            one.config, {**one.weights, "unet": jax.tree.map(louder, one.weights["unet"])}, one.step
        )
    return made


@pytest.fixture(scope="module")
def sources():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, SIZE, SIZE, 3)).astype(np.uint8)
    masks = np.zeros((8, SIZE, SIZE), bool)
    masks[:, 6:20, 3:17] = True
    return images, masks


@given(value=st.integers(0, 255))
@settings(deadline=None)
def test_pixels_survive_the_way_to_floats_and_back(value):
    pixels = jnp.full((1, 1, 1, 3), value, jnp.uint8)
    np.testing.assert_array_equal(forger.to_uint8(methods.network_input(pixels)), pixels)


# ----- Files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["pixel", "autoencoder", "latent"])
def test_a_file_holds_the_averaged_weights_as_float16(part, trained_forgers, tmp_path):
    from_run = forger.load(trained_forgers[part])
    forger.save(from_run, tmp_path / "forger.safetensors")
    from_file = forger.load(tmp_path / "forger.safetensors")
    assert from_file.step == from_run.step == 4
    # Nothing tells where it was trained, but all that it was trained by is there.
    assert str(trained_forgers[part].parent) not in from_file.config.to_json()
    different = configuration.differences(from_run.config, from_file.config)
    assert all(line.startswith("autoencoder.path") for line in different)
    assert from_file.weights.keys() == from_run.weights.keys()
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float16).astype(np.float32)),
        {k: v for k, v in from_file.weights.items() if k != "scale"},
        {k: v for k, v in from_run.weights.items() if k != "scale"},
    )
    assert from_file.weights.get("scale") == from_run.weights.get("scale")
    numbers = sum(x.size for x in jax.tree.leaves(from_run.weights))
    assert (tmp_path / "forger.safetensors").stat().st_size < 2 * numbers + 20_000
    forger.save(from_file, tmp_path / "forger.safetensors")  # over the one that is there
    assert [path.name for path in tmp_path.iterdir()] == ["forger.safetensors"]


def test_the_default_forgers_are_small():
    """What is in the repository: under 6 MB together, as float16."""
    get_config = runpy.run_path(str(CONFIGS / "diffusion.py"))["get_config"]
    sizes = {}
    for part in ("pixel", "latent"):
        config = get_config(f"part={part}")
        shapes = [state for _, state in forger.structures(config).values()]
        sizes[part] = 2 * sum(x.size for x in jax.tree.leaves(shapes))
    assert sizes["pixel"] < 2.8e6 and sum(sizes.values()) < 5.8e6


def test_what_is_no_forger_is_told_in_one_line(trained_forgers, tmp_path):
    file = tmp_path / "forger.safetensors"
    forger.save(forger.load(trained_forgers["pixel"]), file)
    whole = file.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1000])
    (tmp_path / "text.safetensors").write_text("no weights")
    safetensors.flax.save_file({"x": jnp.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "folder").mkdir()
    for name in ("cut.safetensors", "text.safetensors", "other.safetensors", "folder", "nothing"):
        with pytest.raises(UserError, match=name) as error:
            forger.load(tmp_path / name)
        assert "\n" not in str(error.value)
    with safetensors.safe_open(file, "flax") as opened:
        flat = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    flat["unet/enter/bias"] = jnp.zeros(3)
    safetensors.flax.save_file(flat, tmp_path / "wrong.safetensors", metadata)
    with pytest.raises(UserError, match=r"unet/enter/bias is \(3,\), not \(8,\)"):
        forger.load(tmp_path / "wrong.safetensors")


# ----- What they make -----------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["pixel", "latent"])
def test_a_whole_image_is_a_function_of_seed_and_number(part, forgers):
    def maker(seed, batch=8):
        return forger.Maker(forgers[part], SAMPLING, whole=True, batch=batch, seed=seed)

    first = maker(0)(np.arange(8))
    assert first.shape == (8, SIZE, SIZE, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(maker(0)(np.arange(8)), first)
    np.testing.assert_allclose(
        maker(0)(np.array([5, 2])).astype(int), first[[5, 2]].astype(int), atol=1
    )
    assert (maker(1)(np.arange(8)) != first).mean() > 0.3
    assert (first[0] != first[1]).mean() > 0.3


def test_repaint_on_pixels_leaves_the_rest_untouched(forgers, sources):
    images, masks = sources
    maker = forger.Maker(forgers["pixel"], SAMPLING, whole=False, batch=8, seed=0)
    made = maker(np.arange(8), images, masks)
    np.testing.assert_array_equal(made[~masks], images[~masks])
    assert (made != images)[masks].mean() > 0.9
    np.testing.assert_array_equal(maker(np.arange(8), images, masks), made)
    blank = np.where(masks[..., None], np.uint8(9), images)
    np.testing.assert_array_equal(maker(np.arange(8), blank, masks), made)


def test_latent_repaint_touches_every_part_of_the_image(forgers, sources):
    images, masks = sources
    maker = forger.Maker(forgers["latent"], SAMPLING, whole=False, batch=8, seed=0)
    made = maker(np.arange(8), images, masks)
    assert (made != images)[~masks].mean() > 0.9


@pytest.mark.parametrize("part", ["pixel", "latent"])
@pytest.mark.parametrize("whole", [True, False])
def test_eight_devices_make_what_one_makes(part, whole, forgers, sources):
    images, masks = sources
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), 8)))
    batch = {"key": keys} | ({} if whole else {"image": images, "mask": masks})
    found = []
    for parallel in (Parallel("shard_map"), Parallel("shard_map", jax.devices()[:1])):
        step = parallel.map(forger.make_step(forgers[part], SAMPLING, whole=whole))
        _, made = step(parallel.replicate(forgers[part].weights), parallel.shard(batch))
        found.append(parallel.gather(made).astype(int))
    np.testing.assert_allclose(*found, atol=1)


def test_what_cannot_be_made_is_refused(trained_forgers, forgers):
    one = forger.load(trained_forgers["autoencoder"])
    with pytest.raises(UserError, match="an autoencoder alone forges nothing"):
        forger.Maker(one, SAMPLING, whole=True, batch=8, seed=0)
    for sampling, message in (
        (forger.Sampling(steps=21), "trained with 20"),
        (forger.Sampling(steps=4, jump=5), "jump"),
        (forger.Sampling(steps=4, jump=2, times=0), "times"),
        (forger.Sampling(steps=4, jump=2, eta=1.5), "eta"),
    ):
        with pytest.raises(UserError, match=message):
            forger.Maker(forgers["pixel"], sampling, whole=False, batch=8, seed=0)
