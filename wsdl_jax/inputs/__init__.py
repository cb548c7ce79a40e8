"""Input pipelines: prepared datasets to batches of arrays, one shard per host."""

from wsdl_jax.inputs.augmentation import Augmentation
from wsdl_jax.inputs.batches import (
    Batch,
    Reading,
    Spliced,
    eval_batches,
    squashed,
    train_batches,
)
from wsdl_jax.inputs.examples import (
    FAKE,
    REAL,
    Examples,
    check_sides,
    decoded,
    full_image,
    full_mask,
    prepare,
    prepare_subsets,
    warn_of_changed_sources,
)
from wsdl_jax.inputs.features import KeptFeatures

__all__ = [
    "FAKE",
    "REAL",
    "Augmentation",
    "Batch",
    "Examples",
    "KeptFeatures",
    "Reading",
    "Spliced",
    "check_sides",
    "decoded",
    "eval_batches",
    "full_image",
    "full_mask",
    "prepare",
    "prepare_subsets",
    "squashed",
    "train_batches",
    "warn_of_changed_sources",
]
