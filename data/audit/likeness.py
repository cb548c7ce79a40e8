"""Images that are alike: the same photograph saved again, and a fake and its original."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt64
from PIL import Image
from scipy import fft, sparse
from scipy.sparse import csgraph

SIDE = 32  # pixels of a thumbnail
_WAVES = 8  # lowest frequencies of each direction, of which the hash is made
_BITS = 8  # by which the hashes of near duplicates differ, at most, of 63
_CORRELATION = 0.98  # of their thumbnails, at least
_FEATURELESS = 2.0  # levels of 255, the standard deviation of a thumbnail that shows nothing
_BLOCK = 64  # hashes that are compared with all others at a time
_AT_ONCE = 4096  # pairs of thumbnails that are compared at a time

Thumbnail = UInt8[np.ndarray, "32 32 3"]


def thumbnail(pixels: Image.Image) -> Thumbnail:
    """Returns an RGB image at 32×32, each value the mean of what it stands for."""
    return np.asarray(pixels.resize((SIDE, SIDE), Image.Resampling.BOX))


def perceptual_hash(small: Thumbnail) -> int:
    """Returns 63 bits that stay nearly the same when an image is scaled or saved again.

    They say which of the 8×8 lowest waves of the grey image, without its mean, are above their
    median (pHash; Zauner, 2010).
    """
    grey = small.astype(float) @ (0.299, 0.587, 0.114)
    waves = fft.dctn(grey, norm="ortho")[:_WAVES, :_WAVES].ravel()[1:]
    bits = waves > np.median(waves)
    return int("".join("1" if bit else "0" for bit in bits), 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of images by their places, of each pair the smaller one first.

    Attributes:
        first: of each pair.
        second: of each pair.
    """

    first: Int[np.ndarray, " p"]
    second: Int[np.ndarray, " p"]


def near_duplicates(
    hashes: UInt64[np.ndarray, " n"], thumbnails: UInt8[np.ndarray, "n 32 32 3"]
) -> Pairs:
    """Returns the pairs of images that are the same but for scaling, compression and small changes.

    Their hashes differ by at most 8 of 63 bits, and their thumbnails, less the mean of each
    channel, correlate by 0.98 at least. Images of one colour are like none.
    """
    found = list(_confirmed(hashes, thumbnails))
    empty = np.zeros(0, np.int64)
    return Pairs(
        np.concatenate([empty, *(pairs.first for pairs in found)]),
        np.concatenate([empty, *(pairs.second for pairs in found)]),
    )


def _confirmed(hashes: np.ndarray, thumbnails: np.ndarray) -> Iterator[Pairs]:
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK, None]
        apart = np.bitwise_count(block ^ hashes[None, start:])
        rows, columns = np.nonzero(apart <= _BITS)
        rows, columns = rows[rows < columns] + start, columns[rows < columns] + start
        for at in range(0, len(rows), _AT_ONCE):
            first, second = rows[at : at + _AT_ONCE], columns[at : at + _AT_ONCE]
            alike = _alike(thumbnails[first], thumbnails[second])
            yield Pairs(first[alike], second[alike])


def _alike(one: np.ndarray, other: np.ndarray) -> Bool[np.ndarray, " p"]:
    one, other = (_centred(of) for of in (one, other))
    norms = [np.sqrt((of**2).sum(1)) for of in (one, other)]
    shows = np.minimum(*norms) >= _FEATURELESS * np.sqrt(one.shape[1])
    return shows & ((one * other).sum(1) >= _CORRELATION * norms[0] * norms[1])


def _centred(thumbnails: np.ndarray) -> np.ndarray:
    values = thumbnails.astype(np.float32)
    values -= values.mean((1, 2), keepdims=True)
    return values.reshape(len(values), -1)


def joined(groups: Sequence[str], pairs: Pairs) -> Int[np.ndarray, " n"]:
    """Returns the number of each image's group, where images that are alike are of one group.

    Args:
        groups: the name of each image's own group.
        pairs: images that are alike.
    """
    _, own = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    count = int(own.max()) + 1
    edges = np.ones(len(pairs.first), bool), (own[pairs.first], own[pairs.second])
    graph = sparse.coo_matrix(edges, shape=(count, count))
    _, component = csgraph.connected_components(graph, directed=False)
    return component[own].astype(np.int64)
