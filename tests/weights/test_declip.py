"""DeCLIP's checkpoints: names, networks and runs of them, with a CLIP of a block or two."""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from etils import epath
from flax import nnx

from wsdl_jax import methods, runs, weights
from wsdl_jax.models import backbones, declip_names, vit
from wsdl_jax.models.backbone import Frozen
from wsdl_jax.models.backbone_names import resnet_places
from wsdl_jax.models.declip import DeCLIP
from wsdl_jax.models.decoder import ENLARGED
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.weights import MissingFileError, WeightsError, located

CLIP = "clip_vit_l14"


@pytest.fixture(autouse=True)
def small_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLIP whose blocks have 32 channels, not 1024."""
    form = dataclasses.replace(vit.FORMS[CLIP], width=32, heads=2, grid=5)
    small = dataclasses.replace(
        backbones.get(CLIP), trunk=functools.partial(vit.ViT, form=form), trained_size=70
    )
    named = {**backbones._ARCHITECTURES, CLIP: small}
    monkeypatch.setattr(backbones, "_ARCHITECTURES", named)


def drawn(model: nnx.Module) -> nnx.Module:
    rng = np.random.default_rng(0)
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param | nnx.BatchStat | Frozen):
            # Above 0, as variances are.
            variable[...] = jnp.asarray(rng.uniform(0.1, 0.2, variable.shape), jnp.float32)
    return model


def network(decoder: str = "linear", **fields) -> DeCLIP:
    model = DeCLIP(backbone=CLIP, depth=2, decoder=decoder, **fields, rngs=nnx.Rngs(0))
    model.eval()
    return drawn(model)


def values(model: nnx.Module) -> dict:
    found = nnx.state(model, (nnx.Param, nnx.BatchStat, Frozen))
    return {name: np.asarray(x[...]) for name, x in nnx.to_flat_state(found)}


def with_text_tower(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a checkpoint has beside the network: a text tower, projections and a last norm."""
    further = ("transformer.resblocks.0.ln_1.weight", "visual.proj", "visual.ln_post.bias")
    return {**tensors, **{f"model.{name}": np.ones(3, np.float16) for name in further}}


@pytest.mark.parametrize("decoder", ["linear", "conv-4"])
def test_a_network_comes_back(decoder: str):
    model = network(decoder)
    tensors = weights.to_torch(model, "declip")
    names = {name for name in tensors if name.startswith("fc.")}
    if decoder == "linear":
        assert {n: tensors[n].shape for n in names} == {"fc.0.weight": (1, 32), "fc.0.bias": (1,)}
    else:
        # Convolution, BatchNorm, ReLU and Upsample four times, then the last convolution.
        numbers = {4 * stage + layer for stage in range(4) for layer in (0, 1)} | {16}
        assert {int(name.split(".")[1]) for name in names} == numbers
        assert tensors["fc.0.weight"].shape == (512, 32, 5, 5)
        assert tensors["fc.16.weight"].shape == (1, 64, 5, 5)
    joined = tensors["model.visual.transformer.resblocks.1.attn.in_proj_weight"]
    kernels = [getattr(model.trunk.blocks[1], n).kernel[...].T for n in ("query", "key", "value")]
    np.testing.assert_array_equal(joined, np.concatenate(kernels))
    back = weights.from_torch(with_text_tower(tensors), "declip")
    assert weights.detect(tensors) == "declip"
    found = values(back)
    assert found.keys() == values(model).keys()
    for name, value in values(model).items():
        np.testing.assert_array_equal(found[name], value)
    # What is trained of it is the decoder.
    assert {name[0] for name, _ in nnx.to_flat_state(nnx.state(back, nnx.Param))} == {"decoder"}
    images = jax.ShapeDtypeStruct((1, 70, 70, 3), jnp.float32)
    maps = nnx.eval_shape(lambda x: back(x).map_logits, images)
    assert maps.shape == (1, 5 * ENLARGED, 5 * ENLARGED, 2)


@pytest.mark.parametrize(("kind", "last"), [("conv-4", 17), ("conv-12", 41), ("conv-20", 65)])
def test_names_of_two_backbones(kind: str, last: int):
    """Maps are brought to 256×256 by one more layer, and backbones are not in the file."""
    model = nnx.eval_shape(
        lambda: DeCLIP(
            backbone=CLIP,
            depth=2,
            decoder=kind,
            beside="clip_rn50",
            beside_depth=3,
            rngs=nnx.Rngs(0),
        )
    )
    names = set(weights.torch_names(model))
    assert f"fc.{last}.bias" in names and all(name.startswith("fc.") for name in names)


def test_which_network_it_is():
    layout = methods.layouts()["declip"]
    kernel = {1024: np.zeros((512, 1024, 5, 5), bool), 2048: np.zeros((512, 2048, 5, 5), bool)}
    for inputs, count in ((1024, 20), (2048, 4), (1024, 12)):
        names = [f"fc.{4 * n}.weight" for n in range(count + 1)]
        tensors = dict.fromkeys(names, kernel[inputs])
        for block in range(24 if inputs == 1024 else 0):
            name = f"model.visual.transformer.resblocks.{block}.ln_1.weight"
            tensors[name] = np.zeros(1024, bool)
        found = layout.arguments(tensors)
        beside = ("clip_rn50", 3) if inputs == 2048 else (None, 1)
        assert (found["backbone"], found["depth"], found["decoder"]) == (CLIP, 21, f"conv-{count}")
        assert (found["beside"], found["beside_depth"]) == beside


@pytest.fixture
def small_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stage of the second backbone, not the third, and fewer channels of both."""
    for name, value in (("_BOTH", 32 + 256), ("_BESIDE_DEPTH", 1), ("_DEPTH", 2)):
        monkeypatch.setattr(declip_names, name, value)


def test_what_is_refused(small_resnet):
    tensors = weights.to_torch(network(), "declip")
    del tensors["model.visual.conv1.weight"], tensors["fc.0.bias"]
    tensors["fc.3.weight"] = np.zeros((1, 2, 5, 5), np.float32)
    with pytest.raises(weights.WeightsError) as raised:
        weights.from_torch(tensors, "declip")
    for told in ("2 missing: fc.0.bias, model.visual.conv1.weight", "1 unexpected: fc.3.weight"):
        assert told in str(raised.value)
    with pytest.raises(weights.WeightsError, match="a decoder conv-2 is none of linear, conv-4"):
        weights.from_torch({f"fc.{n}.weight": np.zeros((1, 1, 5, 5)) for n in range(3)}, "declip")
    both = {"fc.0.weight": np.zeros((1, 288), np.float32), "fc.0.bias": np.zeros(1, np.float32)}
    with pytest.raises(weights.WeightsError, match="takes the backbones' files with --backbone"):
        weights.from_torch(both, "declip")
    beside = {"beside": "vit_tiny", "beside_depth": 2}
    for fields, built in (
        ({"backbone": "vit_tiny", "width": 0.1}, "on vit_tiny, stage 1"),
        ({"backbone": CLIP, **beside}, "on clip_vit_l14, stage 1 with vit_tiny, stage 2"),
    ):
        other = nnx.eval_shape(
            lambda fields=fields: DeCLIP(**fields, depth=1, decoder="linear", rngs=nnx.Rngs(0))
        )
        with pytest.raises(weights.WeightsError) as raised:
            weights.to_torch(other, "declip")
        assert str(raised.value) == (
            f"a network DeCLIP {built} is not of layout declip, which is of clip_vit_l14, alone or "
            "with clip_rn50, stage 3"
        )
    with pytest.raises(weights.WeightsError, match=r"clip-openai .* alone: it is read, and not wr"):
        weights.to_torch(other, "clip-openai")


def test_a_run_of_a_checkpoint(tmp_path):
    """Its backbone comes from the checkpoint itself, which the run names and hashes."""
    model = network()
    file, run = epath.Path(tmp_path / "declip.safetensors"), epath.Path(tmp_path / "run")
    weights.write(with_text_tower(weights.to_torch(model, "declip")), file)
    with pytest.raises(UserError, match="has its backbone itself"):
        runs.make_run(file, "declip", run, backbone=file)
    runs.make_run(file, "declip", run)
    trained = runs.load(run)
    config = trained.config
    assert (config.method, config.setup, config.data.image_size) == ("declip", "c", 70)
    assert config.model.frozen and config.model.backbone_path == str(file)
    assert len(config.model.backbone_sha256) == 64
    for name, value in values(model).items():
        np.testing.assert_array_equal(values(trained.model)[name], value)
    # A checkpoint has the decoder alone.
    state = runs.initial_state(trained.model, config.train)
    assert {name[0] for name, _ in nnx.to_flat_state(state["params"])} == {"decoder"}
    back = epath.Path(tmp_path / "back.safetensors")
    weights.write(weights.to_torch(trained.model, "declip"), back)
    for name, value in weights.to_torch(model, "declip").items():
        np.testing.assert_array_equal(weights.read(back)[name], value)


def test_a_run_of_a_decoder_of_two_backbones(tmp_path, small_resnet):
    model = network(beside="clip_rn50")
    fc, first, second = (epath.Path(tmp_path / f"{n}.safetensors") for n in ("fc", "vit", "rn50"))
    weights.write(weights.to_torch(model, "declip"), fc)
    alone = DeCLIP(backbone=CLIP, depth=2, decoder="linear", rngs=nnx.Rngs(0))
    alone.trunk = model.trunk
    tensors = weights.to_torch(alone, "declip")
    weights.write({n: t for n, t in tensors.items() if not n.startswith("fc.")}, first)
    named = {
        p.name: np.array(p.to_torch(np.asarray(p.variable[...])), order="C")
        for p in resnet_places(model.beside, "visual.")
    }
    weights.write(named, second)
    run = epath.Path(tmp_path / "run")
    with pytest.raises(UserError, match=r"has the decoder alone, of clip_vit_l14 with clip_rn50"):
        runs.make_run(fc, "declip", run, backbone=first)
    with pytest.raises(UserError, match="these tensors are of a CLIP ResNet"):
        runs.make_run(fc, "declip", run, backbone=second, beside=second)
    assert not run.exists()
    runs.make_run(fc, "declip", run, backbone=first, beside=second)
    trained = runs.load(run)
    for name, value in values(model).items():
        np.testing.assert_array_equal(values(trained.model)[name], value)
    assert trained.config.model.beside_sha256 != trained.config.model.backbone_sha256
    second.write_bytes(first.read_bytes())
    with pytest.raises(UserError, match=r"rn50\.safetensors is not the file that the run was"):
        runs.load(run)


def one_name_twice(folder: epath.Path, *contents: bytes) -> ml_collections.ConfigDict:
    """The config of a run whose two files had one name; they have moved into a folder's folders."""
    fields = {}
    for number, (field, content) in enumerate(zip(("backbone", "beside"), contents, strict=True)):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "model.safetensors").write_bytes(content)
        fields[f"{field}_path"] = "/nowhere/model.safetensors"
        fields[f"{field}_sha256"] = hashlib.sha256(content).hexdigest()
    return ml_collections.ConfigDict({"model": fields})


def test_files_of_one_name_are_told_by_what_they_hold(tmp_path, monkeypatch):
    folder, old = epath.Path(tmp_path / "moved"), epath.Path(tmp_path / "old")
    monkeypatch.setenv(located.FOLDER, str(folder))
    config = one_name_twice(folder, b"vit", b"resnet")
    assert located._locate(config, "backbone")[0] == folder / "0" / "model.safetensors"
    assert located._locate(config, "beside")[0] == folder / "1" / "model.safetensors"
    assert weights.with_digest(config).to_dict() == config.to_dict()
    # Where it was there is another file by now, and one more in the folder itself.
    old.mkdir()
    for place in (old, folder):
        (place / "model.safetensors").write_bytes(b"another")
    config.model.beside_path = str(old / "model.safetensors")
    assert located._locate(config, "beside")[0] == folder / "1" / "model.safetensors"
    # A new run has the file that it names.
    config.model.beside_sha256 = None
    assert located._locate(config, "beside")[0] == old / "model.safetensors"
    config.model.beside_path = "/nowhere/model.safetensors"
    with pytest.raises(WeightsError, match=r"any of \S+/moved/model\.safetensors, \S+/0/model"):
        weights.with_digest(config)


def test_a_file_that_is_in_no_folder(tmp_path, monkeypatch):
    folder = epath.Path(tmp_path)
    config = one_name_twice(folder, b"vit", b"resnet")
    with pytest.raises(MissingFileError, match=f"put it back, or .* variable {located.FOLDER}$"):
        weights.with_digest(config)
    monkeypatch.setenv(located.FOLDER, str(folder))
    (folder / "0" / "model.safetensors").write_bytes(b"torn")
    line = r"/0/model\.\w+ is not the file .*, nor is \S+/1/model\.\w+ \(\w{12}\); put it back, or "
    with pytest.raises(WeightsError, match=line):
        weights.with_digest(config)
    config.model.backbone_path = "/nowhere/other.pt"
    with pytest.raises(MissingFileError, match=f"nor is a file other.pt in {located.FOLDER}="):
        weights.with_digest(config)
    monkeypatch.setenv(located.FOLDER, str(folder / "none"))
    with pytest.raises(WeightsError, match=f"{located.FOLDER}=.*none cannot be read"):
        weights.with_digest(config)
