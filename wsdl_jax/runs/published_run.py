"""Run directories of published weight files, as if the network had been trained here."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath
from flax import nnx

from wsdl_jax import configuration, methods, weights
from wsdl_jax.models import backbones
from wsdl_jax.models.torch_names import Layout
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runs.directory import RunDirectory
from wsdl_jax.runs.state import initial_state
from wsdl_jax.runtime import storage
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.weights.files import read
from wsdl_jax.weights.tensors import WeightsError, arguments, network

log = logging.getLogger("wsdl_jax")


def make_run(
    file: epath.Path,
    layout: str,
    run: epath.Path,
    setup: str | None = None,
    *,
    backbone: epath.Path | None = None,
    beside: epath.Path | None = None,
) -> None:
    """Makes a run directory of a weight file, as if the network had been trained here.

    Its config tests on the paper's data and resizes images as the recipe of `setup` does; the
    recipe's training fields are not filled in.

    Args:
      file: see `read`.
      layout: the name of one of `methods.layouts()`.
      run: a folder that is empty or not there yet.
      setup: a, b or c, what the network was trained on; by default the usual one of the layout, c
        for `dolos-grad-cam-full` and `declip`, and a for the others.
      backbone: the file of a frozen backbone that is not in the weight file.
      beside: the file of the second one.

    Raises:
      UserError: a file that does not fit, or a folder that is not empty. Nothing is written then.
    """
    storage.check_folder(run)
    try:
        tensors = read(file)
        model, new_head = network(tensors, layout)
    except WeightsError as error:
        raise WeightsError(str(error) if str(file) in str(error) else f"{file}: {error}") from error
    if new_head:
        raise WeightsError(
            f"{file}: fc is not for two classes, so there is nothing to evaluate yet: start "
            "training from this file with --config.init.path"
        )
    published = methods.layouts()[layout]
    config = _config(model, published, setup or published.setups[0])
    if published.is_frozen:
        _set_frozen(config, arguments(tensors, published), file, backbone, beside)
        config = weights.with_digest(config)
        weights.fill_backbone(methods.blank(config, None), config)  # or it could not be loaded
    elif backbone is not None or beside is not None:
        raise UserError(f"layout {layout}: a weight file has all of its network")
    configuration.validate(config)
    with storage.whole_folder(run) as folder:
        RunDirectory(folder).config.write_text(configuration.save(config))
        checkpoints = Checkpoints(folder, keep_best=config.train.keep_best)
        checkpoints.save(0, initial_state(model, config.train), math.inf)  # never validated
        checkpoints.close()
    log.info("%s: %s of %s, to be evaluated as setup %s", run, config.method, file, config.setup)


def _config(model: nnx.Module, layout: Layout, setup: str) -> ml_collections.ConfigDict:
    if setup not in layout.setups:
        raise UserError(
            f"setup {setup}: networks of layout {layout.name} are trained in setup "
            f"{' or '.join(layout.setups)}"
        )
    config = configuration.base()
    config.method = next(n for n in methods.names() if layout in methods.get(n).layouts)
    configuration.set_data(config, setup=setup, source="celebahq")
    config.data.resize = layout.resize[config.supervision]
    config.model.width = model.trunk.width
    if layout.is_cut:
        config.model.depth = len(model.trunk.blocks)
    return config


def _set_frozen(
    config: ml_collections.ConfigDict,
    of_network: Mapping[str, Any],
    file: epath.Path,
    backbone: epath.Path | None,
    beside: epath.Path | None,
) -> None:
    """Sets the backbones of a network with frozen ones, and where their files are.

    Args:
      config: to be set.
      of_network: fields of `config.model`.
      file: of the network; of its backbone, too, where there is one alone.
      backbone: the file of the first of two.
      beside: the file of the second.

    Raises:
      UserError: files of backbones are missing, or there are some that are not needed.
    """
    for name, value in of_network.items():
        config.model[name] = value
    config.model.frozen = True
    size = config.data.image_size
    config.data.image_size = backbones.get(config.model.backbone).usual_size(size)
    if config.model.beside is None:
        if backbone is not None or beside is not None:
            raise UserError(f"{file} has its backbone itself: --backbone and --beside are for two")
        config.model.backbone_path = str(file)
        return
    if backbone is None or beside is None:
        raise UserError(
            f"{file} has the decoder alone, of {config.model.backbone} with {config.model.beside} "
            "beside it: name their files with --backbone and --beside"
        )
    config.model.backbone_path, config.model.beside_path = str(backbone), str(beside)
