"""The check of a step against a slice: whether it fits, or which batch does."""

import functools
from collections.abc import Callable

import ml_collections

from wsdl_jax import configuration
from wsdl_jax.pods.cost import Cost, TooLarge, chip_memory, lower, measure
from wsdl_jax.pods.report import cost_table, fits, two_columns, verdict
from wsdl_jax.pods.topology import make_devices
from wsdl_jax.runtime.parallel import Parallel


def check(
    config: ml_collections.ConfigDict, topology: str, *, step: str, batch: int, find_batch: bool
) -> bool:
    """Compiles a run's step for a slice, prints its cost, and returns whether it fits.

    Args:
      config: a valid config.
      topology: the slice, as "v5e:4x4".
      step: "train" or "evaluate".
      batch: images of each chip.
      find_batch: whether to find the largest batch that fits, from `batch` on.

    Raises:
      ConfigError: there is no such slice, the batch cannot be divided, or features cannot be
        computed once.
      UserError: libtpu is not installed, or cannot compile the step.
    """
    if step == "train":
        configuration.check_circumstances(config)
    devices = make_devices(topology)
    chip = chip_memory(devices[0])
    parallel = Parallel(config.parallel.backend, devices, fsdp=config.parallel.fsdp)
    microbatches = config.train.microbatches if step == "train" else 1
    if not find_batch:
        parallel.check_batch(batch * len(devices), microbatches)

    @functools.cache
    def answer(batch: int) -> Cost | TooLarge:
        try:
            return measure(lower(config, step, batch, parallel), batch)
        except TooLarge as too_large:
            return too_large

    heading = {
        "step": f"{step}: {config.method}, {config.supervision} supervision, "
        f"{config.data.image_size} px, {config.model.dtype}",
        "topology": f"{topology} ({devices[0].device_kind})",
        "chips": f"{len(devices)}",
        "hosts": f"{len({device.process_index for device in devices})}",
    }
    print(two_columns(heading), flush=True)
    if find_batch:

        def microbatch_fits(images: int) -> bool:
            found = answer(images * microbatches)
            print(two_columns({f"batch {images * microbatches}": verdict(found, chip)}), flush=True)
            return fits(found, chip)

        largest = largest_that_fits(microbatch_fits, -(-batch // microbatches))
        batch = microbatches * largest or microbatches
    print(two_columns({"batch": f"{batch} per chip, {batch * len(devices)} in all"}), flush=True)
    print(cost_table(answer(batch), chip))
    return fits(answer(batch), chip)


def largest_that_fits(fits: Callable[[int], bool], start: int) -> int:
    """Returns the largest number that fits, 0 if not even 1 does.

    Doubles or halves from `start`, then bisects. Some number above the result does not fit that is
    larger by an eighth at most, or by 1.
    """
    low, high = 0, None
    number = start
    while high is None or (not low and high > 1):
        if fits(number):
            low, number = number, 2 * number
        else:
            high, number = number, number // 2
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
