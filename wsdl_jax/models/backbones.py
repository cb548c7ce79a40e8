"""The backbones that there are, by name, and what follows from a backbone's name."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flax import nnx

from wsdl_jax.models import clip_resnet, vit, xception
from wsdl_jax.models.backbone import Backbone

# What only some backbones have, and what stands for not having it.
OPTIONS = MappingProxyType({"width": 1.0, "lora_rank": 0, "registers": 0})


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
      options: those of `OPTIONS` that it has.
      trained_size: pixels a side of the images that its published weights are used with; None for
        one without published weights.
    """

    trunk: Callable[..., Backbone]
    top: Callable[..., nnx.Module]
    stages: int
    local: int
    attended: int
    explained: int
    smallest: int
    multiple: int = 1
    options: frozenset[str] = frozenset()
    trained_size: int | None = None

    @property
    def has_files(self) -> bool:
        """Returns whether weights of it alone are published, which `model.backbone_path` names."""
        return self.trained_size is not None

    @property
    def decoded(self) -> int:
        """Returns the stage that DeCLIP decodes, seven eighths of the way: of ViT-L's 24, 21."""
        return 7 * self.stages // 8

    def usual_size(self, size: int) -> int:
        """Returns the side of its images, in pixels, where another backbone takes `size`."""
        return self.trained_size or max(self.smallest, size // self.multiple * self.multiple)


def _vit(name: str, *options: str, trained_size: int | None) -> Architecture:
    form = vit.FORMS[name]
    return Architecture(
        trunk=functools.partial(vit.ViT, form=form),
        top=functools.partial(vit.Top, form=form),
        stages=form.blocks,
        local=max(2, form.blocks // 4),
        attended=form.blocks // 2,
        explained=form.blocks - 1,
        smallest=4 * form.patch,
        multiple=form.patch,
        options=frozenset(options),
        trained_size=trained_size,
    )


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
            options=frozenset({"width"}),
        ),
        "clip_vit_l14": _vit("clip_vit_l14", "lora_rank", trained_size=224),
        clip_resnet.NAME: Architecture(
            trunk=clip_resnet.ModifiedResNet,
            top=clip_resnet.Top,
            stages=len(clip_resnet.BLOCKS),
            local=2,
            attended=3,
            explained=4,
            smallest=64,
            trained_size=224,
        ),
        "dinov2_s14": _vit("dinov2_s14", "lora_rank", "registers", trained_size=224),
        "dinov2_b14": _vit("dinov2_b14", "lora_rank", "registers", trained_size=224),
        "dinov2_l14": _vit("dinov2_l14", "lora_rank", "registers", trained_size=224),
        "vit_tiny": _vit("vit_tiny", "width", trained_size=None),
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


def name_of(backbone: Backbone) -> str:
    """Returns the name of a backbone, which may be cut; of one that is none of these its class."""
    form = getattr(backbone, "form", None)
    for name, architecture in _ARCHITECTURES.items():
        made = architecture.trunk
        cls, kept = getattr(made, "func", made), getattr(made, "keywords", {})
        if type(backbone) is cls and kept.get("form") == form:
            return name
    return type(backbone).__name__


def trunk(name: str, depth: int, **arguments: Any) -> Backbone:
    """Returns the first `depth` stages of a backbone.

    Args:
      name: of the backbone.
      depth: how many stages, from 1.
      **arguments: `remat`, `dtype`, `axis_name` and `rngs`, see `xception.Trunk`; and as options
        `width`, by which channel counts are multiplied, `lora_rank`, the rank of adapters, and
        `registers`, the number of a transformer's register tokens.

    Raises:
      ValueError: there is no such backbone, or it has no such stage or option.
    """
    return get(name).trunk(depth, **_fitting(name, arguments))


def _fitting(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out the options that a backbone has not; refuses those that ask for something."""
    lacking = OPTIONS.keys() - get(name).options
    for option in sorted(lacking & arguments.keys()):
        if arguments[option] != OPTIONS[option]:
            raise ValueError(f"backbone {name} has no {option}, which is {arguments[option]}")
    return {key: value for key, value in arguments.items() if key not in lacking}


def classifying(name: str, **arguments: Any) -> tuple[Backbone, nnx.Module]:
    """Returns all stages of a backbone, and what makes image logits of the features behind them.

    The second is called with the `Features` behind the last stage. Arguments are those of `trunk`.
    """
    architecture, fitting = get(name), _fitting(name, arguments)
    whole = architecture.trunk(architecture.stages, **fitting)
    of_top = fitting.keys() & {"width", "dtype", "axis_name", "rngs"}
    return whole, architecture.top(whole.features, **{key: fitting[key] for key in of_top})
