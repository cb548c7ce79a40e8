"""A step compiled for a pod that is not here: its cost, the largest batch, a report."""
