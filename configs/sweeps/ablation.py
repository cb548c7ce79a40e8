"""What each choice does: one factor at a time, around the default of configs/patches.py.

    python -m wsdl_jax.sweep configs/sweeps/ablation.py --workdir runs/ablation
    python -m wsdl_jax.sweep configs/sweeps/ablation.py:source=celebahq,seeds=3 --workdir DIR

Variants: source=portraits|celebahq; seeds=N, of every run; imagenet=FILE and ffd=FILE, the weights
from which the paper's Grad-CAM and Attention start.

Groups of runs: `method`; `block`, after which Patches cuts Xception; `width` of the backbone;
`supervision`, by labels (setup b) or masks (c) of partial fakes; `lambda`, the weight of
Attention's mask loss; `seed`, the spread of the default. What groups have in common is run once.
In its portraits form the generator is `regrain`, which is learned in few steps.

The portraits form took 33 minutes of processor time, with images of 128×128 pixels.
"""

from wsdl_data import catalogue
from wsdl_jax import methods, sweep

METHODS = ("patches", "grad_cam", "attention")  # the paper's
SPREAD = 3  # seeds of the default


def get_sweep(arg: str | None = None):
    """Yields the runs of a variant. Raises ConfigError for one that does not exist."""
    variant = sweep.variant(arg, source=("portraits", "celebahq"), imagenet=None, ffd=None)
    source, small = variant["source"], catalogue.source(variant["source"]).is_small
    weights = {"timm-xception": variant["imagenet"], "ffd-attention": variant["ffd"]}

    def run(name, seed, method="patches", setup="a", **fields):
        overrides = {"seed": seed}
        if small:
            overrides["train.epochs"] = 6 if setup == "b" else 3
            overrides["train.steps_per_epoch"] = 100
        if file := weights.get(methods.get(method).starts_from):
            overrides["init.path"] = file
        overrides |= {field.replace("__", "."): value for field, value in fields.items()}
        config = f"configs/{method}.py:setup={setup},source={source}"
        return name, config + (",generator=regrain" if small else ""), overrides

    for seed in range(variant["seeds"]):
        for method in METHODS:
            yield run(f"method/{method}", seed, method)
        for depth in (1, 2, 3):
            yield run(f"block/{depth}", seed, model__depth=depth)
        for width in (0.125, 0.25, 0.5) if small else (0.5, 1.0, 2.0):
            yield run(f"width/{width}", seed, model__width=width)
        for setup in ("b", "c"):
            yield run(f"supervision/{setup}", seed, setup=setup)
        for weight in (0.0, 1.0, 10.0):
            yield run(f"lambda/{weight:g}", seed, "attention", loss__mask_weight=weight)
    for seed in range(max(variant["seeds"], SPREAD)):
        yield run("seed/default", seed)
