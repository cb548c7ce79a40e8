"""Whether an image is like those that a network is known on, by a distance of its features.

A score says something of an image only if the image is of a kind whose scores are known: to a
network that has seen one camera alone, the grain of another may be what a forgery leaves. So the
distance of an image's features from those of known images is measured, Mahalanobis' under a
Gaussian (Lee et al., 2018) whose covariance is shrunk (Ledoit and Wolf, 2004). How far is too far
follows from known images that the Gaussian was not fitted to, by an inductive conformal test
(Laxhammar and Falkman, 2015).
"""

import base64
import binascii
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

LEVEL = 0.02  # the share of known images that may be called unlike
FEWEST = 20  # images of a class, of which half are fitted to
_LEAST_SPREAD = 0.01  # of a feature, by the median of all: one that is constant may vary elsewhere


@dataclasses.dataclass(frozen=True, eq=False)
class Likeness:
    """The features of known images of one or several classes, such as real and fake ones.

    Attributes:
      mean: of the features of all classes.
      spread: of each feature, its standard deviation.
      precision: the inverse covariance of features that mean and spread were taken out of.
      distances: of images of each class that the others were not fitted to, in ascending order.
    """

    mean: Float[np.ndarray, " d"]
    spread: Float[np.ndarray, " d"]
    precision: Float[np.ndarray, "d d"]
    distances: tuple[Float[np.ndarray, " _"], ...]

    def distance(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Returns the squared Mahalanobis distances of images' features."""
        centred = (features.astype(np.float64) - self.mean) / self.spread
        return np.einsum("ni,ij,nj->n", centred, self.precision, centred, optimize=True)

    def has(self, features: Float[np.ndarray, " d"]) -> bool:
        """Returns whether an image is like those of one of the classes.

        Of images of a class that is known, at most a share of `LEVEL` is not, whatever its
        distribution is; where fewer than 1 / LEVEL of them have distances, at most one in as many
        and one more.
        """
        (found,) = self.distance(features[None])
        return any(_p_value(found, known) > _level(known) for known in self.distances)

    def stored(self) -> dict[str, Any]:
        """Returns it as JSON can have it."""
        return {
            **{name: _packed(getattr(self, name)) for name in ("mean", "spread", "precision")},
            "distances": [known.tolist() for known in self.distances],
        }

    @classmethod
    def of_stored(cls, stored: Mapping[str, Any]) -> "Likeness":
        """Returns that of which `stored` was made. Raises ValueError, TypeError or KeyError."""
        mean, spread, precision = (
            _unpacked(stored[name]) for name in ("mean", "spread", "precision")
        )
        distances = tuple(np.array(list(map(float, known))) for known in stored["distances"])
        if not mean.shape == spread.shape == precision.shape[:1] == precision.shape[1:]:
            raise ValueError(f"features of shapes {mean.shape}, {spread.shape}, {precision.shape}")
        if not distances or not all(map(len, distances)):
            raise ValueError("no distances")
        if not all(np.isfinite(a).all() for a in (mean, spread, precision, *distances)):
            raise ValueError("features that are not finite")
        return cls(mean, spread, precision, tuple(map(np.sort, distances)))


def fit(
    classes: Sequence[Float[np.ndarray, "_ d"]],
    origins: Sequence[Integer[np.ndarray, " _"]] | None = None,
) -> Likeness | None:
    """Returns the likeness of classes of images; None if one of them has fewer than 20.

    Of each class, one half at random, by a fixed seed, is what the Gaussian is fitted to, and the
    other half says how far images of that class are from it.

    Args:
      classes: the features of the images of each.
      origins: of each image a number that all images have which were made of the same one, in
        whatever class: they are in the same half. By default each is of its own.
    """
    # Imported here, since it takes seconds, which those who only ask are spared.
    from sklearn.covariance import ledoit_wolf

    if not classes or min(map(len, classes)) < FEWEST:
        return None
    if origins is None:
        ends = np.cumsum([len(one) for one in classes])
        origins = [np.arange(end - len(one), end) for one, end in zip(classes, ends, strict=True)]
    is_fitted: dict[int, bool] = {}  # by origin
    rng = np.random.default_rng(0)
    for of in origins:
        new = rng.permutation([one for one in np.unique(of).tolist() if one not in is_fitted])
        is_fitted |= {int(one): place < len(new) - len(new) // 2 for place, one in enumerate(new)}
    chosen = [np.array([is_fitted[one] for one in of.tolist()]) for of in origins]
    pairs = list(zip(classes, chosen, strict=True))
    fitted = np.concatenate([one[which] for one, which in pairs]).astype(np.float64)
    mean, spread = fitted.mean(0), fitted.std(0)
    usual = np.median(spread[spread > 0]) if spread.any() else 1.0
    spread = np.maximum(spread, _LEAST_SPREAD * usual)
    covariance, _ = ledoit_wolf((fitted - mean) / spread, assume_centered=True)
    precision = np.linalg.pinv(covariance, hermitian=True)
    # As they are stored, so that distances are the same for who reads them.
    mean, spread, precision = (a.astype(np.float32) for a in (mean, spread, precision))
    found = Likeness(mean, spread, precision, ())
    distances = tuple(np.sort(found.distance(one[~which])) for one, which in pairs)
    return dataclasses.replace(found, distances=distances)


def _p_value(found: float, known: Float[np.ndarray, " n"]) -> float:
    """Returns the share of known distances, and of the one that was found, that are as large."""
    as_large = len(known) - np.searchsorted(known, found, "left")
    return float(1 + as_large) / (1 + len(known))


def _level(known: Float[np.ndarray, " n"]) -> float:
    return max(LEVEL, 1 / (1 + len(known)))


def _packed(array: Float[np.ndarray, "..."]) -> dict[str, Any]:
    data = np.ascontiguousarray(array, "<f4").tobytes()
    return {"shape": list(array.shape), "float32": base64.b64encode(data).decode("ascii")}


def _unpacked(packed: Mapping[str, Any]) -> Float[np.ndarray, "..."]:
    try:
        data = base64.b64decode(packed["float32"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"no numbers in base64: {error}") from error
    return np.frombuffer(data, "<f4").reshape([int(side) for side in packed["shape"]])
