"""The score of an image, pooled from its localization map."""

import math
from dataclasses import dataclass

import ml_collections
import numpy as np
from jaxtyping import Array, Float

AnyArray = Array | np.ndarray

KINDS = ("mean", "gem", "topk", "max")
_REACH = 4.0  # standard deviations, beyond which the weights of the smoothing are cut off


def locations_of(share: float, count: int) -> int:
    """Returns how many of so many locations a share in (0, 1] is, rounded up: at least one."""
    # A share like 0.07 of 100 must be 7, though floating point has 7.000…1.
    return max(1, math.ceil(share * count - 1e-9))


@dataclass(frozen=True)
class Pooling:
    """How the score of an image is pooled from its map of probabilities.

    A small manipulated part drowns in a mean over the whole map; the others look at where the map
    is high. All of them give a number in [0, 1].

    Attributes:
      kind: "mean"; "gem", the generalized mean (Radenović et al., 2019); "topk", the mean of the
        highest locations of the smoothed map; "max".
      power: of the generalized mean, at least 1, which is the mean; towards infinity, the maximum.
      topk: share of the locations that are the highest ones, in (0, 1]; at least one is taken.
      sigma: of the Gaussian by which "topk" smooths the map, in locations; 0: not smoothed.
    """

    kind: str = "mean"
    power: float = 3.0
    topk: float = 0.1
    sigma: float = 1.0

    @classmethod
    def of(cls, score: ml_collections.ConfigDict) -> "Pooling":
        """Returns the pooling that the fields `config.score` describe."""
        return cls(score.pooling, score.power, score.topk, score.sigma)

    def __call__(self, maps: Float[AnyArray, "b h w"]) -> Float[AnyArray, " b"]:
        """Returns the scores of maps, arrays of JAX or of NumPy."""
        if self.kind == "mean":
            return maps.mean((1, 2))
        if self.kind == "max":
            return maps.max((1, 2))
        if self.kind == "gem":
            return self._generalized_mean(maps)
        highest = maps.__array_namespace__().sort(
            _smoothed(maps, self.sigma).reshape(maps.shape[0], -1), axis=1
        )
        return highest[:, -locations_of(self.topk, highest.shape[1]) :].mean(1)

    def _generalized_mean(self, maps: Float[AnyArray, "b h w"]) -> Float[AnyArray, " b"]:
        # Powers of probabilities relative to the highest one: of a map that is low everywhere they
        # would underflow, and all such images had one score.
        peak = maps.max((1, 2))
        relative = maps / maps.__array_namespace__().where(peak > 0, peak, 1)[:, None, None]
        return peak * (relative**self.power).mean((1, 2)) ** (1 / self.power)


def _smoothed(maps: Float[AnyArray, "b h w"], sigma: float) -> Float[AnyArray, "b h w"]:
    """Smooths maps by a Gaussian; what is beyond their edges is as their edges are."""
    reach = int(_REACH * sigma + 0.5)
    if reach == 0:
        return maps
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).tolist()
    pad = maps.__array_namespace__().pad
    height, width = maps.shape[1:]
    padded = pad(maps, ((0, 0), (reach, reach), (0, 0)), mode="edge")
    maps = sum(weight * padded[:, i : i + height] for i, weight in enumerate(weights))
    padded = pad(maps, ((0, 0), (0, 0), (reach, reach)), mode="edge")
    return sum(weight * padded[:, :, i : i + width] for i, weight in enumerate(weights))
