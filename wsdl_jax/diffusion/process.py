"""The diffusion process: schedules, the loss, the samplers and RePaint. Pure functions.

A state at noise level ᾱ is √ᾱ · image + √(1 − ᾱ) · noise. Samplers take one random key an image, so
that an image does not depend on the batch that it is made in, and are one `lax.scan` each.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

Images = Float[Array, "b h w c"]
Denoiser = Callable[[Images, Float[Array, "b"]], Images]  # (states, times in [0, 1]) → the noise


# ----- Schedules ----------------------------------------------------------------------------------


def linear(steps: int) -> Float[np.ndarray, "{steps}"]:
    """Returns ᾱ of the steps 1…n by variances that rise linearly (Ho et al., 2020).

    They rise from 1e-4 to 0.02 for n = 1000, and in proportion for another n.
    """
    betas = np.linspace(1e-4, 0.02, steps) * 1000 / steps
    return np.cumprod(1 - np.minimum(betas, 0.999))


def cosine(steps: int) -> Float[np.ndarray, "{steps}"]:
    """Returns ᾱ of the steps 1…n by a cosine (Nichol and Dhariwal, 2021).

    It is cos²((t/n + s)/(1 + s) · π/2), with s = 0.008.
    """
    t = np.arange(steps + 1) / steps
    level = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(np.maximum(level[1:] / level[:-1], 0.001))


SCHEDULES = {"linear": linear, "cosine": cosine}


# ----- Training -----------------------------------------------------------------------------------


def denoiser(network: Denoiser, levels: Float[np.ndarray, "n"]) -> Denoiser:
    """Returns a denoiser by a network F: √(1 − ᾱ) · state + √ᾱ · F(state, time).

    The first term is the best guess for images of variance 1 of which nothing is known. Without it
    the network itself would have to pass on, to a hundredth and better, the noise that nearly is
    the state; Karras et al. (2022) explain it.
    """
    levels = jnp.asarray(levels, jnp.float32)

    def denoise(state: Images, time: Float[Array, "b"]) -> Images:
        step = jnp.rint(time * len(levels)).astype(int)
        level = levels[step - 1][:, None, None, None]
        return jnp.sqrt(1 - level) * state + jnp.sqrt(level) * network(state, time)

    return denoise


def noised(image: Images, noise: Images, level: Float[Array, "b"]) -> Images:
    """Returns the states of images at the levels ᾱ."""
    level = level[:, None, None, None]
    return jnp.sqrt(level) * image + jnp.sqrt(1 - level) * noise


def p2_weight(level: Float[Array, "*b"], k: float, gamma: float) -> Float[Array, "*b"]:
    """Returns the weight of the noise's squared error: 1/(k + SNR)^γ, SNR = ᾱ/(1 − ᾱ).

    By Choi et al. (2022); k = γ = 1 there, and γ = 0 is Ho's simple loss.
    """
    return (k + level / (1 - level)) ** -gamma


def loss(
    denoise: Denoiser,
    images: Images,
    keys: Key[Array, "b"],
    levels: Float[np.ndarray, "n"],
    k: float,
    gamma: float,
) -> Float[Array, "b"]:
    """Returns the weighted squared error of each image's predicted noise, at a random step."""
    levels = jnp.asarray(levels, jnp.float32)
    draw_keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    steps = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(levels)))(draw_keys[:, 0])
    noise = _noise(draw_keys[:, 1], images)
    level = levels[steps]
    found = denoise(noised(images, noise, level), (steps + 1) / len(levels))
    return p2_weight(level, k, gamma) * jnp.mean((found - noise) ** 2, axis=(1, 2, 3))


def _noise(keys: Key[Array, "b"], like: Images) -> Images:
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:]))(keys)


# ----- Sampling -----------------------------------------------------------------------------------


class Path(NamedTuple):
    """The moves of a sampler from noise to image.

    A move goes from one ᾱ to another: to a higher one by the network, to a lower by new noise.

    Attributes:
      time: of each move's start, in [0, 1], for the network.
      start: ᾱ before each move.
      end: ᾱ after it.
    """

    time: Float[np.ndarray, "n"]
    start: Float[np.ndarray, "n"]
    end: Float[np.ndarray, "n"]


def _path(levels: Float[np.ndarray, "n"], stops: list[int]) -> Path:
    """Returns the path along these steps, from 1 to n; 0 is the image."""
    at = np.concatenate([[1.0], levels])[stops]
    time = np.asarray(stops) / len(levels)
    return Path(*(np.asarray(x, np.float32) for x in (time[:-1], at[:-1], at[1:])))


def _spaced(steps: int, count: int) -> list[int]:
    """Returns 0, and `count` of the steps 1…n evenly spaced, n among them."""
    return np.rint(np.linspace(0, steps, count + 1)).astype(int).tolist()


def straight(levels: Float[np.ndarray, "n"], steps: int) -> Path:
    """Returns the path down through `steps` of the schedule's n steps, evenly spaced."""
    return _path(levels, _spaced(len(levels), steps)[::-1])


def partial(levels: Float[np.ndarray, "n"], steps: int, strength: float) -> Path:
    """Returns the last part of a straight path, from the level that images are noised to.

    Args:
      levels: of the schedule's n steps.
      steps: of the whole path from noise to image; this part has its share of them, at least one.
      strength: where it starts, as a share of the schedule, in (0, 1]; 1 is `straight`.
    """
    start = max(1, round(strength * len(levels)))
    return _path(levels, _spaced(start, max(1, round(strength * steps)))[::-1])


def resampling(levels: Float[np.ndarray, "n"], steps: int, jump: int, times: int) -> Path:
    """Returns RePaint's path (Lugmayr et al., 2022, figure 9; there 250 steps, jump and times 10).

    After every `jump` steps it goes back up by `jump` steps and down again, until each stretch was
    gone down `times` times. Noise is added for a whole jump at once, which is the same in
    distribution.
    """
    spaced = _spaced(len(levels), steps)
    left = {step: times - 1 for step in range(1, steps - jump + 1, jump)}
    step, stops = steps, [steps]
    while step > 1:
        step -= 1
        stops.append(step)
        if left.get(step):
            left[step] -= 1
            step += jump
            stops.append(step)
    stops.append(0)
    return _path(levels, [spaced[stop] for stop in stops])


def _down(
    denoise: Denoiser,
    state: Images,
    fresh: Images | None,
    move: Path,
    eta: float,
    clip: float | None,
) -> Images:
    """Returns the state after a move of Song et al. (2021) to a lower noise.

    eta = 0 is DDIM, eta = 1 DDPM's ancestral sampling; `fresh` is normal noise, not looked at
    where eta is 0.
    """
    time = jnp.full(state.shape[0], move.time)
    noise = denoise(state, time)
    image = (state - jnp.sqrt(1 - move.start) * noise) / jnp.sqrt(move.start)
    if clip is not None:
        image = jnp.clip(image, -clip, clip)
        noise = (state - jnp.sqrt(move.start) * image) / jnp.sqrt(1 - move.start)
    variance = eta**2 * (1 - move.end) / (1 - move.start) * (1 - move.start / move.end)
    mean = jnp.sqrt(move.end) * image + jnp.sqrt(1 - move.end - variance) * noise
    return mean + jnp.sqrt(variance) * fresh if eta else mean


def _up(state: Images, keys: Key[Array, "b"], move: Path) -> Images:
    """Returns the state after the forward process from one level to a noisier one."""
    kept = move.end / move.start
    return jnp.sqrt(kept) * state + jnp.sqrt(1 - kept) * _noise(keys, state)


def sample(
    denoise: Denoiser,
    keys: Key[Array, "b"],
    shape: tuple[int, int, int],
    path: Path,
    *,
    eta: float = 0.0,
    clip: float | None = 1.0,
) -> Images:
    """Draws new images.

    Args:
      denoise: the network.
      keys: one an image.
      shape: of an image.
      path: `straight`.
      eta: 0 for DDIM (Song et al., 2021), 1 for ancestral sampling (Ho et al., 2020).
      clip: the images that the network implies on the way are clipped to ± this.
    """
    keys = _split(keys, 2)
    state = _noise(keys[:, 0], jnp.zeros((len(keys), *shape)))
    return _descend(denoise, keys[:, 1], state, path, eta, clip)


def reconstruct(
    denoise: Denoiser,
    keys: Key[Array, "b"],
    images: Images,
    path: Path,
    *,
    eta: float = 0.0,
    clip: float | None = 1.0,
) -> Images:
    """Noises images part of the way and brings them back (SDEdit, Meng et al., 2022).

    What they show stays, the more so the lower the level that the path starts at; every pixel is
    the network's. As fakes to train on beside real images: DRCT (Chen et al., 2024), B-Free
    (Guillaro et al., 2025).

    Args:
      denoise: the network.
      keys: one an image.
      images: in [-1, 1], or latents.
      path: `partial`.
      eta: as in `sample`.
      clip: as in `sample`.
    """
    keys = _split(keys, 2)
    level = jnp.full(len(images), path.start[0])
    state = noised(images, _noise(keys[:, 0], images), level)
    return _descend(denoise, keys[:, 1], state, path, eta, clip)


def _descend(
    denoise: Denoiser,
    keys: Key[Array, "b"],
    state: Images,
    path: Path,
    eta: float,
    clip: float | None,
) -> Images:
    """Returns the images at the end of a path that goes down only."""

    def move(state: Images, at: tuple[Path, Array]):
        path, number = at
        fresh = _noise(_fold(keys, number), state) if eta else None
        return _down(denoise, state, fresh, path, eta, clip), None

    state, _ = jax.lax.scan(move, state, (_on_device(path), jnp.arange(len(path.time))))
    return state


def repaint(
    denoise: Denoiser,
    keys: Key[Array, "b"],
    images: Images,
    masks: Bool[Array, "b h w"],
    path: Path,
    *,
    eta: float = 1.0,
    clip: float | None = 1.0,
) -> Images:
    """Makes the masked region of images anew (RePaint, Lugmayr et al., 2022, algorithm 1).

    After every move to a lower noise the known region is set to that of the image, noised to the
    same level; at the end, to that of the image itself. What the images have below the masks is not
    looked at.

    Args:
      denoise: the network, trained without masks.
      keys: one an image.
      images: in [-1, 1], or latents.
      masks: True is made anew.
      path: `resampling`.
      eta: as in `sample`; 1 in the paper.
      clip: as in `sample`.
    """
    keys = _split(keys, 2)
    unknown = masks[..., None]
    state = _noise(keys[:, 0], images)

    def down(state: Images, path: Path, number: Array) -> Images:
        # One noise does for both, as no place is in both.
        fresh = _noise(_fold(keys[:, 1], number), state)
        made = _down(denoise, state, fresh, path, eta, clip)
        known = noised(images, fresh, jnp.full(len(images), path.end))
        return jnp.where(unknown, made, known)

    def up(state: Images, path: Path, number: Array) -> Images:
        return _up(state, _fold(keys[:, 1], number), path)

    def move(state: Images, at: tuple[Path, Array]):
        path, number = at
        return jax.lax.cond(path.end > path.start, down, up, state, path, number), None

    state, _ = jax.lax.scan(move, state, (_on_device(path), jnp.arange(len(path.time))))
    return state


def _split(keys: Key[Array, "b"], count: int) -> Key[Array, "b n"]:
    return jax.vmap(lambda key: jax.random.split(key, count))(keys)


def _fold(keys: Key[Array, "b"], number: Array) -> Key[Array, "b"]:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _on_device(path: Path) -> Path:
    return Path(*map(jnp.asarray, path))
