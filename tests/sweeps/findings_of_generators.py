"""Findings of made-up runs, and published figures beside them."""

import numpy as np

from wsdl_jax.sweeps import findings
from wsdl_jax.sweeps.findings import Finding, Published

GENERATORS = ("ldm", "lama", "pluralistic")


def results(iou: float, **figures: float | None) -> dict[str, float | None]:
    return {**dict.fromkeys(findings.FIGURES, 50.0), "iou_lg": iou, **figures}


def subset(generator: str) -> str:
    return f"dolos/celebahq_{generator}"


def grid(seeds: int = 2, group: str = "one") -> tuple[list[Finding], np.ndarray]:
    """Findings of every generator × every generator, and their IoU, [seed, tested, trained]."""
    iou = np.random.default_rng(0).uniform(0, 100, (seeds, len(GENERATORS), len(GENERATORS)))
    findings = [
        Finding(group, train, seed, (subset(train),), subset(test), results(iou[seed, i, j]))
        for seed in range(seeds)
        for j, train in enumerate(GENERATORS)
        for i, test in enumerate(GENERATORS)
    ]
    return findings, iou


PUBLISHED = [
    Published("Other", "iou_lg", subset(train), subset(test), 10.0 * i + j, "a paper")
    for i, test in enumerate(GENERATORS)
    for j, train in enumerate(GENERATORS)
] + [
    Published("Means", "iou_lg", "each", "in-domain", 69.3, "another"),
    Published("Means", "iou_lg", "each", "out-of-domain", 20.4, "another"),
]
