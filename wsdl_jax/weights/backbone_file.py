"""Backbones from the tensors of published files."""

import math
from dataclasses import dataclass

import numpy as np
from flax import nnx

from wsdl_jax.models import backbones, clip_resnet
from wsdl_jax.models.backbone import Backbone
from wsdl_jax.models.backbone_names import (
    CLIP_RESNET,
    CLIP_VIT,
    DINOV2,
    TOWERS,
    Tower,
)
from wsdl_jax.models.clip_resnet import ModifiedResNet
from wsdl_jax.models.vit import FORMS, Form, ViT
from wsdl_jax.weights.tensors import Tensors, WeightsError, fill_places


@dataclass(frozen=True)
class Description:
    """What the shapes of a file tell of its backbone; None: nothing.

    Attributes:
      family: of networks.
      width: channels of a token, or before a ResNet's first stage.
      blocks: how many there are, of a ResNet in each of its stages.
      patch: pixels a side of a patch.
      grid: patches a side that its positions are for.
      registers: how many register tokens there are.
    """

    family: str
    width: int | None
    blocks: tuple[int, ...]
    patch: int | None = None
    grid: int | None = None
    registers: int = 0

    def __str__(self) -> str:
        parts = [f"{'-'.join(map(str, self.blocks))} blocks"]
        if self.width is not None:
            parts.append(f"width {self.width}")
        if self.patch is not None:
            parts.append(f"patches of {self.patch}×{self.patch} pixels")
        if self.grid is not None:
            parts.append(f"positions for {self.grid}×{self.grid} patches")
        if self.registers:
            parts.append(f"{self.registers} registers")
        return f"a {self.family} ({', '.join(parts)})"

    def may_fill(self, other: "Description") -> bool:
        """Returns whether a network of another description, which may be cut, has its weights here.

        What a file does not tell is left to the tensors, which are then missing.
        """
        if len(self.blocks) < len(other.blocks) or self.family != other.family:
            return False
        if self.family == CLIP_RESNET and self.blocks != _RESNET.blocks[: len(self.blocks)]:
            return False  # a deeper one, whose first stages alone have the same shapes
        if any(has < needs for has, needs in zip(self.blocks, other.blocks, strict=False)):
            return False
        told = ((self.width, other.width), (self.patch, other.patch), (self.grid, other.grid))
        return self.registers == other.registers and all(
            has is None or has == needs for has, needs in told
        )


def _of_form(form: Form, width: int, blocks: int, registers: int) -> Description:
    family = CLIP_VIT if form.pre_norm else DINOV2
    return Description(family, width, (blocks,), form.patch, form.grid, registers)


_RESNET = Description(CLIP_RESNET, clip_resnet.STEM, clip_resnet.BLOCKS)


def _of_trunk(trunk: Backbone) -> Description:
    if isinstance(trunk, ModifiedResNet):
        return Description(CLIP_RESNET, clip_resnet.STEM, clip_resnet.BLOCKS[: trunk.stages])
    if isinstance(trunk, ViT) and trunk.form.grid is not None:
        registers = 0 if trunk.registers is None else trunk.registers.shape[0]
        return _of_form(trunk.form, trunk.features, trunk.stages, registers)
    raise WeightsError(f"no files are published of a backbone {type(trunk).__name__} like this one")


def _tower(tensors: Tensors) -> tuple[Tower, str] | None:
    """The part of a file that is a backbone's, and what its names begin with."""
    found = ((tower, tower.prefix(tensors)) for tower in TOWERS)
    return next(((tower, prefix) for tower, prefix in found if prefix is not None), None)


def _axis(tensors: Tensors, name: str, axes: int, axis: int) -> int | None:
    """The length of an axis of a tensor; None where it is missing or has another number of axes."""
    shape = np.shape(tensors[name]) if name in tensors else ()
    return shape[axis] if len(shape) == axes else None


def _description(tower: Tower, prefix: str, tensors: Tensors) -> Description:
    def count(under: str) -> int:
        numbers = {n.removeprefix(under).split(".")[0] for n in tensors if n.startswith(under)}
        return sum(number.isdecimal() for number in numbers)

    if tower.names is None:
        stages = [count(f"{prefix}layer{stage}.") for stage in (1, 2, 3, 4)]
        width = _axis(tensors, f"{prefix}layer1.0.conv1.weight", 4, 0)
        return Description(tower.family, width, tuple(n for n in stages if n))
    names, ones = tower.names, int(tower.names.batched)
    kernel = f"{prefix}{names.patches}.weight"
    positions = _axis(tensors, prefix + names.positions, 2 + ones, ones)
    return Description(
        family=tower.family,
        width=_axis(tensors, kernel, 4, 0),
        blocks=(count(prefix + names.block.partition("{}")[0]),),
        patch=_axis(tensors, kernel, 4, 3),
        grid=math.isqrt(positions - 1) if positions else None,
        registers=_axis(tensors, f"{prefix}{names.registers}", 2 + ones, ones) or 0,
    )


def layout_of_backbone(tensors: Tensors) -> str | None:
    """Returns the name of the layout that a backbone's tensors are in; None if it is none."""
    found = _tower(tensors)
    return found[0].layout if found else None


def registers_of(tensors: Tensors) -> int:
    """Returns how many register tokens a file has, 0 for one without or in no known layout."""
    found = _tower(tensors)
    return _description(*found, tensors).registers if found else 0


def architecture_of(tensors: Tensors) -> str | None:
    """Returns the name of the backbone that a file's tensors are of; None if it is none of them."""
    found = _tower(tensors)
    if found is None:
        return None
    description = _description(*found, tensors)
    if description == _RESNET:
        return clip_resnet.NAME
    return next(
        (
            name
            for name, form in FORMS.items()
            if form.grid is not None
            and description == _of_form(form, form.width, form.blocks, description.registers)
        ),
        None,
    )


def bare_backbone(tensors: Tensors, layout: str) -> Backbone:
    """Returns the backbone that a file's tensors are of, filled with them.

    Args:
      tensors: arrays by their names in a file, in any floating precision.
      layout: the name of the layout that they are in.

    Raises:
      WeightsError: they are in another layout, or of no backbone that is known by a name; or as in
        `fill`.
    """
    found = _tower(tensors)
    if found is None or found[0].layout != layout:
        told = f"layout {found[0].layout}" if found else "none of the backbones' layouts"
        raise WeightsError(f"these tensors are in {told}, not {layout}")
    name = architecture_of(tensors)
    if name is None:
        known = (clip_resnet.NAME, *(name for name, form in FORMS.items() if form.grid is not None))
        raise WeightsError(
            f"these tensors are of {_description(*found, tensors)}, "
            f"which is none of {', '.join(known)}"
        )
    options = {"registers": count} if (count := registers_of(tensors)) else {}
    trunk = backbones.trunk(name, backbones.get(name).stages, rngs=nnx.Rngs(0), **options)
    fill(trunk, tensors)
    return trunk


def fill(trunk: Backbone, tensors: Tensors) -> None:
    """Fills a backbone with the weights of a file, in place; adapters stay as they are.

    A trunk that ends earlier takes its own blocks alone. What a file has beside the backbone, such
    as a text tower or the last normalization, is left out.

    Args:
      trunk: a `ViT` of a published form, or a `ModifiedResNet`.
      tensors: arrays by their names in a file, in any floating precision; see `files.read`.

    Raises:
      WeightsError: another architecture, width, patch or number of registers; tensors that are
        missing, unexpected, misshapen, not floating-point or not finite. Nothing is filled then.
    """
    wanted = _of_trunk(trunk)
    found = _tower(tensors)
    if found is None:
        layouts = ", ".join(dict.fromkeys(tower.layout for tower in TOWERS))
        raise WeightsError(f"these tensors are in none of the backbones' layouts {layouts}")
    tower, prefix = found
    description = _description(tower, prefix, tensors)
    if not description.may_fill(wanted):
        needed = _RESNET if wanted.family == CLIP_RESNET else wanted  # of which it may be a part
        raise WeightsError(
            f"these tensors are of {description} in layout {tower.layout}, where {needed} is needed"
        )
    depths = range(trunk.stages + 1, max(len(description.blocks), *description.blocks) + 1)
    deeper = tuple(prefix + tower.layer(number) for number in depths)
    optional = [
        name for name in tensors if name.startswith(deeper) or tower.is_unused(name, prefix)
    ]
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    fill_places(list(tower.places(trunk, prefix)), arrays, optional)
