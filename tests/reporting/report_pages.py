"""What the tests of reports read back of runs and pages, and test images that never were."""

import csv
import html.parser
from pathlib import Path
from typing import Any

import numpy as np


def table_rows(run: Path) -> list[dict[str, str]]:
    """The rows of a run's predictions.csv."""
    with (run / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


class Cards(html.parser.HTMLParser):
    """The cards of a page: attributes, and the files and texts in them."""

    def __init__(self, text: str):
        super().__init__()
        self.cards: list[dict[str, Any]] = []
        self.scripts = 0
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.scripts += tag == "script"
        if tag == "article":
            self._inside = True
            self.cards.append({**attributes, "images": [], "text": ""})
        elif tag == "img" and self._inside:
            self.cards[-1]["images"].append((attributes["alt"], attributes["src"]))

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "article"

    def handle_data(self, data):
        if self._inside:
            self.cards[-1]["text"] += data


def scored_images(count: int, seed: int) -> dict[str, list[Any]]:
    """Test images with random scores and, of fakes, shares and IoUs: `count` of either side."""
    from wsdl_jax.reporting.evaluated_runs import ScoredImage

    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, 2 * count) / 12 + np.repeat([0, 0.2], count)  # with ties
    return {
        "real": [ScoredImage(k, f"r{k}", float(scores[k]), None, None) for k in range(count)],
        "fake": [
            ScoredImage(k, f"f{k}", float(scores[count + k]), float(rng.random()), rng.random())
            for k in range(count)
        ],
    }
