"""What methods need of a network that makes features of images: one protocol for all of them."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

_EARLY = 2  # stages whose features tell what kind of image it is, see `Backbone.statistics`


class Features(NamedTuple):
    """What one stage of a backbone gives to the next.

    Attributes:
      map: features of locations.
      tokens: what a transformer carries beside them, its class and register tokens; None for a
        backbone that has no such tokens.
    """

    map: Float[Array, "b h w c"]
    tokens: Float[Array, "b t c"] | None = None


class Backbone(nnx.Module):
    """A network that turns images into feature maps, stage by stage.

    A method reads the map behind one stage or goes on from it, and knows no more of a backbone.
    Images are float32 in [-1, 1]; a backbone that was trained on other values brings them there by
    itself.

    Attributes:
      widths: how many channels the map has behind each of its stages, the first to the last.
    """

    widths: tuple[int, ...]

    @property
    def stages(self) -> int:
        """Returns how many stages there are. They are counted from 1."""
        return len(self.widths)

    @property
    def features(self) -> int:
        """Returns how many channels the map has behind the last stage."""
        return self.widths[-1]

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Returns what published code calls the outputs of the stages, the first to the last."""
        return tuple(f"layer{stage}" for stage in range(1, self.stages + 1))

    def stem(self, images: Float[Array, "b h w 3"]) -> Features:
        """Returns what goes into the first stage. Raises ValueError for a size that it refuses."""
        raise NotImplementedError

    def through(self, features: Features, start: int, stop: int) -> Features:
        """Returns what is behind stage `stop`, from what is behind stage `start`; 0 is the stem."""
        raise NotImplementedError

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """Returns the feature map behind the last stage."""
        return self.through(self.stem(images), 0, self.stages).map

    def statistics(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Returns mean and standard deviation over locations behind stages 1 and 2, float32.

        A backbone of one stage has those of that stage alone. Early features tell more of an
        image's grain, resolution and compression than of what it shows.
        """
        features, found = self.stem(images), []
        for stage in range(min(_EARLY, self.stages)):
            features = self.through(features, stage, stage + 1)
            values = features.map.astype(jnp.float32)
            found += [values.mean((1, 2)), values.std((1, 2))]
        return jnp.concatenate(found, axis=-1)


class BareBackbone(nnx.Module):
    """A backbone without a method: a network that gives the map behind each of its stages."""

    def __init__(self, trunk: Backbone):
        self.trunk = trunk

    def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b h2 w2 c"]]:
        """Returns the maps by the names of their stages, see `Backbone.stage_names`.

        Images are float32 in [-1, 1]. A transformer's maps are of its patches alone, before its
        last normalization: "layer20" is behind its 21st block. Raises ValueError for images of a
        size that the backbone refuses.
        """
        features, found = self.trunk.stem(images), {}
        for stage, name in enumerate(self.trunk.stage_names):
            features = self.trunk.through(features, stage, stage + 1)
            found[name] = features.map
        return found


class Given(Backbone):
    """Stands for a backbone whose features are given in place of images."""

    def __init__(self, widths: tuple[int, ...]):
        self.widths = widths

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the features."""
        return images

    def stem(self, images: Float[Array, "b h w c"]) -> Features:
        """Returns the features."""
        return Features(images)

    def through(self, features: Features, start: int, stop: int) -> Features:
        """Returns the features, which are those behind the last stage. It has no other."""
        if (start, stop) != (0, self.stages):
            raise ValueError(f"features are given behind stage {self.stages}, and no others")
        return features


@runtime_checkable
class Decodes(Protocol):
    """A network in two halves: what is read of its backbone, and what is made of that."""

    def features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """Returns what is read of the backbone, or of several. Images are float32 in [-1, 1]."""

    def decode(self, features: Float[Array, "b h w c"]) -> Any:
        """Returns the network's outputs."""


def give_features(network: Decodes) -> None:
    """Makes a network take what its `features` return in place of images.

    It has no backbone any more: neither `trunk` nor, where it has one, `beside`.
    """
    network.trunk = Given(network.trunk.widths)
    if getattr(network, "beside", None) is not None:
        network.beside = None


class Frozen(nnx.Variable):
    """A parameter or statistic that training leaves as it is.

    It is neither in the optimizer nor in a checkpoint: it comes from the backbone's file.
    """


def freeze_backbones(network: nnx.Module) -> None:
    """Freezes the backbone of a network, and the one beside it where there is one, see `freeze`."""
    freeze(network.trunk)
    if (beside := getattr(network, "beside", None)) is not None:
        freeze(beside)


def freeze(backbone: nnx.Module) -> None:
    """Makes every parameter and statistic of a backbone `Frozen`, in place, but not its adapters.

    Its BatchNorm is as in evaluation mode from then on, while the network around it is trained.
    """
    for _, module in nnx.iter_modules(backbone):
        for name, variable in list(vars(module).items()):
            if isinstance(variable, nnx.LoRAParam):
                continue
            if isinstance(variable, nnx.Param | nnx.BatchStat):
                setattr(module, name, Frozen(variable[...]))
