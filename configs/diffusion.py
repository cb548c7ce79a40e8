"""The forger of the embedded portraits: diffusion models that make faces, whole and in part.

    python -m wsdl_jax.diffusion.train --config configs/diffusion.py --workdir runs/forger/pixel
    python -m wsdl_jax.diffusion.train --config configs/diffusion.py:part=autoencoder
    python -m wsdl_jax.diffusion.train --config configs/diffusion.py:part=latent \\
        --config.autoencoder.path=runs/forger/autoencoder

Variants: part=pixel|autoencoder|latent. Another dataset: --config.data.real="('dolos/ffhq_real',)"
and --config.data.image_size=….
"""

from wsdl_jax.diffusion import configuration
from wsdl_jax.runtime import variants
from wsdl_jax.runtime.variants import Variant


def get_config(arg: str | None = None):
    """Returns the config of a variant. Raises ConfigError for one that does not exist."""
    part = variants.parse(arg, (Variant("part", configuration.PARTS, "pixel"),))["part"]
    config = configuration.base()
    config.part = part
    # 12,000 portraits, none of which is in the dataset of seed 0 that the forger is used on.
    config.data.real = tuple(f"portraits/real-96px-seed{seed}" for seed in range(1, 9))
    config.train.steps_per_epoch = 250
    config.train.learning_rate = 1e-3
    config.train.schedule = "cosine"
    config.train.epochs = {"pixel": 60, "autoencoder": 6, "latent": 12}[part]
    if part == "latent":
        config.network.widths = (96, 112)
        config.network.patch = 2
        config.network.attention = 0
    return config
