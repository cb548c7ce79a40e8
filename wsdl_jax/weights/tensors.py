"""Networks from the tensors of published PyTorch layouts, and back, exactly."""

import itertools
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Shaped

from wsdl_jax import methods
from wsdl_jax.models import backbones
from wsdl_jax.models.backbone import freeze_backbones
from wsdl_jax.models.backbone_names import TOWERS
from wsdl_jax.models.initialization import initialize
from wsdl_jax.models.torch_names import Layout, Place
from wsdl_jax.models.xception import scaled
from wsdl_jax.runtime.errors import UserError

Tensors = Mapping[str, Shaped[np.ndarray, "..."]]
LISTED = 12  # names in an error message, of each kind


class WeightsError(UserError, ValueError):
    """Weights that do not fit, or a file that does not hold any."""


def layout_of(model: nnx.Module) -> Layout | None:
    """Returns the published layout of a network; None for one without a published counterpart."""
    found = (
        kind
        for kind in methods.layouts().values()
        if kind.network is type(model)
        and isinstance(model.trunk, kind.backbone)
        and kind.suits(model)
    )
    return next(found, None)


def _layout(name: str) -> Layout:
    layouts = methods.layouts()
    if name not in layouts:
        raise WeightsError(f"layout {name!r}: choose from {', '.join(layouts)}")
    return layouts[name]


def torch_names(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns every parameter and BatchNorm statistic of a network, by its name in PyTorch.

    Raises TypeError for a network that has no published counterpart.
    """
    layout = layout_of(model)
    if layout is None:
        raise TypeError(f"no PyTorch layout is known for {type(model).__name__}")
    return {place.name: place.variable for place in layout.places(model)}


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")  # used by PyTorch only without a momentum


def detect(tensors: Tensors) -> str | None:
    """Returns the name of the layout that tensors are in; None if it is none of those published."""
    return next((n for n, layout in methods.layouts().items() if layout.sign in tensors), None)


def unwrapped(state_dict: Tensors) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Returns arrays by their names without the prefix "module.", where all of them have it."""
    tensors = {name: np.asarray(tensor) for name, tensor in state_dict.items()}
    if tensors and all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def network(state_dict: Tensors, name: str) -> tuple[nnx.Module, bool]:
    """Returns the network of a method's layout, and whether its last layer is a new one.

    See `networks.from_torch`, which is for users.
    """
    layout = _layout(name)
    tensors = unwrapped(state_dict)
    found = detect(tensors)
    if found not in (name, None):
        raise WeightsError(f"these tensors are in layout {found}, not {name}")

    kwargs = arguments(tensors, layout)
    shapes = nnx.eval_shape(lambda: layout.network(**kwargs, rngs=nnx.Rngs(0)))
    kwargs["width"] = _width(list(layout.places(shapes)), tensors)
    model = layout.network(**kwargs, rngs=nnx.Rngs(0))
    places = list(layout.places(model))
    optional = {place.name for place in layout.unused(model)}
    if layout.others:
        optional |= {name for name in tensors if name.startswith(layout.others)}
    new_head = layout.head is not None and np.shape(tensors.get(f"{layout.head}.weight"))[:1] != (
        2,
    )
    if new_head:
        head = (f"{layout.head}.weight", f"{layout.head}.bias")
        places = [place for place in places if place.name not in head]
        optional.update(head)
        initialize(model.top.linear, "torch", seed=0)
    fill_places(places, tensors, optional)
    if layout.is_frozen:
        freeze_backbones(model)
    model.eval()
    return model, new_head


def arguments(tensors: Tensors, layout: Layout) -> dict[str, Any]:
    """Returns what a network is built from, as its tensors tell, beside its width.

    Raises WeightsError for tensors of no network of the layout.
    """
    try:
        found = layout.arguments(tensors)
        return {**found, "depth": _depth(tensors)} if layout.is_cut else found
    except ValueError as error:
        raise WeightsError(str(error)) from error


def _depth(tensors: Tensors) -> int:
    blocks = [n.removeprefix("block").split(".")[0] for n in tensors if n.startswith("block")]
    return min(12, max((int(number) for number in blocks if number.isdecimal()), default=1))


def _width(places: list[Place], tensors: Tensors) -> float:
    """The width multiplier that the arrays' channels have; 1 where there is no such number."""
    channels = {
        (place.variable.shape[-1], tensors[place.name].shape[0])
        for place in places
        # The attention map has one channel at any width.
        if place.name.endswith("pointwise.weight") and place.variable.shape[-1] > 1
        if np.ndim(tensors.get(place.name)) >= 2
    }
    widest = min((actual / full for full, actual in channels), default=1.0)
    # Several numbers round to the same channels. The ratio itself fits unless all are rounded.
    candidates = [widest, *(math.floor(widest * 10**digits) / 10**digits for digits in range(1, 7))]
    fitting = (w for w in candidates if all(scaled(full, w) == n for full, n in channels))
    return next(fitting, 1.0)


def fill_places(places: list[Place], tensors: Tensors, optional: Collection[str]) -> None:
    """Fills variables with the tensors of their places.

    Raises WeightsError, and fills none, where a tensor is missing, misshapen, not floating-point or
    not finite, and where there is one that has no place and is not `optional`: all of them by name.
    """
    _check(places, tensors, optional)
    for place in places:
        place.variable[...] = jnp.asarray(place.from_torch(tensors[place.name]))


def _check(places: list[Place], tensors: Tensors, optional: Collection[str]) -> None:
    wanted = {place.name: place for place in places}  # a tensor of thirds has three places
    present = [place for name, place in wanted.items() if name in tensors]
    problems = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [
            n for n in tensors if n not in wanted and n not in optional and not _is_counter(n)
        ],
        "misshapen": [
            f"{place.name} {_shape(tensors[place.name].shape)} for {_shape(place.torch_shape())}"
            for place in present
            if not place.fits(tensors[place.name])
        ],
        "not floating-point": [
            f"{place.name} ({tensors[place.name].dtype})"
            for place in present
            if not jnp.issubdtype(tensors[place.name].dtype, jnp.floating)
        ],
    }
    if not any(problems.values()):
        with np.errstate(over="ignore"):
            problems["not finite"] = [
                place.name
                for place in present
                if not np.isfinite(tensors[place.name].astype(np.float32)).all()
            ]
    lines = [f"{len(names)} {kind}: {listed(names)}" for kind, names in problems.items() if names]
    if lines:
        raise WeightsError("; ".join(lines))


def listed(names: Collection[str]) -> str:
    """Returns names in one line, the first `LISTED` of them where there are more."""
    shown = ", ".join(itertools.islice(names, LISTED))
    return f"{shown}, …" if len(names) > LISTED else shown


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "()"


def to_torch(model: nnx.Module, layout: str) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Returns a network's tensors, float32, by name and shape as the published code loads them.

    `networks.from_torch` gives back the same network, bit by bit. What PyTorch wants and no network
    here has is filled in: counters of BatchNorm with 0, and the part of the backbone that the FCN
    does not use with zeros.

    Raises WeightsError for a network of another layout.
    """
    if layout in {tower.layout for tower in TOWERS}:
        raise WeightsError(f"layout {layout} is of a backbone alone: it is read, and not written")
    published = _layout(layout)
    if (fitting := layout_of(model)) is not published:
        told = f"a network {type(model).__name__}"
        if fitting is None and type(model) is published.network:
            kept = ((place, getattr(model, place, None)) for place in ("trunk", "beside"))
            built = [
                f"{'on' if place == 'trunk' else 'with'} {backbones.name_of(backbone)}, "
                f"stage {backbone.stages}"
                for place, backbone in kept
                if backbone is not None
            ]
            raise WeightsError(
                f"{told} {' '.join(built)} is not of layout {layout}, which is of {published.needs}"
            )
        raise WeightsError(
            f"{told} is not of layout {layout}" + (f" but of {fitting.name}" if fitting else "")
        )
    parts: dict[str, list[np.ndarray]] = {}
    for place in published.places(model):  # those of queries, keys and values are of one tensor
        value = np.array(place.to_torch(np.asarray(place.variable[...])), order="C")
        parts.setdefault(place.name, []).append(value)
    tensors = {
        name: np.concatenate(values) if len(values) > 1 else values[0]
        for name, values in parts.items()
    }
    tensors |= {p.name: np.zeros(p.torch_shape(), np.float32) for p in published.unused(model)}
    for name in [name for name in tensors if name.endswith(".running_mean")]:
        tensors[name.replace("running_mean", "num_batches_tracked")] = np.array(0, np.int64)
    return tensors
