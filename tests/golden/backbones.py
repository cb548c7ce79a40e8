"""Features and gradients of pretrained backbones' networks, by transformers and open_clip.

They are given random weights, drawn by `weights.tensor` from their names. In an environment of its
own:

python3.11 -m venv backbones
backbones/bin/pip install torch==2.13.0 transformers==5.24.0 ftfy
backbones/bin/pip install --no-deps open_clip_torch==3.3.0
cd tests && ../backbones/bin/python -m golden.backbones

writes `backbones.json`, the shapes of all tensors by their names in a file, and `backbones.npz`
beside this file. (open_clip wants torchvision, for images alone: it is given an empty one.) The
tests take `state_dict`, `images` and `probe` from here.
"""

import importlib.machinery
import json
import pathlib
import sys
from typing import Any
from unittest import mock

import numpy as np
from golden import weights

SHAPES = pathlib.Path(__file__).with_name("backbones.json")
FIXTURE = pathlib.Path(__file__).with_name("backbones.npz")
# Pixels: of patches of 14 there are other numbers than the 4×4 that the positions are for, fewer on
# one axis and more on the other; and sides that a ResNet halves with a rest.
SIZES = {
    "clip-openai-vit": (56, 56),
    "clip-transformers": (42, 84),
    "dinov2": (42, 84),
    "dinov2-registers": (42, 84),
    "clip-openai-resnet": (56, 88),
}
WIDTH, BLOCKS, HEADS, PATCH, GRID, REGISTERS = 32, 3, 2, 14, 4, 3
LARGEST_GRADIENT, FEWER = 2000, 5  # of smaller parameters, every fifth's gradient is stored
EVERY = 7  # channels of the ResNet's features that are stored
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def state_dict(name: str) -> dict[str, np.ndarray]:
    """The tensors of a file, by name; a key of `SIZES`."""
    shapes = json.loads(SHAPES.read_text())[name]
    return {key: weights.tensor(key, tuple(shape)) for key, shape in shapes.items()}


def images(name: str) -> np.ndarray:
    """[1, h, w, 3] float32 in [-1, 1]."""
    rng = np.random.default_rng(5)
    return rng.uniform(-1, 1, (1, *SIZES[name], 3)).astype(np.float32)


def probe(shape: tuple[int, ...]) -> np.ndarray:
    """What the last map is multiplied with, float32: the sum of the products has the gradients."""
    return np.random.default_rng(6).standard_normal(shape).astype(np.float32)


def _network(name: str) -> tuple[Any, list[Any], str, tuple]:
    """A network, its blocks or stages, what a file's names have before its own, and its pixels."""
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "image_size": GRID * PATCH,
        "patch_size": PATCH,
    }
    if name == "clip-transformers":
        config = transformers.CLIPVisionConfig(**sizes, intermediate_size=4 * WIDTH)
        network = transformers.CLIPVisionModel(config)
        return network, list(network.encoder.layers), "vision_model.", CLIP
    if name == "dinov2":
        network = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
        return network, list(network.encoder.layer), "", IMAGENET
    if name == "dinov2-registers":
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=REGISTERS)
        network = transformers.Dinov2WithRegistersModel(config)
        return network, list(network.encoder.layer), "", IMAGENET
    _pretend_torchvision()
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import QuickGELU, VisionTransformer

    if name == "clip-openai-resnet":
        network = ModifiedResNet([3, 4, 6, 3], output_dim=1024, heads=32, image_size=224, width=64)
        return network, [getattr(network, f"layer{n}") for n in (1, 2, 3, 4)], "visual.", CLIP
    network = VisionTransformer(
        image_size=GRID * PATCH,
        patch_size=PATCH,
        width=WIDTH,
        layers=BLOCKS,
        heads=HEADS,
        mlp_ratio=4,
        act_layer=QuickGELU,
        output_dim=16,
    )
    return network, list(network.transformer.resblocks), "visual.", CLIP


def _pretend_torchvision() -> None:
    for part in ("", ".transforms", ".transforms.functional", ".ops.misc"):
        module = mock.MagicMock(__path__=[])
        module.__spec__ = importlib.machinery.ModuleSpec(f"torchvision{part}", None)
        sys.modules[f"torchvision{part}"] = module


def _file_names(network: Any, prefix: str) -> dict[str, str]:
    """Names that a file has, by those in memory, which differ for DINOv2 in transformers."""
    in_file = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    }
    names = {}
    for name in network.state_dict():
        file_name = prefix + name
        for old, new in in_file.items():
            file_name = file_name.replace(f".{old}.", f".{new}.")
        names[name] = file_name
    return names


def compute(name: str, every: int = 1, draw: Any = weights.tensor) -> tuple[dict, dict]:
    """Shapes by name in a file; and features behind each block, by name.

    Of transformers also gradients of the sum of the last map's products with `probe`.
    """
    import torch

    network, blocks, prefix, (mean, std) = _network(name)
    names = _file_names(network, prefix)
    tensors = {k: draw(names[k], tuple(v.shape)) for k, v in network.state_dict().items()}
    network.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in tensors.items()})
    network.eval()
    if name == "clip-openai-resnet":
        network.attnpool = torch.nn.Identity()  # it is for images of one size
    features: list[Any] = []
    for block in blocks:
        block.register_forward_hook(
            lambda module, args, out: features.append(out[0] if isinstance(out, tuple) else out)
        )
    x = torch.from_numpy(images(name)).requires_grad_()
    normalized = ((x + 1) / 2 - torch.tensor(mean)) / torch.tensor(std)
    kwargs = {"interpolate_pos_encoding": True} if name == "clip-transformers" else {}
    network(normalized.permute(0, 3, 1, 2), **kwargs)
    is_resnet = name == "clip-openai-resnet"
    if is_resnet:
        features = [value.permute(0, 2, 3, 1) for value in features]
    found = {
        f"{name}/{stage}": value[..., ::every].detach().numpy()
        for stage, value in enumerate(features, start=1)
    }
    shapes = {names[k]: list(v.shape) for k, v in tensors.items()}
    if is_resnet:
        return shapes, found
    # [b, t, c], the class token and registers first.
    height, width = (side // PATCH for side in SIZES[name])
    last = features[-1][:, -height * width :].reshape(1, height, width, -1)
    (last * torch.from_numpy(probe(tuple(last.shape)))).sum().backward()
    found[f"{name}/gradient/images"] = x.grad.numpy()
    small = [
        (parameter, value.grad.numpy())
        for parameter, value in network.named_parameters()
        if value.grad is not None and value.numel() < LARGEST_GRADIENT
    ]
    for parameter, gradient in small[::FEWER]:
        found[f"{name}/gradient/{names[parameter]}"] = gradient
    return shapes, found


def main() -> None:
    shapes, stored = {}, {}
    for name in SIZES:
        every = EVERY if name == "clip-openai-resnet" else 1
        shapes[name], found = compute(name, every)
        stored |= found
    SHAPES.write_text(json.dumps(shapes, separators=(",", ":")) + "\n")
    np.savez_compressed(FIXTURE, **stored)


if __name__ == "__main__":
    main()
