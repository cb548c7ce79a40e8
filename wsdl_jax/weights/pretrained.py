"""Starting a network from pretrained weights: from a published file or from another run."""

from etils import epath
from flax import nnx

from wsdl_jax import methods, runs
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.weights.files import read
from wsdl_jax.weights.tensors import WeightsError, detect, network


def start(model: nnx.Module, path: epath.Path, layout: str | None) -> list[str]:
    """Starts a network from pretrained weights, in place.

    A file or run of the same network gives all of them; one of another network the part of Xception
    that both have.

    Args:
      model: the network to start.
      path: a weight file, or a run directory, of which the best checkpoint is taken.
      layout: of the file, one of `methods.layouts()`; None: it is found out.

    Returns:
      The names of the layers that stay as they were.

    Raises:
      UserError: not such a file or run; fewer blocks than `model` has; another width.
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
            f"{path} has a network {type(source).__name__}, which has no part of Xception in "
            f"common with {type(model).__name__}"
        )
    if has is not None and len(has.blocks) < len(needs.blocks):
        raise UserError(
            f"{path} has blocks 1 to {len(has.blocks)} of Xception, where {len(needs.blocks)} are "
            "needed"
        )
    whole = type(model) is type(source) and (has is None or len(has.blocks) == len(needs.blocks))
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
            f"{path} has a network of width {has.width}, where config.model.width = {needs.width}"
        )
    nnx.update(model, nnx.from_flat_state(taken))
    return sorted({".".join(map(str, name[:-1])) for name in mine.keys() - taken.keys()})
