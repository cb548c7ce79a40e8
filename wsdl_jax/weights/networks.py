"""Networks from the tensors of any published layout, of a method or of a backbone alone."""

import logging

from flax import nnx

from wsdl_jax import methods
from wsdl_jax.models.backbone import BareBackbone
from wsdl_jax.models.backbone_names import TOWERS
from wsdl_jax.weights.backbone_file import bare_backbone
from wsdl_jax.weights.tensors import Tensors, WeightsError, network, unwrapped

log = logging.getLogger("wsdl_jax")


def from_torch(state_dict: Tensors, layout: str) -> nnx.Module:
    """Returns the network of a published PyTorch layout with its weights, in evaluation mode.

    A network of a method gives what its `__call__` says, `map_logits` among it; a backbone alone is
    a `BareBackbone`, which gives the maps of its stages by name.

    The block after which Patches is cut, and the width, are read from the arrays. A `timm-xception`
    whose `fc` is not for two classes (ImageNet has 1,000) gets a new one with PyTorch's random
    initialization; a warning says so.

    Args:
      state_dict: arrays by their PyTorch names, as a published state_dict has them, in any floating
        precision; a prefix "module." of all names is taken off. Pointwise kernels may be
        [outputs, inputs] or [outputs, inputs, 1, 1].
      layout: the name of one of `methods.layouts()`; or one of a backbone alone, "clip-openai"
        (open_clip's as well), "clip-transformers", "dinov2-transformers" or "dinov2-hub".

    Raises:
      WeightsError: an unknown layout, or a backbone of a size that is none of those published;
        tensors that are missing, unexpected, misshapen, not floating-point or not finite: all of
        them by name.
    """
    of_backbones = dict.fromkeys(tower.layout for tower in TOWERS)
    if layout in of_backbones:
        return _bare(state_dict, layout)
    if layout not in methods.layouts():
        known = ", ".join([*methods.layouts(), *of_backbones])
        raise WeightsError(f"layout {layout!r}: choose from {known}")
    model, new_head = network(state_dict, layout)
    if getattr(model, "beside", None) is not None:
        raise WeightsError(
            f"{layout}: of a network with two backbones these are the decoder's tensors alone; "
            "python -m wsdl_jax.convert takes the backbones' files with --backbone and --beside"
        )
    if new_head:
        log.warning("%s: fc is not for two classes: it starts anew and has to be trained", layout)
    return model


def _bare(state_dict: Tensors, layout: str) -> BareBackbone:
    model = BareBackbone(bare_backbone(unwrapped(state_dict), layout))
    model.eval()
    return model
