"""The fields of a config, with units and defaults; what cannot be run is refused here, by name.

A config file in configs/ starts from `start` or `base`, sets what its method and its variant need,
and returns it locked, so that a misspelt override fails.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from flax import nnx
from ml_collections import config_dict

from wsdl_jax import methods
from wsdl_jax.configuration import augmentation
from wsdl_jax.models import backbones
from wsdl_jax.models.backbone import Decodes
from wsdl_jax.models.decoder import DECODERS
from wsdl_jax.runtime import differences as trees
from wsdl_jax.runtime.errors import ConfigError

CHOICES: dict[str, tuple[str, ...]] = {
    "setup": methods.SETUPS,
    "supervision": ("weak", "full"),
    "model.backbone": backbones.names(),
    "model.decoder": DECODERS,
    "data.resize": ("bilinear", "lanczos"),
    "data.mask_resize": ("nearest", "bilinear"),
    "data.features": ("none", "cached"),
    "data.sampling": ("size", "balanced", "weights"),
    "model.dtype": ("float32", "bfloat16"),
    "init.scheme": ("torch", "xavier", "normal", "zero_residual", "decoder"),
    "loss.location": ("every", "max", "average", "lse", "topk", "gem"),
    "explanation.kind": methods.EXPLANATIONS,
    "score.pooling": methods.POOLINGS,
    "train.optimizer": ("adam", "adamw"),
    "train.schedule": ("constant", "cosine", "plateau"),
    "train.scaling": ("none", "linear"),
    "parallel.backend": ("shard_map", "pmap"),
}
_POSITIVE = (
    *("train.batch", "train.epochs", "train.steps_per_epoch", "train.log_every"),
    *("train.microbatches", "train.keep_best", "train.patience", "eval.batch", "model.width"),
    *("train.learning_rate", "loss.fake_weight", "loss.sharpness"),
)
_NOT_NEGATIVE = (
    *("train.clip_norm", "train.per_device_batch", "train.warmup", "data.workers"),
    *("loss.mask_weight", "score.sigma", "model.lora_rank", "model.registers"),
    "train.weight_decay",
)
LOWEST_RATE = 1e-6  # the learning rate below which train.schedule=plateau does not fall
# Where and how fast data is read, where arrays lie, and names: a run may be continued with other
# values.
CIRCUMSTANCES = (
    *("data.dir", "data.manual_dir", "data.workers", "data.cache", "profile"),
    *("parallel.fsdp", "data.features"),
    *("model.backbone_path", "model.beside_path"),  # a file is told by its SHA-256
    "variant",  # what it changes is in other fields
)
# What is filled in when a training begins, and the file that it is of; before that, it differs from
# nothing.
_FILLED_IN = {
    "model.backbone_sha256": "model.backbone_path",
    "model.beside_sha256": "model.beside_path",
}


# Fields of `model` that a network without a backbone of this package does not read.
_OF_BACKBONES = (
    "backbone",
    "backbone_path",
    "backbone_sha256",
    "frozen",
    "lora_rank",
    "registers",
)


def base() -> ml_collections.ConfigDict:
    """Returns every field with its default; fields without a sensible one are placeholders."""
    config = ml_collections.ConfigDict()
    config.method = config_dict.placeholder(str)  # of `methods.names()`, or MODULE:NAME
    # Keys and values of the variant that name the run beside method, setup and fakes.
    config.variant = ""
    config.setup = "a"  # a: fully generated fakes, b: partial fakes, c: partial fakes with masks
    config.supervision = "weak"  # "weak": image labels, "full": masks
    config.seed = 0
    config.profile = config_dict.placeholder(str)  # "START:STOP": traces these steps

    config.data = data = ml_collections.ConfigDict()
    data.dir = config_dict.placeholder(str)  # prepared datasets; None: ~/tensorflow_datasets
    data.manual_dir = config_dict.placeholder(str)  # the unpacked download of Dolos, to build from
    data.real = ("portraits/real",)  # subsets trained on; () under full supervision
    data.fake = config_dict.placeholder(tuple)
    # Whole fakes, whose validation images are spliced to fit the maps' threshold; (): as `fake`.
    data.spliced_fake = ()
    # How often a training image is of which subset: "size", as many images each has; "balanced",
    # real and fake alike, and on each side every subset alike; "weights", by `weights`.
    data.sampling = "size"
    data.weights = ()  # a number for each subset, those of `real` first
    # Subsets whose test split is scored; several have commas between them, see `subsets`.
    data.test_real = "portraits/real"
    data.test_fake = config_dict.placeholder(str)
    data.image_size = 299  # pixels a side of the network's input, at least 64
    data.resize = "bilinear"  # Pillow's filter, when an image has another size
    data.mask_resize = "nearest"  # Pillow's filter for mask targets
    data.flip = False  # horizontal flips with probability 0.5
    data.workers = 0  # processes that read and decode; 0: threads of this process
    # "cached": of a frozen backbone features of all images are computed once and kept on the disk,
    # in bfloat16, in the folder `features` beside the prepared datasets.
    data.features = "none"
    data.cache = False  # keep decoded training images in memory: image_size² × 3 bytes each

    config.augment = augmentation.fields()  # random changes of training images; none by default

    config.model = model = ml_collections.ConfigDict()
    model.backbone = backbones.XCEPTION  # one of wsdl_jax.models.backbones
    # Its published weights: a PyTorch file, from which it starts, or stays if it is frozen.
    model.backbone_path = config_dict.placeholder(str)
    model.backbone_sha256 = config_dict.placeholder(str)  # of that file; filled in by training
    model.frozen = False  # train what is beside the backbone alone, and its adapters
    model.lora_rank = 0  # of the adapters of a frozen transformer (LoRA); 0: none
    model.registers = 0  # register tokens of the backbone's file: of DINOv2 0 or 4
    model.width = 1.0  # multiplies every channel count of Xception and of vit_tiny
    # Which stage of the backbone is read, from 1: of Xception one of its 12 blocks.
    model.depth = 2  # Patches, DeCLIP, DINO: the one after which the backbone is cut
    model.attended = 7  # Attention: the one whose output is masked
    model.decoder = "conv-4"  # DeCLIP's, or linear, conv-12, conv-20: see wsdl_jax.models.decoder
    # DeCLIP: a second backbone, whose features are decoded beside the first's, with its own file.
    model.beside = config_dict.placeholder(str)
    model.beside_depth = 1  # the stage of it that is read
    model.beside_path = config_dict.placeholder(str)
    model.beside_sha256 = config_dict.placeholder(str)
    model.dtype = "float32"  # of the computation; parameters and statistics stay float32
    model.remat = False  # keep each block's input alone for the backward pass: less memory, slower

    config.init = init = ml_collections.ConfigDict()
    init.scheme = "torch"  # of the random weights, see wsdl_jax.models.initialization
    init.path = config_dict.placeholder(str)  # pretrained: a PyTorch file, or a run directory
    # Layout of the file that the recipe starts from, see wsdl_jax.weights; None: no file, or any.
    init.layout = config_dict.placeholder(str)

    config.loss = loss = ml_collections.ConfigDict()
    # Patches, weak: which locations are trained, or how they are pooled before they are.
    loss.location = "every"
    loss.sharpness = 5.0  # lse: of logit differences; towards infinity it is their maximum
    loss.topk = 0.1  # topk: share of the locations whose mean is taken, in (0, 1]
    loss.power = 3.0  # gem: of the generalized mean, at least 1
    loss.mask_weight = 1.0  # λ of the map's loss: Attention, weak; Grad-CAM, spliced
    loss.fake_weight = 1.0  # spliced: factor of the fake side of every location's loss

    config.explanation = explanation = ml_collections.ConfigDict()
    explanation.kind = "grad_cam"  # or hires_cam, layer_cam
    # The stage of the backbone whose output is explained, or in setup c read by an FCN.
    explanation.block = 11

    config.score = score = ml_collections.ConfigDict()
    score.from_map = False  # where the score is an image logit: the map's instead
    score.pooling = "mean"  # of a map: mean, gem, topk or max, see wsdl_jax.methods.pooling
    score.power = 3.0  # gem: at least 1
    score.topk = 0.1  # topk: share of the locations whose mean is taken, in (0, 1]
    score.sigma = 1.0  # topk: of the Gaussian that smooths the map before, in locations; 0: none

    config.train = train = ml_collections.ConfigDict()
    train.batch = 16  # images a step, over all devices
    train.splice = 0.0  # share of the fakes of which only a region is fake, in [0, 1); setup a
    # Share of the images of which a region is processed anew and counts as fake, in [0, 1]: in
    # setup b of the real ones; in setup a, where images are spliced.
    train.self_blend = 0.0
    train.per_device_batch = 0  # if set, what a device takes; `batch` follows from it
    train.scaling = "none"  # "linear": the learning rate grows with the batch, if per device
    train.warmup = 0  # steps over which the learning rate rises from near zero
    train.microbatches = 1  # parts of a device's batch, one after the other; gradients averaged
    train.epochs = 50
    train.steps_per_epoch = 500  # then validation and a checkpoint
    train.optimizer = "adam"  # or "adamw", whose weight decay is not a part of the gradient
    train.weight_decay = 0.0  # adamw: share of a parameter that is taken off, times the rate
    train.learning_rate = 1e-3
    # "constant"; "cosine", to zero at the last step; or "plateau": divided by ten where validation,
    # in setup c its IoU and otherwise its loss, is not better for `patience` epochs, down to 1e-6.
    train.schedule = "constant"
    train.patience = 5  # plateau: epochs
    train.clip_norm = 0.0  # global norm of the gradient; 0: not clipped
    train.log_every = 10  # steps
    train.keep_best = 5  # checkpoints, by validation loss, beside the latest

    config.eval = ml_collections.ConfigDict()
    config.eval.batch = 64  # images, over all devices
    # Whether a verdict's threshold holds for real images after everyday perturbations, too.
    config.eval.perturbed = False

    config.parallel = ml_collections.ConfigDict()
    config.parallel.backend = "shard_map"  # or "pmap"
    # Parameters and the optimizer's state in parts over the devices, which gather what they compute
    # with (FSDP): less memory, more traffic, the same numbers to rounding.
    config.parallel.fsdp = False
    return config


def for_devices(config: ml_collections.ConfigDict, devices: int) -> ml_collections.ConfigDict:
    """Returns the config with batch and learning rate as they are on so many devices.

    They change only where `train.per_device_batch` is set: the batch is that times the devices, and
    under linear scaling (Goyal et al., 2017) the learning rate grows in proportion.
    """
    config = config.copy_and_resolve_references()
    train = config.train
    if train.per_device_batch:
        batch = train.per_device_batch * devices
        if train.scaling == "linear":
            train.learning_rate *= batch / train.batch
        train.batch = batch
    return config


def profiled_steps(config: ml_collections.ConfigDict) -> range:
    """Returns the steps that are traced, counted from 1.

    Raises ConfigError for what is not START:STOP, and for a STOP beyond the config's last step.
    """
    if config.profile is None:
        return range(0)
    try:
        first, last = map(int, config.profile.split(":"))
    except ValueError:
        first = last = 0
    if not 1 <= first < last:
        raise ConfigError(
            f"config.profile = {config.profile!r}: not two steps START:STOP with 1 ≤ START < STOP"
        )
    total = config.train.epochs * config.train.steps_per_epoch
    if last > total + 1:
        raise ConfigError(
            f"config.profile = {config.profile!r}: with {total} steps STOP is at most {total + 1}"
        )
    return range(first, last)


def check_circumstances(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for steps that cannot be traced, and for data that cannot be read so.

    To be asked of the config of a training that begins, not of one that a run has kept: it says
    nothing of what the run has computed.
    """
    profiled_steps(config)
    if config.data.cache and config.data.workers:
        raise ConfigError(
            f"config.data.cache with config.data.workers = {config.data.workers}: each worker "
            "would keep a copy of all images; choose one of the two"
        )
    if config.data.get("features") == "cached":  # which a forger's config does not say
        _check_cached_features(config)


def _check_cached_features(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for a config whose network or images are not the same at every step."""
    augmented = any(isinstance(value, float) and value for value in config.augment.values())
    for varies, reason in (
        (not config.model.frozen, "config.model.frozen = False: the backbone is trained"),
        (config.model.lora_rank > 0, f"config.model.lora_rank = {config.model.lora_rank}"),
        (config.data.flip, "config.data.flip = True"),
        (augmented, "config.augment"),
        (config.train.splice > 0, f"config.train.splice = {config.train.splice}"),
        (config.train.self_blend > 0, f"config.train.self_blend = {config.train.self_blend}"),
    ):
        if varies:
            raise ConfigError(
                f"config.data.features = 'cached' with {reason}: features are computed once, and "
                "are to be the same at every step"
            )
    if config.data.cache:
        raise ConfigError(
            "config.data.cache with config.data.features = 'cached': no image is decoded, and "
            "features would be kept in memory; they are read from the disk"
        )
    network = nnx.eval_shape(lambda: methods.blank(config, None))
    if not isinstance(network, Decodes):
        raise ConfigError(
            f"config.data.features = 'cached': the network of {config.method} in setup "
            f"{config.setup} reads more of its backbone than the map behind one stage"
        )


def check_backbone_file(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for a detector to be trained whose backbone is frozen and has no file.

    Like circumstances, it concerns a training that begins: shapes are known without the file.
    """
    for role in ("backbone", "beside"):
        name = config.model[role]
        if config.model.frozen and name is not None and config.model[f"{role}_path"] is None:
            raise ConfigError(
                f"config.model.frozen = True: config.model.{role}_path has to name the weights of "
                f"{name}, since random features that stay as they are detect nothing"
            )


def check_values(
    config: ml_collections.ConfigDict,
    choices: Mapping[str, Sequence[str]],
    positive: Sequence[str],
    not_negative: Sequence[str],
) -> None:
    """Raises ConfigError for a field whose value is none that it can have.

    Args:
      config: of a detector or a forger.
      choices: the valid values of fields, by path.
      positive: paths of fields that must be above zero.
      not_negative: paths of fields that must not be below zero.
    """
    for path, valid in choices.items():
        value = field(config, path)
        if value not in valid:
            raise ConfigError(f"config.{path} = {value!r}: choose from {', '.join(valid)}")
    for path in positive:
        if not field(config, path) > 0:
            raise ConfigError(f"config.{path} = {field(config, path)}: must be positive")
    for path in not_negative:
        if not field(config, path) >= 0:
            raise ConfigError(f"config.{path} = {field(config, path)}: must not be negative")


def subsets(names: str) -> tuple[str, ...]:
    """Returns the subsets that `data.test_real` or `data.test_fake` names, one or several.

    names: of subsets, with commas between them.

    Raises ConfigError for a name that is empty or there twice.
    """
    found = tuple(name.strip() for name in names.split(","))
    if not all(found):
        raise ConfigError(f"{names!r}: names of subsets with commas between them; one is empty")
    if twice := [name for name in found if found.count(name) > 1]:
        raise ConfigError(f"{names!r}: {twice[0]} is there twice")
    return found


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError, in one line, for a config that cannot be run."""
    methods.get(config.method)  # an unknown method is refused first
    check_values(config, CHOICES, _POSITIVE, _NOT_NEGATIVE)
    if config.train.scaling != "none" and not config.train.per_device_batch:
        raise ConfigError(
            f"config.train.scaling = {config.train.scaling!r}: goes with train.per_device_batch"
        )
    if config.parallel.fsdp and config.parallel.backend == "pmap":
        raise ConfigError(
            "config.parallel.fsdp with config.parallel.backend = 'pmap': goes with 'shard_map'"
        )
    if config.train.schedule == "plateau" and config.train.learning_rate < LOWEST_RATE:
        raise ConfigError(
            f"config.train.learning_rate = {config.train.learning_rate}: train.schedule=plateau "
            f"ends at {LOWEST_RATE}"
        )
    layouts = methods.layouts()
    if config.init.layout is not None and config.init.layout not in layouts:
        raise ConfigError(
            f"config.init.layout = {config.init.layout!r}: choose from {', '.join(layouts)}"
        )
    if not config.data.fake or not config.data.test_fake or not config.data.test_real:
        raise ConfigError(
            "config.data: fake, test_fake and test_real name the subsets; one is empty"
        )
    subsets(config.data.test_fake)
    subsets(config.data.test_real)
    if (config.setup == "c") != (config.supervision == "full"):
        raise ConfigError(
            f"config.setup = {config.setup!r} with config.supervision = {config.supervision!r}: "
            "setup c is full supervision, a and b are weak"
        )
    if not 0 <= config.train.splice < 1:
        raise ConfigError(
            f"config.train.splice = {config.train.splice}: a share, from 0 to below 1"
        )
    for path in ("loss.topk", "score.topk"):
        if not 0 < field(config, path) <= 1:
            raise ConfigError(f"config.{path} = {field(config, path)}: a share, above 0 to 1")
    for path in ("loss.power", "score.power"):
        if not field(config, path) >= 1:
            raise ConfigError(f"config.{path} = {field(config, path)}: must be at least 1")
    if config.train.splice and config.setup != "a":
        fakes = "have masks" if config.setup == "c" else "are not fake everywhere"
        raise ConfigError(
            f"config.train.splice = {config.train.splice} with config.setup = {config.setup!r}: "
            f"only fully generated fakes are spliced, those of setup {config.setup} {fakes}"
        )
    if not 0 <= config.train.self_blend <= 1:
        raise ConfigError(
            f"config.train.self_blend = {config.train.self_blend}: a share, from 0 to 1"
        )
    if config.train.self_blend and config.setup == "a" and not config.train.splice:
        raise ConfigError(
            f"config.train.self_blend = {config.train.self_blend}: goes with train.splice in "
            "setup a, by which every location is trained"
        )
    if config.supervision == "weak" and not config.data.real:
        raise ConfigError("config.data.real is empty: weak supervision needs real images")
    if config.supervision == "full" and config.data.real:
        raise ConfigError("config.data.real is set: full supervision trains on masked fakes alone")
    if config.data.sampling == "weights":
        count = len(config.data.real) + len(config.data.fake)
        weights = config.data.weights
        numbers = all(isinstance(weight, int | float) for weight in weights)
        if len(weights) != count or not numbers or not _are_shares(weights):
            raise ConfigError(
                f"config.data.weights = {tuple(weights)}: {count} numbers, one for each subset "
                "of data.real and data.fake, above a millionth of their sum"
            )
    augmentation.check(config.augment)
    methods.check(config)
    _refuse_without_effect(config)


def _are_shares(weights: Sequence[float]) -> bool:
    total = math.fsum(weights)
    return math.isfinite(total) and all(weight > 1e-6 * total for weight in weights)


def _refuse_without_effect(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for a field that was changed, and that this config does not read."""
    definition = methods.get(config.method)
    who = f"{config.method} in setup {config.setup}"
    stage = definition.reads_stage
    explains = definition.explains and config.supervision == "weak"
    may_pool = config.supervision in definition.logit_scores
    default = base()
    changed = any(config.model[name] != default.model[name] for name in _OF_BACKBONES)
    # A network is built only where it has to be known.
    has_backbone = stage is not None or (changed and methods.has_backbone(config))
    pools = methods.pools(config)
    unpooled = "goes with score.from_map" if may_pool else f"{who} pools no map"
    read_where = (
        ("data.weights", config.data.sampling == "weights", "goes with data.sampling=weights"),
        (
            "train.weight_decay",
            config.train.optimizer == "adamw",
            "goes with train.optimizer=adamw",
        ),
        ("train.patience", config.train.schedule == "plateau", "goes with train.schedule=plateau"),
        ("loss.fake_weight", config.train.splice > 0, "goes with train.splice"),
        ("loss.sharpness", config.loss.location == "lse", "goes with loss.location=lse"),
        ("loss.topk", config.loss.location == "topk", "goes with loss.location=topk"),
        ("loss.power", config.loss.location == "gem", "goes with loss.location=gem"),
        ("explanation.kind", explains, f"{who} has no explanations"),
        *(
            (path, stage in (path, None), f"{config.method} reads the stage that {stage} says")
            # Runs of before there were backbones may have another model.depth that nothing reads.
            for path in ("model.attended", "explanation.block")
        ),
        ("model.decoder", definition.decodes, f"{config.method} has no such decoder"),
        ("model.beside", definition.decodes, f"{config.method} has one backbone"),
        *(
            (f"model.beside_{name}", config.model.beside is not None, "goes with model.beside")
            for name in ("depth", "path", "sha256")
        ),
        *(
            (f"model.{name}", has_backbone, f"{config.method} has no backbone of this package")
            for name in _OF_BACKBONES
        ),
        ("score.from_map", may_pool, f"{who} has no image logit that is its score"),
        ("score.pooling", pools, unpooled),
        ("score.power", pools and config.score.pooling == "gem", "goes with score.pooling=gem"),
        ("score.topk", pools and config.score.pooling == "topk", "goes with score.pooling=topk"),
        ("score.sigma", pools and config.score.pooling == "topk", "goes with score.pooling=topk"),
    )
    for path, is_read, reason in read_where:
        if not is_read and field(config, path) != field(default, path):
            raise ConfigError(f"config.{path} = {field(config, path)!r}: {reason}")


def essence(config: ml_collections.ConfigDict) -> list[tuple[str, Any]]:
    """Returns every field that changes what a run computes, with its value, by name."""
    fields = trees.leaves(config.to_dict())
    return sorted((path, value) for path, value in fields if path not in CIRCUMSTANCES)


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[str]:
    """Returns lines "field: old → new" for every field that changes what a run computes.

    What is filled in when a training begins is compared where both say it, and where the old one
    can have none, as it names no file.
    """
    sides = dict(essence(old)), dict(essence(new))
    for path, of_file in _FILLED_IN.items():
        before, now = (side.get(path) for side in sides)
        if (before is None) == (now is None):
            continue
        if before is not None or field(old, of_file) is not None:
            for side in sides:
                side.pop(path)
    return trees.differences(*sides)


def field(config: ml_collections.ConfigDict, path: str) -> Any:
    """Returns the value of a field by its path, such as "train.batch"."""
    for key in path.split("."):
        config = config[key]
    return config
