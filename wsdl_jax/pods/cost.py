"""What a compiled step takes of one chip, by what libtpu says of the program."""

import math
import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import SingleDeviceSharding

from wsdl_jax import configuration, methods, runs
from wsdl_jax.evaluation import make_localize_step
from wsdl_jax.models.backbone import give_features
from wsdl_jax.pods.units import byte_size
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.parallel import AXIS, Parallel
from wsdl_jax.training import make_train_step

STEPS = ("train", "evaluate")
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
    """What libtpu answers to a program that does not fit into a chip.

    Attributes:
      needed: bytes of a chip's memory that it takes; early refusals give a lower bound.
      chip: bytes that a chip has for programs.
    """

    def __init__(self, needed: float, chip: float):
        super().__init__(f"{byte_size(needed)} of {byte_size(chip)}")
        self.needed, self.chip = needed, chip


class Cost(NamedTuple):
    """What a compiled step takes of one chip; memory and traffic in bytes.

    Attributes:
      images: in the chip's batch.
      arguments: state and batch.
      outputs: those that do not take the memory of an argument.
      temporaries: intermediate values, with the gaps between them.
      program: the instructions.
      next_batch: the batch that a training run sends while a step runs.
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
    next_batch: int
    flops: float
    traffic: float
    collectives: int
    collective_bytes: int
    loops: bool
    seconds: float

    @property
    def memory(self) -> int:
        """Returns how much of a chip's memory the step takes, in bytes."""
        return self.arguments + self.outputs + self.temporaries + self.program + self.next_batch


def refusal(message: str) -> TooLarge | None:
    """Returns what libtpu says of a program that does not fit; None if it says something else.

    Args:
      message: of libtpu's error.
    """

    def count(text: str) -> float:  # "15.75G" → bytes
        return float(text.rstrip(_UNITS)) * 1024 ** (_UNITS.find(text[-1]) + 1)

    match = _REFUSED.search(message)
    if match is None:
        return None
    return TooLarge(count(match["least"] or match["used"]), count(match["chip"] or match["of"]))


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
    """Returns how many bytes a chip has for programs.

    It is what libtpu says when it refuses a program of a pebibyte. Raises UserError if it does not
    say it.
    """
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
    """Returns a run's step on the devices of `parallel`, lowered from shapes alone.

    Args:
      config: a valid config. Where its features are computed once, a training's step takes these
        in place of images.
      step: "train" or "evaluate".
      batch: images of each device, which `train.microbatches` divides. For training, `train.batch`
        follows from it.
      parallel: the devices, which need not be here.
    """
    devices = parallel.mesh.size
    on_features = step == "train" and config.data.features == "cached"

    def make_network() -> nnx.Module:
        network = methods.blank(config, AXIS)
        if on_features:
            give_features(network)
        return network

    model = nnx.eval_shape(make_network)
    model.train()

    def initial_state() -> runs.State:
        network = make_network()
        return {**runs.variables(network), **runs.initial_state(network, config.train)}

    state = jax.eval_shape(initial_state)
    method = methods.from_config(config)
    images, side = batch * devices, config.data.image_size
    inputs = {"image": jax.ShapeDtypeStruct((images, side, side, 3), jnp.uint8)}
    if on_features:
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        of_one = jax.eval_shape(lambda x: methods.blank(config, None).features(x), image)
        inputs = {"image": jax.ShapeDtypeStruct((images, *of_one.shape[1:]), jnp.bfloat16)}
    if step == "evaluate":
        state = {name: state[name] for name in ("params", "stats", "backbone") if name in state}
        mapped = parallel.map(make_localize_step(method, model))
        return mapped.lower(*parallel.shapes(state, inputs))
    config = config.copy_and_resolve_references()
    config.train.per_device_batch = batch
    config = configuration.for_devices(config, devices)
    for name in ("label", "place"):
        inputs[name] = jax.ShapeDtypeStruct((images,), jnp.int32)
    if name := methods.targets(config):
        shape = (images, *[methods.map_size(config)] * 2)
        inputs[name] = jax.ShapeDtypeStruct(shape, jnp.int32 if name == "mask" else jnp.float32)
    optimizer = runs.make_optimizer(config.train)
    train_step = make_train_step(method, model, optimizer, config.seed, config.train.microbatches)
    mapped = parallel.map(train_step, donate=True)
    return mapped.lower(*parallel.shapes(state, inputs))


def collectives(program: str) -> tuple[int, int]:
    """Returns how many operations between chips a program has, and the bytes of their results.

    Args:
      program: text of the compiled program.
    """
    count = total = 0
    for operation in _COLLECTIVE.finditer(program):
        count += 1
        for shape in _SHAPE.finditer(operation["shapes"]):
            bits = _BITS.search(shape["type"])
            width = int(bits[0]) // 8 if bits else 1  # pred
            total += width * math.prod(int(n) for n in shape["sizes"].split(",") if n)
    return count, total


def measure(lowered: jax.stages.Lowered, images: int) -> Cost:
    """Compiles a step and returns what it takes of one chip.

    Args:
      lowered: the step.
      images: in the batch of each chip.

    Raises:
      TooLarge: libtpu refuses the step.
      UserError: libtpu cannot compile it.
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
        next_batch=arguments - donated if donated else 0,
        flops=cost["flops"],
        traffic=cost["bytes accessed"],
        collectives=count,
        collective_bytes=total,
        loops=" while(" in text,
        seconds=seconds,
    )
