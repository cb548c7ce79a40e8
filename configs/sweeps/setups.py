"""Methods × setups, Table 2 of the paper: three methods, each with three kinds of supervision.

    python -m wsdl_jax.sweep configs/sweeps/setups.py --workdir runs/setups
    python -m wsdl_jax.sweep --workdir DIR \\
        configs/sweeps/setups.py:source=celebahq,imagenet=legacy_xception.safetensors,ffd=xcp_reg.tar

Variants: source=portraits|celebahq, seeds=N; imagenet=FILE and ffd=FILE, the weights from which the
paper's Grad-CAM and Attention start.

The portraits form takes about 22 minutes on two CPU cores with nothing else to do.
"""

from wsdl_jax import methods, sweep

METHODS = ("patches", "grad_cam", "attention")  # the paper's


def get_sweep(arg: str | None = None):
    """Yields the runs of a variant. Raises ConfigError for one that does not exist."""
    variant = sweep.variant(arg, source=("portraits", "celebahq"), imagenet=None, ffd=None)
    source = variant["source"]
    weights = {"timm-xception": variant["imagenet"], "ffd-attention": variant["ffd"]}
    for seed in range(variant["seeds"]):
        for method in METHODS:
            for setup in methods.get(method).setups:
                overrides = {"seed": seed}
                if file := weights.get(methods.get(method).starts_from):
                    overrides["init.path"] = file
                config = f"configs/{method}.py:setup={setup},source={source}"
                yield f"{method}/{setup}", config, overrides
