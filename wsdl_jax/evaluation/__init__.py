"""Scoring a run on a dataset: measures, metrics, verdict, results."""
