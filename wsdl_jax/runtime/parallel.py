"""The mesh: one per-device step made into one program for all devices and hosts.

A step is written once, for the images of one device, and averages over `AXIS` by itself. It is
mapped by `jit(shard_map)`, or by `jax.pmap`; both see the same collectives.

Each device has the whole state, or, fully sharded (FSDP), a part of every large array of it: then a
step asks for the `whole` of those that it computes with.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from wsdl_jax.runtime.errors import ConfigError

AXIS = "data"
Step = Callable[[Any, Any], tuple[Any, Any]]
SMALLEST = 1024  # values of an array that is sharded: of less, sending costs more than keeping


class Parallel:
    """All devices of all hosts as one axis, over which batches are split."""

    def __init__(
        self, backend: str, devices: Sequence[jax.Device] | None = None, *, fsdp: bool = False
    ):
        """Takes all devices there are, or others, to compile for a machine that is not here.

        Args:
          backend: "shard_map" or "pmap".
          devices: those of the mesh; all by default.
          fsdp: whether each device has a part of every large array of a state in place of the
            whole; with "shard_map".
        """
        self.backend, self.fsdp = backend, fsdp
        self.devices = devices
        count = jax.device_count() if devices is None else len(devices)
        self.mesh = jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)

    def check_batch(self, batch: int, microbatches: int) -> None:
        """Raises ConfigError if a training batch does not divide over devices and microbatches."""
        devices = self.mesh.size
        if batch % devices:
            below = batch // devices * devices
            raise ConfigError(
                f"config.train.batch = {batch} does not divide over {devices} devices: choose "
                f"{f'{below} or ' if below else ''}{below + devices}, or set "
                "config.train.per_device_batch"
            )
        if batch // devices % microbatches:
            raise ConfigError(
                f"config.train.microbatches = {microbatches} does not divide the "
                f"{batch // devices} images of each of {devices} devices"
            )

    def rounded_up(self, batch: int) -> int:
        """Returns the next batch that divides over the devices, for programs that pad."""
        return -(-batch // self.mesh.size) * self.mesh.size

    def spec(self, shape: tuple[int, ...]) -> PartitionSpec:
        """Returns how an array of this shape of a state lies on the mesh.

        Fully sharded, it is in parts along its largest dimension that divides by the number of
        devices, the last of several; vectors, what is small and what does not divide are whole on
        every device.
        """
        count = self.mesh.size
        dimensions = [d for d, size in enumerate(shape) if size % count == 0]
        large = len(shape) > 1 and math.prod(shape) >= SMALLEST
        if not (self.fsdp and large and count > 1 and dimensions):
            return PartitionSpec()
        largest = max(dimensions, key=lambda d: (shape[d], d))
        return PartitionSpec(*[None] * largest, AXIS)

    def _shardings(self, tree: Any) -> Any:
        """Returns how the arrays of a state lie on the mesh."""
        return jax.tree.map(lambda x: NamedSharding(self.mesh, self.spec(np.shape(x))), tree)

    def distribute(self, tree: Any) -> Any:
        """Returns host arrays as values on the devices, as `map` takes and returns them.

        Every device has all of them, or its parts, see `spec`.
        """
        if self.backend == "pmap":
            sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
            count = self.mesh.size

            def stack(x: Any) -> jax.Array:
                x = np.asarray(x)
                shape = (count, *x.shape)
                return jax.make_array_from_callback(
                    shape, sharding, lambda index: np.broadcast_to(x, (1, *x.shape))
                )

            return jax.tree.map(stack, tree)
        # From the host's memory: arrays of one device can neither be sent to other hosts nor, once
        # they are a part of what is donated, be used again.
        tree = jax.device_get(tree)
        return jax.device_put(tree, self._shardings(tree))

    def one(self, tree: Any) -> Any:
        """Returns the values of `distribute` as host arrays.

        They are those of the first device of this host; where these are parts, hosts send one
        another theirs, one array after the other, and have to ask together.
        """

        def local(x: jax.Array) -> Any:
            if self.backend == "pmap":
                return x.addressable_data(0)[0]
            if x.is_fully_replicated:
                return x.addressable_data(0)
            if x.is_fully_addressable:
                return x
            return multihost_utils.process_allgather(x, tiled=True)

        return jax.device_get(jax.tree.map(local, tree))

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Returns this host's part of a batch on its devices, an equal part on each of them."""
        if self.backend == "pmap":
            devices = jax.local_device_count()
            return {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}
        sharding, hosts = NamedSharding(self.mesh, PartitionSpec(AXIS)), jax.process_count()
        return {
            name: jax.make_array_from_process_local_data(
                sharding, value, (hosts * value.shape[0], *value.shape[1:])
            )
            for name, value in batch.items()
        }

    def shapes(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Returns the shapes that a mapped step takes for those of a state and a global batch."""
        if self.backend == "pmap":
            count = self.mesh.size

            def per_device(x: jax.ShapeDtypeStruct, *shape: int) -> jax.ShapeDtypeStruct:
                return jax.ShapeDtypeStruct((count, *shape), x.dtype)

            state = jax.tree.map(lambda x: per_device(x, *x.shape), state)
            return state, jax.tree.map(
                lambda x: per_device(x, x.shape[0] // count, *x.shape[1:]), batch
            )

        def placed(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        split = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return (
            jax.tree.map(placed, state, self._shardings(state)),
            jax.tree.map(lambda x: placed(x, split), batch),
        )

    def gather(self, tree: Any) -> Any:
        """Returns per-image outputs of `map` as host arrays of this host's images, in order."""

        def local(x: jax.Array) -> np.ndarray:
            parts = sorted(x.addressable_shards, key=lambda part: part.index[0].start or 0)
            rows = np.concatenate([np.asarray(part.data) for part in parts])
            return rows.reshape(-1, *rows.shape[2:]) if self.backend == "pmap" else rows

        return jax.tree.map(local, tree)

    def map(self, step: Step, *, donate: bool = False) -> Step:
        """Maps step(state, batch) → (values of all devices, per-image outputs) over all devices.

        donate: whether the step is a training's, whose first result is a pair: the state after it,
          for which the memory of the first argument is reused, and values of all devices.
        """
        donated = (0,) if donate else ()
        if self.backend == "pmap":
            return jax.pmap(step, axis_name=AXIS, devices=self.devices, donate_argnums=donated)
        whole, split = PartitionSpec(), PartitionSpec(AXIS)

        def mapped(state: Any, batch: Any) -> tuple[Any, Any]:
            parts = jax.tree.map(lambda x: self.spec(x.shape), state) if self.fsdp else whole
            return jax.shard_map(
                step,
                mesh=self.mesh,
                in_specs=(parts, split),
                out_specs=((parts, whole) if donate else whole, split),
                # Steps average gradients themselves, as pmap needs it; with the check, shard_map
                # would have summed them already.
                check_vma=False,
            )(state, batch)

        return jax.jit(mapped, donate_argnums=donated)


# ----- In a step ----------------------------------------------------------------------------------


def _parted(part: Array, shape: jax.ShapeDtypeStruct) -> int | None:
    """Returns the dimension along which a device has a part of an array; None: it has all of it."""
    sides = enumerate(zip(part.shape, shape.shape, strict=True))
    return next((d for d, (own, whole) in sides if own != whole), None)


def shapes_of(tree: Any) -> Any:
    """Returns the shapes and types of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def whole(tree: Any, shapes: Any) -> Any:
    """Returns whole arrays out of what each device has of them.

    The gradient with respect to a part is that of the losses of all devices, summed.

    Args:
      tree: arrays, or this device's parts of them.
      shapes: of the whole arrays.
    """

    def gathered(part: Array, shape: jax.ShapeDtypeStruct) -> Array:
        dimension = _parted(part, shape)
        if dimension is None:
            return part
        return jax.lax.all_gather(part, AXIS, axis=dimension, tiled=True)

    return jax.tree.map(gathered, tree, shapes)


def mean_gradient(gradients: Any, shapes: Any) -> Any:
    """Returns the gradient of the mean loss of all devices, of a loss that takes the `whole`.

    Args:
      gradients: of a device's own loss.
      shapes: of the whole parameters.
    """

    def mean(gradient: Array, shape: jax.ShapeDtypeStruct) -> Array:
        if _parted(gradient, shape) is None:
            return jax.lax.pmean(gradient, AXIS)
        return gradient / jax.lax.axis_size(AXIS)

    return jax.tree.map(mean, gradients, shapes)


def norm(tree: Any, shapes: Any) -> Float[Array, ""]:
    """Returns the Euclidean norm of all values of the whole of some arrays.

    Args:
      tree: arrays, or this device's parts of them.
      shapes: of the whole arrays.
    """
    own = alike = jnp.zeros(())
    for part, shape in zip(*map(jax.tree.leaves, (tree, shapes)), strict=True):
        square = jnp.square(jnp.abs(part)).sum()
        if _parted(part, shape) is None:
            alike += square
        else:
            own += square
    return jnp.sqrt(alike + jax.lax.psum(own, AXIS))
