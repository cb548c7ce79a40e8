"""Scoring a run on a dataset: measures, metrics, verdict, results."""

from wsdl_jax.evaluation.measures import TRIVIAL
from wsdl_jax.evaluation.network import make_localize_step, on_devices
from wsdl_jax.evaluation.scoring import (
    evaluate,
    evaluate_maps,
    everyday_robustness,
    exchanged,
    robustness,
)
from wsdl_jax.evaluation.tested_run import TestedRun, load, localized

__all__ = [
    "TRIVIAL",
    "TestedRun",
    "evaluate",
    "evaluate_maps",
    "everyday_robustness",
    "exchanged",
    "load",
    "localized",
    "make_localize_step",
    "on_devices",
    "robustness",
]
