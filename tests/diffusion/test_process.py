"""The diffusion process, against closed forms and Gaussians whose noise can be told exactly."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from scipy import linalg

from wsdl_jax.diffusion import process

LEVELS = process.cosine(1000)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def gaussian(mean, covariance):
    """The best denoiser for images [1, 1, c] that are drawn from a normal distribution.

    It knows the level by the time, at which the state's covariance is ᾱ C + (1 − ᾱ) I.
    """
    mean, covariance = jnp.asarray(mean, jnp.float32), jnp.asarray(covariance, jnp.float32)
    levels = jnp.asarray(np.concatenate([[1.0], LEVELS]), jnp.float32)

    def denoise(state, time):
        level = levels[jnp.rint(time[0] * 1000).astype(int)]
        total = level * covariance + (1 - level) * jnp.eye(len(mean))
        centred = (state - jnp.sqrt(level) * mean)[:, 0, 0]
        return jnp.sqrt(1 - level) * (centred @ jnp.linalg.inv(total))[:, None, None]

    return denoise


# ----- Schedules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", process.SCHEDULES)
@pytest.mark.parametrize("steps", [50, 1000])
def test_schedules_fall_from_image_to_noise(name, steps):
    levels = process.SCHEDULES[name](steps)
    assert levels.shape == (steps,) and (np.diff(levels) < 0).all()
    assert levels[0] > 0.99 and 0 < levels[-1] < 1e-4


def test_schedules_are_those_of_the_papers():
    linear = np.cumprod([1 - (1e-4 + (0.02 - 1e-4) * t / 999) for t in range(1000)])
    np.testing.assert_allclose(process.linear(1000), linear, rtol=1e-10)

    def f(t):
        return np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2

    cosine = [f(t) / f(0) for t in range(1, 990)]  # later ones are held up by the clipped variance
    np.testing.assert_allclose(process.cosine(1000)[:989], cosine, rtol=1e-9)


def test_moments_of_the_forward_process():
    """One jump has the mean and the variance of all small steps, one after the other."""
    count, step = 40_000, 300
    image = jnp.full((count, 1, 1, 1), 0.7)
    noise = jax.random.normal(jax.random.key(0), image.shape)
    jumped = process.noised(image, noise, jnp.full(count, LEVELS[step]))
    state = np.full(count, 0.7)
    rng = np.random.default_rng(0)
    for beta in 1 - LEVELS[: step + 1] / np.concatenate([[1.0], LEVELS[:step]]):
        state = np.sqrt(1 - beta) * state + np.sqrt(beta) * rng.standard_normal(count)
    for found in (np.asarray(jumped).ravel(), state):
        assert np.isclose(found.mean(), 0.7 * np.sqrt(LEVELS[step]), atol=0.02)
        assert np.isclose(found.var(), 1 - LEVELS[step], atol=0.02)


# ----- Training -----------------------------------------------------------------------------------


@given(level=st.floats(0.01, 0.99), k=st.floats(0.1, 3), gamma=st.floats(0, 2))
@settings(max_examples=30, deadline=None)
def test_p2_weight_is_the_formula(level, k, gamma):
    expected = 1 / (k + level / (1 - level)) ** gamma
    found = process.p2_weight(jnp.float32(level), k, gamma)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_p2_weight_of_the_paper_is_the_noises_share():
    np.testing.assert_allclose(
        process.p2_weight(jnp.asarray(LEVELS), 1.0, 1.0), 1 - LEVELS, atol=1e-6
    )
    np.testing.assert_array_equal(process.p2_weight(jnp.asarray(LEVELS), 1.0, 0.0), 1)


def test_loss_of_a_denoiser_that_knows_the_noise_is_zero():
    images = jax.random.uniform(jax.random.key(1), (64, 4, 4, 3), minval=-1)
    levels = jnp.asarray(LEVELS, jnp.float32)

    def cheat(state, time):
        level = levels[jnp.rint(time * 1000).astype(int) - 1][:, None, None, None]
        return (state - jnp.sqrt(level) * images) / jnp.sqrt(1 - level)

    assert process.loss(cheat, images, keys(64), LEVELS, 1.0, 1.0).max() < 1e-4


def test_denoiser_passes_the_state_on():
    """With F = √ᾱ · noise − √(1 − ᾱ) · image it tells the noise."""
    image, noise = jax.random.normal(jax.random.key(0), (2, 1000, 2, 2, 1))
    times = jnp.arange(1, 1001) / 1000
    level = jnp.asarray(LEVELS, jnp.float32)
    part = jnp.sqrt(level)[:, None, None, None]
    rest = jnp.sqrt(1 - level)[:, None, None, None]
    denoise = process.denoiser(lambda x, t: part * noise - rest * image, LEVELS)
    np.testing.assert_allclose(
        denoise(process.noised(image, noise, level), times), noise, atol=1e-5
    )


@pytest.mark.slow
def test_loss_is_the_weighted_error_of_steps_drawn_evenly():
    """A denoiser that says zero errs by the noise's variance, 1, times the weight."""
    images = jnp.zeros((4000, 4, 4, 1))
    losses = process.loss(lambda x, t: 0 * x, images, keys(4000), LEVELS, 1.0, 1.0)
    np.testing.assert_allclose(losses.mean(), (1 - LEVELS).mean(), rtol=0.05)
    plain = process.loss(lambda x, t: 0 * x, images, keys(4000), LEVELS, 1.0, 0.0)
    np.testing.assert_allclose(plain.mean(), 1, rtol=0.02)


# ----- Paths --------------------------------------------------------------------------------------


def test_straight_path_goes_through_evenly_spaced_steps():
    path = process.straight(LEVELS, 4)
    np.testing.assert_allclose(path.time, [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(path.start, LEVELS[[999, 749, 499, 249]], rtol=1e-6)
    np.testing.assert_allclose(path.end, [*LEVELS[[749, 499, 249]], 1], rtol=1e-6)


def lugmayr(steps, jump, times):
    """The times of RePaint's schedule, counted from 1, 0 being the image (its figure 9)."""
    jumps = {t: times - 1 for t in range(0, steps - jump, jump)}
    t, visited = steps, [steps]
    while t >= 1:
        t -= 1
        visited.append(t + 1)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump):
                t += 1
                visited.append(t + 1)
    return [*visited[1:], 0]


@pytest.mark.parametrize(("steps", "jump", "times"), [(250, 10, 10), (20, 5, 3), (7, 3, 2)])
def test_resampling_is_the_papers_schedule(steps, jump, times):
    path = process.resampling(LEVELS, steps, jump, times)
    at = np.concatenate([[1.0], LEVELS])[np.rint(np.linspace(0, 1000, steps + 1)).astype(int)]
    expected = lugmayr(steps, jump, times)
    fine = [step for step, after in itertools.pairwise(expected) if after < step]
    moves = path.end > path.start
    np.testing.assert_allclose(path.start[moves], at[fine], rtol=1e-6)  # where the network is asked
    ups = np.flatnonzero(~moves)
    assert len(ups) == len(range(0, steps - jump, jump)) * (times - 1)
    np.testing.assert_array_equal(path.start[1:], path.end[:-1])
    assert path.end[-1] == 1


def test_resampling_once_is_the_straight_path():
    for found, expected in zip(
        process.resampling(LEVELS, 12, 4, 1), process.straight(LEVELS, 12), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@given(steps=st.integers(1, 60), strength=st.floats(0.001, 1))
@settings(deadline=None)
def test_partial_path_is_the_end_of_a_straight_one(steps, strength):
    path = process.partial(LEVELS, steps, strength)
    assert len(path.time) == max(1, round(steps * strength))
    top = max(1, round(1000 * strength))
    assert np.isclose(path.time[0], top / 1000) and path.end[-1] == 1
    np.testing.assert_allclose(path.start[0], LEVELS[top - 1], rtol=1e-6)
    np.testing.assert_array_equal(path.start[1:], path.end[:-1])
    assert (path.end > path.start).all()


def test_partial_path_of_the_portraits():
    path = process.partial(LEVELS, 10, 0.3)
    np.testing.assert_allclose(path.time, [0.3, 0.2, 0.1])
    for found, expected in zip(
        process.partial(LEVELS, 12, 1.0), process.straight(LEVELS, 12), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


# ----- Samplers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samplers_recover_a_gaussian(eta):
    mean, covariance = np.array([0.3, -0.5]), np.array([[0.25, 0.12], [0.12, 0.16]])
    path = process.straight(LEVELS, 250)
    denoise = gaussian(mean, covariance)
    found = process.sample(denoise, keys(10_000), (1, 1, 2), path, eta=eta, clip=None)
    found = np.asarray(found)[:, 0, 0]
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=0.012)


def test_clipping_keeps_images_in_range():
    found = process.sample(
        lambda x, t: jnp.zeros_like(x), keys(8), (2, 2, 1), process.straight(LEVELS, 5)
    )
    assert jnp.abs(found).max() <= 1


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_reconstructions_of_a_gaussian_are_that_gaussian(eta):
    """Noised and brought back by the best denoiser, images have the distribution they had."""
    mean, covariance = np.array([0.3, -0.5]), np.array([[0.25, 0.12], [0.12, 0.16]])
    images = np.random.default_rng(0).multivariate_normal(mean, covariance, 10_000)
    given = jnp.asarray(images[:, None, None], jnp.float32)
    path = process.partial(LEVELS, 1000, 0.4)
    denoise = gaussian(mean, covariance)
    found = process.reconstruct(denoise, keys(10_000), given, path, eta=eta, clip=None)
    found = np.asarray(found)[:, 0, 0]
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=0.012)
    # What they keep of the images given: of both, given the noised state, each is drawn by itself
    # (eta = 1), or the one follows from the state (eta = 0).
    level = path.start[0]
    total = level * covariance + (1 - level) * np.eye(2)
    if eta:
        kept = level * covariance @ np.linalg.inv(total) @ covariance
    else:
        kept = np.sqrt(level) * linalg.sqrtm(covariance @ np.linalg.inv(total)) @ covariance
    crossed = np.cov(found.T, images.T)[:2, 2:]
    np.testing.assert_allclose(crossed, kept, atol=0.012)


def test_level_of_the_noised_state():
    """In one step, a denoiser that hears no noise gives the state √ᾱ · image + √(1 − ᾱ) · noise."""
    images, level = jnp.full((20_000, 1, 1, 1), 0.7), LEVELS[299]
    path = process.partial(LEVELS, 3, 0.3)
    assert path.time.tolist() == [np.float32(0.3)]
    found = process.reconstruct(lambda x, t: 0 * x, keys(20_000), images, path, clip=None)
    state = np.sqrt(level) * np.asarray(found)
    assert np.isclose(state.mean(), 0.7 * np.sqrt(level), atol=0.02)
    assert np.isclose(state.var(), 1 - level, atol=0.02)


def test_reconstruction_at_a_strength_near_zero_is_the_image():
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 3, 3, 2)), jnp.float32)
    path = process.partial(LEVELS, 10, 1e-9)
    assert len(path.time) == 1 and path.time[0] == np.float32(0.001)
    noise = np.sqrt(1 - LEVELS[0])  # of the first of all steps: 0.006
    found = process.reconstruct(lambda x, t: 0 * x, keys(4), images, path)
    assert np.abs(found - images).max() < 6 * noise < 0.04
    # A denoiser that knows the noise brings the image back to the last bits.
    exact = process.reconstruct(
        lambda x, t: (x - np.sqrt(LEVELS[0]) * images) / noise, keys(4), images, path
    )
    np.testing.assert_allclose(exact, images, atol=1e-5)


def test_repaint_recovers_a_conditional_gaussian():
    """Of two correlated pixels one is known: the other has mean ρ x and variance 1 − ρ²."""
    rho, scale = 0.8, 0.5
    denoise = gaussian([0.0, 0.0], scale**2 * np.array([[1, rho], [rho, 1]]))

    def pixels(state, time):  # two pixels of one channel, for one of two channels
        return denoise(state.reshape(-1, 1, 1, 2), time).reshape(state.shape)

    count, known = 3000, 0.6
    images = jnp.full((count, 1, 2, 1), known)
    masks = jnp.broadcast_to(jnp.array([[False, True]]), (count, 1, 2))
    path = process.resampling(LEVELS, 50, 5, 10)
    found = process.repaint(pixels, keys(count), images, masks, path, clip=None)
    np.testing.assert_array_equal(found[:, 0, 0, 0], np.float32(known))
    made = np.asarray(found[:, 0, 1, 0])
    assert np.isclose(made.mean(), rho * known, atol=0.06)
    assert np.isclose(made.std(), scale * np.sqrt(1 - rho**2), atol=0.06)


def test_resampling_harmonizes():
    """Without it the made pixel hears of the known one too late: the paper's point."""
    rho = 0.95
    denoise = gaussian([0.0, 0.0], 0.25 * np.array([[1, rho], [rho, 1]]))

    def pixels(state, time):
        return denoise(state.reshape(-1, 1, 1, 2), time).reshape(state.shape)

    images = jnp.full((2000, 1, 2, 1), 0.8)
    masks = jnp.broadcast_to(jnp.array([[False, True]]), (2000, 1, 2))
    errors = []
    for times in (1, 6):
        path = process.resampling(LEVELS, 40, 4, times)
        made = process.repaint(pixels, keys(2000), images, masks, path, clip=None)[:, 0, 1, 0]
        errors.append(abs(float(made.mean()) - rho * 0.8))
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.slow
@given(seed=st.integers(0, 99), size=st.integers(1, 5))
@settings(max_examples=5, deadline=None)
def test_repaint_leaves_what_is_known_untouched_and_does_not_look_below_the_mask(seed, size):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.uniform(-1, 1, (3, size, size, 2)), jnp.float32)
    masks = jnp.asarray(rng.random((3, size, size)) < 0.5)
    path = process.resampling(LEVELS, 6, 2, 2)

    def denoise(state, time):
        return jnp.tanh(state + state.mean((1, 2, 3), keepdims=True))

    found = process.repaint(denoise, keys(3), images, masks, path)
    known = np.broadcast_to(~masks[..., None], images.shape)
    np.testing.assert_array_equal(np.asarray(found)[known], np.asarray(images)[known])
    assert (np.asarray(found)[~known] != np.asarray(images)[~known]).all()
    other = jnp.where(masks[..., None], 0.3, images)
    np.testing.assert_array_equal(process.repaint(denoise, keys(3), other, masks, path), found)


def test_same_key_same_image_in_any_batch_and_on_any_number_of_devices():
    def denoise(state, time):
        return jnp.tanh(state) * time[:, None, None, None]

    path = process.straight(LEVELS, 8)

    @jax.jit
    def make(keys):
        return process.sample(denoise, keys, (4, 4, 1), path, eta=1.0, clip=None)

    whole = make(keys(16))
    np.testing.assert_array_equal(make(keys(16)), whole)
    assert (make(keys(16, seed=1)) != whole).any(axis=(1, 2, 3)).all()
    np.testing.assert_allclose(make(keys(16)[5:8]), whole[5:8], atol=1e-6)
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(keys(16), NamedSharding(mesh, PartitionSpec("data")))
    made = make(sharded)
    assert len(made.sharding.device_set) == 8
    np.testing.assert_allclose(made, whole, atol=1e-6)
