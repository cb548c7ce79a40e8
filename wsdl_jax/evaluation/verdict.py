"""From scores to a verdict: what real images score, and the threshold that follows from it.

A method's score ranks images; where "fake" begins is another question. The probability 0.5 is no
answer for methods whose score is not calibrated: by the mean of a map, for one, an image with a
small manipulated part stays under one half. So the share of real images that may be called fake is
chosen, and the threshold is the score that real images of the validation split exceed that often.
"""

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.storage import read_json, write_whole

FALSE_POSITIVE_RATE = 0.05  # of real images, by default
_FILE = "real_scores.json"  # in a run directory


def threshold(real_scores: Sequence[float], false_positive_rate: float) -> float:
    """The score above which (strictly) an image is called fake.

    It is the least one of `real_scores` that at most the given share of them exceeds.

    Raises ValueError for a share outside [0, 1) or no scores.
    """
    if not 0 <= false_positive_rate < 1:
        raise ValueError(f"false-positive rate {false_positive_rate}, not in [0, 1)")
    if not len(real_scores):
        raise ValueError("no scores of real images")
    # A share like 0.29 of 100 must be 29, though floating point has 28.999…
    above = math.floor(false_positive_rate * len(real_scores) + 1e-9)
    return float(np.sort(real_scores)[::-1][above])


def save(
    run: epath.Path,
    network: tuple[int, int | None],
    data: Mapping[str, str],
    scores: Sequence[float],
) -> None:
    """Keeps in a run directory what the real images of its validation split score.

    Args:
      run: the run directory.
      network: step and checksum of the checkpoint whose network gave the scores.
      data: hashes of the real subsets by their names, see wsdl_data.provenance.
      scores: of their validation images.
    """
    step, checksum = network
    facts = {"checkpoint": step, "weights": checksum, "real": dict(data), "split": "valid"}
    write_whole(run / _FILE, json.dumps({**facts, "scores": sorted(scores)}) + "\n")


def load(
    run: epath.Path, network: tuple[int, int | None], data: Mapping[str, str] | None = None
) -> list[float] | None:
    """What `save` has kept; None if there is nothing, or of another network or other data.

    Args:
      run: the run directory.
      network: step and checksum of the checkpoint that is asked for.
      data: hashes of the real subsets; None where they are not at hand: then they may be any.

    Raises UserError for a file that cannot be read.
    """
    path = run / _FILE
    if not path.exists():
        return None
    try:
        kept = read_json(path)
        scores = [float(score) for score in kept["scores"]]
        same = (kept["checkpoint"], kept.get("weights")) == network
        same &= data is None or kept["real"] == dict(data)
        return scores if same and scores and all(map(math.isfinite, scores)) else None
    except (UserError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, and evaluate") from error
