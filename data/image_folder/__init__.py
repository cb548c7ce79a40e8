"""Datasets of images of a user's own."""
