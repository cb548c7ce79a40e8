"""Runs and their results: tables, curves, a gallery of test images, on one page."""
