"""Figures of the parts of a test: the fakes of each generator, and those of each kind."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from wsdl_jax.evaluation import metrics
from wsdl_jax.evaluation.measures import ImageMeasures

FACTS = ("generator", "kind")  # of a fake, by which it belongs to parts
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
    """Collects what is measured of the fakes of a test, by what is known of them."""

    def __init__(self, facts: Sequence[str]):
        """Begins without images.

        facts: names of what is known of each image; those that are not of `FACTS` are left out.
        """
        self.facts = tuple(fact for fact in FACTS if fact in facts)
        self._parts: dict[str, dict[str, _Part]] = {fact: {} for fact in self.facts}

    def of(self, record: dict[str, Any]) -> tuple[str, ...]:
        """Returns what is known of an image, in the order of `facts`."""
        return tuple(record[fact].decode() for fact in self.facts)

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
        real_scores: Float[np.ndarray, " n"],
        real_probabilities: Float[np.ndarray, " n"],
        threshold: float | None,
    ) -> dict[str, dict[str, dict[str, int | float | None]]]:
        """Returns the figures of each part, times 100, by fact and value in alphabetical order.

        Args:
          real_scores: of all real images, against which each part is told.
          real_probabilities: that these are fake.
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
                detection = metrics.detection(
                    real_scores,
                    scores,
                    real_probabilities=real_probabilities,
                    fake_probabilities=np.array(part.probabilities),
                )
                figures = part.means.means() | {name: detection[name] for name in _DETECTION}
                above = math.nan if threshold is None else float(np.mean(scores > threshold))
                found[fact][value] = {
                    "images": len(scores),
                    **metrics.percent(figures | {"above": above}),
                }
        return {fact: parts for fact, parts in found.items() if parts}
