"""Steps/s of a decoder on features that were computed once, and on features computed at each step.

    python tests/benchmark/features.py \
        --config configs/declip.py:setup=c,source=celebahq,backbone=dinov2_s14 \
        --config.model.decoder=conv-4 --config.data.dir=DIR

The backbone is frozen. Without config.model.backbone_path its file is one of random weights, which
take as long. Both ways read, send and take the same batches, in turns. Features stay in the
folder `features` of DIR.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import flags
from flax import nnx
from ml_collections import config_flags
from safetensors.numpy import save_file

from wsdl_jax import configuration, inputs, methods, runs, training, weights
from wsdl_jax.models import backbones
from wsdl_jax.models.backbone_names import TOWERS
from wsdl_jax.models.initialization import initialize
from wsdl_jax.runtime import command
from wsdl_jax.runtime.parallel import AXIS, Parallel
from wsdl_jax.training import features
from wsdl_jax.training.setup import Setup

WARM_UP = 2  # steps that are not counted: they compile


def random_file(config: ml_collections.ConfigDict, folder: Path) -> Path:
    """Writes a file of the config's backbone with random weights, of a DINOv2."""
    name, depth = config.model.backbone, config.model.depth
    trunk = backbones.trunk(name, depth, registers=config.model.registers, rngs=nnx.Rngs(0))
    initialize(trunk, "torch", seed=0)
    tower = next(one for one in TOWERS if one.layout == "dinov2-transformers")
    places = {place.name: place for place in tower.places(trunk, "")}
    path = folder / f"{name}.safetensors"
    save_file({k: v.to_torch(np.asarray(v.variable[...])) for k, v in places.items()}, path)
    return path


def make_step(
    config: ml_collections.ConfigDict, model: nnx.Module, setup: Setup
) -> tuple[Callable[[], None], contextlib.ExitStack]:
    """Returns a function that takes a training step, of the next batch, and what closes it."""
    targets = methods.targets(config)
    reading = inputs.Reading.of(config.data, methods.map_size(config) if targets else None)
    batches = inputs.train_batches(
        setup.training, reading, batch=config.train.batch, seed=config.seed
    )
    optimizer = runs.make_optimizer(config.train)
    step = training.make_train_step(methods.from_config(config), model, optimizer, config.seed)
    take = setup.parallel.map(step, donate=True)
    state = {**runs.variables(model), **runs.initial_state(model, config.train)}
    state = setup.parallel.distribute(state)

    def one() -> None:
        nonlocal state
        (state, metrics), _ = take(state, setup.parallel.shard(next(batches)))
        jax.block_until_ready(metrics)

    closing = contextlib.ExitStack()
    closing.callback(batches.close)
    return one, closing


def main(_: list[str]) -> None:
    config = configuration.for_devices(_CONFIG.value, jax.device_count())
    config.data.features, data = "cached", config.data
    inputs.prepare(config)
    with contextlib.ExitStack() as closing:
        if config.model.backbone_path is None:
            folder = closing.enter_context(tempfile.TemporaryDirectory())
            config.model.backbone_path = str(random_file(config, Path(folder)))
        configuration.validate(config)
        configuration.check_circumstances(config)
        config = weights.with_digest(config)
        parallel = Parallel(config.parallel.backend, fsdp=config.parallel.fsdp)
        training_split, valid = (
            inputs.Examples((*data.real, *data.fake), split, data.dir)
            for split in ("train", "valid")
        )
        setup = Setup(parallel, training_split, valid, parallel.rounded_up(config.eval.batch))
        ways: dict[str, Callable[[], None]] = {}
        for name in ("computed at each step", "computed once"):
            model = methods.build(config, AXIS)
            weights.fill_backbone(model, config)
            if name == "computed once":
                began, images = time.monotonic(), len(training_split) + len(valid)
                setup = features.once(config, model, setup)
                elapsed = time.monotonic() - began
            ways[name], close = make_step(config, model, setup)
            closing.push(close)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(_STEPS.value + WARM_UP):
            for name, step in ways.items():
                began = time.monotonic()
                step()
                seconds[name].append(time.monotonic() - began)
    medians = {name: statistics.median(taken[WARM_UP:]) for name, taken in seconds.items()}
    kept = setup.training.features[0]
    model = config.model
    print(f"{model.backbone} to stage {model.depth}, {data.image_size} px, {model.decoder}")
    print(f"{kept.image_bytes / 1024:.0f} KiB an image; {elapsed:.0f} s for {images:,} images,")
    print("or for those of them that were not there yet\n")
    print(
        f"| features, batches of {config.train.batch} | steps/s | images/s |\n| --- | ---: | ---: |"
    )
    for name, median in medians.items():
        print(f"| {name} | {1 / median:.3g} | {config.train.batch / median:.3g} |")
    slow, fast = medians.values()
    print(f"\nratio {slow / fast:.2f}")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, and :variant.")
    _STEPS = flags.DEFINE_integer("steps", 10, "Steps of each way.", 1)
    flags.mark_flag_as_required("config")
    command.run(main)
