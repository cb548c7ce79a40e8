"""DeCLIP (Smeu et al., 2025): a decoder of the features of a backbone that stays as it is."""

import functools
from typing import Any

import ml_collections

from wsdl_jax.methods import objectives
from wsdl_jax.methods.method import (
    Definition,
    Method,
    early_statistics,
    from_map_logits,
    map_objective,
    network_arguments,
)
from wsdl_jax.methods.pooling import Pooling
from wsdl_jax.models.declip import DeCLIP
from wsdl_jax.models.declip_names import LAYOUT


def _bind(config: ml_collections.ConfigDict) -> Method:
    fields = ("depth", "decoder", "beside", "beside_depth")
    kwargs: dict[str, Any] = {name: config.model[name] for name in fields}
    kwargs |= network_arguments(config)
    return Method(
        network=lambda axis_name, rngs: DeCLIP(axis_name=axis_name, rngs=rngs, **kwargs),
        loss=map_objective(config, objectives.mean_logit_weak),
        localize=functools.partial(from_map_logits, pool=Pooling.of(config.score)),
        embed=early_statistics,
    )


METHOD = Definition(
    bind=_bind,
    learns_spliced=True,
    learns_partly_known=True,
    map_scores=("weak", "full"),
    reads_stage="model.depth",
    usual_stage=lambda backbone: backbone.decoded,
    decodes=True,
    layouts=(LAYOUT,),
)
