"""Across datasets, Table 3 of the paper: Patches trained on other faces than it is tested on.

    python -m wsdl_jax.sweep configs/sweeps/cross_dataset.py --workdir runs/datasets
    python -m wsdl_jax.sweep configs/sweeps/cross_dataset.py:source=ffhq --workdir DIR

Variants: source=portraits|ffhq, seeds=N. `ffhq` is trained on and CelebA-HQ tested on, as in the
paper. In its portraits form the generator is `regrain`, and the other dataset is of 128×128 pixels,
reduced to the 96×96 of those that are tested on.

The portraits form took 8 minutes of processor time, with images of 128×128 pixels.
"""

from wsdl_data import catalogue
from wsdl_jax import methods, sweep

OTHER = "-128px"


def get_sweep(arg: str | None = None):
    """Yields the runs of a variant. Raises ConfigError for one that does not exist."""
    variant = sweep.variant(arg, source=("portraits", "ffhq"))
    source = variant["source"]
    is_small = catalogue.source(source).is_small
    for seed in range(variant["seeds"]):
        for setup in methods.SETUPS:
            overrides = {"seed": seed}
            config = f"configs/patches.py:setup={setup},source={source}"
            if is_small:
                config += ",generator=regrain"
                subsets = catalogue.source(source).subsets(setup, "regrain")
                real, fake = ((subset + OTHER,) for (subset,) in (subsets.real, subsets.fake))
                overrides["data.real"] = () if setup == "c" else real
                overrides["data.fake"] = fake
                overrides["train.epochs"] = 6 if setup == "b" else 3
            name = source + (OTHER if is_small else "")
            yield f"{name}/{setup}", config, overrides
