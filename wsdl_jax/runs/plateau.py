"""A learning rate that falls where validation no longer gets better, and ends a training so.

It is that of DeCLIP (Smeu et al., 2025): divided by ten after so many epochs that were not better
than the best one since it last fell, until it would be below `configuration.LOWEST_RATE`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array

from wsdl_jax.configuration import LOWEST_RATE

_LEAST = 1e-5  # by which a value is lower that is better: a thousandth of a point of IoU


class Plateau(NamedTuple):
    """Where a falling learning rate stands; a part of the optimizer's state.

    Attributes:
      best: the lowest value of a validation since the rate last fell, float32; infinite before one.
      waited: how many epochs ago that was, int32.
      falls: how often the rate was divided by ten, int32.
    """

    best: Array | np.ndarray
    waited: Array | np.ndarray
    falls: Array | np.ndarray


def divide_on_plateau() -> optax.GradientTransformation:
    """Returns what divides updates by ten for each time that the learning rate has fallen.

    The updates of Adam and of AdamW are proportional to the learning rate.
    """

    def init(params: optax.Params) -> Plateau:
        return Plateau(jnp.float32(jnp.inf), jnp.int32(0), jnp.int32(0))

    def update(
        updates: optax.Updates, state: Plateau, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Plateau]:
        factor = 10.0 ** -state.falls.astype(jnp.float32)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates), state

    return optax.GradientTransformation(init, update)


def _is_plateau(x: Any) -> bool:
    return isinstance(x, Plateau)


def plateau_of(optimizer_state: Any) -> Plateau | None:
    """Returns where the learning rate stands, as an optimizer's state has it; None without one."""
    found = filter(_is_plateau, jax.tree.leaves(optimizer_state, is_leaf=_is_plateau))
    return next(found, None)


def with_plateau(optimizer_state: Any, plateau: Plateau) -> Any:
    """Returns an optimizer's state in which the learning rate stands elsewhere."""
    return jax.tree.map(
        lambda x: plateau if _is_plateau(x) else x, optimizer_state, is_leaf=_is_plateau
    )


def after_validation(plateau: Plateau, value: float, patience: int) -> Plateau:
    """Returns where the learning rate stands after the validation of an epoch.

    After a fall the next validation counts as the best, whatever was reached before: as published.

    Args:
      plateau: where it stood, on the host.
      value: of the validation, the lower the better.
      patience: how many epochs in a row that are not better make it fall.
    """
    best, waited, falls = float(plateau.best), int(plateau.waited) + 1, int(plateau.falls)
    if value <= best - _LEAST:
        best, waited = value, 0
    elif waited >= patience:
        best, waited, falls = np.inf, 0, falls + 1
    return Plateau(np.float32(best), np.int32(waited), np.int32(falls))


def learning_rate(plateau: Plateau, train: ml_collections.ConfigDict) -> float:
    """Returns the learning rate that a training has, after its warm-up.

    Args:
      plateau: where it stands, on the host.
      train: that part of a config.
    """
    return train.learning_rate / 10 ** int(plateau.falls)


def has_ended(optimizer_state: Any, train: ml_collections.ConfigDict) -> bool:
    """Returns whether a training has ended because its learning rate would be too low.

    Args:
      optimizer_state: of any optimizer, on the host.
      train: that part of a config.
    """
    plateau = plateau_of(optimizer_state)
    # 1e-3, divided by ten three times, is a hair above or below 1e-6.
    return plateau is not None and learning_rate(plateau, train) < LOWEST_RATE * (1 - 1e-6)
