"""Starting a network from pretrained weights: from a published file or from another run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Float

from wsdl_jax import methods, runs
from wsdl_jax.models import backbones
from wsdl_jax.models.backbone import Backbone, Frozen
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.weights.files import read
from wsdl_jax.weights.tensors import WeightsError, detect, listed, network

Name = tuple[str | int, ...]
Values = dict[Name, Float[np.ndarray, "..."]]
_BACKBONES = ("trunk", "beside")  # where a network has them
_ADAPTER = ("lora", "lora_a"), ("lora", "lora_b")  # how the names of its two matrices end


@dataclass(frozen=True)
class _Source:
    """A network whose weights another one starts from.

    Attributes:
      model: the network.
      new_head: whether its last layer is a new one.
      is_decoder: whether it has no weights of its backbones.
    """

    model: nnx.Module
    new_head: bool = False
    is_decoder: bool = False


def start(model: nnx.Module, path: epath.Path, layout: str | None) -> list[str]:
    """Starts a network from pretrained weights, in place.

    A file or run of the same network gives all of them; one of another network the part of the
    backbone that both have. What is frozen stays, and is to be the same there. Adapters of a
    backbone that was frozen, and is trained further, are added to its weights.

    Args:
      model: the network to start, whose frozen backbone has been filled.
      path: a weight file, or a run directory, of which the best checkpoint is taken.
      layout: of the file, one of `methods.layouts()`; None: it is found out.

    Returns:
      The names of the layers that stay as they were.

    Raises:
      UserError: not such a file or run; another backbone, fewer stages of it than `model` has,
        or another width; one that `model` has frozen, and that has other weights there; adapters
        that `model` has not, or of another rank; nothing that `model` could take.
    """
    source = _read(path, layout)
    has, needs = (getattr(network, "trunk", None) for network in (source.model, model))
    is_same = type(model) is type(source.model)
    if not is_same and (has is None or needs is None):
        raise UserError(
            f"{path} has a network {type(source.model).__name__}, which has no part of a backbone "
            f"in common with {type(model).__name__}"
        )
    mine = dict(nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    theirs = _values(source.model, (nnx.Param, nnx.BatchStat, Frozen))
    stays = _values(model, Frozen)
    both = {
        place: tuple(getattr(network, place, None) for network in (source.model, model))
        for place in _BACKBONES
    }
    shared = {place: pair for place, pair in both.items() if None not in pair}
    for pair in shared.values():
        _check_backbone(path, *pair)
    _check_frozen(path, source, stays, theirs)
    _fit_adapters(path, theirs, mine, stays)

    parts = (*shared, "top") if shared else ()
    taken = {name for name in mine if name[0] in shared and not _is_adapter(name)}
    taken |= {name for name in mine.keys() & theirs.keys() if name[0] in parts}
    if source.new_head:
        taken = {name for name in taken if name[:2] != ("top", "linear")}
    if wrong := list(_misfits(taken, mine, theirs)):
        raise UserError(f"{path} does not fit: {listed(wrong)}")
    others = {name for name in mine if name[0] not in parts}
    of_both = others | {name for name in theirs if name[0] not in parts}
    wrong = list(_misfits(of_both, mine, theirs))
    if has is None and wrong:
        raise UserError(f"{path} has a network {type(source.model).__name__} of another size")
    if is_same and not wrong and _stages(source.model) == _stages(model):
        taken |= others
    if not taken:
        raise UserError(
            f"{path} has nothing that is trained here: "
            + (listed(wrong) or "its head is that of other stages of the backbone")
        )
    values = {name: mine[name].replace(jnp.asarray(theirs[name])) for name in taken}
    nnx.update(model, nnx.from_flat_state(values))
    return sorted({".".join(map(str, name[:-1])) for name in mine.keys() - taken})


def _read(path: epath.Path, layout: str | None) -> _Source:
    if path.is_dir():
        return _Source(runs.load(path).model)
    tensors = read(path)
    found = layout or detect(tensors)
    if found is None:
        raise WeightsError(f"{path} is in none of the layouts {', '.join(methods.layouts())}")
    try:
        model, new_head = network(tensors, found)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return _Source(model, new_head, is_decoder=getattr(model, "beside", None) is not None)


def _values(model: nnx.Module, kinds: type | tuple[type, ...]) -> Values:
    flat = nnx.to_flat_state(nnx.state(model, kinds))
    return {name: np.asarray(variable[...]) for name, variable in flat}


def _stages(model: nnx.Module) -> list[int]:
    found = (getattr(model, place, None) for place in _BACKBONES)
    return [0 if backbone is None else backbone.stages for backbone in found]


def _check_backbone(path: epath.Path, has: Backbone, needs: Backbone) -> None:
    """Raises UserError unless the stages of a backbone can be those of another."""
    kinds = [(type(backbone), getattr(backbone, "form", None)) for backbone in (has, needs)]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"{path} has a network on {backbones.name_of(has)}, where one on "
            f"{backbones.name_of(needs)} is needed"
        )
    if _registers(has) != _registers(needs):
        raise UserError(
            f"{path} has a backbone with {_registers(has)} registers, where {_registers(needs)} "
            "are needed"
        )
    if has.stages < needs.stages:
        raise UserError(
            f"{path} has stages 1 to {has.stages} of its backbone, where {needs.stages} are needed"
        )
    if has.widths[: needs.stages] != needs.widths:
        raise UserError(
            f"{path} has a backbone whose stages have {_listed(has)} channels, where "
            f"{_listed(needs)} are needed"
        )


def _registers(backbone: Backbone) -> int:
    registers = getattr(backbone, "registers", None)
    return 0 if registers is None else len(registers)


def _listed(backbone: Backbone) -> str:
    return ", ".join(map(str, backbone.widths))


def _check_frozen(path: epath.Path, source: _Source, stays: Values, theirs: Values) -> None:
    """Raises UserError where features that stay are not those that the other was trained on."""
    if source.is_decoder:
        if not stays:
            raise UserError(
                f"{path} has a decoder alone, whose backbones would be trained from other weights: "
                "python -m wsdl_jax.convert makes a run of it and their files, to start from"
            )
        return
    was_frozen = _values(source.model, Frozen).keys()
    for name, value in stays.items():
        if name not in theirs:  # of a second backbone, which that network has not
            continue
        if name not in was_frozen:
            raise UserError(
                f"{path} has a backbone that was trained; here it is frozen, and has other features"
            )
        if not np.array_equal(value, theirs[name]):
            raise UserError(
                f"{path} is on another file of the backbone, which is frozen: "
                f"{'.'.join(map(str, name))} differs"
            )


def _is_adapter(name: Name) -> bool:
    return name[-2:] in _ADAPTER


def _fit_adapters(
    path: epath.Path, theirs: Values, mine: Mapping[Name, nnx.Variable], stays: Values
) -> None:
    """Adds adapters to the kernels that they are beside, in place, where these are trained now.

    Raises UserError where they are frozen, and have no adapters here.
    """
    for layer in {name[:-2] for name in theirs if _is_adapter(name)}:
        first, second = (theirs[(*layer, *end)] for end in _ADAPTER)
        kernel = (*layer, "kernel")
        if kernel in mine:
            theirs[kernel] = theirs[kernel] + first @ second
        elif kernel in stays and (*layer, *_ADAPTER[0]) not in mine:
            raise UserError(
                f"{path} has adapters of rank {first.shape[1]}, which a frozen backbone without "
                f"adapters cannot take: set config.model.lora_rank = {first.shape[1]}"
            )


def _misfits(
    names: Iterable[Name], mine: Mapping[Name, nnx.Variable], theirs: Values
) -> Iterable[str]:
    """Yields what tells tensors from those that are needed, in the order of their names."""
    for name in sorted(names, key=lambda name: [(isinstance(x, str), x) for x in name]):
        has, needs = (side[name].shape if name in side else None for side in (theirs, mine))
        if has != needs:
            told = ".".join(map(str, name))
            yield f"{told} is {_shape(has)} there and {_shape(needs)} here"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "×".join(map(str, shape)) or "one number"
