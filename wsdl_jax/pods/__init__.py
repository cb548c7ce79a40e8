"""A step compiled for a pod that is not here: its cost, and a report of it."""
