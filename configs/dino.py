"""DINOv2 (Oquab et al., 2024) with low-rank adapters (Hu et al., 2022) and a light head.

    python -m wsdl_jax.main --config configs/dino.py
    python -m wsdl_jax.main --config configs/dino.py:setup=c,source=celebahq \\
        --config.model.backbone_path=dinov2_vitb14_pretrain.pth
    python -m wsdl_jax.main --config configs/dino.py:setup=c,source=celebahq,backbone=dinov2_l14 \\
        --config.model.backbone_path=dinov2_vitl14_reg4_pretrain.pth --config.model.registers=4

Variants: setup=a|b|c, source=portraits|celebahq|ffhq|image_folder/NAME|manifest/NAME, generator=…,
leave_out=… (see `configuration.set_data`), splice=0…1, augment=none|light|robust,
recipe=usual|long (of spliced portraits)|small (the portraits' networks, for other data),
backbone=dinov2_s14|dinov2_b14|dinov2_l14|clip_vit_l14|…
(vit_tiny where the recipe is small).

Adapters of rank 8 beside queries and values, and the head, are all that is trained and kept in a
checkpoint; the rest is read from its file. The recipe is of no paper, and no figure of it on faces
is known yet.

What is small has a transformer of six blocks, trained from nothing together with the head; what
that reaches is not known yet.
"""

from wsdl_jax import configuration


def get_config(arg: str | None = None):
    """Returns the config of a variant. Raises ConfigError for one that does not exist."""
    config, variant = configuration.start("dino", arg, *configuration.VARIED)
    is_small, is_long = configuration.is_small(variant), variant["recipe"] == "long"
    config.model.depth = 12  # of Xception; `set_backbone` has that of others
    if is_small:
        configuration.set_small_decoder(config, variant["source"], is_long=is_long)
    else:
        _adapted(config)
    configuration.vary(config, variant)
    usual = "vit_tiny" if is_small else "dinov2_b14"
    configuration.set_backbone(config, variant["backbone"] or usual)
    configuration.freeze_backbone(config, lora_rank=8)
    return config


def _adapted(config):
    config.data.image_size = 224
    config.data.flip = True
    config.train.batch = 32
    config.train.epochs = 20
    config.train.optimizer = "adamw"
    config.train.weight_decay = 0.05
    config.train.learning_rate = 3e-4
    config.train.warmup = 500
    config.train.clip_norm = 1.0
    config.train.schedule = "cosine"
