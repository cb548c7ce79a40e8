"""Patches: scores of local patches, from the first blocks of Xception.

    python -m wsdl_jax.main --config configs/patches.py
    python -m wsdl_jax.main --config configs/patches.py:setup=c,source=celebahq
    python -m wsdl_jax.main --config configs/patches.py:setup=c,source=celebahq,leave_out=lama

Variants: setup=a|b|c, source=portraits|celebahq|ffhq|image_folder/NAME|manifest/NAME, generator=…,
leave_out=… (see `configuration.set_data`), splice=0…1, augment=none|light|robust,
recipe=usual|long (of spliced portraits)|small (the portraits' networks, for other data),
backbone=xception|vit_tiny|dinov2_b14|… (see wsdl_jax/models/README.md).

The default (portraits, setup a, 70% of the fakes spliced) reaches AP 98.8, iou_lg 63.0 and 66.5 at
the fitted threshold (means of three seeds; the all-fake map: 17.5), with recipe=long 100.0, 81.1
and 81.2.
"""

from wsdl_data import catalogue
from wsdl_jax import configuration


def get_config(arg: str | None = None):
    """Returns the config of a variant. Raises ConfigError for one that does not exist."""
    config, variant = configuration.start("patches", arg, *configuration.VARIED)
    source = catalogue.source(variant["source"])
    if configuration.is_small(variant):
        _laptop(config, source)
    elif config.supervision == "weak":
        _paper_weak(config)
    else:
        _paper_full(config, leave_one_out=variant["leave_out"] is not None)
    configuration.vary(config, variant)
    if configuration.is_small(variant) and config.train.splice:
        _spliced(config, is_long=variant["recipe"] == "long")
        if variant["augment"] == "robust":
            _robust(config)
    configuration.set_backbone(config, variant["backbone"])
    return config


def _laptop(config, source):
    config.data.image_size = 96
    config.model.width = 0.25
    config.train.batch = 16
    config.train.epochs = 30  # by then the validation loss has settled, at 15 it has not
    config.train.steps_per_epoch = 100
    if source.is_small and config.setup == "a":
        config.train.splice = 0.7
    config.train.schedule = "cosine"  # a short run has to settle
    config.eval.batch = 50
    if source.is_small and config.setup == "b":
        _partly_fake(config)


def _partly_fake(config):
    config.loss.location = "topk"
    config.train.self_blend = 0.5
    config.train.epochs = 24
    config.train.learning_rate = 3e-3


def _spliced(config, is_long):
    config.data.flip = True
    config.train.epochs = 40 if is_long else 10
    config.train.learning_rate = 3e-3


def _robust(config):
    config.train.self_blend = 0.4  # easier to see than reconstructions, once all is compressed
    config.train.epochs = max(config.train.epochs, 30)


def _paper_weak(config):
    config.data.resize = "lanczos"
    config.data.flip = True
    config.init.scheme = "xavier"
    config.train.batch = 64
    config.train.epochs = 100


def _paper_full(config, leave_one_out):
    config.train.batch = 16
    config.train.epochs = 150 if leave_one_out else 50
