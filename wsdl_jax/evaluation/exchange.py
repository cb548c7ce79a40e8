"""Original pixels put back outside the mask of a fake: what did a detector really look at?

Inpainting by an autoencoder, compression or resizing leave traces in all of an image, not only
where it was manipulated. A detector that has learned those finds fakes that nobody would find, and
loses them when the untouched part is what it was before.
"""

import dataclasses
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from PIL import Image

from wsdl_jax import inputs
from wsdl_jax.evaluation import summary

GROUP = "group"  # the fact that tells which real image a fake was made of
NEAR = 32  # of 255: how much a colour of a pixel may differ that is like the original's
LEAST_LIKE = 0.5  # of the pixels outside the mask: as many are like the original's
SHOWN = ("iou_lg", "iou_fitted", "f1", "pixel_auc", "pixel_ap", "ap", "auc", "fake_above")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A fake and what it was made of.

    Attributes:
      fake: the index of the fake among the fakes.
      original: the index of the real image among the real ones; None for one that the dataset of
        the fake makes again, see `inputs.Examples.original`.
    """

    fake: int
    original: int | None


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The fakes whose original is known, and how many others there are.

    Attributes:
      found: the pairs, in order of the fakes.
      unchanged: how many of these have the original's pixels outside the mask already.
      unknown: how many fakes have no real image of their dataset and group.
      several: how many have more than one, of which any may be the original.
      other_size: how many have another size than their original, or than their mask.
      whole: how many have no pixel outside their mask.
      unlike: how many have less than `LEAST_LIKE` of the pixels outside the mask within `NEAR` of
        those of the real image of their group.
    """

    found: tuple[Pair, ...]
    unchanged: int
    unknown: int
    several: int
    other_size: int
    whole: int
    unlike: int

    def counts(self) -> dict[str, int]:
        """Returns all but the pairs, by name."""
        return {name: count for name, count in vars(self).items() if name != "found"}


def find(fakes: inputs.Examples, reals: inputs.Examples) -> Pairs:
    """Returns the pairs of fakes and of what they were made of, of the same size.

    That is what the dataset of the fake says it is, or else the only real image of its group in the
    same dataset, since groups of one name in two datasets have nothing in common. Where the two are
    not alike outside the mask, a group was something else than a photograph and what was made of
    it, and the fake is left out. Every image of a pair is decoded once.

    Raises:
      UserError: an image that cannot be read.
    """
    originals: dict[tuple[str, bytes], list[int]] = {}
    for index in range(len(reals)):
        place = _dataset(reals.subset(index)), reals[index].get(GROUP, b"")
        originals.setdefault(place, []).append(index)
    found, unchanged, unknown, several, other_size, whole, unlike = [], 0, 0, 0, 0, 0, 0
    for index in range(len(fakes)):
        record = fakes[index]
        group = record.get(GROUP, b"")
        original, place = fakes.original(index), None
        if original is None:
            dataset = _dataset(fakes.subset(index))
            candidates = originals.get((dataset, group), []) if group else []
            if len(candidates) != 1:
                unknown += not candidates
                several += len(candidates) > 1
                continue
            (place,) = candidates
            original = inputs.full_image(reals[place])
        fake = inputs.full_image(record)
        outside = inputs.full_mask(record) == 0
        if not fake.shape == original.shape == (*outside.shape, 3):
            other_size += 1
            continue
        if not outside.any():
            whole += 1
            continue
        apart = np.abs(fake[outside].astype(np.int16) - original[outside]).max(-1)
        if place is not None and np.mean(apart <= NEAR) < LEAST_LIKE:
            unlike += 1
            continue
        unchanged += not apart.any()
        found.append(Pair(index, place))
    return Pairs(tuple(found), unchanged, unknown, several, other_size, whole, unlike)


def _dataset(subset: str) -> str:
    """Returns what the subsets of real and of fake images of one dataset have in common."""
    return subset.removesuffix("_fake").removesuffix("_real")


class Exchanged(inputs.Examples):
    """Fakes whose original is known, as they are or with its pixels put back outside the mask."""

    def __init__(
        self,
        fakes: inputs.Examples,
        reals: inputs.Examples,
        pairs: Sequence[Pair],
        *,
        put_back: bool,
    ):
        """Takes pairs of `find`.

        Args:
          fakes: the fakes.
          reals: the real images.
          pairs: of these, one or more.
          put_back: whether to put the originals' pixels back.
        """
        self._fakes, self._reals, self._pairs = fakes, reals, tuple(pairs)
        self._put_back = put_back
        self.have_masks, self.facts, self.provenance = fakes.have_masks, (), fakes.provenance
        self.sizes = (len(self._pairs),)
        self._ends = np.cumsum(self.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._fakes, self._reals, self._pairs, self._put_back)

    def subset(self, index: int) -> str:
        """Returns the name of the subset that a fake is of."""
        return self._fakes.subset(self._pairs[index].fake)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Returns the record of a fake, whose image is encoded anew where pixels were put back."""
        pair = self._pairs[index]
        record = self._fakes[pair.fake]
        if not self._put_back:
            return record
        inside = inputs.full_mask(record)[..., None] > 0
        if pair.original is None:
            original = self._fakes.original(pair.fake)
        else:
            original = inputs.full_image(self._reals[pair.original])
        mixed = np.where(inside, inputs.full_image(record), original)
        encoded = io.BytesIO()
        Image.fromarray(mixed).save(encoded, "PNG", compress_level=1)
        return {**record, "image": encoded.getvalue()}


def _unpickled(
    fakes: inputs.Examples, reals: inputs.Examples, pairs: tuple[Pair, ...], put_back: bool
) -> Exchanged:
    return Exchanged(fakes, reals, pairs, put_back=put_back)


def left_out(counts: Mapping[str, Any]) -> str:
    """Returns how many fakes of each sort of `Pairs` have no pair, in words."""
    return (
        f"{counts['unknown']} have no real image of the same group, {counts['several']} have "
        f"several, {counts['other_size']} are of another size, {counts['whole']} have nothing "
        f"outside the mask, {counts['unlike']} are unlike that image there"
    )


def text_table(results: dict[str, Any], title: str) -> str:
    """Returns the content of exchange.json as a table of fixed-width text."""
    lines = [
        f"{title}: {results['exchanged_images']} of {results['fake_images']} images of "
        f"{results['test_fake']}, with the pixels of their originals outside the mask",
        *textwrap.wrap(f"left out: {left_out(results)}", 98, subsequent_indent="  "),
        f"{results['unchanged']} had these pixels already",
        f"{'':<12}" + "".join(f"{name:>12}" for name in SHOWN),
    ]
    for row in ("before", "after"):
        cells = (f"{summary.figure(results[row][name]):>12}" for name in SHOWN)
        lines.append(f"{row:<12}" + "".join(cells))
    return "\n".join(lines) + "\n"
