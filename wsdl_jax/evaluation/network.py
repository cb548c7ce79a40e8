"""A trained network that localizes on all devices."""

from flax import nnx

from wsdl_jax import methods, runs
from wsdl_jax.runs import State
from wsdl_jax.runtime.parallel import Parallel, Step


def make_localize_step(method: methods.Method, model: nnx.Module, *, embeds: bool = False) -> Step:
    """Returns the step of one device: (state, its images) → (None, their Localization).

    Args:
      method: the method that reads maps and scores from the network.
      model: the network; its parameters and statistics are taken from the step's state.
      embeds: whether the localization has `features`, where the method embeds images.
    """
    make_network = runs.network(model)

    def step(state: State, batch: methods.Batch):
        network = make_network(state)
        network.eval()
        images = methods.network_input(batch["image"])
        found = method.localize(network, images)
        if embeds and method.embed is not None:
            found = found._replace(features=method.embed(network, images))
        return None, found

    return step


def on_devices(
    method: methods.Method, model: nnx.Module, parallel: Parallel, *, embeds: bool = False
) -> tuple[Step, State]:
    """Returns `make_localize_step` mapped over all devices, and the network's state on them."""
    step = make_localize_step(method, model, embeds=embeds)
    return parallel.map(step), parallel.distribute(runs.variables(model))
