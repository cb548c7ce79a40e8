"""Figures of the parts of a test: the fakes of each set, generator and kind; the reals of each set.

Where a test is of one set, there are no figures of sets.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from wsdl_jax.evaluation import metrics
from wsdl_jax.evaluation.measures import ImageMeasures

# Of the images of a side, by which they belong to parts.
FACTS = {"fake": ("set", "generator", "kind"), "real": ("set",)}
_LOCALIZATION = (*metrics.LOCALIZATION, "manipulated_share", "iou_fitted")
_DETECTION = ("ap", "auc", "balanced_accuracy")
FIGURES = (*_LOCALIZATION, *_DETECTION, "above")  # of a part


@dataclasses.dataclass
class _Part:
    """The images of one part that have gone by."""

    means: metrics.Means = dataclasses.field(default_factory=lambda: metrics.Means(_LOCALIZATION))
    scores: list[float] = dataclasses.field(default_factory=list)
    probabilities: list[float] = dataclasses.field(default_factory=list)


class Parts:
    """Collects what is measured of the images of a side of a test, by what is known of them."""

    def __init__(self, side: str, facts: Sequence[str]):
        """Begins without images.

        Args:
          side: "fake" or "real".
          facts: names of what is known of images; those that are not of `FACTS` are left out.
        """
        self._side = side
        self.facts = tuple(fact for fact in FACTS[side] if fact in facts)
        self._parts: dict[str, dict[str, _Part]] = {fact: {} for fact in self.facts}

    def of(self, record: dict[str, Any]) -> tuple[str, ...]:
        """Returns what is known of an image, in the order of `facts`; "" where that is nothing."""
        return tuple(record.get(fact, b"").decode() for fact in self.facts)

    def add(self, known: Sequence[str], measured: ImageMeasures) -> None:
        """Counts an image in, of which something is known, as of `of`; "" is nothing."""
        for fact, value in zip(self.facts, known, strict=True):
            if not value:
                continue
            part = self._parts[fact].setdefault(value, _Part())
            part.scores.append(measured.score)
            part.probabilities.append(measured.probability)
            if measured.localization is not None:
                part.means.add(measured.localization.named())

    def figures(
        self,
        other_scores: Float[np.ndarray, " n"],
        other_probabilities: Float[np.ndarray, " n"],
        threshold: float | None,
    ) -> dict[str, dict[str, dict[str, int | float | None]]]:
        """Returns the figures of each part, times 100, by fact and value in alphabetical order.

        Args:
          other_scores: of all images of the other side, which each part is told from.
          other_probabilities: that these are fake.
          threshold: the score above which an image is called fake; None where it is not known.

        Returns:
          fact → value → `images`, their number, the figures of localization, None where no image
          has one, those of detection, and `above`, the share of images that are called fake.
        """
        found = {}
        for fact, parts in self._parts.items():
            found[fact] = {}
            for value, part in sorted(parts.items()):
                scores = np.array(part.scores)
                own = scores, np.array(part.probabilities)
                other = other_scores, other_probabilities
                real, fake = (other, own) if self._side == "fake" else (own, other)
                detection = metrics.detection(
                    real[0],
                    fake[0],
                    real_probabilities=real[1],
                    fake_probabilities=fake[1],
                )
                figures = part.means.means() | {name: detection[name] for name in _DETECTION}
                above = math.nan if threshold is None else float(np.mean(scores > threshold))
                found[fact][value] = {
                    "images": len(scores),
                    **metrics.percent(figures | {"above": above}),
                }
        return {fact: parts for fact, parts in found.items() if parts}
