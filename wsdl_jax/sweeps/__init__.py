"""Sweeps: lists of runs, how they are started, and the tables of their results."""
