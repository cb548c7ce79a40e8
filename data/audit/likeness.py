"""Images that are alike: the same photograph saved again, and a fake and its original."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

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
_NEAR = 1 << 18  # pairs with hashes that are near, of which is chosen at a time
_AT_ONCE = 4096  # pairs of thumbnails that are compared at a time

Thumbnail = UInt8[np.ndarray, "32 32 3"]
_Of = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of the two places of each pair


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
    hashes: UInt64[np.ndarray, " n"],
    thumbnails: UInt8[np.ndarray, "n 32 32 3"],
    splits: Sequence[str],
) -> Pairs:
    """Returns pairs of images that are the same but for scaling, compression and small changes.

    Their hashes differ by at most 8 of 63 bits, and their thumbnails, less the mean of each
    channel, correlate by 0.98 at least. Images of one colour are like none.

    Not all pairs are returned, of which a thousand copies have half a million, but as many as it
    takes: whatever all pairs connect these do, and an image that is like one of another split has
    a pair with one.

    Args:
        hashes: see `perceptual_hash`.
        thumbnails: of the same images.
        splits: that the images are in.
    """
    places = np.flatnonzero(_show_something(thumbnails))
    _, numbers = np.unique(np.asarray(splits, dtype=str), return_inverse=True)
    search = _Search(thumbnails, numbers)
    for start in range(0, len(places), _BLOCK):
        block = places[start : start + _BLOCK]
        apart = np.bitwise_count(hashes[block, None] ^ hashes[None, places])
        rows, columns = np.nonzero(apart <= _BITS)
        for at in range(0, len(rows), _NEAR):
            part = slice(at, at + _NEAR)
            search.look(block[rows[part]], places[columns[part]])
    empty = np.zeros(0, np.int64)
    first = np.concatenate([empty, *(pairs.first for pairs in search.found)])
    second = np.concatenate([empty, *(pairs.second for pairs in search.found)])
    return Pairs(np.minimum(first, second), np.maximum(first, second))


class _Search:
    """Pairs that are alike, found without comparing what is known to be connected.

    Attributes:
        found: the pairs.
    """

    def __init__(self, thumbnails: np.ndarray, splits: np.ndarray):
        """Begins with images that are connected to none.

        Args:
            thumbnails: of the images.
            splits: the number of the split of each.
        """
        self.found: list[Pairs] = []
        self._thumbnails, self._splits = thumbnails, splits
        self._component = np.arange(len(thumbnails))
        self._is_elsewhere = np.zeros(len(thumbnails), bool)  # whether it has a pair of two splits

    def look(self, first: np.ndarray, second: np.ndarray) -> None:
        """Compares pairs whose hashes are near, each in both orders, as far as it matters."""
        ordered = first < second
        self._compare(first[ordered], second[ordered], self._components, self._is_apart)
        # Any pair of two splits will do for the first of it; the other one has its turn, too.
        across = self._splits[first] != self._splits[second]
        self._compare(first[across], second[across], lambda one, _: one, self._is_unmatched)

    def _components(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        ends = self._component[first], self._component[second]
        return np.minimum(*ends) * len(self._component) + np.maximum(*ends)

    def _is_apart(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return self._component[first] != self._component[second]

    def _is_unmatched(self, first: np.ndarray, _: np.ndarray) -> np.ndarray:
        return ~self._is_elsewhere[first]

    def _compare(self, first: np.ndarray, second: np.ndarray, key: _Of, is_needed: _Of) -> None:
        """Compares pairs in rounds, after each of which those that are not needed are dropped.

        Args:
            first: of each pair.
            second: of each pair.
            key: returns what a pair is to decide; of those with the same one, one is compared
                in the first round, and in each further round twice as many.
            is_needed: returns whether a pair still is.
        """
        take = 1
        while True:
            needed = is_needed(first, second)
            first, second = first[needed], second[needed]
            if not len(first):
                return
            due = _rank(key(first, second)) < take
            due &= np.cumsum(due) <= _AT_ONCE
            one, other = first[due], second[due]
            alike = _alike(self._thumbnails[one], self._thumbnails[other])
            self._note(Pairs(one[alike], other[alike]))
            first, second = first[~due], second[~due]
            take *= 2

    def _note(self, pairs: Pairs) -> None:
        if not len(pairs.first):
            return
        self.found.append(pairs)
        across = self._splits[pairs.first] != self._splits[pairs.second]
        self._is_elsewhere[pairs.first[across]] = True
        self._is_elsewhere[pairs.second[across]] = True
        self._component = _connected(self._component, pairs)


def _rank(keys: np.ndarray) -> np.ndarray:
    """Returns the place of each value among those that are the same."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    counted = np.arange(len(keys))
    rank = np.empty(len(keys), np.int64)
    rank[order] = counted - np.maximum.accumulate(np.where(begins, counted, 0))
    return rank


def _alike(one: np.ndarray, other: np.ndarray) -> Bool[np.ndarray, " p"]:
    """Returns which thumbnails, all of which show something, correlate with which."""
    one, other = (_centred(of) for of in (one, other))
    norms = [np.sqrt((of**2).sum(1)) for of in (one, other)]
    return (one * other).sum(1) >= _CORRELATION * norms[0] * norms[1]


def _show_something(thumbnails: np.ndarray) -> Bool[np.ndarray, " n"]:
    shows = np.zeros(len(thumbnails), bool)
    for start in range(0, len(thumbnails), _AT_ONCE):
        values = _centred(thumbnails[start : start + _AT_ONCE])
        least = _FEATURELESS * np.sqrt(values.shape[1])
        shows[start : start + _AT_ONCE] = np.sqrt((values**2).sum(1)) >= least
    return shows


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
    return _connected(own, pairs)


def _connected(groups: np.ndarray, pairs: Pairs) -> Int[np.ndarray, " n"]:
    """Returns the number of each image's group, where groups with a pair in both are one."""
    count = int(groups.max()) + 1
    edges = np.ones(len(pairs.first), bool), (groups[pairs.first], groups[pairs.second])
    graph = sparse.coo_matrix(edges, shape=(count, count))
    _, component = csgraph.connected_components(graph, directed=False)
    return component[groups].astype(np.int64)
