"""Training a detector: from a config to the best checkpoints of a run directory."""

import dataclasses
import logging
from collections.abc import Callable

import jax
import ml_collections
from etils import epath
from flax import nnx

from wsdl_jax import configuration, inputs, methods, runs, weights
from wsdl_jax.models import backbones
from wsdl_jax.runtime.errors import ConfigError
from wsdl_jax.runtime.parallel import AXIS
from wsdl_jax.training import features, pretrained
from wsdl_jax.training.loop import run_loop
from wsdl_jax.training.setup import Setup, check, newest_state
from wsdl_jax.training.step import make_loss_step, make_train_step

log = logging.getLogger("wsdl_jax")


def start_network(model: nnx.Module, config: ml_collections.ConfigDict) -> None:
    """Takes the config's pretrained weights, if it has any, into a network; the log says which.

    A backbone's own file is read first.

    Raises UserError for weights that do not fit.
    """
    init = config.init
    weights.fill_backbone(model, config)
    for role in ("backbone", "beside"):
        if path := config.model[f"{role}_path"]:
            stays = ", and stays so" if config.model.frozen else ""
            log.info("%s is from %s%s", config.model[role], path, stays)
    if init.path:
        new = pretrained.start(model, epath.Path(init.path), init.layout)
        log.info(
            "weights start from %s%s",
            init.path,
            f", those of {', '.join(new)} from scheme {init.scheme!r}" if new else "",
        )
    elif init.layout:
        log.warning(
            "the recipe starts from published weights (%s): config.init.path is not given, so all "
            "weights start from scheme %r",
            init.layout,
            init.scheme,
        )
    else:
        log.info("weights start from scheme %r", init.scheme)


def check_weights(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for pretrained weights of a config that do not fit its network."""
    if config.model.backbone_path or config.model.beside_path or config.init.path:
        model = methods.blank(config, None)
        weights.fill_backbone(model, config)
        if config.init.path:
            pretrained.start(model, epath.Path(config.init.path), config.init.layout)


def train(config: ml_collections.ConfigDict, run: epath.Path) -> None:
    """Trains a config in a run directory, from where that run has stopped.

    On SIGINT and SIGTERM the current step is finished and saved, and Interrupted is raised.

    Args:
      config: a valid one, of a detector.
      run: the run directory.

    Raises:
      UserError: the directory is of another config, or another process writes to it; the data is
        not what the run began with, or of the wrong side; the batch does not divide over the
        devices; full supervision without masks; a loss or gradient that is not finite, or so a
        validation by which a learning rate would fall.
      Interrupted: the process was asked to stop.
    """
    config, data = runs.with_files(run, config), config.data
    configuration.check_backbone_file(config)
    setup = check(
        config, run, real=data.real, fake=data.fake, microbatches=config.train.microbatches
    )
    if config.supervision == "full" and not setup.training.have_masks:
        raise ConfigError(f"{', '.join(data.fake)} has no masks: setup c learns from them")
    if config.train.splice and inputs.Examples(data.fake, "train", data.dir).have_masks:
        raise ConfigError(
            f"config.train.splice = {config.train.splice}: {', '.join(data.fake)} has masks, and "
            "only whole fakes are spliced; if it is of those, build it with --manipulated none"
        )
    _say_stage(config)
    with runs.written(run, config, setup.training.provenance) as check_lock:
        _train(config, run, setup, check_lock)


def _weights(data: ml_collections.ConfigDict) -> tuple[float, ...]:
    """Returns how often each subset is drawn from, see `inputs.Reading`."""
    if data.sampling == "balanced":
        sides = [side for side in (data.real, data.fake) if side]
        return tuple(1 / len(side) for side in sides for _ in side)
    return tuple(data.weights)


def _say_stage(config: ml_collections.ConfigDict) -> None:
    """Logs which stage of its backbone a method reads, where it is not the usual one."""
    definition = methods.get(config.method)
    if definition.reads_stage is None:
        return
    architecture = backbones.get(config.model.backbone)
    usual = definition.usual_stage(architecture)
    group, key = definition.reads_stage.split(".")
    if (read := config[group][key]) != usual:
        log.info(
            "config.%s = %d: of %d stages of %s; usual is %d",
            definition.reads_stage,
            read,
            architecture.stages,
            config.model.backbone,
            usual,
        )


def _train(
    config: ml_collections.ConfigDict,
    run: epath.Path,
    setup: Setup,
    check_lock: Callable[[], None],
) -> None:
    method = methods.from_config(config)
    model = methods.build(config, AXIS)
    augmentation = inputs.Augmentation.of(config.augment)
    targets = methods.targets(config)
    reading = dataclasses.replace(
        inputs.Reading.of(config.data, methods.map_size(config) if targets else None),
        has_masks=targets == "mask",
        splice=config.train.splice,
        self_blend=config.train.self_blend,
        augment=None if augmentation.is_off else augmentation,
        weights=_weights(config.data),
    )
    blank = runs.initial_state(model, config.train)
    parameters = sum(x.size for x in jax.tree.leaves(blank["params"]))
    log.info(
        "%s, %s supervision: %s parameters, on %d × %s, %d images a step",
        config.method,
        config.supervision,
        f"{parameters:,}",
        setup.parallel.mesh.size,
        jax.devices()[0].device_kind,
        config.train.batch,
    )
    checkpoints = runs.Checkpoints(run, keep_best=config.train.keep_best)
    state = newest_state(run, checkpoints, blank)
    del blank  # the loop needs the memory that its optimizer's state takes
    total = config.train.epochs * config.train.steps_per_epoch
    ended = False
    if state is None:
        start_network(model, config)
        state = runs.initial_state(model, config.train)
    else:
        if config.model.frozen:
            weights.fill_backbone(model, config)
        ended = runs.has_ended(state["optimizer"], config.train)
        log.info(
            "%s: %s at step %d of %d",
            run,
            "has ended" if ended else "continuing",
            int(state["step"]),
            total,
        )
    if config.data.features == "cached" and not ended and int(state["step"]) < total:
        setup = features.once(config, model, setup)
    # On the host alone: a device would hold the whole a second time while steps are taken.
    state = jax.device_get({**runs.variables(model), **state})
    model = runs.structure(model)
    optimizer = runs.make_optimizer(config.train)
    microbatches = config.train.microbatches
    run_loop(
        config,
        run,
        setup,
        reading,
        state=state,
        train_step=make_train_step(method, model, optimizer, config.seed, microbatches),
        loss_step=make_loss_step(
            method,
            model,
            compares_maps=config.train.schedule == "plateau" and targets == "mask",
        ),
        checkpoints=checkpoints,
        check_lock=check_lock,
    )
