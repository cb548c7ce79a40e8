"""From ArrayRecord files to a batch in device memory: images/s, and where the time goes.

    python tests/benchmark/input_pipeline.py --config configs/patches.py
    python tests/benchmark/input_pipeline.py --config configs/patches.py:source=celebahq \
        --config.data.dir=DIR --config.data.workers=2

Prints a table of the stages in milliseconds of one core an image, and one of the whole pipeline as
training runs it, without and with `data.cache`.
"""

import contextlib
import itertools
import time
from collections.abc import Callable

import jax
from absl import flags
from ml_collections import config_flags
from PIL import Image

from wsdl_jax import configuration, inputs
from wsdl_jax.inputs import batches
from wsdl_jax.runtime import command
from wsdl_jax.runtime.parallel import Parallel

IMAGES = 400  # of each stage
REPEATS = 5  # of which the fastest counts


def milliseconds(function: Callable[[int], object], images: int) -> float:
    """Of one core, an image."""
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        for index in range(images):
            function(index)
        times.append(time.process_time() - began)
    return 1e3 * min(times) / images


def main(_: list[str]) -> None:
    config = _CONFIG.value
    configuration.validate(config)
    data = config.data
    inputs.prepare(config)
    examples = inputs.Examples((*data.real, *data.fake), "train", data.dir)
    images = min(IMAGES, len(examples))
    records = [examples[index] for index in range(images)]
    decoded = [inputs.full_image(record) for record in records]
    pictures = [Image.fromarray(pixels) for pixels in decoded]
    height, width = decoded[0].shape[:2]
    whole = batches._Decoded(examples, inputs.Reading.of(data), cache=False)
    stages: dict[str, Callable[[int], object]] = {
        "read the record": examples.__getitem__,
        f"decode {width}×{height}": lambda index: inputs.full_image(records[index]),
        f"resize to {data.image_size}, {data.resize}": lambda index: inputs.squashed(
            pictures[index], data.image_size, data.resize
        ),
        "all of it": whole.__getitem__,
    }
    print(f"| {'+'.join((*data.real, *data.fake))} | ms of one core |\n| --- | ---: |")
    for name, stage in stages.items():
        print(f"| {name} | {milliseconds(stage, images):.2f} |")

    parallel = Parallel(config.parallel.backend)
    print(f"\n| {data.workers} workers, batches of {config.train.batch} | images/s | cores busy |")
    print("| --- | ---: | ---: |")
    steps = max(len(examples) // config.train.batch, 8)
    for cache in (False, True):
        data.cache = cache
        with contextlib.closing(
            inputs.train_batches(
                examples, inputs.Reading.of(data), batch=config.train.batch, seed=config.seed
            )
        ) as read:
            for _ in itertools.islice(read, steps):  # threads and workers start; caches fill
                pass
            wall, cores = time.monotonic(), time.process_time()
            for batch in itertools.islice(read, steps):
                jax.block_until_ready(parallel.shard(batch))
            wall, cores = time.monotonic() - wall, time.process_time() - cores
        # The processor time of worker processes is not in this process's.
        busy = "–" if data.workers else f"{cores / wall:.1f}"
        name = "decoded images in memory" if cache else "decoded anew"
        print(f"| {name} | {steps * config.train.batch / wall:.0f} | {busy} |")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, and :variant.")
    flags.mark_flag_as_required("config")
    command.run(main)
