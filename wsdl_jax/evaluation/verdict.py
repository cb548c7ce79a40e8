"""From scores to a verdict: the scores of real images, and the threshold that follows from them.

A method's score ranks images; it does not say above which score an image is fake. The probability
0.5 is no such threshold for methods whose score is not calibrated: where the score is the mean of a
map, for example, an image with a small manipulated part stays below one half. So the share of real
images that may be called fake is chosen, and the threshold is the score that this share of the real
images of the validation split exceeds. Where it has to hold for compressed, scaled and otherwise
changed images too, they are scored after each of these changes, and the highest threshold is taken.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from wsdl_jax.evaluation import kept
from wsdl_jax.runs import RunDirectory

FALSE_POSITIVE_RATE = 0.05  # of real images, by default
CLEAN = "clean"  # images as they are

# Scores of the same real images, by what was done to them: `CLEAN`, and perturbations by name.
RealScores = Mapping[str, Sequence[float]]


def threshold(real_scores: RealScores, false_positive_rate: float) -> float:
    """Returns the score strictly above which an image is called fake.

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


def save(
    run: epath.Path,
    network: tuple[int, int | None],
    data: Mapping[str, str],
    scores: RealScores,
) -> None:
    """Keeps the scores of the real images of the validation split in a run directory.

    Args:
      run: the run directory.
      network: step and checksum of the checkpoint whose network gave the scores.
      data: hashes of the real subsets by their names, see wsdl_data.provenance.
      scores: the scores of their validation images.
    """
    named = {name: sorted(values) for name, values in scores.items()}
    content = {"scores": named.pop(CLEAN), **({"perturbed": named} if named else {})}
    kept.save(RunDirectory(run).real_scores, network, "real", data, content)


def load(
    run: epath.Path,
    network: tuple[int, int | None],
    data: Mapping[str, str] | None = None,
    kinds: Collection[str] | None = None,
) -> dict[str, list[float]] | None:
    """Returns the scores that `save` has kept; None if there are none of this network and data.

    Args:
      run: the run directory.
      network: step and checksum of the checkpoint that is asked for.
      data: hashes of the real subsets; None accepts scores of any, where the data is not at hand.
      kinds: what was to be done to the images, `CLEAN` and perturbations; None accepts any.

    Raises:
      UserError: a file that cannot be read.
    """
    scores = kept.load(RunDirectory(run).real_scores, network, "real", data, _parsed)
    if scores is None or not all(scores.values()):
        return None
    if kinds is not None and scores.keys() != set(kinds):
        return None
    return scores if all(map(math.isfinite, itertools.chain(*scores.values()))) else None


def _parsed(stored: Mapping[str, Any]) -> dict[str, list[float]]:
    named = {CLEAN: stored["scores"], **stored.get("perturbed", {})}
    return {name: [float(score) for score in values] for name, values in named.items()}
