"""From a score to a verdict: real, fake, or unsure, with error rates that hold.

A method's score ranks images; it does not say above which score an image is fake. The probability
0.5 is no such threshold for methods whose score is not calibrated: where the score is the mean of a
map, for example, an image with a small manipulated part stays below one half. So the share of real
images that may be called fake is chosen, and what real images score decides: those of the
validation split, or a user's own. Where that has to hold for compressed, scaled and otherwise
changed images too, they are scored after each of these changes, and the strictest answer counts.

The test is split-conformal (Vovk et al., 2005): the p-value of an image is the share of the real
images, itself counted in, that score as high. If it is real, and like those images, its p-value is
at most α with a probability of at most α, whatever the distribution of scores. Known fakes are used
in the same way: an image is called real if few of them score as low. That promises something of
fakes like these alone; of others, and where no fakes are known, nothing is promised of how many are
called real.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from wsdl_jax.evaluation.likeness import Likeness

FALSE_POSITIVE_RATE = 0.05  # of real images, by default
CLEAN = "clean"  # images as they are
REAL, FAKE, UNSURE = "real", "fake", "unsure"
ANSWERS = (REAL, FAKE, UNSURE)
# Without known fakes, an image is called real if this share of the real ones scores as high.
_SURELY_REAL = 0.2
_SPLITS = 50  # of real images, by which it is measured how many are called fake

# Scores of the same real images, by what was done to them: `CLEAN`, and perturbations by name.
RealScores = Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is said of one image.

    Attributes:
      answer: "real", "fake" or "unsure".
      p_value: the share of real images, this one counted in, that score as high; None where it is
        not known what real images score.
      reason: why, in words.
    """

    answer: str
    p_value: float | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is known of a network's scores, on images of one kind, from which verdicts follow.

    Attributes:
      real: scores of real images, by what was done to these, in ascending order; not empty.
      fake: scores of known fakes, in ascending order; empty where none are known.
      likeness: of the images; None where it cannot be told which images are like them.
      source: what they are, in words: "the training images" for those of the validation split,
        which are like them.
      mode: how images were looked at, see `Localizer`.
      files: the SHA-256 of each image, where they are files of a user's.
    """

    real: Mapping[str, Sequence[float]]
    fake: Sequence[float] = ()
    likeness: Likeness | None = None
    source: str = "the training images"
    mode: str = "resize"
    files: tuple[str, ...] = ()

    @property
    def images(self) -> int:
        """Returns how many real images there are; of several changes, at the least."""
        return min(map(len, self.real.values()))

    def digest(self) -> str:
        """Returns a SHA-256 of all that verdicts follow from."""
        digest = hashlib.sha256()
        for name, scores in sorted(self.real.items()):
            digest.update(repr((name, tuple(scores))).encode())
        digest.update(repr(tuple(self.fake)).encode())
        if self.likeness is not None:
            known = self.likeness
            for array in (known.mean, known.spread, known.precision, *known.distances):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def p_value(self, score: float) -> float:
        """Returns the largest share, over all changes, of real images that score as high.

        The image itself is counted in, so that the least is 1 / (n + 1) of n images.
        """
        return max(_p_value(score, scores) for scores in self.real.values())

    def is_like(self, features: Float[np.ndarray, " d"] | None) -> bool:
        """Returns whether an image is like these, as far as that can be told.

        features: of the image, see `Method.embed`; None where they are not known.
        """
        return features is None or self.likeness is None or self.likeness.has(features)

    def judge(self, score: float, false_positive_rate: float = FALSE_POSITIVE_RATE) -> Verdict:
        """Returns the verdict on an image that is like these.

        It is "fake" if the p-value is at most the given rate. Else it is "real" if at most as large
        a share of the known fakes scores as low; where none are known, if a fifth of the real
        images scores as high.

        Args:
          score: of the image.
          false_positive_rate: the share of real images, in [0, 1), that may be called fake.
        """
        p_value = self.p_value(score)
        scores = max(self.real.values(), key=lambda of_change: _p_value(score, of_change))
        high = f"{_as_high(score, scores)} of {len(scores)} real images score as high"
        if _at_most(p_value, false_positive_rate):
            return Verdict(FAKE, p_value, high)
        if not self.fake:
            return Verdict(REAL if p_value >= _SURELY_REAL else UNSURE, p_value, high)
        low = int(np.searchsorted(self.fake, score, "right"))
        few = f"{low} of {len(self.fake)} known fakes score as low"
        if _at_most((1 + low) / (1 + len(self.fake)), false_positive_rate):
            return Verdict(REAL, p_value, few)
        return Verdict(UNSURE, p_value, f"{high}, and {few}")


def judge(
    calibrations: Sequence[Calibration],
    score: float,
    features: Float[np.ndarray, " d"] | None,
    false_positive_rate: float = FALSE_POSITIVE_RATE,
) -> Verdict:
    """Returns the verdict on an image, by all that is known of images like it.

    It is "unsure" for an image that is unlike all known ones, and where it would be called one
    thing by one kind of images that it is like, and another by another. The p-value is the largest
    of all of these. Of real images of a kind that stands alone, at most as many are called fake as
    may be. Beside another kind, those can be more that are unlike their own, a share of
    `likeness.LEVEL` or of one in half as many as there are, and like the other.

    Args:
      calibrations: of images of one kind each; at least one.
      score: of the image.
      features: of the image, see `Calibration.is_like`.
      false_positive_rate: the share of real images, in [0, 1), that may be called fake.
    """
    alike = [known for known in calibrations if known.is_like(features)]
    if not alike:
        return unlike(calibrations, score)
    found = [known.judge(score, false_positive_rate) for known in alike]
    least_strange = max(found, key=lambda one: one.p_value)
    if len({one.answer for one in found}) == 1:
        return least_strange
    said = (f"{one.answer} by {of.source}" for one, of in zip(found, alike, strict=True))
    return Verdict(UNSURE, least_strange.p_value, ", ".join(said))


def unlike(calibrations: Sequence[Calibration], score: float) -> Verdict:
    """Returns the verdict on an image that is unlike all that is known."""
    p_value = max(known.p_value(score) for known in calibrations)
    return Verdict(UNSURE, p_value, f"unlike {' and '.join(of.source for of in calibrations)}")


def _as_high(score: float, scores: Sequence[float]) -> int:
    return len(scores) - int(np.searchsorted(scores, score, "left"))


def _p_value(score: float, scores: Sequence[float]) -> float:
    return (1 + _as_high(score, scores)) / (1 + len(scores))


def _at_most(share: float, rate: float) -> bool:
    return share <= rate + 1e-9  # a share like 0.29 of 100 must be 29


def pooled_rate(scores: Float[np.ndarray, " n"], rate: float) -> float | None:
    """Returns the share of real images that are called fake by others, over 50 random splits.

    One half is what the other half is tested against, so that as many images are tested in the
    end as 25 times those that there are: the share scatters less than that of one split.

    Args:
      scores: of real images.
      rate: the false-positive rate that is promised.

    Returns:
      The share, which is at most `rate` but for chance; None of fewer than two images.
    """
    if len(scores) < 2:
        return None
    rng = np.random.default_rng(0)
    called = []
    for _ in range(_SPLITS):
        known, tested = np.array_split(rng.permutation(scores), 2)
        as_high = len(known) - np.searchsorted(np.sort(known), tested, "left")
        called.append((1 + as_high) / (1 + len(known)) <= rate + 1e-9)
    return float(np.mean(np.concatenate(called)))


# ----- The threshold of figures -------------------------------------------------------------------


def threshold(real_scores: RealScores, false_positive_rate: float) -> float:
    """Returns the score that at most a share of real images exceeds, which figures are given at.

    Args:
      real_scores: scores of real images.
      false_positive_rate: the share of real images that may be called fake, in [0, 1), however they
        have been changed.

    Returns:
      The lowest of `real_scores` that at most the given share of the scores of each kind exceeds.

    Raises:
      ValueError: a share outside [0, 1) or no scores.
    """
    if not 0 <= false_positive_rate < 1:
        raise ValueError(f"false-positive rate {false_positive_rate}, not in [0, 1)")
    if not real_scores or not all(map(len, real_scores.values())):
        raise ValueError("no scores of real images")
    return max(_exceeded_by(scores, false_positive_rate) for scores in real_scores.values())


def _exceeded_by(scores: Sequence[float], share: float) -> float:
    """Returns the lowest of some scores that at most a share of them exceeds."""
    # A share like 0.29 of 100 must be 29, though floating point has 28.999…
    above = math.floor(share * len(scores) + 1e-9)
    return float(np.sort(scores)[::-1][above])
