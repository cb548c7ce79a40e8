"""The mesh: one per-device step made into one program for all devices and hosts.

A step is written once, for the images of one device, and averages over `AXIS` by itself. It is
mapped by `jit(shard_map)`, or by `jax.pmap`; both see the same collectives.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from wsdl_jax.runtime.errors import ConfigError

AXIS = "data"
Step = Callable[[Any, Any], tuple[Any, Any]]


class Parallel:
    """All devices of all hosts as one axis, over which batches are split."""

    def __init__(self, backend: str, devices: Sequence[jax.Device] | None = None):
        """Takes all devices there are, or others, to compile for a machine that is not here.

        backend: "shard_map" or "pmap".
        """
        self.backend = backend
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

    def replicate(self, tree: Any) -> Any:
        """Returns host arrays as values on every device, as `map` takes and returns them."""
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
        return jax.device_put(jax.device_get(tree), NamedSharding(self.mesh, PartitionSpec()))

    def one(self, tree: Any) -> Any:
        """Returns replicated values as host arrays, from the first device of this host."""
        leaves = jax.tree.map(lambda x: x.addressable_data(0), tree)
        if self.backend == "pmap":
            leaves = jax.tree.map(lambda x: x[0], leaves)
        return jax.device_get(leaves)

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

        def placed(tree: Any, *axes: str) -> Any:
            sharding = NamedSharding(self.mesh, PartitionSpec(*axes))
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
            )

        return placed(state), placed(batch, AXIS)

    def gather(self, tree: Any) -> Any:
        """Returns per-image outputs of `map` as host arrays of this host's images, in order."""

        def local(x: jax.Array) -> np.ndarray:
            parts = sorted(x.addressable_shards, key=lambda part: part.index[0].start or 0)
            rows = np.concatenate([np.asarray(part.data) for part in parts])
            return rows.reshape(-1, *rows.shape[2:]) if self.backend == "pmap" else rows

        return jax.tree.map(local, tree)

    def map(self, step: Step, *, donate: bool = False) -> Step:
        """Maps step(replicated, batch) → (replicated, per-image outputs) over all devices.

        donate: whether the memory of the first argument is reused for the first result.
        """
        donated = (0,) if donate else ()
        if self.backend == "pmap":
            return jax.pmap(step, axis_name=AXIS, devices=self.devices, donate_argnums=donated)
        whole, split = PartitionSpec(), PartitionSpec(AXIS)
        mapped = jax.shard_map(
            step,
            mesh=self.mesh,
            in_specs=(whole, split),
            out_specs=(whole, split),
            # Steps average gradients themselves, as pmap needs it; with the check, shard_map would
            # have summed them already.
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donated)
