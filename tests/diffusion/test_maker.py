"""What trained forgers make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsdl_jax import methods
from wsdl_jax.diffusion import trained
from wsdl_jax.diffusion.maker import Maker, Sampling, make_step, to_uint8
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.parallel import Parallel

SAMPLING = Sampling(steps=4, jump=2, times=2)
SIZE = 32


@pytest.fixture(scope="module")
def forgers(trained_forgers):
    """Part → a forger whose U-Net says something: four steps have hardly moved it from zero."""
    made = {}
    for part in ("pixel", "latent"):
        one = trained.load(trained_forgers[part])
        rng = np.random.default_rng(0)

        def louder(x, rng=rng):
            return x + jnp.asarray(0.1 * rng.standard_normal(x.shape), jnp.float32)

        made[part] = trained.Forger(
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
    np.testing.assert_array_equal(to_uint8(methods.network_input(pixels)), pixels)


@pytest.mark.parametrize("part", ["pixel", "latent"])
def test_a_whole_image_is_a_function_of_seed_and_number(part, forgers):
    def maker(seed, batch=8):
        return Maker(forgers[part], SAMPLING, "draw", batch=batch, seed=seed)

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
    maker = Maker(forgers["pixel"], SAMPLING, "repaint", batch=8, seed=0)
    made = maker(np.arange(8), images, masks)
    np.testing.assert_array_equal(made[~masks], images[~masks])
    assert (made != images)[masks].mean() > 0.9
    np.testing.assert_array_equal(maker(np.arange(8), images, masks), made)
    blank = np.where(masks[..., None], np.uint8(9), images)
    np.testing.assert_array_equal(maker(np.arange(8), blank, masks), made)


def test_latent_repaint_touches_every_part_of_the_image(forgers, sources):
    images, masks = sources
    maker = Maker(forgers["latent"], SAMPLING, "repaint", batch=8, seed=0)
    made = maker(np.arange(8), images, masks)
    assert (made != images)[~masks].mean() > 0.9


@pytest.mark.parametrize("part", ["pixel", "latent"])
@pytest.mark.parametrize("way", ["draw", "repaint", "reconstruct"])
def test_eight_devices_make_what_one_makes(part, way, forgers, sources):
    images, masks = sources
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), 8)))
    batch = {"key": keys}
    if way != "draw":
        batch["image"] = images
    if way == "repaint":
        batch["mask"] = masks
    found = []
    for parallel in (Parallel("shard_map"), Parallel("shard_map", jax.devices()[:1])):
        step = parallel.map(make_step(forgers[part], SAMPLING, way))
        _, made = step(parallel.distribute(forgers[part].weights), parallel.shard(batch))
        found.append(parallel.gather(made).astype(int))
    np.testing.assert_allclose(*found, atol=1)


def test_what_cannot_be_made_is_refused(trained_forgers, forgers):
    one = trained.load(trained_forgers["autoencoder"])
    with pytest.raises(UserError, match="an autoencoder alone forges nothing"):
        Maker(one, SAMPLING, "draw", batch=8, seed=0)
    for sampling, message in (
        (Sampling(steps=21), "trained with 20"),
        (Sampling(steps=4, jump=5), "jump"),
        (Sampling(steps=4, jump=2, times=0), "times"),
        (Sampling(steps=4, jump=2, eta=1.5), "eta"),
    ):
        with pytest.raises(UserError, match=message):
            Maker(forgers["pixel"], sampling, "repaint", batch=8, seed=0)
