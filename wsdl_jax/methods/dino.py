"""A light head on a transformer that low-rank adapters (Hu et al., 2022) fit to the task.

The recipe is for DINOv2 (Oquab et al., 2024), of which nothing but the adapters is trained.
"""

import ml_collections

from wsdl_jax.methods import objectives
from wsdl_jax.methods.method import Definition, Method, on_map_logits
from wsdl_jax.models.dino import Dino
from wsdl_jax.runtime.errors import ConfigError


def _bind(config: ml_collections.ConfigDict) -> Method:
    return on_map_logits(config, Dino, objectives.mean_logit_weak, depth=config.model.depth)


def _check(config: ml_collections.ConfigDict) -> None:
    if config.model.frozen and not config.model.lora_rank:
        raise ConfigError(
            "config.model.lora_rank = 0: of a frozen backbone dino trains adapters, whose rank is "
            "1 at least"
        )


METHOD = Definition(
    bind=_bind,
    learns_spliced=True,
    learns_partly_known=True,
    map_scores=("weak", "full"),
    reads_stage="model.depth",
    usual_stage=lambda backbone: backbone.stages,
    check=_check,
)
