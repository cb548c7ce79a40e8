"""Dolos, read from the folder that its authors distribute."""
