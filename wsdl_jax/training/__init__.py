"""Training: what a run starts from, the step of a device, and the loop."""

from wsdl_jax.training.detector import (
    check_weights,
    start_network,
    train,
)
from wsdl_jax.training.loop import (
    run_loop,
    validate,
    with_places,
)
from wsdl_jax.training.setup import (
    Setup,
    check,
    newest_state,
)
from wsdl_jax.training.step import (
    make_loss_step,
    make_train_step,
)

__all__ = [
    "Setup",
    "check",
    "check_weights",
    "make_loss_step",
    "make_train_step",
    "newest_state",
    "run_loop",
    "start_network",
    "train",
    "validate",
    "with_places",
]
