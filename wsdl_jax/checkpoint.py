"""Checkpoints of a run. The only file that knows orbax."""

import math
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from wsdl_jax.errors import UserError

METRIC = "valid_loss"


class Checkpoints:
    """The checkpoints of one run directory: the latest, and the best by validation loss."""

    def __init__(self, run: epath.Path, *, keep_best: int):
        # orbax refuses relative paths, and only in the thread that writes.
        self.directory = epath.Path(run).resolve() / "checkpoints"
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[METRIC], reverse=True, n=keep_best
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [preservation_policy.LatestN(1), best]
            ),
            best_fn=lambda metrics: metrics[METRIC],
            best_mode="min",
            enable_background_delete=False,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: Any, valid_loss: float) -> None:
        """Writes in the background; `close` waits. A loss that is not finite ranks last."""
        metric = valid_loss if math.isfinite(valid_loss) else math.inf
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            checksum=ocp.args.JsonSave({"crc32": _checksum(state)}),
        )
        self._manager.save(step, args=items, metrics={METRIC: metric})

    def latest(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the checkpoint with the lowest validation loss, None if there is none."""
        return self._manager.best_step()

    def restore(self, step: int, like: Any) -> Any:
        """The state of a step, with the structure, shapes and types of `like`, as host arrays.

        Raises UserError naming the checkpoint if it cannot be read or has changed since.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)),
            checksum=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=items)
        except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
            reason = str(error).splitlines()[0]
            raise UserError(
                f"checkpoint {self.directory / str(step)} cannot be read: {reason}"
            ) from error
        if _checksum(restored.state) != restored.checksum["crc32"]:
            raise UserError(
                f"checkpoint {self.directory / str(step)} is damaged: its checksum is wrong"
            )
        return restored.state

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def _checksum(state: Any) -> int:
    # orbax reads flipped bits in array data without a word.
    crc = 0
    for leaf in jax.tree.leaves(state):
        crc = zlib.crc32(np.ascontiguousarray(leaf), crc)
    return crc
