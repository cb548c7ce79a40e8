"""How PyTorch code bases name the tensors of Xception and of the networks on it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from wsdl_jax.models.backbone import Backbone
from wsdl_jax.models.layers import BatchNorm, Pointwise, SeparableConv
from wsdl_jax.models.xception import Block, Top, Trunk


class Place(NamedTuple):
    """Where a tensor goes.

    Attributes:
      name: its name in PyTorch.
      variable: the variable here.
      pointwise: whether the variable is a matrix here, and a 1×1 kernel in PyTorch.
      kept: whether the tensor's axes stay as they are, and a matrix is not transposed.
      ones: how many axes of length 1 the tensor has before the variable's own.
      third: of a tensor in which those of queries, keys and values lie one after the other along
        its first axis: which of them it is, 0 to 2.
    """

    name: str
    variable: nnx.Variable
    pointwise: bool = False
    kept: bool = False
    ones: int = 0
    third: int | None = None

    def torch_shape(self) -> tuple[int, ...]:
        """Returns the shape that the tensor has in PyTorch."""
        first, *others = self.to_torch(np.empty(self.variable.shape, np.uint8)).shape
        return (first if self.third is None else 3 * first, *others)

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        """Returns a value with PyTorch's axes; of a third, what stands for it in the tensor.

        Kernels HWIO become OIHW; matrices [inputs, outputs] are transposed, with two more axes if
        the tensor is a 1×1 kernel in PyTorch.
        """
        if self.kept:
            return value[(None,) * self.ones]
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif value.ndim == 2:
            value = value.T
        return value[:, :, None, None] if self.pointwise else value

    def fits(self, tensor: np.ndarray) -> bool:
        """Returns whether a tensor of PyTorch has the shape of the variable."""
        shape = self.torch_shape()
        # Older files have 1×1 kernels without their two last axes.
        return tensor.shape == shape or (self.pointwise and tensor.shape == shape[:2])

    def from_torch(self, tensor: np.ndarray) -> np.ndarray:
        """Returns a tensor of PyTorch, float32, with the axes of the variable."""
        if self.third is not None:
            tensor = np.split(tensor, 3)[self.third]
        if self.kept:
            tensor = tensor.reshape(self.variable.shape)
        elif tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0].T if self.pointwise else tensor.transpose(2, 3, 1, 0)
        elif tensor.ndim == 2:
            tensor = tensor.T
        return tensor.astype(np.float32)


class Dialect:
    """How one PyTorch code base names the pieces of Xception.

    Every method lists the variables of a piece, each with its name in PyTorch.
    """

    def __init__(self, prefix: str = "", depthwise: str = "conv1", shortcut_norm: str = "skipbn"):
        self.prefix, self.depthwise, self.shortcut_norm = prefix, depthwise, shortcut_norm

    def kernel(self, name: str, layer: nnx.Module) -> Iterator[Place]:
        """Lists the kernel of a convolution or a linear layer, and its bias if it has one."""
        yield Place(f"{self.prefix}{name}.weight", layer.kernel, isinstance(layer, Pointwise))
        if getattr(layer, "bias", None) is not None:
            yield Place(f"{self.prefix}{name}.bias", layer.bias)

    def separable(self, name: str, layer: SeparableConv) -> Iterator[Place]:
        """Lists the two kernels of a depthwise-separable convolution."""
        yield Place(f"{self.prefix}{name}.{self.depthwise}.weight", layer.kernel)
        yield from self.kernel(f"{name}.pointwise", layer.pointwise)

    def norm(self, name: str, layer: BatchNorm) -> Iterator[Place]:
        """Lists the parameters and statistics of a batch normalization."""
        yield Place(f"{self.prefix}{name}.weight", layer.scale)
        yield Place(f"{self.prefix}{name}.bias", layer.bias)
        yield Place(f"{self.prefix}{name}.running_mean", layer.mean)
        yield Place(f"{self.prefix}{name}.running_var", layer.var)

    def block(self, name: str, block: Block) -> Iterator[Place]:
        """Lists the variables of a block of Xception."""
        if block.shortcut is not None:
            yield from self.kernel(f"{name}.skip", block.shortcut)
            yield from self.norm(f"{name}.{self.shortcut_norm}", block.shortcut_norm)
        for index, (conv, norm) in enumerate(zip(block.convs, block.norms, strict=True)):
            # `rep` lists ReLU, convolution and BatchNorm in turn, without a first ReLU in block 1.
            place = 3 * index + block.leading_relu
            yield from self.separable(f"{name}.rep.{place}", conv)
            yield from self.norm(f"{name}.rep.{place + 1}", norm)

    def trunk(self, trunk: Trunk) -> Iterator[Place]:
        """Lists the variables of the stem and of all blocks that a trunk has."""
        for index in (1, 2):
            yield from self.kernel(f"conv{index}", getattr(trunk, f"conv{index}"))
            yield from self.norm(f"bn{index}", getattr(trunk, f"norm{index}"))
        for index, block in enumerate(trunk.blocks, start=1):
            yield from self.block(f"block{index}", block)

    def top(self, top: Top) -> Iterator[Place]:
        """Lists the variables between the last block and the linear layer."""
        for index in (3, 4):
            yield from self.separable(f"conv{index}", getattr(top, f"conv{index}"))
            yield from self.norm(f"bn{index}", getattr(top, f"norm{index}"))


def _none(model: nnx.Module) -> Iterator[Place]:
    yield from ()


@dataclasses.dataclass(frozen=True)
class Layout:
    """A published PyTorch layout of a network.

    Attributes:
      name: by which users ask for it.
      network: the class of the network here, built from `width`, `rngs` and, if it is cut, `depth`.
      places: lists every parameter and statistic of a network.
      sign: the name of a tensor that no other layout has.
      setups: those that a network of this layout can have been trained in, the usual one first.
      resize: Pillow's filter by which the published recipe resizes images, by supervision.
      is_cut: whether the network ends after a block of Xception that the tensors tell.
      unused: lists what a published file has and the network here has not.
      backbone: the class of the backbone that a network of this layout has.
      arguments: what the network is built from, as the tensors tell, beside `width` and `depth`; it
        raises ValueError for tensors of no network.
      suits: whether a network of that class and backbone is one of this layout.
      needs: the backbones that such a network has, as an error says it.
      others: what the names of tensors begin with that may be of other networks; "": none are.
      is_frozen: whether all backbones of a network stay as they are when it is trained.
      head: the name of a last layer that may be of other classes, in files of networks that were
        pretrained for another task; None where there is no such layer.
    """

    name: str
    network: type[nnx.Module]
    places: Callable[[nnx.Module], Iterator[Place]]
    sign: str
    setups: tuple[str, ...]
    resize: Mapping[str, str]
    is_cut: bool = False
    unused: Callable[[nnx.Module], Iterator[Place]] = _none
    head: str | None = None
    backbone: type[Backbone] = Trunk
    arguments: Callable[[Mapping[str, np.ndarray]], dict[str, Any]] = lambda tensors: {}
    suits: Callable[[nnx.Module], bool] = lambda model: True
    needs: str = "Xception"
    others: str = ""
    is_frozen: bool = False
