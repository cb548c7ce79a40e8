"""Published weights in and out: layouts, tensors, files, and a backbone's among them."""

from wsdl_jax.weights.files import read, write
from wsdl_jax.weights.located import MissingFileError, fill_backbone, with_digest
from wsdl_jax.weights.networks import from_torch
from wsdl_jax.weights.tensors import (
    WeightsError,
    detect,
    layout_of,
    to_torch,
    torch_names,
)

__all__ = [
    "MissingFileError",
    "WeightsError",
    "detect",
    "fill_backbone",
    "from_torch",
    "layout_of",
    "read",
    "to_torch",
    "torch_names",
    "with_digest",
    "write",
]
