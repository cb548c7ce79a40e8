"""The layers of the networks: convolution, pooling, normalization, attention, dropout; all NHWC.

XLA's operators are fast on TPUs and GPUs and slow on a CPU, where equal formulations differ by up
to ten times. The form is chosen when a program is lowered for its platform, so that one traced
model runs well on each; both forms give the same values and gradients.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from wsdl_jax.models.backbone import Frozen

Dtype = Any


def _by_platform(
    on_cpu: Callable[..., Array],
    native: Callable[..., Array],
    gradient_on_cpu: Callable[..., tuple[Array, ...]],
) -> Callable[..., Array]:
    """One differentiable operator out of two equal ones, the CPU's and everybody else's.

    The gradient is chosen by platform as well: `gradient_on_cpu`, of (gradient, *args), or the
    native operator's own.
    """

    @jax.custom_vjp
    def operator(*args: Array) -> Array:
        return jax.lax.platform_dependent(*args, cpu=on_cpu, default=native)

    def forward(*args: Array):
        return operator(*args), args

    def backward(args: tuple[Array, ...], gradient: Array):
        def of_native(gradient: Array, *args: Array):
            return jax.vjp(native, *args)[1](gradient)

        return jax.lax.platform_dependent(gradient, *args, cpu=gradient_on_cpu, default=of_native)

    operator.defvjp(forward, backward)
    return operator


def _shifts(x: Array, stride: int = 1, pad: int = 1, fill: float = 0.0) -> list[Array]:
    """The nine views of x [B, H, W, C] under a 3×3 window, in row-major order."""
    if pad:
        margins = ((0, 0), (pad, pad), (pad, pad), (0, 0))
        x = jnp.pad(x, margins, constant_values=jnp.asarray(fill, x.dtype))
    rows = (x.shape[1] - 3) // stride + 1
    columns = (x.shape[2] - 3) // stride + 1
    return [
        x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        for i in range(3)
        for j in range(3)
    ]


def _depthwise_shifted(x: Array, kernel: Array) -> Array:
    return sum(view * tap for view, tap in zip(_shifts(x), kernel.reshape(9, -1), strict=True))


def _depthwise_native(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _depthwise_gradient_shifted(gradient: Array, x: Array, kernel: Array) -> tuple[Array, Array]:
    dx = _depthwise_shifted(gradient, kernel[::-1, ::-1])
    # A tap's gradient is a sum over all locations. As nine reductions, the compiler would store
    # nine shifted copies of x; so rows are summed up one after the other. A row of the gradient
    # meets the one above, the same and the one below of x, and in each all columns but a border's.
    height, width = x.shape[1:3]

    def add_row(sums: list[Array], row: Array) -> tuple[list[Array], None]:
        g = jax.lax.dynamic_index_in_dim(gradient, row, 1, keepdims=False).astype(jnp.float32)
        added = []
        for i in range(3):
            inside = (row + i - 1 >= 0) & (row + i - 1 < height)
            line = jax.lax.dynamic_index_in_dim(x, row + i - 1, 1, keepdims=False)
            for j in range(3):
                first, last = max(1 - j, 0), width - max(j - 1, 0)
                product = line[:, first + j - 1 : last + j - 1] * g[:, first:last]
                added.append(sums[3 * i + j] + jnp.where(inside, product, 0))
        return added, None

    batch, channels = x.shape[0], x.shape[-1]
    widths = [width - 1, width, width - 1] * 3
    zeros = [jnp.zeros((batch, n, channels)) for n in widths]
    sums, _ = jax.lax.scan(add_row, zeros, jnp.arange(height))
    dkernel = jnp.stack([s.sum((0, 1)) for s in sums]).reshape(kernel.shape)
    return dx, dkernel.astype(kernel.dtype)


_depthwise = _by_platform(_depthwise_shifted, _depthwise_native, _depthwise_gradient_shifted)


def depthwise_3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 1 c"]
) -> Float[Array, "b h w c"]:
    """Convolves depthwise by 3×3 kernels (cross-correlation), stride 1, zero padding 1."""
    return _depthwise(x, kernel)


def _pool_slices(x: Array) -> tuple[Array, Array]:
    """The maxima, and the place of each in its window (the first, in row-major order)."""
    out, *rest = _shifts(x, stride=2, fill=-jnp.inf)
    winner = jnp.zeros(out.shape, jnp.int8)
    for place, view in enumerate(rest, start=1):
        winner = jnp.where(view > out, jnp.int8(place), winner)
        out = jnp.maximum(out, view)
    return out, winner


def _pool_native(x: Array) -> Array:
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


@jax.custom_vjp
def max_pool_3x3(x: Float[Array, "b h w c"]) -> Float[Array, "b (h+1)//2 (w+1)//2 c"]:
    """Pools the maxima of 3×3 windows, stride 2, padding 1.

    The gradient goes to the first largest element of a window in row-major order, as it does in
    PyTorch and in XLA's own operator.
    """
    return jax.lax.platform_dependent(x, cpu=lambda x: _pool_slices(x)[0], default=_pool_native)


def _pool_gradient_slices(x: Array, winner: Array, gradient: Array) -> Array:
    # The gradient image is assembled from its four parities of (row, column): each pixel lies in at
    # most four windows.
    batch, height, width, channels = x.shape
    rows, columns = winner.shape[1:3]
    taps = [jnp.where(winner == place, gradient, 0) for place in range(9)]

    def tap(i: int, j: int, down: int, right: int) -> Array:
        """Returns tap (i, j) of the windows `down` rows below and `right` columns to the right."""
        return jnp.pad(taps[3 * i + j][:, down:, right:], ((0, 0), (0, down), (0, right), (0, 0)))

    # Window (r, c) covers the rows 2r-1 … 2r+1. So an even row 2r is the middle of window r, an
    # odd row 2r+1 is the last of window r and the first of window r+1; columns alike.
    vertical = {0: [(1, 0)], 1: [(2, 0), (0, 1)]}
    grid = [
        [sum(tap(i, j, d, e) for i, d in vertical[p] for j, e in vertical[q]) for q in (0, 1)]
        for p in (0, 1)
    ]
    full = jnp.stack(
        [jnp.stack(row, axis=3) for row in grid], axis=2
    )  # [B, rows, 2, columns, 2, C]
    return full.reshape(batch, 2 * rows, 2 * columns, channels)[:, :height, :width]


def _pool_forward(x: Array):
    # The winners are kept rather than found again from x and the maxima: the compiler may compute x
    # a second time for the backward pass, with another last bit, and no element would be largest.
    def native(x: Array) -> tuple[Array, Array]:
        out = _pool_native(x)
        return out, jnp.zeros(out.shape, jnp.int8)  # its gradient takes x alone

    out, winner = jax.lax.platform_dependent(x, cpu=_pool_slices, default=native)
    return out, (x, winner)


def _pool_backward(residuals: tuple[Array, Array], gradient: Array):
    def native(x: Array, winner: Array, gradient: Array) -> Array:
        return jax.vjp(_pool_native, x)[1](gradient)[0]

    x, winner = residuals
    return (
        jax.lax.platform_dependent(x, winner, gradient, cpu=_pool_gradient_slices, default=native),
    )


max_pool_3x3.defvjp(_pool_forward, _pool_backward)


@functools.cache
def dense_3x3(stride: int, padding: int) -> Callable[[Array, Array], Array]:
    """Returns a dense 3×3 convolution, a function of x [B, H, W, C] and kernel [3, 3, C, D]."""

    def native(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def gradient_on_cpu(gradient: Array, x: Array, kernel: Array) -> tuple[Array, Array]:
        (dx,) = jax.vjp(lambda x: native(x, kernel), x)[1](gradient)

        # The kernel's as nine products of shifted inputs with the gradient, image by image.
        def add_image(total: Array, image: tuple[Array, Array]) -> tuple[Array, None]:
            x, gradient = image
            taps = [_over_locations(v[0], gradient) for v in _shifts(x[None], stride, padding)]
            return total + jnp.stack(taps).reshape(total.shape), None

        dkernel, _ = jax.lax.scan(add_image, jnp.zeros(kernel.shape), (x, gradient))
        return dx, dkernel.astype(kernel.dtype)

    return _by_platform(native, native, gradient_on_cpu)


class Conv(nnx.Module):
    """A dense 3×3 convolution without bias: float32 parameters, computed in `dtype`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(jnp.zeros((3, 3, inputs, outputs)))
        self.stride, self.padding, self.dtype = stride, padding, dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Returns the features convolved, in `dtype`."""
        convolve = dense_3x3(self.stride, self.padding)
        return convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype))


def _over_locations(x: Float[Array, "h w c"], y: Float[Array, "h w d"]) -> Float[Array, "c d"]:
    """Sums over all locations, float32, of the products of two images' channels."""
    return jnp.tensordot(x, y, ((0, 1), (0, 1)), preferred_element_type=jnp.float32)


def _product(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _product_gradient(gradient: Array, x: Array, kernel: Array) -> tuple[Array, Array]:
    # Image by image: as one product over all locations, the compiler would store a transposed copy
    # of x, or compute x a second time, by columns.
    def add_image(total: Array, image: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _over_locations(*image), None

    dkernel, _ = jax.lax.scan(add_image, jnp.zeros(kernel.shape), (x, gradient))
    return gradient @ kernel.T, dkernel.astype(kernel.dtype)


pointwise = _by_platform(_product, _product, _product_gradient)


class Pointwise(nnx.Linear):
    """A 1×1 convolution as a product over the channels, optionally with a stride and a bias."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        use_bias: bool = False,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            inputs,
            outputs,
            use_bias=use_bias,
            kernel_init=nnx.initializers.zeros_init(),
            dtype=dtype,
            rngs=rngs,
        )
        self.stride = stride

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Returns a linear map of the features at every `stride`-th location, in `dtype`."""
        x = x[:, :: self.stride, :: self.stride]
        x = pointwise(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)


class SeparableConv(nnx.Module):
    """A depthwise 3×3 convolution (padding 1), then a pointwise one; no bias, nothing between."""

    def __init__(self, inputs: int, outputs: int, *, dtype: Dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jnp.zeros((3, 3, 1, inputs)))
        self.pointwise = Pointwise(inputs, outputs, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Returns the features convolved, in `dtype`."""
        x = depthwise_3x3(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return self.pointwise(x)


def _devices(axis_name: str | None) -> int:
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def _mean(x: Array, axis_name: str | None) -> Array:
    """The mean of each channel, over all locations of all devices."""
    mean = x.mean((0, 1, 2))
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    axis_name: str | None,
) -> tuple[Float[Array, "b h w c"], Float[Array, " c"], Float[Array, " c"]]:
    """x normalized over all devices of an axis; and its mean and variance, without a gradient."""
    return _normalize_forward(x, scale, bias, axis_name)[0]


def _normalize_forward(x: Array, scale: Array, bias: Array, axis_name: str | None):
    x32 = x.astype(jnp.float32)
    mean = _mean(x32, axis_name)
    var = _mean(jnp.square(x32 - mean), axis_name)
    deviation = jax.lax.rsqrt(var + BatchNorm.epsilon)
    out = ((x32 - mean) * (scale * deviation) + bias).astype(x.dtype)
    return (out, mean, var), (x, mean, deviation, scale)


def _normalize_backward(axis_name: str | None, residuals: tuple[Array, ...], gradients):
    # Ioffe and Szegedy (2015), section 3, with the sums over all locations as means.
    x, mean, deviation, scale = residuals
    gradient = gradients[0].astype(jnp.float32)
    unit = (x.astype(jnp.float32) - mean) * deviation
    dbias, dscale = gradient.sum((0, 1, 2)), (gradient * unit).sum((0, 1, 2))
    count = float(x.size // x.shape[-1])  # which can be more than an int32 holds
    means = dbias / count, dscale / count
    if axis_name is not None:
        means = jax.lax.pmean(means, axis_name)
    dx = scale * deviation * (gradient - means[0] - unit * means[1])
    return dx.astype(x.dtype), dscale, dbias


_normalize.defvjp(_normalize_forward, _normalize_backward)


class BatchNorm(nnx.Module):
    """Batch normalization with PyTorch's conventions.

    In training mode it normalizes with the biased variance of the whole batch, over every device
    on `axis_name`, and moves the running statistics towards the batch's by 1 − `decay`, the
    variance in its unbiased form. Statistics are float32 whatever the input is. The variance is the
    mean of squared deviations: E[x²] − E[x]² loses all digits where the mean is large. A frozen one
    is as in evaluation mode always.
    """

    epsilon = 1e-5
    decay = 0.9

    def __init__(self, features: int, *, axis_name: str | None):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.axis_name = axis_name
        self.use_running_average = False  # what nnx's model.train() and model.eval() set

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the features normalized; in training mode it moves the running statistics."""
        if self.use_running_average or isinstance(self.scale, Frozen):
            gain = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
            x32 = x.astype(jnp.float32)
            return ((x32 - self.mean[...]) * gain + self.bias[...]).astype(x.dtype)
        out, mean, var = _normalize(x, self.scale[...], self.bias[...], self.axis_name)
        count = x.size // x.shape[-1] * _devices(self.axis_name)
        for running, value in ((self.mean, mean), (self.var, var * (count / max(count - 1, 1)))):
            running[...] = self.decay * running[...] + (1 - self.decay) * value
        return out


def _fuses_attention() -> bool:
    """Whether programs are traced where cuDNN is: it is asked for its version while they are."""
    device = jax.devices()[0]
    capability = str(getattr(device, "compute_capability", "")).split(".")[0]
    # Its attention runs on Ampere (8) and later. The name of an AMD device is no number.
    return device.platform == "gpu" and capability.isdecimal() and int(capability) >= 8


def _attention_fused(query: Array, key: Array, value: Array) -> Array:
    # Gradients want an even number of tokens: an odd one gets another, which is masked.
    batch, tokens = query.shape[:2]
    lengths = None
    if tokens % 2:
        margins = ((0, 0), (0, 1), (0, 0), (0, 0))
        query, key, value = (jnp.pad(x, margins) for x in (query, key, value))
        lengths = jnp.full(batch, tokens, jnp.int32)
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :tokens]


@jax.custom_vjp
def _attention_by_platform(query: Array, key: Array, value: Array) -> Array:
    return jax.lax.platform_dependent(
        query, key, value, cuda=_attention_fused, default=jax.nn.dot_product_attention
    )


def _attention_forward(*args: Array):
    # Weights are not kept for the backward pass: of a branch that is not taken, they would be zeros
    # of their size.
    return _attention_by_platform(*args), args


def _attention_backward(args: tuple[Array, ...], gradient: Array):
    def of(form: Callable[..., Array]) -> Callable[..., tuple[Array, ...]]:
        return lambda gradient, *args: jax.vjp(form, *args)[1](gradient)

    return jax.lax.platform_dependent(
        gradient, *args, cuda=of(_attention_fused), default=of(jax.nn.dot_product_attention)
    )


_attention_by_platform.defvjp(_attention_forward, _attention_backward)


def attention(
    query: Float[Array, "b t n d"], key: Float[Array, "b t n d"], value: Float[Array, "b t n d"]
) -> Float[Array, "b t n d"]:
    """Returns the scaled dot-product attention of every head (Vaswani et al., 2017).

    The softmax is float32. In bfloat16 on a GPU with cuDNN it is one fused kernel that stores no
    weights; `jax.nn.dot_product_attention` takes that kernel only when asked by name.
    """
    size = query.shape[-1]
    if query.dtype == jnp.bfloat16 and size % 8 == 0 and size <= 128 and _fuses_attention():
        return _attention_by_platform(query, key, value)
    return jax.nn.dot_product_attention(query, key, value)


class Dropout(nnx.Module):
    """Dropout that draws for each image by a key of its own, which `seed_dropout` gives.

    So what is dropped of an image does not depend on the others that a device has. In training mode
    it zeroes values with probability `rate` and divides the others by 1 − `rate`; in evaluation
    mode it does nothing and needs no keys.
    """

    def __init__(self, rate: float):
        self.rate = rate
        self.deterministic = False  # what nnx's model.train() and model.eval() set
        self.keys = nnx.data(None)  # [B] of the images to come

    def __call__(self, x: Float[Array, "b *shape"]) -> Float[Array, "b *shape"]:
        """Raises ValueError in training mode without keys."""
        if self.deterministic:
            return x
        if self.keys is None:
            raise ValueError("dropout in training mode needs a key an image: see seed_dropout")
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))
        return jnp.where(kept(self.keys), x / (1 - self.rate), 0)


def seed_dropout(network: nnx.Module, keys: Key[Array, " b"]) -> None:
    """Gives a network, if it drops anything, the keys of the images that it will see next.

    If it has several such layers, they draw from keys that are folded with their number.
    """
    layers = [module for _, module in nnx.iter_modules(network) if isinstance(module, Dropout)]
    for number, layer in enumerate(layers):
        layer.keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number) if number else keys
