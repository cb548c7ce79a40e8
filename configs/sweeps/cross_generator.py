"""Across generators, Figure 6 of the paper: Patches, fully supervised, trained on each generator
and on all but each, tested on every one.

    python -m wsdl_jax.sweep configs/sweeps/cross_generator.py --workdir runs/generators
    python -m wsdl_jax.sweep configs/sweeps/cross_generator.py:source=celebahq --workdir DIR

Variants: source=portraits|celebahq, seeds=N.

In its portraits form other regions are changed as well, and count as manipulated
(`train.self_blend`). A run of it takes 8 minutes on one core of a busy machine.
"""

from wsdl_data import catalogue
from wsdl_jax import sweep


def get_sweep(arg: str | None = None):
    """Yields the runs of a variant. Raises ConfigError for one that does not exist."""
    variant = sweep.variant(arg, source=catalogue.compared_sources())
    source = variant["source"]
    subsets = catalogue.source(source).comparison
    tested = list(subsets.values())
    for seed in range(variant["seeds"]):
        overrides = {"seed": seed}
        if catalogue.source(source).is_small:
            # Regions that are processed in many ways keep a detector from one generator's traces.
            overrides |= {"train.self_blend": 0.7, "train.learning_rate": 3e-3}
            overrides["train.epochs"] = 16
        config = f"configs/patches.py:setup=c,source={source}"
        for one in subsets:
            yield f"single/{one}", f"{config},generator={one}", overrides, tested
        for one in subsets:
            yield f"leave-one-out/without-{one}", f"{config},leave_out={one}", overrides, tested
