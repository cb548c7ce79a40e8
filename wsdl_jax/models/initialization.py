"""Starting weights, by the schemes of the published recipes."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from wsdl_jax.models import clip_resnet, vit, xception
from wsdl_jax.models.backbone import Backbone
from wsdl_jax.models.layers import BatchNorm

# Mean and standard deviation of the scales of BatchNorm, by scheme.
_SCALES = {
    "torch": (1.0, 0.0),
    "xavier": (1.0, 0.02),
    "normal": (1.0, 0.01),
    "zero_residual": (1.0, 0.0),
    "decoder": (0.0, 0.02),
}


def initialize(model: nnx.Module, scheme: str, seed: int) -> None:
    """Draws every parameter of `model` anew, in place, but those that are frozen.

    Schemes, with fan-in and fan-out as PyTorch counts them (a depthwise 3×3 kernel has fan-in 9):
      "torch": PyTorch's default. Kernels and biases uniform in ±1/√fan_in; BatchNorm scale 1.
      "xavier": kernels normal with std 0.02·√(2 / (fan_in + fan_out)), biases 0; scale N(1, 0.02).
      "normal": kernels normal with std 0.01, biases 0; scale N(1, 0.01).
      "zero_residual": as "torch", but in blocks with an identity as shortcut, 4 to 11 of Xception,
        the scale of the last BatchNorm is 0 (Goyal et al., 2017, section 5.1), and in those of a
        transformer the last kernel and bias of both branches. What is deep begins as shallow, and
        learns in fewer steps.
      "decoder": kernels and BatchNorm scales alike N(0, 0.02), biases as "torch": DeCLIP's, of what
        goes on from a backbone. A backbone that is trained too is drawn as by "zero_residual".
    BatchNorm's shift is 0 in all of them. What only transformers have is the same in all: scale 1
    and shift 0 of LayerNorm, tokens and learnt positions N(0, 0.02), `vit.INITIAL_LAYER_SCALE`, and
    adapters whose product is 0 (Hu et al., 2022).
    """
    # Drawn by NumPy: JAX would compile a program for each shape first, for many seconds.
    rng = np.random.default_rng(seed)

    def normal(mean: float, std: float, shape: tuple[int, ...]) -> Array:
        return jnp.asarray(mean + std * rng.standard_normal(shape, np.float32))

    def uniform(bound: float, shape: tuple[int, ...]) -> Array:
        return jnp.asarray(rng.uniform(-bound, bound, shape).astype(np.float32))

    modules = [module for _, module in nnx.iter_modules(model)]
    backbones = [module for module in modules if isinstance(module, Backbone)]
    of_backbones = {id(part) for one in backbones for _, part in nnx.iter_modules(one)}
    for module in modules:
        is_decoded = scheme == "decoder" and id(module) in of_backbones
        own = "zero_residual" if is_decoded else scheme
        if isinstance(module, BatchNorm) and isinstance(module.scale, nnx.Param):
            mean, std = _SCALES[own]
            shape = module.scale.shape
            module.scale[...] = normal(mean, std, shape)
            module.bias[...] = jnp.zeros(shape)
        elif isinstance(kernel := getattr(module, "kernel", None), nnx.Param):
            bias = getattr(module, "bias", None)
            receptive = math.prod(kernel.shape[:-2])
            fan_in, fan_out = receptive * kernel.shape[-2], receptive * kernel.shape[-1]
            if own in ("torch", "zero_residual", "decoder"):
                bound = 1 / math.sqrt(fan_in)
                is_normal = own == "decoder"
                kernel[...] = (
                    normal(0.0, 0.02, kernel.shape) if is_normal else uniform(bound, kernel.shape)
                )
                if bias is not None:
                    bias[...] = uniform(bound, bias.shape)
            else:
                std = 0.01 if own == "normal" else 0.02 * math.sqrt(2 / (fan_in + fan_out))
                kernel[...] = normal(0.0, std, kernel.shape)
                if bias is not None:
                    bias[...] = jnp.zeros(bias.shape)
        elif isinstance(module, nnx.LayerNorm) and isinstance(module.scale, nnx.Param):
            module.scale[...] = jnp.ones(module.scale.shape)
            module.bias[...] = jnp.zeros(module.bias.shape)
        elif isinstance(module, vit.ViT):
            for variable in (module.class_token, module.registers, module.positions):
                if isinstance(variable, nnx.Param):
                    variable[...] = normal(0.0, 0.02, variable.shape)
        elif isinstance(module, vit.Block):
            for variable in (module.attention_scale, module.mlp_scale):
                if isinstance(variable, nnx.Param):
                    variable[...] = jnp.full(variable.shape, vit.INITIAL_LAYER_SCALE)
        elif isinstance(module, nnx.LoRA):
            shape = module.lora_a.shape
            module.lora_a[...] = uniform(1 / math.sqrt(shape[0]), shape)
            module.lora_b[...] = jnp.zeros(module.lora_b.shape)
    if scheme in ("zero_residual", "decoder"):
        for module in modules:
            last: list[nnx.Variable] = []
            if isinstance(module, xception.Block | clip_resnet.Bottleneck):
                last = [] if module.shortcut is not None else [module.norms[-1].scale]
            elif isinstance(module, vit.Block):
                layers = (module.out, module.down)
                last = [variable for layer in layers for variable in (layer.kernel, layer.bias)]
            for variable in last:
                if isinstance(variable, nnx.Param):
                    variable[...] = jnp.zeros(variable.shape)
