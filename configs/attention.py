"""Attention: a learned mask that gates the features of an image classifier.

    python -m wsdl_jax.main --config configs/attention.py
    python -m wsdl_jax.main --config configs/attention.py:setup=b,source=celebahq \\
        --config.init.path=xcp_reg.tar

Variants: setup=a|b|c, source=portraits|celebahq|ffhq|image_folder/NAME|manifest/NAME, generator=…,
leave_out=… (see `configuration.set_data`), splice=0…1, augment=none|light|robust,
recipe=usual|long (of spliced portraits)|small (the portraits' networks, for other data),
backbone=xception|vit_tiny|dinov2_b14|… (see wsdl_jax/models/README.md).

The default (portraits, setup a, 70% of the fakes spliced) reaches AP 89.4, iou_lg 19.3 and 29.0 at
the fitted threshold (means of three seeds; the all-fake map: 17.5), with recipe=long 99.9, 69.1
and 72.6.
"""

from wsdl_data import catalogue
from wsdl_jax import configuration


def get_config(arg: str | None = None):
    """Returns the config of a variant. Raises ConfigError for one that does not exist."""
    config, variant = configuration.start("attention", arg, *configuration.VARIED)
    source = catalogue.source(variant["source"])
    if configuration.is_small(variant):
        _laptop(config, source)
    else:
        _paper(config, source)
    configuration.vary(config, variant)
    if configuration.is_small(variant) and config.train.splice:
        _spliced(config, is_long=variant["recipe"] == "long")
    configuration.set_backbone(config, variant["backbone"])
    return config


def _laptop(config, source):
    config.data.image_size = 96
    config.model.width = 0.125
    config.train.batch = 16
    config.train.epochs = 5
    config.train.steps_per_epoch = 120
    if source.is_small and config.setup == "a":
        config.train.splice = 0.7
    config.eval.batch = 50


def _spliced(config, is_long):
    config.init.scheme = "zero_residual"
    config.loss.mask_weight = 10.0  # with 1 nothing of the map is learned in the first epochs
    config.train.epochs = 12 if is_long else 2
    config.train.steps_per_epoch = 320
    config.train.learning_rate = 5e-3
    config.train.warmup = 100
    config.train.clip_norm = 1.0
    config.train.schedule = "cosine"


def _paper(config, source):
    config.init.layout = "ffd-attention"  # FFD's xcp_reg, given by config.init.path
    config.init.scheme = "normal"  # where it is not
    config.train.batch = 16
    if config.supervision == "weak":
        config.train.learning_rate = 1e-4
        config.train.epochs = 15
    else:
        config.data.mask_resize = "bilinear"
        config.train.learning_rate = 3e-4
        config.train.epochs = 30 if source.is_cross_dataset else 15
