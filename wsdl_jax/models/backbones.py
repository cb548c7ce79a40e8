"""The backbones that there are, by name, and what follows from a backbone's name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flax import nnx

from wsdl_jax.models import xception
from wsdl_jax.models.backbone import Backbone


@dataclass(frozen=True)
class Architecture:
    """What is registered of a backbone: everything that depends on which one it is.

    Attributes:
      trunk: builds its first stages, see `trunk`.
      top: builds what makes image logits [B, 2] of the features behind the last stage.
      stages: how many there are.
      local: the stage whose locations Patches scores, unless a config says otherwise.
      attended: the stage that Attention's mask multiplies.
      explained: the stage whose output Grad-CAM explains.
      smallest: pixels a side that an image has at least.
      multiple: pixels of which the sides of an image are multiples.
      trained_size: pixels a side of the images that its published weights were trained on; None for
        one of any size.
      has_files: whether weights of it are published, which config.model.backbone_path names.
      has_width: whether its channel counts can be multiplied.
      adapts: whether it can have low-rank adapters.
    """

    trunk: Callable[..., Backbone]
    top: Callable[..., nnx.Module]
    stages: int
    local: int
    attended: int
    explained: int
    smallest: int
    multiple: int = 1
    trained_size: int | None = None
    has_files: bool = False
    has_width: bool = False
    adapts: bool = False

    def usual_size(self, size: int) -> int:
        """Returns the side of its images, in pixels, where another backbone takes `size`."""
        return self.trained_size or max(self.smallest, size // self.multiple * self.multiple)


XCEPTION = "xception"
_ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        XCEPTION: Architecture(
            trunk=xception.Trunk,
            top=xception.Top,
            stages=xception.BLOCKS,
            local=2,
            attended=7,
            explained=11,
            smallest=xception.SMALLEST_IMAGE,
            has_width=True,
        ),
    }
)


def names() -> tuple[str, ...]:
    """Returns the names of all backbones."""
    return tuple(_ARCHITECTURES)


def get(name: str) -> Architecture:
    """Returns what is registered of a backbone. Raises ValueError for a name that none has."""
    if name not in _ARCHITECTURES:
        raise ValueError(f"backbone {name!r}: choose from {', '.join(_ARCHITECTURES)}")
    return _ARCHITECTURES[name]


def trunk(name: str, depth: int, **arguments: Any) -> Backbone:
    """Returns the first `depth` stages of a backbone.

    Args:
      name: of the backbone.
      depth: how many stages, from 1.
      **arguments: `width`, `remat`, `dtype`, `axis_name` and `rngs`, see `xception.Trunk`, and
        `lora_rank`, the rank of adapters.

    Raises:
      ValueError: there is no such backbone, or it has no such stage, width or adapters.
    """
    architecture = get(name)
    if not architecture.has_width and arguments.pop("width", 1.0) != 1:
        raise ValueError(f"{name} has one width, 1")
    if not architecture.adapts and arguments.pop("lora_rank", 0):
        raise ValueError(f"{name} takes no adapters")
    return architecture.trunk(depth, **arguments)


def classifying(name: str, **arguments: Any) -> tuple[Backbone, nnx.Module]:
    """Returns all stages of a backbone, and what makes image logits of the features behind them.

    The second is called with the `Features` behind the last stage. Arguments are those of `trunk`.
    """
    architecture = get(name)
    whole = trunk(name, architecture.stages, **arguments)
    of_top = {key: arguments[key] for key in ("width", "dtype", "axis_name", "rngs")}
    if not architecture.has_width:
        del of_top["width"]
    return whole, architecture.top(whole.features, **of_top)
