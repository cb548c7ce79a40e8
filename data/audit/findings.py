"""What an audit finds, by the rule of README.md."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from wsdl_data.audit import auc, likeness, masks
from wsdl_data.audit.auc import Estimate
from wsdl_data.audit.images import Images, sampled
from wsdl_data.audit.seen import Seen, all_seen
from wsdl_data.audit.traces import PROBES, Probe, Traces
from wsdl_data.own.items import KINDS
from wsdl_jax.runtime.errors import UserError

LEAK, NONE, TOO_FEW = "leak", "no leak found", "too few images to tell"
LEVEL, PLACE_LEVEL = 0.6, 0.9  # of the AUC, above which the lower bound of a leak is
FAILING = 0.01  # probability of a leak where there is none, of all probes together
NEEDED = 100  # groups of each kind, from which on it is said that there is no leak
SHARE, LEAST = 0.01, 2  # of the images concerned, and how many, from which on a count is a leak
_MARKS = 200  # that a probe learns from, the most frequent ones
_NAMED = 3  # images that a count names
_PLACE = "masks' place"
PROBE_NAMES = (*(probe.name for probe in PROBES), _PLACE)
BOUND = FAILING / len(PROBE_NAMES)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a probe has found.

    Attributes:
        name: of the probe.
        saw: in words, what differs most between real images and fakes.
        auc: of telling them apart; None where there are too few images.
        level: that the lower bound of a leak is above.
        verdict: LEAK, NONE or TOO_FEW.
        advice: what to do about a leak.
    """

    name: str
    saw: str
    auc: Estimate | None
    level: float
    verdict: str
    advice: str


@dataclasses.dataclass(frozen=True)
class Counted:
    """How many images have a fault.

    Attributes:
        name: of the fault.
        found: images that have it.
        of: images that could have it.
        estimated: of those, how many have it where another image of it may not be in the sample; as
            many as were found without a sample.
        examples: the first of them.
        verdict: LEAK, NONE, or TOO_FEW in a sample that may lack what an image is compared with.
        advice: what to do about it.
    """

    name: str
    found: int
    of: int
    estimated: float
    examples: tuple[str, ...]
    verdict: str
    advice: str


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """All that was found.

    Attributes:
        counts: images of each kind, "real" and "fake", that there are.
        audited: images of each kind that were looked at.
        groups: groups of each kind that they are of.
        probes: what probes have found.
        faults: what was counted.
        notes: what else is to be known, a line each.
        mean_mask: share of the masks that have each of 32×32 cells; None without masks.
    """

    counts: dict[str, int]
    audited: dict[str, int]
    groups: dict[str, int]
    probes: tuple[Found, ...]
    faults: tuple[Counted, ...]
    notes: tuple[str, ...]
    mean_mask: Float[np.ndarray, "32 32"] | None

    @property
    def leaks(self) -> list[Found | Counted]:
        """Returns what is a leak."""
        return [found for found in (*self.probes, *self.faults) if found.verdict == LEAK]

    @property
    def is_undecided(self) -> bool:
        """Returns whether some probe or count had too few images."""
        return any(found.verdict == TOO_FEW for found in (*self.probes, *self.faults))


def audit(images: Images, limit: int = 0) -> Audit:
    """Audits images.

    Args:
        images: real and fake ones.
        limit: about how many of each kind are looked at, in whole groups; 0 for all.

    Raises:
        UserError: an image cannot be read or decoded, or there are none of a kind.
    """
    chosen, counts = sampled(images, limit)
    for label, kind in enumerate(KINDS):
        if not counts[label]:
            raise UserError(f"there are no {kind} images: an audit is of real and of fake ones")
    total = sum(min(count, limit or count) for count in counts.values())
    seen = list(tqdm(all_seen(chosen), total=total, unit=" images", leave=False, disable=None))
    labels = np.array([one.label for one in seen])
    hashes = np.array([one.hash for one in seen], np.uint64)
    thumbnails = np.stack([one.thumbnail for one in seen])
    pairs = likeness.near_duplicates(hashes, thumbnails, [one.split for one in seen])
    groups = likeness.joined([one.group for one in seen], pairs)
    masked = [place for place, one in enumerate(seen) if one.mask is not None]
    shares = tuple(int((labels == label).sum()) / counts[label] for label in (0, 1))
    return Audit(
        {kind: counts[label] for label, kind in enumerate(KINDS)},
        {kind: int((labels == label).sum()) for label, kind in enumerate(KINDS)},
        {kind: len(np.unique(groups[labels == label])) for label, kind in enumerate(KINDS)},
        (*_probed(seen, labels, groups), *_place(seen, masked, groups)),
        (
            *_across_splits(seen, pairs, shares),
            *_masks(seen, masked, groups),
            _unchanged(seen, shares),
        ),
        (f"groups are told {images.grouped_by}", *_notes(seen, counts)),
        _mean_mask(seen, masked),
    )


# ----- Probes -------------------------------------------------------------------------------------


def _probed(seen: Sequence[Seen], labels: np.ndarray, groups: np.ndarray) -> Iterator[Found]:
    for number, probe in enumerate(PROBES):
        columns = tabulated([one.traces[number] for one in seen])
        yield _found(probe, columns, labels, groups)


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """A trace of all images.

    Attributes:
        name: of the trace.
        values: of the images; NaN where one has it not. Of a mark 1 and 0.
        is_mark: whether it is there or not, and no number.
    """

    name: str
    values: Float[np.ndarray, " n"]
    is_mark: bool


def tabulated(rows: Sequence[Traces]) -> list[Column]:
    """Returns the traces of all images that are not the same in all of them.

    Of marks there are the 200 most frequent ones that two images have at least.
    """
    numbers = dict.fromkeys(name for row in rows for name in row.numbers)
    columns = [
        Column(name, np.array([row.numbers.get(name, np.nan) for row in rows]), False)
        for name in numbers
    ]
    marks = collections.Counter(mark for row in rows for mark in sorted(row.marks))
    for mark, count in sorted(marks.items(), key=lambda one: (-one[1], one[0]))[:_MARKS]:
        if count > 1:
            columns.append(Column(mark, np.array([float(mark in row.marks) for row in rows]), True))
    return [column for column in columns if not _is_constant(column.values)]


def _is_constant(values: np.ndarray) -> bool:
    missing = np.isnan(values)
    return bool(missing.all() or (not missing.any() and (values == values[0]).all()))


def _found(
    probe: Probe, columns: Sequence[Column], labels: np.ndarray, groups: np.ndarray
) -> Found:
    known = functools.partial(Found, probe.name, level=LEVEL, advice=probe.advice)
    counts = [len(np.unique(groups[labels == label])) for label in range(len(KINDS))]
    saw = _most_telling(columns, labels)
    if min(counts) < auc.FEWEST:
        return known(saw, None, verdict=TOO_FEW)
    scores = np.zeros(len(labels))
    if columns:
        values = np.stack([column.values for column in columns], 1)
        # Trees see ranks: what an image has not is below what others have.
        scores = auc.out_of_fold(np.where(np.isnan(values), -np.inf, values), labels, groups)
    estimate = auc.estimate(scores, labels, groups, BOUND)
    return known(saw, estimate, verdict=_verdict(estimate, LEVEL, min(counts)))


def _verdict(estimate: Estimate, level: float, groups: int) -> str:
    if estimate.lower > level:
        return LEAK
    return NONE if groups >= NEEDED else TOO_FEW


def _most_telling(columns: Sequence[Column], labels: np.ndarray) -> str:
    """Returns in words the trace that by itself tells most, and what it is like in each kind."""
    if not columns:
        return "the same in all"
    order = np.argsort([-_told(column, labels) for column in columns], kind="stable")
    column = columns[order[0]]
    parts = []
    for label, kind in enumerate(KINDS):
        values = column.values[labels == label]
        present = values[~np.isnan(values)]
        if column.is_mark:
            parts.append(f"{kind} {100 * values.mean():.0f}%")
        elif present.size:
            parts.append(f"{kind} {np.median(present):.4g}")
        else:
            parts.append(f"{kind} none")
    return f"{column.name}: {', '.join(parts)}"


def _told(column: Column, labels: np.ndarray) -> float:
    values = np.where(np.isnan(column.values), -np.inf, column.values)
    value, _ = auc.clustered_deviation(values, labels == 1, np.arange(len(labels)))
    return abs(value - 0.5)


def _place(seen: Sequence[Seen], masked: Sequence[int], groups: np.ndarray) -> Iterator[Found]:
    """Yields what the place of masks tells of one, where there are masks."""
    partial = np.array([i for i in masked if 0 < seen[i].mask.share < 1], np.int64)
    if not len(partial):
        return
    known = functools.partial(Found, _PLACE, level=PLACE_LEVEL)
    advice = "compare maps with the mean mask, which needs no image; move or crop images at random"
    share = float(np.median([seen[i].mask.share for i in partial]))
    saw = f"the mean mask of others; half cover more than {100 * share:.0f}% of their images"
    count = len(np.unique(groups[partial]))
    if count < auc.FEWEST:
        yield known(saw, None, verdict=TOO_FEW, advice=advice)
        return
    coverages = np.stack([seen[i].mask.coverage for i in partial])
    estimate = masks.place_known(coverages, groups[partial], BOUND)
    verdict = _verdict(estimate, PLACE_LEVEL, count)
    yield known(saw, estimate, verdict=verdict, advice=advice)


# ----- Counts -------------------------------------------------------------------------------------


def _counted(
    name: str, seen: Sequence[Seen], found: Sequence[int], of: int, advice: str
) -> Counted:
    examples = tuple(seen[place].name for place in found[:_NAMED])
    is_leak = len(found) >= max(LEAST, SHARE * of)
    verdict = LEAK if is_leak else NONE
    return Counted(name, len(found), of, float(len(found)), examples, verdict, advice)


def _counted_of_pairs(
    counted: Counted, chances: Collection[float], shares: tuple[float, float]
) -> Counted:
    """Returns a count of images that are like another one, which a sample may lack.

    It is estimated by the inverse of the chance that the other one is in the sample (Horvitz and
    Thompson, 1952), as if there were no third. What is not found in a sample may still be there.

    Args:
        counted: what was found.
        chances: of the images that were found, see `_chance`.
        shares: of the images of each kind that were looked at.
    """
    if min(shares) == 1:
        return counted
    estimated = sum((1 / chance for chance in chances), 0.0)
    is_leak = counted.found >= LEAST and estimated >= SHARE * counted.of
    return dataclasses.replace(counted, estimated=estimated, verdict=LEAK if is_leak else TOO_FEW)


def _chance(one: Seen, other: Seen, shares: tuple[float, float]) -> float:
    """Returns the chance that another image is in the sample that one is in.

    Groups are chosen by a hash, of which a kind's share are taken, see `images.sampled`.
    """
    share = shares[other.label]
    return min(1.0, share / shares[one.label]) if one.group == other.group else share


def _across_splits(
    seen: Sequence[Seen], pairs: likeness.Pairs, shares: tuple[float, float]
) -> Iterator[Counted]:
    """Yields how many images outside of the training split are in another split as well."""
    splits = np.array([one.split for one in seen])
    if len(set(splits)) < 2:
        return
    chances: dict[int, float] = {}
    for ends in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        for one, other in (ends, ends[::-1]):
            if splits[one] not in ("train", splits[other]):
                chance = _chance(seen[one], seen[other], shares)
                chances[one] = max(chance, chances.get(one, 0.0))
    held = int((splits != "train").sum())
    advice = "keep them in one split: --group, or the column group of a manifest"
    counted = _counted("images that are in two splits", seen, sorted(chances), held, advice)
    yield _counted_of_pairs(counted, chances.values(), shares)


def _masks(seen: Sequence[Seen], masked: Sequence[int], groups: np.ndarray) -> Iterator[Counted]:
    if not masked:
        return
    shares = np.array([seen[place].mask.share for place in masked])
    empty = [place for place in masked if seen[place].mask.share == 0]
    full = [place for place in masked if seen[place].mask.share == 1]
    yield _counted(
        "masks that are empty", seen, empty, len(masked), "leave these fakes out, or mend the masks"
    )
    yield _counted(
        "masks that are full",
        seen,
        full,
        len(masked),
        "name whole fakes in a manifest, kind full",
    )
    partial = np.array([place for place in masked if 0 < seen[place].mask.share < 1], np.int64)
    if len(np.unique(groups[partial])) > 1:
        between = shares[(shares > 0) & (shares < 1)]
        mean = masks.mean_of_groups(between, groups[partial], FAILING, (0.0, 1.0))
        over = partial[between > 0.5].tolist()
        yield dataclasses.replace(
            _counted(
                "masks of more than half of an image",
                seen,
                over,
                len(partial),
                "see whether they are the wrong way round: --manipulated",
            ),
            examples=(),  # a large mask is no fault of one image
            verdict=LEAK if mean.lower > 0.5 else NONE,
        )
    reals = collections.defaultdict(list)
    for group, one in zip(groups.tolist(), seen, strict=True):
        if one.label == 0:
            reals[group].append(one)
    told = []
    for place in partial.tolist():
        elsewhere = _elsewhere(seen[place], reals[int(groups[place])])
        if elsewhere is not None:
            told.append((place, elsewhere))
    if told:
        wrong = [place for place, elsewhere in told if elsewhere]
        advice = "pair masks and images anew: most of what differs from the original is outside"
        yield _counted("masks of another image", seen, wrong, len(told), advice)


def _elsewhere(fake: Seen, reals: Sequence[Seen]) -> bool | None:
    """Returns whether a fake's mask is not where it differs from its original, if it has one."""
    for real in reals:
        if masks.is_original(fake.thumbnail, real.thumbnail):
            return masks.lies_elsewhere(fake.thumbnail, real.thumbnail, fake.mask)
    return None


def _unchanged(seen: Sequence[Seen], shares: tuple[float, float]) -> Counted:
    reals = collections.defaultdict(dict)  # by the digest, one of each group
    for one in seen:
        if one.label == 0:
            reals[one.digest].setdefault(one.group, one)
    chances, fakes = {}, 0
    for place, one in enumerate(seen):
        fakes += one.label
        if one.label and (same := reals.get(one.digest)):
            real = same.get(one.group) or next(iter(same.values()))
            chances[place] = _chance(one, real, shares)
    counted = _counted("fakes that are a real image", seen, list(chances), fakes, "leave them out")
    return _counted_of_pairs(counted, chances.values(), shares)


# ----- What else is to be known -------------------------------------------------------------------


def _notes(seen: Sequence[Seen], counts: dict[int, int]) -> tuple[str, ...]:
    notes = []
    of_label = collections.Counter(one.label for one in seen)
    if of_label.total() < sum(counts.values()):
        parts = [f"{of_label[k]} of {counts[k]} {kind}" for k, kind in enumerate(KINDS)]
        notes.append(f"a sample was looked at, {' and '.join(parts)} images: --limit 0 takes all")
    by_split = collections.defaultdict(set)
    for one in seen:
        by_split[one.split].add(one.label)
    for split, labels in by_split.items():
        if len(labels) == 1:
            notes.append(f"the {split} split has {KINDS[labels.pop()]} images alone")
    fakes = [one for one in seen if one.label == 1]
    bare = sum(one.mask is None and not one.is_whole for one in fakes)
    if bare:
        notes.append(f"{bare} of {len(fakes)} fakes have no mask, of which nothing is said")
    return tuple(notes)


def _mean_mask(seen: Sequence[Seen], masked: Sequence[int]) -> np.ndarray | None:
    if not masked:
        return None
    return np.mean([seen[place].mask.coverage for place in masked], axis=0) / 255
