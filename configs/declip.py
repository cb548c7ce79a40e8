"""DeCLIP (Smeu et al., WACV 2025): a decoder of CLIP's features, which stay as they are.

    python -m wsdl_jax.main --config configs/declip.py
    python -m wsdl_jax.main --config configs/declip.py:setup=c,source=celebahq \\
        --config.model.backbone_path=ViT-L-14.pt
    python -m wsdl_jax.main --config configs/declip.py:setup=c,source=celebahq \\
        --config.model.backbone_path=ViT-L-14.pt --config.model.beside=clip_rn50 \\
        --config.model.beside_depth=3 --config.model.beside_path=RN50.pt

Variants: setup=a|b|c, source=portraits|celebahq|ffhq|image_folder/NAME|manifest/NAME, generator=…,
leave_out=… (see `configuration.set_data`), splice=0…1, augment=none|light|robust,
recipe=usual|long (of spliced portraits)|small (the portraits' networks, for other data),
backbone=clip_vit_l14|dinov2_b14|… (vit_tiny where the recipe is small).

With masks (setup c) the decoder is conv-20, and the learning rate falls from 1e-3 to 1e-6 as the
IoU of validation stops rising; its authors report IoU 73.9 in and 34.7 out of domain on Dolos. With
labels (a, b) it is one linear layer for every location. The decoder sees the output of the 21st of
24 blocks.

What is small has a transformer of six blocks, trained from nothing together with a linear decoder;
what that reaches is not known yet.
"""

from wsdl_jax import configuration


def get_config(arg: str | None = None):
    """Returns the config of a variant. Raises ConfigError for one that does not exist."""
    config, variant = configuration.start("declip", arg, *configuration.VARIED)
    is_small, is_long = configuration.is_small(variant), variant["recipe"] == "long"
    config.model.depth = 10  # of Xception; `set_backbone` has that of others
    if is_small:
        configuration.set_small_decoder(config, variant["source"], is_long=is_long)
        config.model.decoder = "linear"
    else:
        _paper(config)
    configuration.vary(config, variant)
    usual = "vit_tiny" if is_small else "clip_vit_l14"
    configuration.set_backbone(config, variant["backbone"] or usual)
    configuration.freeze_backbone(config)
    return config


def _paper(config):
    config.data.image_size = 224
    config.model.decoder = "conv-20" if config.supervision == "full" else "linear"
    config.init.scheme = "decoder"
    config.train.batch = 64
    config.train.epochs = 400  # at most: it ends when the learning rate has fallen
    config.train.steps_per_epoch = 140  # about once through 9,000 fakes
    config.train.optimizer = "adamw"
    config.train.schedule = "plateau"
