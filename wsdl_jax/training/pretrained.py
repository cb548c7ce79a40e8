"""Starting a network from pretrained weights: from a published file or from another run."""

from etils import epath
from flax import nnx

from wsdl_jax import methods, runs
from wsdl_jax.models.backbone import Backbone
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.weights.files import read
from wsdl_jax.weights.tensors import WeightsError, detect, network


def start(model: nnx.Module, path: epath.Path, layout: str | None) -> list[str]:
    """Starts a network from pretrained weights, in place.

    A file or run of the same network gives all of them; one of another network the part of the
    backbone that both have. What is frozen stays.

    Args:
      model: the network to start.
      path: a weight file, or a run directory, of which the best checkpoint is taken.
      layout: of the file, one of `methods.layouts()`; None: it is found out.

    Returns:
      The names of the layers that stay as they were.

    Raises:
      UserError: not such a file or run; another backbone, fewer stages of it than `model` has,
        or another width.
    """
    if path.is_dir():
        source, new_head = runs.load(path).model, False
    else:
        tensors = read(path)
        found = layout or detect(tensors)
        if found is None:
            raise WeightsError(f"{path} is in none of the layouts {', '.join(methods.layouts())}")
        try:
            source, new_head = network(tensors, found)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
    has, needs = (getattr(network, "trunk", None) for network in (source, model))
    if type(model) is not type(source) and (has is None or needs is None):
        raise UserError(
            f"{path} has a network {type(source).__name__}, which has no part of a backbone in "
            f"common with {type(model).__name__}"
        )
    if type(has) is not type(needs):
        raise UserError(
            f"{path} has a network on {type(has).__name__}, where one on {type(needs).__name__} is "
            "needed"
        )
    if has is not None and has.stages < needs.stages:
        raise UserError(
            f"{path} has stages 1 to {has.stages} of its backbone, where {needs.stages} are needed"
        )
    whole = type(model) is type(source) and (has is None or has.stages == needs.stages)
    kinds = (nnx.Param, nnx.BatchStat)
    mine, theirs = (dict(nnx.to_flat_state(nnx.state(m, kinds))) for m in (model, source))
    taken = {
        name: theirs[name]
        for name in mine.keys() & theirs.keys()
        if (whole or name[0] in ("trunk", "top"))
        and not (new_head and name[:2] == ("top", "linear"))
    }
    if any(mine[name].shape != variable.shape for name, variable in taken.items()):
        if has is None:
            raise UserError(f"{path} has a network {type(source).__name__} of another size")
        raise UserError(
            f"{path} has a backbone whose stages have {_listed(has)} channels, where "
            f"{_listed(needs)} are needed"
        )
    nnx.update(model, nnx.from_flat_state(taken))
    return sorted({".".join(map(str, name[:-1])) for name in mine.keys() - taken.keys()})


def _listed(backbone: Backbone) -> str:
    return ", ".join(map(str, backbone.widths))
