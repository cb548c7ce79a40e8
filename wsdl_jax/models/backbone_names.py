"""How files of pretrained backbones name their tensors."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from flax import nnx

from wsdl_jax.models.backbone import Backbone
from wsdl_jax.models.clip_resnet import ModifiedResNet
from wsdl_jax.models.layers import BatchNorm
from wsdl_jax.models.torch_names import Dialect, Place
from wsdl_jax.models.vit import ViT


@dataclass(frozen=True)
class ViTNames:
    """How one code base names the tensors of a vision transformer.

    Attributes:
      patches: the convolution that makes tokens of patches.
      class_token: the class token.
      positions: the learnt positions, the class token's first.
      block: what the names of a block begin with; {} is its number, from 0.
      norms: its two layer normalizations.
      attention: the linear layers of queries, keys and values, with the separator from "weight";
        or one, in which theirs lie one after the other.
      out: the linear layer behind the attention.
      mlp: the two linear layers of a block.
      batched: whether tokens and positions have an axis for images.
      registers: the register tokens.
      pre_norm: the layer normalization of embeddings.
      layer_scales: what both branches of a block are scaled by.
    """

    patches: str
    class_token: str
    positions: str
    block: str
    norms: tuple[str, str]
    attention: tuple[str, ...]
    out: str
    mlp: tuple[str, str]
    batched: bool = False
    registers: str | None = None
    pre_norm: str | None = None
    layer_scales: tuple[str, str] | None = None

    def places(self, trunk: ViT, prefix: str) -> Iterator[Place]:
        """Lists the variables of a trunk, but its adapters, with names that begin with `prefix`."""
        yield from self._layer(f"{prefix}{self.patches}.", trunk.patches)
        one = int(self.batched)
        yield Place(prefix + self.class_token, trunk.class_token, kept=True, ones=2 * one)
        yield Place(prefix + self.positions, trunk.positions, kept=True, ones=one)
        if trunk.registers is not None:
            yield Place(f"{prefix}{self.registers}", trunk.registers, kept=True, ones=one)
        if trunk.pre_norm is not None:
            yield from self._norm(f"{prefix}{self.pre_norm}.", trunk.pre_norm)
        for number, block in enumerate(trunk.blocks):
            here = prefix + self.block.format(number)
            for name, norm in zip(self.norms, (block.norm1, block.norm2), strict=True):
                yield from self._norm(f"{here}{name}.", norm)
            for index, layer in enumerate((block.query, block.key, block.value)):
                if len(self.attention) == 1:
                    yield from self._layer(here + self.attention[0], layer, third=index)
                else:
                    yield from self._layer(here + self.attention[index], layer)
            yield from self._layer(f"{here}{self.out}.", block.out)
            for name, layer in zip(self.mlp, (block.up, block.down), strict=True):
                yield from self._layer(f"{here}{name}.", layer)
            if self.layer_scales is not None:
                scales = (block.attention_scale, block.mlp_scale)
                for name, scale in zip(self.layer_scales, scales, strict=True):
                    yield Place(here + name, scale, kept=True)

    @staticmethod
    def _layer(prefix: str, layer: nnx.Module, third: int | None = None) -> Iterator[Place]:
        yield Place(f"{prefix}weight", layer.kernel, third=third)
        if layer.bias is not None:
            yield Place(f"{prefix}bias", layer.bias, third=third)

    @staticmethod
    def _norm(prefix: str, norm: nnx.LayerNorm) -> Iterator[Place]:
        yield Place(f"{prefix}weight", norm.scale)
        yield Place(f"{prefix}bias", norm.bias)


def resnet_places(trunk: ModifiedResNet, prefix: str) -> Iterator[Place]:
    """Lists the variables of CLIP's ResNet, with names that begin with `prefix`."""
    dialect = Dialect(prefix)

    def convolutions(
        place: str, convs: Iterable[nnx.Module], norms: Iterable[BatchNorm]
    ) -> Iterator[Place]:
        for index, (conv, norm) in enumerate(zip(convs, norms, strict=True), start=1):
            yield from dialect.kernel(f"{place}conv{index}", conv)
            yield from dialect.norm(f"{place}bn{index}", norm)

    yield from convolutions("", trunk.convs, trunk.norms)
    for stage, layer in enumerate(trunk.layers, start=1):
        for number, block in enumerate(layer):
            here = f"layer{stage}.{number}."
            yield from convolutions(here, block.convs, block.norms)
            if block.shortcut is not None:
                yield from dialect.kernel(f"{here}downsample.0", block.shortcut)
                yield from dialect.norm(f"{here}downsample.1", block.shortcut_norm)


@dataclass(frozen=True)
class Tower:
    """The part of a file that is a backbone's.

    Attributes:
      layout: the name of the layout.
      family: the networks that are named so.
      sign: the name of a tensor that all of them have and no other tower has.
      names: those of a vision transformer; None: it is CLIP's ResNet.
      roots: what all names of a file may begin with.
      under: what the names of the tower begin with behind that.
      beside: what names outside of the tower may begin with; they are of other networks.
      unused: what names in the tower may begin with that no trunk has.
    """

    layout: str
    family: str
    sign: str
    names: ViTNames | None
    roots: tuple[str, ...] = ("",)
    under: str = ""
    beside: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def prefix(self, names: Collection[str]) -> str | None:
        """Returns what the names of the tower begin with in a file; None: it is not in there."""
        found = (root + self.under for root in self.roots)
        return next((prefix for prefix in found if prefix + self.sign in names), None)

    def places(self, trunk: Backbone, prefix: str) -> Iterator[Place]:
        """Lists the variables of a trunk of this family."""
        return (resnet_places if self.names is None else self.names.places)(trunk, prefix)

    def layer(self, number: int) -> str:
        """Returns what names of a block, or of a ResNet's stage, begin with; counted from 1."""
        return f"layer{number}." if self.names is None else self.names.block.format(number - 1)

    def is_unused(self, name: str, prefix: str) -> bool:
        """Returns whether a tensor of a file is of no trunk, or of another network beside it."""
        root = prefix.removesuffix(self.under)
        return name.startswith(tuple(prefix + part for part in self.unused)) or (
            not (self.under and name.startswith(prefix))
            # What wraps a whole network may have layers of its own beside it.
            and name.startswith((*(root + part for part in self.beside), *self.beside))
        )


CLIP_VIT, CLIP_RESNET, DINOV2 = "CLIP ViT", "CLIP ResNet", "DINOv2 ViT"
_TEXT = (
    "transformer.",
    "token_embedding.",
    "ln_final.",
    "positional_embedding",
    "text_projection",
    "logit_scale",
    "logit_bias",
    "text.",
    # What TorchScript files have as numbers of their own.
    "input_resolution",
    "context_length",
    "vocab_size",
)
_OPENAI_ROOTS = ("", "module.", "model.")  # a detector's checkpoint has its backbone at `model`
_OPENAI_HEAD = "fc."  # and the decoder beside it
OPENAI_VIT = ViTNames(
    patches="conv1",
    class_token="class_embedding",
    positions="positional_embedding",
    block="transformer.resblocks.{}.",
    norms=("ln_1", "ln_2"),
    attention=("attn.in_proj_",),
    out="attn.out_proj",
    mlp=("mlp.c_fc", "mlp.c_proj"),
    pre_norm="ln_pre",
)
_CLIP_TRANSFORMERS = ViTNames(
    patches="embeddings.patch_embedding",
    class_token="embeddings.class_embedding",
    positions="embeddings.position_embedding.weight",
    block="encoder.layers.{}.",
    norms=("layer_norm1", "layer_norm2"),
    attention=("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    out="self_attn.out_proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    pre_norm="pre_layrnorm",  # so written
)


def _dinov2_transformers(attention: tuple[str, str, str], out: str) -> ViTNames:
    return ViTNames(
        patches="embeddings.patch_embeddings.projection",
        class_token="embeddings.cls_token",
        positions="embeddings.position_embeddings",
        registers="embeddings.register_tokens",
        block="encoder.layer.{}.",
        norms=("norm1", "norm2"),
        attention=attention,
        out=out,
        mlp=("mlp.fc1", "mlp.fc2"),
        layer_scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
        batched=True,
    )


_DINOV2_HUB = ViTNames(
    patches="patch_embed.proj",
    class_token="cls_token",
    positions="pos_embed",
    registers="register_tokens",
    block="blocks.{}.",
    norms=("norm1", "norm2"),
    attention=("attn.qkv.",),
    out="attn.proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    layer_scales=("ls1.gamma", "ls2.gamma"),
    batched=True,
)


def _towers() -> Iterator[Tower]:
    openai = {
        "layout": "clip-openai",
        "roots": _OPENAI_ROOTS,
        "under": "visual.",
        "beside": (*_TEXT, _OPENAI_HEAD),
    }
    yield Tower(
        family=CLIP_VIT,
        sign="class_embedding",
        names=OPENAI_VIT,
        unused=("proj", "ln_post."),
        **openai,
    )
    yield Tower(
        family=CLIP_RESNET,
        sign="layer1.0.conv1.weight",
        names=None,
        unused=("attnpool.",),
        **openai,
    )
    # Versions of transformers write a vision model with and without its prefix.
    for under in ("vision_model.", ""):
        yield Tower(
            layout="clip-transformers",
            family=CLIP_VIT,
            sign="embeddings.class_embedding",
            names=_CLIP_TRANSFORMERS,
            under=under,
            beside=("text_model.", "text_projection.", "visual_projection.", "logit_scale"),
            unused=("post_layernorm.", "embeddings.position_ids"),
        )
    # As files name a block's attention, and as a model of version 5 does in memory.
    for names in (
        _dinov2_transformers(
            (
                "attention.attention.query.",
                "attention.attention.key.",
                "attention.attention.value.",
            ),
            "attention.output.dense",
        ),
        _dinov2_transformers(
            ("attention.q_proj.", "attention.k_proj.", "attention.v_proj."), "attention.o_proj"
        ),
    ):
        yield Tower(
            layout="dinov2-transformers",
            family=DINOV2,
            sign=f"encoder.layer.0.{names.attention[0]}weight",
            names=names,
            roots=("", "dinov2.", "dinov2_with_registers."),
            beside=("classifier.",),
            unused=("embeddings.mask_token", "layernorm."),
        )
    yield Tower(
        layout="dinov2-hub",
        family=DINOV2,
        sign="blocks.0.ls1.gamma",
        names=_DINOV2_HUB,
        unused=("mask_token", "norm."),
    )


TOWERS = tuple(_towers())
