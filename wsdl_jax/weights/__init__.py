"""Published weights in and out: layouts, tensors, files, and run directories of them."""

from wsdl_jax.weights.files import read, write
from wsdl_jax.weights.pretrained import start
from wsdl_jax.weights.published_run import make_run
from wsdl_jax.weights.tensors import (
    WeightsError,
    detect,
    from_torch,
    layout_of,
    to_torch,
    torch_names,
)

__all__ = [
    "WeightsError",
    "detect",
    "from_torch",
    "layout_of",
    "make_run",
    "read",
    "start",
    "to_torch",
    "torch_names",
    "write",
]
