"""How DeCLIP's checkpoints name their tensors.

A checkpoint has its decoder at `fc`, a sequence in which activations and enlargements count as
layers, and its backbone at `model`: CLIP's, under OpenAI's names. One with two backbones has
neither of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from wsdl_jax.models.backbone_names import OPENAI_VIT
from wsdl_jax.models.clip_resnet import ModifiedResNet
from wsdl_jax.models.declip import DeCLIP
from wsdl_jax.models.decoder import DECODERS, LinearDecoder
from wsdl_jax.models.torch_names import Dialect, Layout, Place
from wsdl_jax.models.vit import ViT

_DEPTH = 21  # of 24 blocks: `layer20`, where the first is `layer0`
_BESIDE_DEPTH = 3
_BOTH = 2048  # channels of that stage of the ResNet, behind as many of the transformer
_BACKBONE = "model."
_TRUNK = f"{_BACKBONE}visual."


def _arguments(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the network that tensors are of. Raises ValueError for a decoder that is unknown."""
    kernels = [
        name for name in tensors if name.startswith("fc.") and np.ndim(tensors[name]) in (2, 4)
    ]
    shape = np.shape(tensors.get("fc.0.weight", ()))
    decoder = "linear" if len(shape) == 2 else f"conv-{len(kernels) - 1}"
    if decoder not in DECODERS:
        raise ValueError(f"a decoder {decoder} is none of {', '.join(DECODERS)}")
    both = len(shape) > 1 and shape[1] == _BOTH
    # A file without all of its blocks has the last one that it has decoded.
    blocks = range(_DEPTH)
    of_file = [n for n in blocks if any(t.startswith(_TRUNK + _block(n)) for t in tensors)]
    return {
        "backbone": "clip_vit_l14",
        "depth": _DEPTH if both or not of_file else len(of_file),
        "decoder": decoder,
        "beside": "clip_rn50" if both else None,
        "beside_depth": _BESIDE_DEPTH if both else 1,
    }


def _block(number: int) -> str:
    return OPENAI_VIT.block.format(number)


def _suits(model: nnx.Module) -> bool:
    is_clip = isinstance(model.trunk, ViT) and model.trunk.form.pre_norm
    beside = model.beside
    return is_clip and (
        beside is None or (isinstance(beside, ModifiedResNet) and beside.stages == _BESIDE_DEPTH)
    )


def _places(model: DeCLIP) -> Iterator[Place]:
    yield from decoder_places(model.decoder, enlarged=model.beside is not None)
    if model.beside is None:
        yield from OPENAI_VIT.places(model.trunk, _TRUNK)


def decoder_places(decoder: nnx.Module, *, enlarged: bool = False) -> Iterator[Place]:
    """Lists the variables of a decoder.

    Args:
      decoder: one of `decoder.make_decoder`.
      enlarged: whether a layer that brings maps to 256×256 is before the last convolution.
    """
    if isinstance(decoder, LinearDecoder):
        yield Place("fc.0.weight", decoder.linear.kernel)
        yield Place("fc.0.bias", decoder.linear.bias)
        return
    dialect, number = Dialect("fc."), 0
    for stage in decoder.stages:
        for conv, norm in zip(stage.convs, stage.norms, strict=True):
            yield from dialect.kernel(str(number), conv)
            yield from dialect.norm(str(number + 1), norm)
            number += 3  # with the activation
        number += 1  # with the enlargement
    yield from dialect.kernel(str(number + enlarged), decoder.last)


LAYOUT = Layout(
    name="declip",
    network=DeCLIP,
    places=_places,
    sign="fc.0.weight",
    setups=("c", "a", "b"),
    resize={"weak": "bilinear", "full": "bilinear"},
    backbone=ViT,
    arguments=_arguments,
    suits=_suits,
    needs=f"clip_vit_l14, alone or with clip_rn50, stage {_BESIDE_DEPTH}",
    others=_BACKBONE,
    is_frozen=True,
)
