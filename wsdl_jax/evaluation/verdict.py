"""From scores to a verdict: the scores of real images, and the threshold that follows from them.

A method's score ranks images; it does not say above which score an image is fake. The probability
0.5 is no such threshold for methods whose score is not calibrated: where the score is the mean of a
map, for example, an image with a small manipulated part stays below one half. So the share of real
images that may be called fake is chosen, and the threshold is the score that this share of the real
images of the validation split exceeds. Where it has to hold for compressed, scaled and otherwise
changed images too, they are scored after each of these changes, and the highest threshold is taken.
"""

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from wsdl_jax.runs import RunDirectory
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.storage import read_json, write_whole

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
    step, checksum = network
    facts = {"checkpoint": step, "weights": checksum, "real": dict(data), "split": "valid"}
    kept = {name: sorted(values) for name, values in scores.items()}
    facts["scores"] = kept.pop(CLEAN)
    if kept:
        facts["perturbed"] = kept
    write_whole(RunDirectory(run).real_scores, json.dumps(facts) + "\n")


def load(
    run: epath.Path, network: tuple[int, int | None], data: Mapping[str, str] | None = None
) -> dict[str, list[float]] | None:
    """Returns the scores that `save` has kept; None if there are none of this network and data.

    Args:
      run: the run directory.
      network: step and checksum of the checkpoint that is asked for.
      data: hashes of the real subsets; None accepts scores of any, where the data is not at hand.

    Raises:
      UserError: a file that cannot be read.
    """
    path = RunDirectory(run).real_scores
    if not path.exists():
        return None
    try:
        kept = read_json(path)
        named = {CLEAN: kept["scores"], **kept.get("perturbed", {})}
        scores = {name: [float(score) for score in values] for name, values in named.items()}
        same = (kept["checkpoint"], kept.get("weights")) == network
        same &= data is None or kept["real"] == dict(data)
        are_known = all(values and all(map(math.isfinite, values)) for values in scores.values())
        return scores if same and are_known else None
    except (UserError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, and evaluate") from error
