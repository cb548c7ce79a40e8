"""Rendered portraits, forged by diffusion models and other generators."""
