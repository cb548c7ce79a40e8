"""The fields of a forger's config, with units and defaults; what cannot be run is refused."""

import ml_collections
from ml_collections import config_dict

from wsdl_jax import configuration
from wsdl_jax.diffusion.process import SCHEDULES
from wsdl_jax.runtime.errors import ConfigError

PARTS = ("pixel", "autoencoder", "latent")
CHOICES = {
    "part": PARTS,
    "data.resize": configuration.CHOICES["data.resize"],
    "process.schedule": tuple(SCHEDULES),
    "train.schedule": ("constant", "cosine"),
    "parallel.backend": configuration.CHOICES["parallel.backend"],
}
_POSITIVE = (
    *("data.image_size", "network.patch", "autoencoder.channels", "process.steps"),
    *("train.batch", "train.epochs", "train.steps_per_epoch", "train.log_every"),
    *("train.keep_best", "train.learning_rate", "eval.batch"),
)
_NOT_NEGATIVE = (
    *("seed", "data.workers", "network.attention", "autoencoder.kl_weight"),
    *("process.p2_k", "process.p2_gamma", "train.warmup", "train.clip_norm"),
)


def base() -> ml_collections.ConfigDict:
    """Returns every field with its default."""
    config = ml_collections.ConfigDict()
    # What is trained: a U-Net on pixels, an autoencoder, or a U-Net on the latents of one.
    config.part = "pixel"
    config.seed = 0
    config.profile = config_dict.placeholder(str)  # "START:STOP": traces these steps

    config.data = data = ml_collections.ConfigDict()
    data.dir = config_dict.placeholder(str)  # prepared datasets; None: ~/tensorflow_datasets
    data.manual_dir = config_dict.placeholder(str)  # the unpacked download of Dolos, to build from
    data.real = config_dict.placeholder(tuple)  # subsets whose train split is learned
    data.image_size = 96  # pixels a side
    data.resize = "lanczos"  # Pillow's filter, when an image has another size
    data.flip = False  # horizontal flips with probability 0.5
    data.workers = 0  # processes that read and decode; 0: threads of this process
    data.cache = False  # keep decoded training images in memory: image_size² × 3 bytes each

    config.network = network = ml_collections.ConfigDict()
    network.widths = (64, 96, 80)  # channels at each level of the U-Net, each half the size
    network.patch = 4  # pixels (or latents) a side that are one place of the first level
    network.attention = 1  # the first level with attention, from 0

    config.autoencoder = autoencoder = ml_collections.ConfigDict()
    autoencoder.path = config_dict.placeholder(str)  # its run directory, for part = "latent"
    autoencoder.widths = (32, 48)  # channels at half and at a quarter of the image's size
    autoencoder.channels = 4  # of the latents
    autoencoder.kl_weight = 1e-3  # of the mean divergence from N(0, 1), to the mean absolute error

    config.process = process = ml_collections.ConfigDict()
    process.schedule = "cosine"  # or "linear"
    process.steps = 1000  # levels of noise in training
    process.p2_k = 1.0  # P2 weighting, 1/(k + SNR)^γ; γ = 0: every step counts the same
    process.p2_gamma = 1.0

    config.train = train = ml_collections.ConfigDict()
    train.batch = 32  # images a step, over all devices
    train.epochs = 40
    train.steps_per_epoch = 1000  # then validation and a checkpoint
    train.learning_rate = 5e-4
    train.schedule = "constant"  # or "cosine", to zero at the last step
    train.warmup = 200  # steps over which the learning rate rises from near zero
    train.clip_norm = 1.0  # global norm of the gradient; 0: not clipped
    train.ema = 0.9995  # decay of the averaged weights, which are those that are used
    train.log_every = 20  # steps
    train.keep_best = 1  # checkpoints, by validation loss, beside the latest

    config.eval = ml_collections.ConfigDict()
    config.eval.batch = 64  # images, over all devices

    config.parallel = ml_collections.ConfigDict()
    config.parallel.backend = "shard_map"  # or "pmap"
    return config


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError, in one line, for a config that cannot be run."""
    configuration.check_values(config, CHOICES, _POSITIVE, _NOT_NEGATIVE)
    if not config.data.real:
        raise ConfigError("config.data.real is empty: it names the subsets to learn")
    if not 0 <= config.train.ema < 1:
        raise ConfigError(f"config.train.ema = {config.train.ema}: must be in [0, 1)")
    widths = (*config.network.widths, *config.autoencoder.widths)
    if not config.network.widths or any(width <= 0 or width % 8 for width in widths):
        raise ConfigError(f"config: widths {widths}: must be positive multiples of 8")
    if len(config.autoencoder.widths) != 2:
        raise ConfigError(f"config.autoencoder.widths = {config.autoencoder.widths}: must be two")
    if config.data.image_size % multiple(config):
        raise ConfigError(
            f"config.data.image_size = {config.data.image_size}: with these networks it must be a "
            f"multiple of {multiple(config)}"
        )
    if config.part == "latent" and not config.autoencoder.path:
        raise ConfigError("config.autoencoder.path: the run directory of a trained autoencoder")


def multiple(config: ml_collections.ConfigDict) -> int:
    """Returns the number of pixels that the size of images must be a multiple of."""
    if config.part == "autoencoder":
        return 4
    pixels = config.network.patch * 2 ** (len(config.network.widths) - 1)
    return pixels * (4 if config.part == "latent" else 1)


def load(text: str) -> ml_collections.ConfigDict:
    """Returns the config of a run directory's text. Raises ConfigError for anything else."""
    return configuration.load(text, base, validate)
