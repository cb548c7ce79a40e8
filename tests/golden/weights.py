"""Deterministic inputs and weights behind the golden outputs in this folder.

Weights are drawn from the tensor's own name, so a golden file stores outputs only.
NumPy is all it needs: the same arrays come out on every machine.
"""

import json
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def state_dict(layout: str) -> dict[str, np.ndarray]:
    """PyTorch-style state dict (OIHW kernels) of a published checkpoint layout.

    layout: a key of layouts.json, e.g. "dolos-patches-block2".
    """
    shapes = json.loads((HERE / "layouts.json").read_text())[layout]
    return {name: tensor(name, tuple(shape)) for name, shape in shapes.items()}


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.array(1, np.int64)
    if name.endswith("running_var"):
        return (0.8 + 0.4 * rng.random(shape)).astype(np.float32)
    if name.endswith("running_mean") or name.endswith("bias"):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) == 1:  # BatchNorm scale
        return (0.8 + 0.4 * rng.random(shape)).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def images(n: int = 2, size: int = 299) -> np.ndarray:
    """NHWC float32 in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (n, size, size, 3)).astype(np.float32)


def masks(n: int = 2, size: int = 37) -> np.ndarray:
    """[n, size, size] int64 in {0, 1}; 1 is fake."""
    return (np.random.default_rng(1).random((n, size, size)) < 0.3).astype(np.int64)


def maps(n: int = 6, size: int = 37) -> np.ndarray:
    """[n, size, size] float64 in [0, 1]: stands for predicted localization maps."""
    return np.random.default_rng(2).random((n, size, size))


def full_masks(n: int = 6, size: int = 256) -> np.ndarray:
    """[n, size, size] float64 in {0, 1}: one disc each; the last is empty."""
    rng, (y, x) = np.random.default_rng(3), np.mgrid[:size, :size]
    out = np.zeros((n, size, size))
    for i in range(n - 1):
        cy, cx, r = rng.uniform(60, 196), rng.uniform(60, 196), rng.uniform(20, 90)
        out[i] = (y - cy) ** 2 + (x - cx) ** 2 < r**2
    return out


def scores() -> tuple[np.ndarray, np.ndarray]:
    """Detection scores: 90 real images, 850 fake ones."""
    rng = np.random.default_rng(4)
    return rng.normal(0, 1, 90), rng.normal(0.7, 1, 850)
