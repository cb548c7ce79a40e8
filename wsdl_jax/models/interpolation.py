"""Interpolation as PyTorch has it, where `jax.image.resize` has another form."""

import functools

import numpy as np
from jaxtyping import Float


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel (Keys, 1981)."""
    d = np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@functools.cache
def bicubic(old: int, new: int, antialias: bool = False) -> Float[np.ndarray, "{new} {old}"]:
    """Returns the matrix [new, old], float32, that resizes one axis by cubic convolution.

    As PyTorch's `interpolate` does with mode "bicubic" and not aligned corners: with a = -0.75 and
    values at the border repeated; or, antialiased, with a = -0.5, a kernel as much wider as the
    axis becomes shorter, and weights outside left out.
    """
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    places = np.arange(-2, old + 2)  # all that a kernel of four values can meet
    stretch = max(old / new, 1.0) if antialias else 1.0
    weights = _cubic((places - centres[:, None]) / stretch, -0.5 if antialias else -0.75)
    if antialias:
        matrix = weights[:, 2:-2]
        return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (slice(None), np.clip(places, 0, old - 1)), weights)
    return matrix.astype(np.float32)
