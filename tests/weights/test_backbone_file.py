"""Backbones from files: against transformers and open_clip, and what does not fit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import backbones as golden

from wsdl_jax import convert
from wsdl_jax.models import backbone_names, backbones, clip_resnet, vit
from wsdl_jax.models.backbone import Backbone
from wsdl_jax.weights import WeightsError, backbone_file
from wsdl_jax.weights.backbone_file import (
    architecture_of,
    fill,
    layout_of_backbone,
    registers_of,
)

FIXTURE = np.load(golden.FIXTURE)
LAYOUTS = {
    "clip-openai-vit": "clip-openai",
    "clip-openai-resnet": "clip-openai",
    "clip-transformers": "clip-transformers",
    "dinov2": "dinov2-transformers",
    "dinov2-registers": "dinov2-transformers",
}
VITS = [name for name in LAYOUTS if name != "clip-openai-resnet"]
SMALL = {
    "width": golden.WIDTH,
    "blocks": golden.BLOCKS,
    "heads": golden.HEADS,
    "grid": golden.GRID,
}


@functools.cache
def _drawn(name: str) -> dict[str, np.ndarray]:
    tensors = golden.state_dict(name)
    for tensor in tensors.values():
        tensor.flags.writeable = False
    return tensors


def file(name: str) -> dict[str, np.ndarray]:
    """The tensors of a file, by name."""
    return dict(_drawn(name))


def tower(name: str) -> tuple[backbone_names.Tower, str]:
    """How a file names its tensors, and what their names begin with."""
    found = ((tower, tower.prefix(_drawn(name))) for tower in backbone_names.TOWERS)
    return next((tower, prefix) for tower, prefix in found if prefix is not None)


def form(name: str) -> vit.Form:
    published = "dinov2_s14" if name.startswith("dinov2") else "clip_vit_l14"
    return dataclasses.replace(vit.FORMS[published], **SMALL)


def empty(name: str, depth: int | None = None, **arguments) -> Backbone:
    if name == "clip-openai-resnet":
        return clip_resnet.ModifiedResNet(depth or 4, rngs=nnx.Rngs(0), **arguments)
    arguments.setdefault("registers", golden.REGISTERS if name == "dinov2-registers" else 0)
    depth = depth or golden.BLOCKS
    return vit.ViT(depth, form=form(name), rngs=nnx.Rngs(0), **arguments)


def filled(name: str, depth: int | None = None, **arguments) -> Backbone:
    trunk = empty(name, depth, **arguments)
    fill(trunk, file(name))
    trunk.eval()
    return trunk


def close(actual, expected, tolerance: float) -> None:
    """As close as `tolerance`, relative to the largest entry; a bias of keys has gradient 0."""
    assert actual.shape == expected.shape
    largest = max(np.abs(expected).max(), 0.01)
    assert np.abs(np.asarray(actual) - expected).max() < tolerance * largest


def values(trunk: Backbone) -> dict[tuple, np.ndarray]:
    state = nnx.to_flat_state(nnx.state(trunk, (nnx.Param, nnx.BatchStat)))
    return {path: np.asarray(variable[...]) for path, variable in state}


def equal(trunk: Backbone, other: Backbone) -> None:
    mine, theirs = values(trunk), values(other)
    assert mine.keys() == theirs.keys()
    for path, value in mine.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=str(path))


def stages(trunk: Backbone, images: jax.Array) -> list[jax.Array]:
    """What is behind each stage; of a transformer all tokens, [b, t, c]."""
    features, found = trunk.stem(images), []
    for stage in range(trunk.stages):
        features = trunk.through(features, stage, stage + 1)
        x = features.map
        if features.tokens is not None:
            x = jnp.concatenate([features.tokens, x.reshape(x.shape[0], -1, x.shape[-1])], axis=1)
        found.append(x)
    return found


@pytest.mark.usefixtures("compile_quickly")
def test_features_of_the_resnet():
    model = convert.from_torch(file("clip-openai-resnet"), "clip-openai")
    structure, state = nnx.split(model)
    images = jnp.asarray(golden.images("clip-openai-resnet"))
    found = jax.jit(lambda state, images: nnx.merge(structure, state)(images))(state, images)
    assert set(found) == {f"layer{stage}" for stage in range(1, len(clip_resnet.BLOCKS) + 1)}
    for name, features in found.items():
        expected = FIXTURE[f"clip-openai-resnet/{name.removeprefix('layer')}"]
        close(features[..., :: golden.EVERY], expected, 1e-4)


@pytest.mark.usefixtures("compile_quickly")
@pytest.mark.parametrize("name", VITS)
def test_features_and_gradients(name):
    """Of every block, at sizes for which positions are interpolated."""
    trunk = filled(name)
    structure, params = nnx.split(trunk)
    images = jnp.asarray(golden.images(name))
    height, width = (side // golden.PATCH for side in golden.SIZES[name])
    probe = golden.probe((1, height, width, golden.WIDTH))

    @jax.jit
    def run(params, images):
        def total(params, images):
            found = stages(nnx.merge(structure, params), images)
            last = found[-1][:, -height * width :].reshape(probe.shape)
            return (last * probe).sum(), found

        return jax.grad(total, (0, 1), has_aux=True)(params, images)

    (of_params, of_images), found = run(params, images)
    assert len(found) == golden.BLOCKS
    for stage, features in enumerate(found, start=1):
        close(features, FIXTURE[f"{name}/{stage}"], 1e-4)
    close(of_images, FIXTURE[f"{name}/gradient/images"], 1e-3)

    nnx.update(trunk, of_params)
    names, prefix = tower(name)
    gradients: dict[str, list[np.ndarray]] = {}
    for place in names.places(trunk, prefix):  # several of a tensor that is of thirds
        value = place.to_torch(np.asarray(place.variable[...]))
        gradients.setdefault(place.name, []).append(value)
    stored = [key for key in FIXTURE if key.startswith(f"{name}/gradient/{prefix}")]
    checked = {
        key: parameter for key in stored if (parameter := key.rpartition("/")[2]) in gradients
    }
    assert len(checked) > golden.BLOCKS
    for key, parameter in checked.items():
        close(np.concatenate(gradients[parameter]), FIXTURE[key], 1e-3)


def make_small_ones_known(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As if the network of a file, which is small, were published."""
    published, small = "dinov2_s14" if name.startswith("dinov2") else "clip_vit_l14", form(name)
    of_small = dataclasses.replace(
        backbones.get(published),
        trunk=functools.partial(vit.ViT, form=small),
        stages=golden.BLOCKS,
    )
    monkeypatch.setattr(backbone_file, "FORMS", {published: small})
    monkeypatch.setattr(
        backbones, "_ARCHITECTURES", {**backbones._ARCHITECTURES, published: of_small}
    )


@pytest.mark.usefixtures("compile_quickly")
@pytest.mark.parametrize("name", VITS)
def test_a_bare_backbone_gives_maps_by_name(monkeypatch, name):
    make_small_ones_known(monkeypatch, name)
    wrapped = {f"module.{key}": value for key, value in file(name).items()}
    model = convert.from_torch(wrapped, LAYOUTS[name])
    found = nnx.jit(lambda model, images: model(images))(model, golden.images(name))
    height, width = (side // golden.PATCH for side in golden.SIZES[name])
    assert list(found) == ["layer0", "layer1", "layer2"]
    for stage, features in enumerate(found.values(), start=1):
        patches = FIXTURE[f"{name}/{stage}"][:, -height * width :]
        close(features, patches.reshape(1, height, width, golden.WIDTH), 1e-4)


def test_bare_backbones_that_are_none():
    tensors = file("dinov2")
    for layout, line in (
        ("dinov2-hub", "these tensors are in layout dinov2-transformers, not dinov2-hub"),
        (
            "dinov2-transformers",
            "these tensors are of a DINOv2 ViT (3 blocks, width 32, patches of 14×14 pixels, "
            "positions for 4×4 patches), which is none of clip_rn50, clip_vit_l14, dinov2_s14, "
            "dinov2_b14, dinov2_l14",
        ),
    ):
        with pytest.raises(WeightsError) as error:
            convert.from_torch(tensors, layout)
        assert str(error.value) == line
    with pytest.raises(WeightsError, match="in none of the backbones' layouts, not clip-openai"):
        convert.from_torch({"weight": np.zeros(2, np.float32)}, "clip-openai")
    with pytest.raises(WeightsError, match=r"layout 'clip': choose from dolos-.*, dinov2-hub$"):
        convert.from_torch(tensors, "clip")


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name):
    tensors = file(name)
    assert layout_of_backbone(tensors) == LAYOUTS[name]
    assert registers_of(tensors) == (golden.REGISTERS if name == "dinov2-registers" else 0)
    assert architecture_of(tensors) == ("clip_rn50" if name == "clip-openai-resnet" else None)


def test_of_nothing_published():
    tensors = {"encoder.weight": np.zeros((2, 2), np.float32)}
    assert layout_of_backbone(tensors) is None
    assert architecture_of(tensors) is None
    assert registers_of(tensors) == 0
    with pytest.raises(WeightsError, match="in none of the backbones' layouts clip-openai, "):
        fill(empty("dinov2"), tensors)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("clip_vit_l14", "clip-openai-vit"),
        ("clip_vit_l14", "clip-transformers"),
        ("dinov2_s14", "dinov2"),
        ("dinov2_b14", "dinov2-registers"),
        ("dinov2_l14", "dinov2"),
    ],
)
def test_architecture(architecture, name):
    """By shapes and names alone."""
    published = vit.FORMS[architecture]
    names, prefix = tower(name)
    tensors = file(name)
    first = prefix + names.layer(1)
    of_block = [key.removeprefix(first) for key in tensors if key.startswith(first)]
    for number in range(1, published.blocks + 1):
        tensors |= {prefix + names.layer(number) + key: np.zeros(0) for key in of_block}
    batched = (1,) * names.names.batched
    places = 1 + published.grid**2
    for key, shape in (
        (f"{names.names.patches}.weight", (published.width, 3, published.patch, published.patch)),
        (names.names.positions, (*batched, places, published.width)),
    ):
        assert prefix + key in tensors
        tensors[prefix + key] = np.broadcast_to(np.float32(0), shape)
    assert architecture_of(tensors) == architecture
    last = prefix + names.layer(published.blocks)
    cut = {key: value for key, value in tensors.items() if not key.startswith(last)}
    assert architecture_of(cut) is None


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_trunk_takes_its_own_stages_alone(name):
    """Whatever the deeper ones hold."""
    depth = 2
    tensors = file(name)
    names, prefix = tower(name)
    deeper = prefix + names.layer(depth + 1)
    for key in tensors:
        if key.startswith(deeper):
            tensors[key] = np.full(tensors[key].shape, np.nan, np.float32)
    trunk, whole = empty(name, depth), filled(name)
    fill(trunk, tensors)
    of_whole = values(whole)
    for path, value in values(trunk).items():
        np.testing.assert_array_equal(value, of_whole[path])


TEXT = {
    "clip-openai-vit": (
        "transformer.resblocks.0.attn.in_proj_weight",
        "positional_embedding",
        "token_embedding.weight",
        "ln_final.weight",
        "logit_scale",
        "input_resolution",
    ),
    "clip-openai-resnet": ("transformer.resblocks.0.ln_1.weight", "text_projection"),
    "clip-transformers": (
        "text_model.encoder.layers.0.layer_norm1.weight",
        "visual_projection.weight",
        "vision_model.embeddings.position_ids",
    ),
    "dinov2": ("classifier.weight",),
}


@pytest.mark.parametrize("name", TEXT)
def test_what_stands_beside_is_left_out(name):
    tensors = file(name) | {key: np.zeros(3, np.int64) for key in TEXT[name]}
    trunk = empty(name)
    fill(trunk, tensors)
    equal(trunk, filled(name))


@pytest.mark.parametrize(
    ("name", "rename"),
    [
        ("clip-openai-vit", lambda key: f"model.{key}"),  # as in a detector's checkpoint
        ("clip-openai-resnet", lambda key: f"module.{key}"),
        ("clip-transformers", lambda key: key.removeprefix("vision_model.")),
        ("dinov2", lambda key: f"dinov2.{key}"),
        (
            "dinov2-registers",  # as in memory
            lambda key: (
                key.replace("attention.attention.query", "attention.q_proj")
                .replace("attention.attention.key", "attention.k_proj")
                .replace("attention.attention.value", "attention.v_proj")
                .replace("attention.output.dense", "attention.o_proj")
            ),
        ),
    ],
)
def test_other_names_of_the_same(name, rename):
    tensors = {rename(key): value for key, value in file(name).items()}
    assert tensors.keys() != file(name).keys()
    if name == "clip-openai-vit":
        tensors |= {"fc.weight": np.zeros((1, 4)), "model.logit_scale": np.zeros(())}
    trunk = empty(name)
    fill(trunk, tensors)
    equal(trunk, filled(name))
    assert layout_of_backbone(tensors) == LAYOUTS[name]


def hub(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """DINOv2's tensors as its own repository names them, of those that transformers has."""
    names = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.": "",
        "encoder.layer.": "blocks.",
        "layernorm.": "norm.",
        "attention.output.dense": "attn.proj",
        "attention.attention.query": "attn.qkv",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
    }
    found = {}
    for key, value in tensors.items():
        if ".attention.attention.key" in key or ".attention.attention.value" in key:
            continue
        if ".attention.attention.query" in key:
            value = np.concatenate(
                [tensors[key.replace("query", part)] for part in ("query", "key", "value")]
            )
        for old, new in names.items():
            key = key.replace(old, new)
        found[key] = value
    return found


@pytest.mark.parametrize("name", ["dinov2", "dinov2-registers"])
def test_dinov2s_own_names(name):
    tensors = hub(file(name))
    assert layout_of_backbone(tensors) == "dinov2-hub"
    trunk = empty(name)
    fill(trunk, tensors)
    equal(trunk, filled(name))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision(dtype):
    tensors = {k: v.astype(dtype) for k, v in file("clip-openai-vit").items()}
    trunk = empty("clip-openai-vit")
    fill(trunk, tensors)
    kernel = trunk.blocks[0].up.kernel[...]
    assert kernel.dtype == jnp.float32
    expected = tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].astype(np.float32).T
    np.testing.assert_array_equal(kernel, expected)


def test_adapters_stay():
    trunk = filled("dinov2", lora_rank=2)
    first = nnx.to_flat_state(nnx.state(empty("dinov2", lora_rank=2), nnx.LoRAParam))
    assert len(first) == 4 * golden.BLOCKS
    for (_, mine), (_, theirs) in zip(
        nnx.to_flat_state(nnx.state(trunk, nnx.LoRAParam)), first, strict=True
    ):
        np.testing.assert_array_equal(mine[...], theirs[...])


def refusal(trunk: Backbone, tensors: dict[str, np.ndarray]) -> str:
    """The line of an error, after which the trunk is as empty as before."""
    with pytest.raises(WeightsError) as error:
        fill(trunk, tensors)
    assert all((value == value.flat[0]).all() for value in values(trunk).values())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("clip-openai-vit", "clip-openai-resnet"),
        ("clip-openai-vit", "dinov2"),
        ("clip-openai-resnet", "clip-transformers"),
        ("dinov2", "clip-openai-vit"),
        ("dinov2", "dinov2-registers"),
        ("dinov2-registers", "clip-openai-resnet"),
    ],
)
def test_another_architecture(name, other):
    line = refusal(empty(name), file(other))
    assert f"in layout {LAYOUTS[other]}, where a " in line
    assert "is needed" in line


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"width": 2 * golden.WIDTH}, ("width 32", "width 64")),
        ({"patch": 16}, ("14×14 pixels", "16×16 pixels")),
        ({"grid": 7}, ("4×4 patches", "7×7 patches")),
    ],
)
def test_another_size(change, told):
    other = dataclasses.replace(form("dinov2"), **change)
    trunk = vit.ViT(2, form=other, rngs=nnx.Rngs(0))
    line = refusal(trunk, file("dinov2"))
    has, needs = line.split("where")
    assert told[0] in has
    assert told[1] in needs


def test_other_registers():
    line = refusal(empty("dinov2-registers", registers=0), file("dinov2-registers"))
    assert "3 registers" in line.split("where")[0]
    line = refusal(empty("dinov2", registers=4), file("dinov2"))
    assert "4 registers" in line.split("where")[1]


def test_too_few_blocks():
    published = dataclasses.replace(form("dinov2"), blocks=9)
    line = refusal(vit.ViT(5, form=published, rngs=nnx.Rngs(0)), file("dinov2"))
    assert "(3 blocks" in line
    assert "(5 blocks" in line


def test_a_deeper_resnet():
    """Whose first stages have the shapes of ResNet-50's, but not their weights."""
    tensors = file("clip-openai-resnet")
    last = "visual.layer3.5."
    tensors |= {key.replace(".5.", ".6."): tensors[key] for key in tensors if last in key}
    line = refusal(clip_resnet.ModifiedResNet(1, rngs=nnx.Rngs(0)), tensors)
    assert "(3-4-7-3 blocks, width 64) in layout clip-openai, where a CLIP ResNet (3-4-6-3" in line
    first = {key: value for key, value in file("clip-openai-resnet").items() if key[7:] < "layer3"}
    fill(clip_resnet.ModifiedResNet(1, rngs=nnx.Rngs(0)), first)


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("lost", ["patches", "positions", "class_token", "out"])
def test_missing(name, lost):
    tensors = file(name)
    names, prefix = tower(name)
    key = next(key for key in tensors if getattr(names.names, lost) in key)
    del tensors[key]
    if key == prefix + names.sign:
        assert "none of the backbones' layouts" in refusal(empty(name), tensors)
    else:
        assert refusal(empty(name), tensors) == f"1 missing: {key}"


def test_missing_unexpected_misshapen_not_finite():
    tensors = file("clip-openai-vit")
    fused = "visual.transformer.resblocks.1.attn.in_proj_weight"
    del tensors["visual.ln_pre.bias"], tensors[fused]
    tensors["visual.class_embedding"] = np.zeros((1, 32), np.float32)
    tensors["visual.conv1.bias"] = np.zeros(32, np.float32)
    tensors["adapter.weight"] = np.zeros(32, np.float32)
    assert refusal(empty("clip-openai-vit"), tensors) == (
        f"2 missing: visual.ln_pre.bias, {fused}; 2 unexpected: visual.conv1.bias, adapter.weight; "
        "1 misshapen: visual.class_embedding 1×32 for 32"
    )
    tensors = file("clip-openai-vit")
    tensors[fused] = np.where(np.arange(96)[:, None] == 40, np.nan, tensors[fused])
    assert refusal(empty("clip-openai-vit"), tensors) == f"1 not finite: {fused}"
    tensors[fused] = np.zeros((64, 32), np.float32)
    assert "64×32 for 96×32" in refusal(empty("clip-openai-vit"), tensors)


def test_no_files_of_a_network_of_our_own():
    tiny = vit.ViT(1, form=vit.FORMS["vit_tiny"], rngs=nnx.Rngs(0))
    assert "no files are published" in refusal(tiny, file("dinov2"))
