"""Input pipelines: prepared datasets to batches of arrays, one shard per host."""

from wsdl_jax.inputs.pipeline import (
    FAKE,
    REAL,
    Batch,
    Examples,
    check_sides,
    eval_batches,
    full_image,
    full_mask,
    prepare,
    prepare_subsets,
    squashed,
    train_batches,
)

__all__ = [
    "FAKE",
    "REAL",
    "Batch",
    "Examples",
    "check_sides",
    "eval_batches",
    "full_image",
    "full_mask",
    "prepare",
    "prepare_subsets",
    "squashed",
    "train_batches",
]
