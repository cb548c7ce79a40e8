"""Decoders against a twin in PyTorch: logits, gradients and what moves, in training mode."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsdl_jax.models import declip_names, decoder
from wsdl_jax.models.initialization import initialize

INPUTS, WIDTH = 12, 1 / 32  # then stages have 16, 8, 8 and 8 channels


def made(kind: str, scheme: str = "torch", **arguments) -> nnx.Module:
    network = decoder.make_decoder(kind, INPUTS, width=WIDTH, **arguments, rngs=nnx.Rngs(0))
    initialize(network, scheme, seed=1)
    return network


def tensors(network: nnx.Module) -> list[nnx.Param]:
    """Parameters in the order of the twin's."""
    if isinstance(network, decoder.LinearDecoder):
        return [network.linear.kernel, network.linear.bias]
    pairs = [
        pair for stage in network.stages for pair in zip(stage.convs, stage.norms, strict=True)
    ]
    found = [v for conv, norm in pairs for v in (conv.kernel, conv.bias, norm.scale, norm.bias)]
    return [*found, network.last.kernel, network.last.bias]


def to_torch(value) -> np.ndarray:
    return np.asarray(value).transpose(*((3, 2, 0, 1) if np.ndim(value) == 4 else range(1)))


class Twin:
    """The same decoder of PyTorch's layers, with the parameters of one here."""

    def __init__(self, torch, network: nnx.Module, kind: str):
        self.torch, self.is_linear, layers = torch, kind == "linear", []
        if self.is_linear:
            layers.append(torch.nn.Linear(INPUTS, 1))
        else:
            channels = INPUTS
            for stage in network.stages:
                for conv in stage.convs:
                    width = conv.kernel.shape[-1]
                    layers += [
                        torch.nn.Conv2d(channels, width, 5, padding=2),
                        torch.nn.BatchNorm2d(width),
                        torch.nn.ReLU(),
                    ]
                    channels = width
                layers.append(torch.nn.Upsample(scale_factor=2, mode="bilinear"))
            layers.append(torch.nn.Conv2d(channels, 1, 5, padding=2))
        self.layers = torch.nn.Sequential(*layers)
        self.parameters = list(self.layers.parameters())
        for parameter, variable in zip(self.parameters, tensors(network), strict=True):
            value = variable[...].T if self.is_linear else to_torch(variable[...])
            parameter.data = torch.tensor(np.array(value))

    def __call__(self, features: np.ndarray):
        x = self.torch.tensor(features)
        if not self.is_linear:
            return self.layers(x.permute(0, 3, 1, 2))[:, 0]
        logits = self.layers(x)[..., 0]
        size = [decoder.ENLARGED * n for n in logits.shape[1:]]
        return self.torch.nn.functional.interpolate(logits[:, None], size, mode="bicubic")[:, 0]


@pytest.mark.parametrize(("kind", "convolutions"), [("conv-4", 1), ("conv-12", 3), ("conv-20", 5)])
def test_what_convolutional_decoders_have(kind: str, convolutions: int):
    network = nnx.eval_shape(lambda: decoder.make_decoder(kind, 1024, rngs=nnx.Rngs(0)))
    before = 1024
    for stage, width in zip(network.stages, (512, 256, 128, 64), strict=True):
        widths = [before, *[width] * convolutions]
        shapes = [conv.kernel.shape for conv in stage.convs]
        assert shapes == [(5, 5, a, b) for a, b in itertools.pairwise(widths)]
        before = width
    assert network.last.kernel.shape == (5, 5, 64, 1)


@pytest.mark.parametrize("kind", ["linear", "conv-12"])
@pytest.mark.usefixtures("compile_quickly")
def test_as_in_pytorch(torch, kind: str):
    network = made(kind)
    network.train()
    twin = Twin(torch, network, kind)
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(2, 3, 4, INPUTS)), jnp.float32)
    # Checkpoints name a decoder's tensors by the places of its layers.
    places = declip_names.decoder_places(network)
    shapes = {place.name: place.torch_shape() for place in places}
    theirs = twin.layers.state_dict()
    counters = {name for name in theirs if name.endswith("num_batches_tracked")}
    assert shapes == {f"fc.{n}": tuple(t.shape) for n, t in theirs.items() if n not in counters}
    masks = rng.integers(0, 2, (2, 48, 64))

    theirs = twin(np.array(features))
    targets = torch.tensor(masks, dtype=torch.float32)
    their_loss = torch.nn.functional.binary_cross_entropy_with_logits(theirs, targets)
    their_loss.backward()

    graphdef, params, stats = nnx.split(network, nnx.Param, nnx.BatchStat)

    @jax.jit
    def both(params, stats):
        def loss(params):
            model = nnx.merge(graphdef, params, stats, copy=True)
            scores = model(features)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), masks[..., None], -1)
            return -chosen.mean(), (scores, nnx.state(model, nnx.BatchStat))

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, (scores, moved)), gradients = both(params, stats)
    logits = theirs.detach().numpy()
    assert scores.shape == (2, 48, 64, 2) and not scores[..., 0].any()
    np.testing.assert_allclose(scores[..., 1], logits, atol=1e-4 * np.abs(logits).max())
    assert float(value) == pytest.approx(their_loss.item(), rel=1e-5)
    nnx.update(network, gradients, moved)
    largest = max(float(p.grad.norm()) for p in twin.parameters)
    for parameter, variable in zip(twin.parameters, tensors(network), strict=True):
        mine = variable[...].T if kind == "linear" else to_torch(variable[...])
        wanted = parameter.grad.numpy()
        # The bias before a BatchNorm has no gradient but that of rounding.
        tolerance = 1e-3 * np.linalg.norm(wanted) + 1e-6 * largest
        assert np.linalg.norm(mine - wanted) <= tolerance
    norms = [layer for layer in twin.layers if isinstance(layer, torch.nn.BatchNorm2d)]
    mine = [] if kind == "linear" else [n for stage in network.stages for n in stage.norms]
    for norm, layer in zip(mine, norms, strict=True):
        np.testing.assert_allclose(norm.mean[...], layer.running_mean.numpy(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(norm.var[...], layer.running_var.numpy(), rtol=1e-4)


@pytest.mark.usefixtures("compile_quickly")
def test_remat_changes_nothing():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 3, INPUTS)), jnp.float32)

    def gradient(remat: bool):
        kwargs = {"dtype": jnp.float32, "axis_name": None, "rngs": nnx.Rngs(0)}
        stage = decoder.Stage(INPUTS, 4, 1, remat=remat, **kwargs)
        initialize(stage, "torch", seed=1)
        stage.train()
        return nnx.jit(nnx.value_and_grad(lambda n: (n(features) ** 2).sum()))(stage)

    (value, plain), (value_again, again) = gradient(False), gradient(True)
    assert float(value_again) == pytest.approx(float(value), rel=1e-5)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(value))


@pytest.mark.usefixtures("compile_quickly")
def test_half_precision():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 1, INPUTS)), jnp.float32)
    full, half = (made("conv-4", dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    for network in (full, half):
        network.eval()
    apply = nnx.jit(lambda network: network(features))
    scores = apply(half)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, apply(full), atol=0.02)


def test_another_decoder_is_refused():
    with pytest.raises(ValueError, match="decoder 'conv-8': choose from linear, conv-4, conv-12,"):
        decoder.make_decoder("conv-8", INPUTS, rngs=nnx.Rngs(0))
