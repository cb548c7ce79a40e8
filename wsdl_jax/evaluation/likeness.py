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
_WIDE = 1024  # features; of more, the inverse covariance is kept along few directions
_DIRECTIONS = 256


@dataclasses.dataclass(frozen=True, eq=False)
class LowRank:
    """An inverse covariance that differs from a multiple of the identity along some directions.

    Attributes:
      directions: of length 1, orthogonal to one another.
      along: the inverse of the variance along each of them.
      rest: the inverse of the variance along every direction that is orthogonal to all of them.
    """

    directions: Float[np.ndarray, "k d"]
    along: Float[np.ndarray, " k"]
    rest: float

    @classmethod
    def of_shrunk(cls, features: Float[np.ndarray, "n d"]) -> "LowRank":
        """Returns that of the features' covariance, shrunk as Ledoit and Wolf do it.

        Features have mean 0. For as many images as there are directions it is exact; of more, those
        of the largest variances are taken, and all others have the mean of the variances that are
        left (Tipping and Bishop, 1999).
        """
        from sklearn.covariance import ledoit_wolf_shrinkage
        from sklearn.utils.extmath import randomized_svd

        count, width = features.shape
        shrinkage = ledoit_wolf_shrinkage(features, assume_centered=True)
        total = np.square(features).sum() / count
        if count <= _DIRECTIONS:
            _, sizes, directions = np.linalg.svd(features, full_matrices=False)
            left = 0.0
        else:
            _, sizes, directions = randomized_svd(features, _DIRECTIONS, random_state=0)
            left = max(0.0, total - np.square(sizes).sum() / count) / (width - _DIRECTIONS)
        variances = np.append(np.square(sizes) / count, left)
        shrunk = (1 - shrinkage) * variances + shrinkage * total / width
        # What does not vary at all says nothing, as in a pseudo-inverse.
        says = shrunk > 1e-15 * shrunk.max()
        inverse = np.divide(1.0, shrunk, out=np.zeros_like(shrunk), where=says)
        # As they are stored, see `fit`.
        directions, inverse = directions.astype(np.float32), inverse.astype(np.float32)
        return cls(directions, inverse[:-1], float(inverse[-1]))

    def quadratic(self, centred: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Returns vᵀPv of the vectors v and the inverse covariance P."""
        along = centred @ self.directions.T
        others = centred - along @ self.directions
        return np.square(along) @ self.along + self.rest * np.square(others).sum(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Likeness:
    """The features of known images of one or several classes, such as real and fake ones.

    Attributes:
      mean: of the features of all classes.
      spread: of each feature, its standard deviation.
      precision: the inverse covariance of features that mean and spread were taken out of; of many
        features in a form that is small.
      distances: of images of each class that the others were not fitted to, in ascending order.
    """

    mean: Float[np.ndarray, " d"]
    spread: Float[np.ndarray, " d"]
    precision: Float[np.ndarray, "d d"] | LowRank
    distances: tuple[Float[np.ndarray, " _"], ...]

    def distance(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Returns the squared Mahalanobis distances of images' features."""
        centred = (features.astype(np.float64) - self.mean) / self.spread
        if isinstance(self.precision, LowRank):
            return self.precision.quadratic(centred)
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
        arrays = {"mean": self.mean, "spread": self.spread}
        if isinstance(self.precision, LowRank):
            rest = {"rest": self.precision.rest}
            arrays |= {"directions": self.precision.directions, "along": self.precision.along}
        else:
            rest = {}
            arrays["precision"] = self.precision
        return {
            **{name: _packed(array) for name, array in arrays.items()},
            **rest,
            "distances": [known.tolist() for known in self.distances],
        }

    @classmethod
    def of_stored(cls, stored: Mapping[str, Any]) -> "Likeness":
        """Returns that of which `stored` was made. Raises ValueError, TypeError or KeyError."""
        mean, spread = (_unpacked(stored[name]) for name in ("mean", "spread"))
        if "precision" in stored:
            arrays = [_unpacked(stored["precision"])]
            has_shape = arrays[0].shape == 2 * mean.shape
        else:
            directions, along = (_unpacked(stored[name]) for name in ("directions", "along"))
            arrays = [directions, along, np.array(float(stored["rest"]))]
            has_shape = directions.shape == along.shape + mean.shape
        distances = tuple(np.array(list(map(float, known))) for known in stored["distances"])
        if not (mean.ndim == 1 and mean.shape == spread.shape and has_shape):
            shapes = ", ".join(str(a.shape) for a in (mean, spread, *arrays))
            raise ValueError(f"features of shapes {shapes}")
        if not distances or not all(map(len, distances)):
            raise ValueError("no distances")
        if not all(np.isfinite(a).all() for a in (mean, spread, *arrays, *distances)):
            raise ValueError("features that are not finite")
        precision = arrays[0] if len(arrays) == 1 else LowRank(directions, along, float(arrays[2]))
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
    centred = (fitted - mean) / spread
    # As they are stored, so that distances are the same for who reads them.
    mean, spread = mean.astype(np.float32), spread.astype(np.float32)
    if centred.shape[1] > _WIDE:
        precision = LowRank.of_shrunk(centred)
    else:
        covariance, _ = ledoit_wolf(centred, assume_centered=True)
        precision = np.linalg.pinv(covariance, hermitian=True).astype(np.float32)
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
