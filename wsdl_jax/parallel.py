"""The mesh: one per-device step made into one program for all devices and hosts.

A step is written once, for the images of one device, and averages over `AXIS` by itself. It is
mapped by `jit(shard_map)`, or by `jax.pmap`; both see the same collectives.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from wsdl_jax.configuration import ConfigError

AXIS = "data"
Step = Callable[[Any, Any], tuple[Any, Any]]


class Parallel:
    """All devices of all hosts as one axis, over which batches are split."""

    def __init__(self, backend: str):
        """backend: "shard_map" or "pmap"."""
        self.backend = backend
        self.mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))

    def check_batch(self, batch: int, field: str) -> None:
        """Raises ConfigError if a global batch does not divide over the devices."""
        if batch % self.mesh.size:
            raise ConfigError(
                f"config.{field} = {batch} does not divide over {self.mesh.size} devices"
            )

    def replicate(self, tree: Any) -> Any:
        """Host arrays → the same values on every device, as `map` takes and returns them."""
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
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def one(self, tree: Any) -> Any:
        """Replicated values → host arrays, from the first device of this host."""
        leaves = jax.tree.map(lambda x: x.addressable_data(0), tree)
        if self.backend == "pmap":
            leaves = jax.tree.map(lambda x: x[0], leaves)
        return jax.device_get(leaves)

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """This host's part of a batch → device arrays, an equal part on each of its devices."""
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

    def gather(self, tree: Any) -> Any:
        """The per-image outputs of `map` → host arrays of this host's images, in batch order."""

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
            return jax.pmap(step, axis_name=AXIS, donate_argnums=donated)
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
