"""Training: the set-up of a run, the step of a device, and the loop."""

from wsdl_jax.training.training import (
    loop,
    make_loss_step,
    make_train_step,
    start_network,
    train,
    validate,
    with_places,
)

__all__ = [
    "loop",
    "make_loss_step",
    "make_train_step",
    "start_network",
    "train",
    "validate",
    "with_places",
]
