"""Compiles the real step for a TPU slice that is not here: what it costs, and whether it fits.

    python -m wsdl_jax.pod_check --config configs/attention.py:setup=a,source=celebahq \\
        --topology v5e:16x16 --per-chip-batch 32
    python -m wsdl_jax.pod_check --config configs/patches.py --topology v6e:4x4 --find-batch

The step is that of a run, mapped over all chips of the slice and compiled ahead of time by libtpu,
on any Linux machine and without touching a TPU it may have; no data and no weights are needed. The
package comes with the extra: pip install 'wsdl-jax[tpu]'. A step of the largest networks takes
minutes to compile.

Topologies: v5e and v6e with 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16 chips; v4 and v5p with
three sizes, as 4x4x8. Exit codes: 0 it fits, 1 failed, 2 wrong flags or config, 3 it does not fit.
"""

import functools
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from absl import flags
from etils import epath
from flax import nnx
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from ml_collections import config_flags

from wsdl_jax import configuration, methods, runs
from wsdl_jax.evaluate import make_localize_step
from wsdl_jax.runtime import command
from wsdl_jax.runtime.errors import ConfigError, UserError
from wsdl_jax.runtime.parallel import AXIS, Parallel
from wsdl_jax.training import make_train_step

DOES_NOT_FIT = 3  # exit code
STEPS = ("train", "evaluate")
# Slices of Cloud TPU: all that v5e and v6e have. libtpu judges the three sizes of v4 and v5p.
FLAT, CUBIC = ("v5e", "v6e"), ("v4", "v5p")
FLAT_SIZES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# libtpu assumes four chips a host, which is so but for these.
ONE_HOST = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}

# What libtpu needs to know to compile only: nothing here describes the machine it runs on, so it
# asks no metadata server, and takes no lock, as it takes no chip.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_UNITS = "KMGTPE"
# libtpu's two refusals: early, with a lower bound, and late, with what the program takes.
_REFUSED = re.compile(
    r"memory required for HLO temporaries \((?P<least>[\d.]+\w?)\) exceeds available HBM "
    r"\((?P<chip>[\d.]+\w?)\)|Used (?P<used>[\d.]+\w?) of (?P<of>[\d.]+\w?) hbm"
)
_COLLECTIVE = re.compile(
    r" = (?P<shapes>.*?) "
    r"(?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)
_SHAPE = re.compile(r"(?P<type>[a-z]+\d*)\[(?P<sizes>[\d,]*)\]")
_BITS = re.compile(r"\d+")


class TooLarge(Exception):  # noqa: N818 (it is an answer)
    """libtpu has refused a program.

    Attributes:
      needed: bytes of a chip's memory that it takes; early refusals give a lower bound.
      chip: bytes that a chip has for programs.
    """

    def __init__(self, needed: float, chip: float):
        super().__init__(f"{size(needed)} of {size(chip)}")
        self.needed, self.chip = needed, chip


class Cost(NamedTuple):
    """What a compiled step takes of one chip; memory and traffic in bytes.

    Attributes:
      images: in the chip's batch.
      arguments: state and batch.
      outputs: those that do not take the memory of an argument.
      temporaries: intermediate values, with the gaps between them.
      program: the instructions.
      ahead: the next batch, which a training run sends while a step runs.
      flops: arithmetic operations, by the compiler's count. It grows near the chip's limit, where
        the compiler computes values twice to save memory.
      traffic: read and written, by the compiler's count.
      collectives: operations between chips.
      collective_bytes: sum of the sizes of their results; a chip sends and receives about twice
        that in a ring.
      loops: whether the program has loops, of which one round is counted.
      seconds: that the compilation took.
    """

    images: int
    arguments: int
    outputs: int
    temporaries: int
    program: int
    ahead: int
    flops: float
    traffic: float
    collectives: int
    collective_bytes: int
    loops: bool
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes of a chip's memory."""
        return self.arguments + self.outputs + self.temporaries + self.program + self.ahead


def size(count: float) -> str:
    """Bytes, in words: "6.46 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def make_devices(name: str) -> list[jax.Device]:
    """The chips of a slice, to compile for.

    Raises ConfigError for a name that is not one, UserError without libtpu.
    """
    kind, _, sizes = name.partition(":")
    flat = kind in FLAT and sizes in FLAT_SIZES
    if not flat and not (kind in CUBIC and re.fullmatch(r"\d+x\d+x\d+", sizes)):
        raise ConfigError(
            f"--topology {name}: choose {' or '.join(FLAT)} with {', '.join(FLAT_SIZES)}, as "
            f"v5e:4x4, or {' or '.join(CUBIC)} with three sizes, as v5p:4x4x8"
        )
    options: dict[str, Any] = {}
    if flat and sizes in ONE_HOST:
        options["chips_per_host_bounds"] = ONE_HOST[sizes]
    if kind in CUBIC:
        options["chip_config_name"] = "megacore"  # the two cores of a chip as one device
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:  # of libtpu
        raise ConfigError(f"--topology {name}: {error}") from error
    except RuntimeError as error:  # of JAX, which finds no libtpu
        raise UserError(
            "libtpu is not installed, which compiles for TPUs: pip install 'wsdl-jax[tpu]'"
        ) from error


def refusal(message: str) -> TooLarge | None:
    """What libtpu says of a program that does not fit; None if it says something else."""

    def count(text: str) -> float:  # "15.75G" → bytes
        return float(text.rstrip(_UNITS)) * 1024 ** (_UNITS.find(text[-1]) + 1)

    said = _REFUSED.search(message)
    if said is None:
        return None
    return TooLarge(count(said["least"] or said["used"]), count(said["chip"] or said["of"]))


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        too_large = refusal(str(error))
        if too_large is None:
            reason = str(error).splitlines()[0]
            raise UserError(f"libtpu cannot compile the step: {reason}") from error
        raise too_large from error


def chip_memory(chip: jax.Device) -> float:
    """Bytes that a chip has for programs: what libtpu says when it refuses one of a pebibyte."""
    huge = jax.ShapeDtypeStruct(
        (2**20, 2**10, 2**20), jnp.uint8, sharding=SingleDeviceSharding(chip)
    )
    try:
        _compile(jax.jit(lambda x: x + 1).lower(huge))
    except TooLarge as answer:
        return answer.chip
    raise UserError(f"libtpu does not say how much memory a {chip.device_kind} has")


def lower(
    config: ml_collections.ConfigDict, step: str, batch: int, parallel: Parallel
) -> jax.stages.Lowered:
    """A run's step on the devices of `parallel`, from shapes alone.

    Args:
      config: a valid config.
      step: of `STEPS`.
      batch: images of each device, which `train.microbatches` divides. For training, `train.batch`
        follows from it.
    """
    devices = parallel.mesh.size
    model = nnx.eval_shape(lambda: methods.blank(config, AXIS))
    model.train()
    state = jax.eval_shape(lambda: runs.initial_state(methods.blank(config, AXIS), config.train))
    method = methods.from_config(config)
    images, side = batch * devices, config.data.image_size
    inputs = {"image": jax.ShapeDtypeStruct((images, side, side, 3), jnp.uint8)}
    if step == "evaluate":
        state = {name: state[name] for name in ("params", "stats")}
        mapped = parallel.map(make_localize_step(method, model))
        return mapped.lower(*parallel.shapes(state, inputs))
    config = config.copy_and_resolve_references()
    config.train.per_device_batch = batch
    config = configuration.for_devices(config, devices)
    for name in ("label", "place"):
        inputs[name] = jax.ShapeDtypeStruct((images,), jnp.int32)
    if config.supervision == "full":
        mask_side = methods.map_size(config)
        inputs["mask"] = jax.ShapeDtypeStruct((images, mask_side, mask_side), jnp.int32)
    optimizer = runs.make_optimizer(config.train)
    train_step = make_train_step(method, model, optimizer, config.seed, config.train.microbatches)
    mapped = parallel.map(train_step, donate=True)
    return mapped.lower(*parallel.shapes(state, inputs))


def collectives(program: str) -> tuple[int, int]:
    """How many operations between chips a compiled program's text has, and their results' bytes."""
    count = total = 0
    for operation in _COLLECTIVE.finditer(program):
        count += 1
        for shape in _SHAPE.finditer(operation["shapes"]):
            bits = _BITS.search(shape["type"])
            width = int(bits[0]) // 8 if bits else 1  # pred
            total += width * math.prod(int(n) for n in shape["sizes"].split(",") if n)
    return count, total


def measure(lowered: jax.stages.Lowered, images: int) -> Cost:
    """Compiles a step of so many images of each chip.

    Raises TooLarge if libtpu refuses it, UserError if it cannot compile it.
    """
    began = time.monotonic()
    compiled = _compile(lowered)
    seconds = time.monotonic() - began
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    arguments, donated = memory.argument_size_in_bytes, memory.alias_size_in_bytes
    outputs = memory.output_size_in_bytes - donated
    # libtpu's temp_size has the gaps between intermediate values twice, and its peak has them not
    # at all, but may have values that are kept beside the chip's main memory.
    temporaries = memory.temp_size_in_bytes
    live = memory.peak_memory_in_bytes - arguments - outputs
    temporaries = min(temporaries, (temporaries + live) // 2)
    count, total = collectives(text)
    return Cost(
        images=images,
        arguments=arguments,
        outputs=outputs,
        temporaries=temporaries,
        program=memory.generated_code_size_in_bytes,
        # A training step is given its state to overwrite; all else that it is given is the batch.
        ahead=arguments - donated if donated else 0,
        flops=cost["flops"],
        traffic=cost["bytes accessed"],
        collectives=count,
        collective_bytes=total,
        loops=" while(" in text,
        seconds=seconds,
    )


def decimal(count: float) -> str:
    """A count with a decimal prefix: "1.62 T"."""
    for prefix in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.4g} {prefix}"
        count /= 1000
    return f"{count:.4g} T"


def lines(rows: dict[str, str]) -> str:
    """A table of two columns."""
    return "\n".join(f"{name:<20}{value}".rstrip() for name, value in rows.items())


def fits(answer: Cost | TooLarge, chip: float) -> bool:
    """Whether a step fits into a chip's memory of `chip` bytes."""
    return isinstance(answer, Cost) and answer.memory <= chip


def verdict(answer: Cost | TooLarge, chip: float) -> str:
    """What a step needs of a chip's memory of `chip` bytes, and whether it fits."""
    if isinstance(answer, TooLarge):
        return f"{size(answer.needed)} or more of {size(chip)}: does not fit"
    fit = "fits" if fits(answer, chip) else "does not fit"
    return f"{size(answer.memory)} of {size(chip)}: {fit}"


def report(answer: Cost | TooLarge, chip: float) -> str:
    """A step's cost as a table."""
    if isinstance(answer, TooLarge):
        return lines({"memory per chip": verdict(answer, chip)})
    rows = {
        "memory per chip": "",
        "  arguments": size(answer.arguments),
        "  outputs": size(answer.outputs),
        "  temporaries": size(answer.temporaries),
        "  program": size(answer.program),
    }
    if answer.ahead:
        rows["  next batch"] = size(answer.ahead)
    rows |= {
        "  total": verdict(answer, chip),
        "per chip and step": "",
        "  arithmetic": f"{decimal(answer.flops)}FLOP, "
        f"{decimal(answer.flops / answer.images)}FLOP an image",
        "  memory traffic": f"{decimal(answer.traffic)}B",
        "  collectives": f"{decimal(answer.collective_bytes)}B in {answer.collectives} operations",
    }
    if answer.loops:
        rows["  arithmetic"] = f"{decimal(answer.flops)}FLOP"
        rows["  counting"] = "one round of the loop over train.microbatches"
    rows["compile time"] = f"{answer.seconds:.1f} s"
    return lines(rows)


def largest(fits: Callable[[int], bool], start: int) -> int:
    """The largest number that fits, 0 if not even 1 does.

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


def main(_: list[str]) -> None:
    """The command."""
    config_file, *_ = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")
    if not epath.Path(config_file).is_file():
        raise ConfigError(f"no config file {config_file}")
    config, step = _CONFIG.value, _STEP.value
    configuration.validate(config)

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # a compile time is what it takes
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    devices = make_devices(_TOPOLOGY.value)
    chip = chip_memory(devices[0])
    parallel = Parallel(config.parallel.backend, devices)
    batch, part = _BATCH.value, config.train.microbatches if step == "train" else 1
    if not _FIND.value:
        parallel.check_batch(batch * len(devices), part)

    @functools.cache
    def answer(batch: int) -> Cost | TooLarge:
        try:
            return measure(lower(config, step, batch, parallel), batch)
        except TooLarge as too_large:
            return too_large

    heading = {
        "step": f"{step}: {config.method}, {config.supervision} supervision, "
        f"{config.data.image_size} px, {config.model.dtype}",
        "topology": f"{_TOPOLOGY.value} ({devices[0].device_kind})",
        "chips": f"{len(devices)}",
        "hosts": f"{len({device.process_index for device in devices})}",
    }
    print(lines(heading), flush=True)
    if _FIND.value:

        def tried(parts: int) -> bool:
            found = answer(parts * part)
            print(lines({f"batch {parts * part}": verdict(found, chip)}), flush=True)
            return fits(found, chip)

        batch = part * largest(tried, -(-batch // part)) or part
    print(lines({"batch": f"{batch} per chip, {batch * len(devices)} in all"}), flush=True)
    print(report(answer(batch), chip))
    if not fits(answer(batch), chip):
        sys.exit(DOES_NOT_FIT)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, and :variant.")
    _TOPOLOGY = flags.DEFINE_string("topology", None, "The slice, as v5e:16x16.")
    _BATCH = flags.DEFINE_integer(
        "per-chip-batch", 32, "Images of each chip; where --find-batch starts.", 1, 2**20
    )
    _STEP = flags.DEFINE_enum("step", "train", STEPS, "Which step.")
    _FIND = flags.DEFINE_bool("find-batch", False, "Finds the largest batch that fits.")
    flags.mark_flags_as_required(["config", "topology"])
    command.run(main)
