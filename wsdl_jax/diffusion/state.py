"""The state of a forger's training."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from wsdl_jax import runs
from wsdl_jax.diffusion.networks import make_autoencoder, make_unet, structures

State = dict[str, Any]  # step, params, ema, optimizer; of a latent forger frozen Weights
Weights = dict[str, Any]  # of each network by its name, "unet" and "autoencoder"; and "scale"


def initial_state(config: ml_collections.ConfigDict, frozen: Weights | None) -> State:
    """Returns the state before the first step.

    Args:
      config: of the forger; its `seed` gives the weights.
      frozen: of a latent forger, the weights of its autoencoder and "scale".
    """
    make = make_autoencoder if config.part == "autoencoder" else make_unet
    params = nnx.state(make(config, nnx.Rngs(config.seed)), nnx.Param)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "ema": params,
        "optimizer": runs.make_optimizer(config.train).init(params),
    }
    return state if frozen is None else {**state, "frozen": frozen}


def blank_state(config: ml_collections.ConfigDict) -> State:
    """Returns a state with shapes in place of arrays, to restore into."""
    frozen = None
    if config.part == "latent":
        frozen = {
            "autoencoder": structures(config)["autoencoder"][1],
            "scale": jax.ShapeDtypeStruct((), jnp.float32),
        }
    return jax.eval_shape(lambda: initial_state(config, None)) | (
        {} if frozen is None else {"frozen": frozen}
    )
