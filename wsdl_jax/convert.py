"""Published PyTorch weights → networks of this project."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from wsdl_jax.models.attention import Attention
from wsdl_jax.models.fcn import FCN
from wsdl_jax.models.layers import BatchNorm, SeparableConv
from wsdl_jax.models.patches import Patches
from wsdl_jax.models.xception import Block, ImageClassifier, Top, Trunk

Names = Iterator[tuple[str, nnx.Variable]]


class _Dialect:
    """How one PyTorch code base names the pieces of Xception."""

    def __init__(self, prefix: str = "", depthwise: str = "conv1", shortcut_norm: str = "skipbn"):
        self.prefix, self.depthwise, self.shortcut_norm = prefix, depthwise, shortcut_norm

    def kernel(self, name: str, layer: nnx.Module) -> Names:
        yield f"{self.prefix}{name}.weight", layer.kernel
        if getattr(layer, "bias", None) is not None:
            yield f"{self.prefix}{name}.bias", layer.bias

    def separable(self, name: str, layer: SeparableConv) -> Names:
        yield f"{self.prefix}{name}.{self.depthwise}.weight", layer.kernel
        yield f"{self.prefix}{name}.pointwise.weight", layer.pointwise.kernel

    def norm(self, name: str, layer: BatchNorm) -> Names:
        yield f"{self.prefix}{name}.weight", layer.scale
        yield f"{self.prefix}{name}.bias", layer.bias
        yield f"{self.prefix}{name}.running_mean", layer.mean
        yield f"{self.prefix}{name}.running_var", layer.var

    def block(self, name: str, block: Block) -> Names:
        if block.shortcut is not None:
            yield from self.kernel(f"{name}.skip", block.shortcut)
            yield from self.norm(f"{name}.{self.shortcut_norm}", block.shortcut_norm)
        for index, (conv, norm) in enumerate(zip(block.convs, block.norms, strict=True)):
            # `rep` lists ReLU, convolution and BatchNorm in turn, without a first ReLU in block 1.
            place = 3 * index + block.leading_relu
            yield from self.separable(f"{name}.rep.{place}", conv)
            yield from self.norm(f"{name}.rep.{place + 1}", norm)

    def trunk(self, trunk: Trunk) -> Names:
        for index in (1, 2):
            yield from self.kernel(f"conv{index}", getattr(trunk, f"conv{index}"))
            yield from self.norm(f"bn{index}", getattr(trunk, f"norm{index}"))
        for index, block in enumerate(trunk.blocks, start=1):
            yield from self.block(f"block{index}", block)

    def top(self, top: Top, linear: str) -> Names:
        for index in (3, 4):
            yield from self.separable(f"conv{index}", getattr(top, f"conv{index}"))
            yield from self.norm(f"bn{index}", getattr(top, f"norm{index}"))
        yield from self.kernel(linear, top.linear)


def _names(model: nnx.Module) -> Names:
    """Pairs of a PyTorch name and the variable that holds its value here."""
    match model:
        case Patches():
            dialect = _Dialect()
            yield from dialect.trunk(model.trunk)
            yield from dialect.kernel("convout", model.classifier)
        case ImageClassifier():
            dialect = _Dialect()
            yield from dialect.trunk(model.trunk)
            yield from dialect.top(model.top, "fc")
        case Attention():
            dialect = _Dialect(depthwise="c", shortcut_norm="skip_bn")
            yield from dialect.trunk(model.trunk)
            yield from dialect.top(model.top, "last_linear")
            yield from dialect.separable("map.c", model.map)
        case FCN():
            yield from _Dialect("xcp_backbone.").trunk(model.trunk)
            head = _Dialect("head.")
            yield from head.kernel("0", model.conv)
            yield from head.norm("1", model.norm)
            yield from head.kernel("4", model.classifier)
        case _:
            raise TypeError(f"no PyTorch layout is known for {type(model).__name__}")


def _to_flax(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """OIHW kernels to HWIO, 1×1 kernels and linear layers to [inputs, outputs]."""
    if tensor.ndim == 4:
        tensor = tensor.transpose(2, 3, 1, 0)
        if len(shape) == 2 and tensor.shape[:2] == (1, 1):
            tensor = tensor[0, 0]
    elif tensor.ndim == 2:
        tensor = tensor.T
    if tensor.shape != shape:
        raise ValueError(f"{name}: has shape {tensor.shape} in this project's order, not {shape}")
    return tensor


def load_torch(model: Any, tensors: Mapping[str, np.ndarray]) -> None:
    """Sets the parameters and statistics of `model`, in place, from arrays by their PyTorch names.

    Raises ValueError that lists what is missing, or names what has another shape; the model is
    unchanged then. Tensors that the model has no place for are left alone.
    """
    pairs = list(_names(model))
    missing = [name for name, _ in pairs if name not in tensors]
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing: {', '.join(missing[:8])}")
    values = [_to_flax(name, np.asarray(tensors[name]), v.shape) for name, v in pairs]
    for (_, variable), value in zip(pairs, values, strict=True):
        variable[...] = value
