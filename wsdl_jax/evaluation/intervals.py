"""How far figures would move with other test images: bootstrap intervals, and paired tests.

Images are drawn anew from those that were tested, with replacement, fakes from fakes and reals from
reals. Where images come in groups, such as a photograph and all that was made of it, whole groups
are drawn, since what one image of a group shows its others show as well; and where images of
several sets have the same key, all images of a key.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from wsdl_jax.evaluation import metrics

LEVEL = 0.95  # of all intervals
RESAMPLES = 2000
LOCALIZATION = (*metrics.LOCALIZATION, "iou_fitted")  # figures that have intervals
DETECTION = ("ap", "auc", "balanced_accuracy", "image_f1")  # likewise
_BATCH = 50  # resamples at a time, at most
_IMAGES = 2**20  # that these have together, at most, or one resample alone
_SEED = 0
KINDS = ("image", "key", "group")  # of units


@dataclasses.dataclass(frozen=True)
class Interval:
    """A percentile interval of a figure, in the figure's own unit.

    Attributes:
      low: the end below which 2.5% of resamples are.
      high: the end above which 2.5% are.
    """

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much larger a figure of one run is than another's on the same images.

    Attributes:
      value: the difference, in the figure's own unit.
      interval: its bootstrap interval; both runs are measured on the same resamples.
      p_value: the probability of a difference as large in either direction, if there were none.
    """

    value: float
    interval: Interval
    p_value: float


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a run has found in the images of one side.

    Attributes:
      scores: the scores, one an image.
      called: whether the probability of being fake is above one half.
    """

    scores: Float[np.ndarray, " n"]
    called: Bool[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Name:
    """What tells which images of a side are drawn together.

    Attributes:
      group: the name of the image's group; "" without one.
      subset: the name of the set that the group is of; "" where the side is of one set.
      key: of the image, which other sets may have as well; "" where the side is of one set.
    """

    group: str = ""
    subset: str = ""
    key: str = ""


@dataclasses.dataclass(frozen=True)
class Units:
    """What the images of a side are drawn by.

    Attributes:
      numbers: for each image the number of the unit that it is drawn with.
      kind: what units are, one of `KINDS`.
    """

    numbers: Integer[np.ndarray, " n"]
    kind: str


def units_of(names: Sequence[Name]) -> Units:
    """Returns what images are drawn by.

    The images of a group are a unit. A group belongs to its set: another's of the same name is
    another group. Of images without groups those of one key are a unit, as several sets have them
    that were made of the same photographs; an image without either is a unit of its own.
    """
    units = [
        ("group", name.subset, name.group)
        if name.group
        else ("key", name.key)
        if name.key
        else ("image", number)
        for number, name in enumerate(names)
    ]
    places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    kind = "image"
    if any(name.group for name in names):
        kind = "group"
    elif len(places) < len(units):
        kind = "key"
    return Units(np.array([places[unit] for unit in units], int), kind)


def of_means(
    values: Mapping[str, Float[np.ndarray, " n"]], units: Integer[np.ndarray, " n"]
) -> dict[str, Interval | None]:
    """Returns the intervals of the means over images of several figures.

    Args:
      values: by the names of the figures their values, one an image, NaN for an image without.
      units: the numbers of `units_of`.

    Returns:
      By the names of the figures their intervals; None for one that less than two units have.
    """
    sums, counts = _by_unit(np.array([*values.values()]), units)
    known = (counts > 0).sum(1) > 1
    found: dict[str, Interval | None] = dict.fromkeys(values)
    if not known.any():
        return found

    def means(drawn: Integer[np.ndarray, "*b units"]) -> Float[np.ndarray, "k *b"]:
        times = _times(drawn)
        totals, of = times @ sums[known].T, times @ counts[known].T
        # A resample can miss all of the few images that have a figure, and then has none.
        return np.divide(totals, of, where=of > 0, out=np.full_like(totals, np.nan)).T

    ends = _interval(_resampled(means, units))
    names = [name for name, is_known in zip(values, known, strict=True) if is_known]
    return found | dict(zip(names, ends, strict=True))


def of_detection(
    real: Scored,
    fake: Scored,
    real_units: Integer[np.ndarray, " n"],
    fake_units: Integer[np.ndarray, " m"],
) -> dict[str, Interval | None]:
    """Returns the intervals of the figures `DETECTION`, which are drawn a side each.

    For `ap` both sides weigh alike in each resample, instead of a part of the larger side.

    Args:
      real: the real images.
      fake: the fake ones.
      real_units: the numbers of `units_of`, of the real images.
      fake_units: of the fake ones.

    Returns:
      By the names of the figures their intervals; None where a side has less than two units.
    """
    if min(len(np.unique(units)) for units in (real_units, fake_units)) < 2:
        return dict.fromkeys(DETECTION)
    measured = _Detection(real, fake)

    def figures(
        reals: Integer[np.ndarray, "*b u"], fakes: Integer[np.ndarray, "*b v"]
    ) -> Float[np.ndarray, "k *b"]:
        return measured.weighted(_times(reals)[..., real_units], _times(fakes)[..., fake_units])

    ends = _interval(_resampled(figures, real_units, fake_units))
    return dict(zip(DETECTION, ends, strict=True))


def difference_of_means(
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " n"],
    units: Integer[np.ndarray, " n"],
) -> Difference | None:
    """Returns by how much the mean of a figure is larger in the first run than in the second.

    The p-value is of a permutation test: which run an image's value is of is drawn at random, for
    all images of a unit alike, 1,999 times. It is (1 + as large ones) / 2,000.

    Args:
      first: values of the images, NaN for an image without.
      second: those of the same images by the other run; images that one has none of are left out.
      units: the numbers of `units_of`.

    Returns:
      The difference; None where less than two units have values.
    """
    values = first - second
    of = of_means({"difference": values}, units)["difference"]
    if of is None:
        return None
    (sums,), _ = _by_unit(values[None], units)
    # Of SciPy, permutation_test has the same and takes thirty times as long for 8,500 images.
    rng = np.random.default_rng(_SEED)
    signs = (rng.choice([-1.0, 1.0], len(sums)) for _ in range(RESAMPLES - 1))
    least = abs(sums.sum()) * (1 - 1e-9)  # what is as large but for rounding counts
    larger = sum(abs(sign @ sums) >= least for sign in signs)
    return Difference(float(np.nanmean(values)), of, float(1 + larger) / RESAMPLES)


def differences_of_detection(
    first: tuple[Scored, Scored],
    second: tuple[Scored, Scored],
    real_units: Integer[np.ndarray, " n"],
    fake_units: Integer[np.ndarray, " m"],
) -> dict[str, Difference | None]:
    """Returns by how much figures of detection are larger in the first run than in the second.

    The p-value is twice the share of resamples whose difference has the other sign, or none, since
    scores of two runs are not on one scale and cannot be exchanged.

    Args:
      first: what a run has found in the real and in the fake images.
      second: what the other one has found in the same images.
      real_units: the numbers of `units_of`, of the real images.
      fake_units: of the fake ones.

    Returns:
      By the names of `DETECTION` the differences; None where a side has less than two units. `ap`
      is that of `of_detection`.
    """
    if min(len(np.unique(units)) for units in (real_units, fake_units)) < 2:
        return dict.fromkeys(DETECTION)
    measured = [_Detection(*sides) for sides in (first, second)]

    def differences(
        reals: Integer[np.ndarray, "*b u"], fakes: Integer[np.ndarray, "*b v"]
    ) -> Float[np.ndarray, "k *b"]:
        weights = _times(reals)[..., real_units], _times(fakes)[..., fake_units]
        one, other = (of.weighted(*weights) for of in measured)
        return one - other

    resampled = _resampled(differences, real_units, fake_units)
    plain = np.ones(len(real_units)), np.ones(len(fake_units))
    values = measured[0].weighted(*plain) - measured[1].weighted(*plain)
    sides = np.minimum((resampled <= 0).mean(1), (resampled >= 0).mean(1))
    p_values = np.clip(2 * sides, 1 / RESAMPLES, 1)
    rows = zip(values.tolist(), _interval(resampled), p_values.tolist(), strict=True)
    return dict(zip(DETECTION, (Difference(*row) for row in rows), strict=True))


class _Detection:
    """The figures of detection as functions of how often each image counts."""

    def __init__(self, real: Scored, fake: Scored):
        self._orders = tuple(np.argsort(side.scores, kind="stable") for side in (real, fake))
        real_sorted, fake_sorted = (
            side.scores[order] for side, order in zip((real, fake), self._orders, strict=True)
        )
        self._below = np.searchsorted(real_sorted, fake_sorted)  # reals below each fake's score
        self._not_above = np.searchsorted(real_sorted, fake_sorted, "right")
        self._fakes_below = np.searchsorted(fake_sorted, fake_sorted)
        self._called = real.called, fake.called

    def weighted(
        self, real_weights: Float[np.ndarray, "*b n"], fake_weights: Float[np.ndarray, "*b m"]
    ) -> Float[np.ndarray, "k *b"]:
        """Returns `DETECTION` where each image counts as often as its weight says."""
        real_called, fake_called = (
            (weights * called).sum(-1)
            for weights, called in zip((real_weights, fake_weights), self._called, strict=True)
        )
        reals, fakes = real_weights.sum(-1), fake_weights.sum(-1)
        recalls = 1 - real_called / reals, fake_called / fakes
        image_f1 = 2 * fake_called / (fake_called + real_called + fakes)

        of_real, of_fake = (
            np.take(weights, order, -1)
            for weights, order in zip((real_weights, fake_weights), self._orders, strict=True)
        )
        lower_reals, lower_fakes = (_cumulated(weights) for weights in (of_real, of_fake))
        below, not_above = (lower_reals[..., at] for at in (self._below, self._not_above))
        wins = (of_fake * (below + not_above) / 2).sum(-1)
        hit_rate = 1 - lower_fakes[..., self._fakes_below] / fakes[..., None]
        false_rate = 1 - below / reals[..., None]
        called = hit_rate + false_rate
        # Above the highest fake that counts there can be none of either.
        precision = np.divide(hit_rate, called, where=called > 0, out=np.zeros_like(called))
        ap = (of_fake * precision).sum(-1) / fakes
        return np.stack([ap, wins / (reals * fakes), np.mean(recalls, axis=0), image_f1])


def _cumulated(weights: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b n+1"]:
    """Returns the sums of the first 0, 1, … n weights."""
    return np.concatenate([np.zeros_like(weights[..., :1]), weights.cumsum(-1)], -1)


def _by_unit(
    values: Float[np.ndarray, "k n"], units: Integer[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "k u"], Float[np.ndarray, "k u"]]:
    """Returns the sums of what is known in each unit, and of how many images it is known."""
    known = ~np.isnan(values)
    sums, counts = (
        np.stack([np.bincount(units, row, units.max() + 1) for row in rows])
        for rows in (np.where(known, values, 0), known.astype(float))
    )
    return sums, counts


def _resampled(
    statistic: Callable[..., Float[np.ndarray, "k *b"]], *units: Integer[np.ndarray, " _"]
) -> Float[np.ndarray, "k r"]:
    """Returns a statistic of resamples.

    statistic: takes the numbers of the units drawn, an array [..., units] for each of `units`.
    units: of each side the numbers of `units_of`.
    """
    # Imported here, since it takes a second, which a command that starts to train is spared.
    from scipy import stats

    found = stats.bootstrap(
        [np.arange(numbers.max() + 1) for numbers in units],
        lambda *drawn, axis: statistic(*drawn),  # the last one, as `vectorized` asks for
        n_resamples=RESAMPLES,
        batch=max(1, min(_BATCH, _IMAGES // sum(map(len, units)))),
        vectorized=True,
        method="percentile",
        confidence_level=LEVEL,
        rng=np.random.default_rng(_SEED),
    )
    return found.bootstrap_distribution


def _interval(resampled: Float[np.ndarray, "k r"]) -> list[Interval]:
    """Returns the percentile interval of each statistic."""
    tail = (1 - LEVEL) / 2
    ends = np.nanquantile(resampled, [tail, 1 - tail], axis=-1)
    return [Interval(low, high) for low, high in ends.T.tolist()]


def _times(drawn: Integer[np.ndarray, "*b u"]) -> Float[np.ndarray, "*b u"]:
    """Returns how often each unit was drawn."""
    count = drawn.shape[-1]
    rows = drawn.reshape(-1, count)
    numbers = rows + count * np.arange(len(rows))[:, None]
    return np.bincount(numbers.ravel(), minlength=rows.size).reshape(drawn.shape).astype(float)
