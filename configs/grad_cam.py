"""Grad-CAM: an explanation of an image classifier; an FCN on the same backbone in setup C.

    python -m wsdl_jax.main --config configs/grad_cam.py
    python -m wsdl_jax.main --config configs/grad_cam.py:setup=b,source=celebahq \\
        --config.init.path=legacy_xception.tf_in1k.safetensors

Variants: setup=a|b|c, source=portraits|celebahq|ffhq|image_folder/NAME|manifest/NAME, generator=…,
leave_out=… (see `configuration.set_data`), splice=0…1, augment=none|light|robust,
recipe=usual|long (of spliced portraits)|small (the portraits' networks, for other data),
backbone=xception|vit_tiny|dinov2_b14|… (see wsdl_jax/models/README.md).

The default (portraits, setup a, 70% of the fakes spliced) reaches AP 81.5, iou_lg 14.8 and 24.4 at
the fitted threshold (means of three seeds; the all-fake map: 17.5). It goes on learning for long:
with recipe=long it has 100.0, 70.1 and 70.8.
"""

from wsdl_data import catalogue
from wsdl_jax import configuration


def get_config(arg: str | None = None):
    """Returns the config of a variant. Raises ConfigError for one that does not exist."""
    config, variant = configuration.start("grad_cam", arg, *configuration.VARIED)
    source = catalogue.source(variant["source"])
    if configuration.is_small(variant):
        _laptop(config, source)
    elif config.supervision == "weak":
        _paper_weak(config)
    else:
        _paper_full(config)
    configuration.vary(config, variant)
    if configuration.is_small(variant) and config.train.splice:
        _spliced(config, is_long=variant["recipe"] == "long")
    configuration.set_backbone(config, variant["backbone"])
    return config


def _laptop(config, source):
    config.data.image_size = 96
    config.data.flip = True
    config.model.width = 0.125
    config.train.batch = 16
    config.train.epochs = 5
    config.train.steps_per_epoch = 120
    if source.is_small and config.setup == "a":
        config.train.splice = 0.7
    config.train.schedule = "cosine"  # a short run has to settle
    config.eval.batch = 50


def _spliced(config, is_long):
    config.explanation.kind = "hires_cam"  # one evidence a location, where Grad-CAM's is a mean
    config.explanation.block = 7  # like Attention's mask; the score learns sooner than with 11
    config.init.scheme = "zero_residual"
    config.loss.mask_weight = 10.0  # with 1 nothing of the map is learned in the first epochs
    # Easier to see than reconstructions, so that a short run learns its map sooner.
    config.train.self_blend = 0.0 if is_long else 0.4
    config.train.epochs = 15 if is_long else 3
    config.train.steps_per_epoch = 240
    config.train.learning_rate = 3e-3  # with 5e-3 one run of two learned nothing
    config.train.warmup = 100
    config.train.clip_norm = 1.0


def _paper_weak(config):
    config.init.layout = "timm-xception"  # ImageNet's weights, given by config.init.path
    config.data.resize = "lanczos"
    config.data.flip = True
    config.train.batch = 32
    config.train.epochs = 100


def _paper_full(config):
    config.init.layout = "timm-xception"
    config.train.batch = 16
    config.train.epochs = 50
