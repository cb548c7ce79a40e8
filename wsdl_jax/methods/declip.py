"""DeCLIP (Smeu et al., 2025): a decoder of the features of a backbone that stays as it is."""

from typing import Any

import ml_collections

from wsdl_jax.methods import objectives
from wsdl_jax.methods.method import Definition, Method, on_map_logits
from wsdl_jax.models.declip import DeCLIP
from wsdl_jax.models.declip_names import LAYOUT


def _bind(config: ml_collections.ConfigDict) -> Method:
    fields = ("depth", "decoder", "beside", "beside_depth")
    arguments: dict[str, Any] = {name: config.model[name] for name in fields}
    return on_map_logits(config, DeCLIP, objectives.mean_logit_weak, **arguments)


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
