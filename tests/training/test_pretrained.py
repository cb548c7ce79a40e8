"""Networks on frozen backbones, with adapters and with decoders, that others start from."""

import dataclasses
import functools
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from etils import epath
from flax import nnx

from wsdl_jax import configuration, runs, weights
from wsdl_jax.models import backbones, vit
from wsdl_jax.models.backbone import Frozen, freeze_backbones
from wsdl_jax.models.declip import DeCLIP
from wsdl_jax.models.dino import Dino
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.training import pretrained

CLIP, DINO = "clip_vit_l14", "dinov2_s14"
Values = dict[str, np.ndarray]
KINDS = (nnx.Param, nnx.BatchStat, Frozen)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers whose tokens have 32 channels."""
    named = dict(backbones._ARCHITECTURES)
    for name in (CLIP, DINO):
        form = dataclasses.replace(vit.FORMS[name], width=32, heads=2, grid=5)
        trunk = functools.partial(vit.ViT, form=form)
        named[name] = dataclasses.replace(named[name], trunk=trunk)
    monkeypatch.setattr(backbones, "_ARCHITECTURES", named)


def made(
    kind: type[nnx.Module] = DeCLIP, *, seed: int, frozen: bool = False, **fields
) -> nnx.Module:
    """A network with random weights; those of a frozen backbone do not depend on the seed."""
    fields = {"backbone": DINO, "depth": 2, **fields}
    if kind is DeCLIP:
        fields = {"decoder": "linear", **fields}
    model = kind(**fields, rngs=nnx.Rngs(0))
    if frozen:
        freeze_backbones(model)
    drawn = {}
    for name, variable in nnx.to_flat_state(nnx.state(model, KINDS)):
        of_name = zlib.crc32(str(name).encode())
        rng = np.random.default_rng([of_name, 0 if isinstance(variable, Frozen) else seed])
        drawn[name] = variable.replace(rng.uniform(0.1, 0.2, variable.shape).astype(np.float32))
    nnx.update(model, nnx.from_flat_state(drawn))
    return model


def values(model: nnx.Module) -> Values:
    found = nnx.state(model, KINDS)
    return {".".join(map(str, name)): np.asarray(x[...]) for name, x in nnx.to_flat_state(found)}


@pytest.fixture
def start(tmp_path, monkeypatch) -> Callable[[nnx.Module, nnx.Module], list[str]]:
    """(model, source) → what stays of the model, started from a run of the source."""

    def from_run(model: nnx.Module, source: nnx.Module) -> list[str]:
        trained = runs.Trained(configuration.base(), source, 0, None)
        monkeypatch.setattr(runs, "load", lambda run: trained)
        return pretrained.start(model, epath.Path(tmp_path), None)

    return from_run


def equal(found: Values, wanted: Values) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def refused(start, model: nnx.Module, source: nnx.Module) -> str:
    """The line of an error, after which the model is as it was."""
    before = values(model)
    with pytest.raises(UserError) as raised:
        start(model, source)
    equal(values(model), before)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_was_frozen_is_trained_further(start):
    model, source = made(seed=1), made(seed=2, frozen=True)
    assert start(model, source) == []
    equal(values(model), values(source))
    assert not nnx.state(model, Frozen)
    # So it is by a method that has another head.
    model = made(Dino, seed=1)
    stays = start(model, source)
    assert stays and all(name.startswith("head.") for name in stays)
    np.testing.assert_array_equal(
        values(model)["trunk.positions"], values(source)["trunk.positions"]
    )


def test_adapters_are_added_to_what_they_adapt(start):
    model, source = made(Dino, seed=1), made(Dino, seed=2, frozen=True, lora_rank=3)
    assert start(model, source) == []
    of_source = values(source)
    wanted = {name: of_source[name] for name in values(model)}
    for block in (0, 1):
        for layer in ("query", "value"):
            stem = f"trunk.blocks.{block}.{layer}"
            first, second = (of_source[f"{stem}.lora.lora_{side}"] for side in "ab")
            wanted[f"{stem}.kernel"] = of_source[f"{stem}.kernel"] + first @ second
    equal(values(model), wanted)


def test_adapters_of_the_same_rank_are_taken(start):
    model = made(Dino, seed=1, frozen=True, lora_rank=3)
    source = made(Dino, seed=2, frozen=True, lora_rank=3)
    assert start(model, source) == []
    equal(values(model), values(source))
    # From a network without any, they are new.
    source = made(Dino, seed=2, frozen=True)
    stays = start(model, source)
    assert len(stays) == 4 and all(name.endswith(".lora") for name in stays)


@pytest.mark.parametrize(
    ("of_model", "of_source", "told"),
    [
        (
            {"kind": Dino, "lora_rank": 4},
            {"kind": Dino, "lora_rank": 8},
            "does not fit: trunk.blocks.0.query.lora.lora_a is 32×8 there and 32×4 here, ",
        ),
        (
            {"kind": Dino},
            {"kind": Dino, "lora_rank": 8},
            "has adapters of rank 8, which a frozen backbone without adapters cannot take: set ",
        ),
        ({}, {"frozen": False}, "has a backbone that was trained; here it is frozen"),
        ({}, {"depth": 3}, "has nothing that is trained here: its head is that of other stages"),
        (
            {"decoder": "conv-4"},
            {},
            "has nothing that is trained here: decoder.last.bias is missing there and 1 here, ",
        ),
        (
            {"decoder": "conv-12"},
            {"decoder": "conv-4"},
            "decoder.stages.0.convs.1.bias is missing there and 512 here, ",
        ),
        ({"backbone": CLIP}, {}, "has a network on dinov2_s14, where one on clip_vit_l14 is n"),
        ({"registers": 4}, {}, "has a backbone with 0 registers, where 4 are needed"),
    ],
)
def test_what_does_not_go_on_a_frozen_backbone(start, of_model, of_source, told):
    model = made(**{"seed": 1, "frozen": True, **of_model})
    source = made(**{"seed": 2, "frozen": True, **of_source})
    assert told in refused(start, model, source)


def test_another_file_of_the_same_backbone(start):
    model, source = made(seed=1, frozen=True), made(seed=2, frozen=True)
    assert start(model, source) == []
    kernel = source.trunk.blocks[1].up.kernel
    kernel[...] = kernel[...] + 1e-3
    told = refused(start, model, source)
    assert "is on another file of the backbone, which is frozen: trunk.blocks.1.up.kernel" in told


def test_other_decoders_are_new_where_the_backbone_is_trained(start):
    model = made(seed=1, decoder="conv-12")
    source = made(seed=2, decoder="conv-4")
    before = values(model)
    stays = start(model, source)
    assert stays and all(name.startswith("decoder.") for name in stays)
    for name, value in values(model).items():
        of = before if name.startswith("decoder.") else values(source)
        np.testing.assert_array_equal(value, of[name])
    told = refused(start, made(seed=1, backbone=CLIP), source)
    assert "on dinov2_s14, where one on clip_vit_l14 is needed" in told


def test_a_checkpoint_of_declip(tmp_path):
    """It has its backbone beside its decoder; that of two backbones has neither."""
    source = made(seed=2, backbone=CLIP, frozen=True)
    file = epath.Path(tmp_path / "declip.safetensors")
    weights.write(weights.to_torch(source, "declip"), file)
    model = made(seed=1, backbone=CLIP)
    assert pretrained.start(model, file, None) == []
    equal(values(model), values(source))


def test_a_decoder_alone(tmp_path, monkeypatch):
    source = made(seed=2, backbone=CLIP, beside="clip_rn50", frozen=True)
    alone = pretrained._Source(source, is_decoder=True)
    monkeypatch.setattr(pretrained, "_read", lambda path, layout: alone)
    path = epath.Path(tmp_path / "fc.safetensors")
    model = made(seed=1, backbone=CLIP, beside="clip_rn50")
    with pytest.raises(UserError, match=r"has a decoder alone, .* wsdl_jax\.convert makes a run"):
        pretrained.start(model, path, None)
    freeze_backbones(model)
    assert pretrained.start(model, path, None) == []
    np.testing.assert_array_equal(
        model.decoder.linear.kernel[...], source.decoder.linear.kernel[...]
    )
