"""Published PyTorch weights ↔ networks and run directories of this project.

    python -m wsdl_jax.convert xcp_reg.tar --layout ffd-attention --out runs/ffd
    python -m wsdl_jax.convert runs/patches-c --layout dolos-patches --out patches.safetensors

The first makes a run directory of a weight file, the second a weight file of a run directory.
"""

import io
import itertools
import logging
import math
import pickle
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors.numpy
from absl import flags
from etils import epath
from flax import nnx
from jaxtyping import Shaped
from safetensors import SafetensorError

from wsdl_jax import configuration, runs
from wsdl_jax.models.attention import Attention
from wsdl_jax.models.fcn import FCN
from wsdl_jax.models.initialization import initialize
from wsdl_jax.models.layers import BatchNorm, Pointwise, SeparableConv
from wsdl_jax.models.patches import Patches
from wsdl_jax.models.xception import Block, ImageClassifier, Top, Trunk, scaled
from wsdl_jax.runs.checkpoints import Checkpoints
from wsdl_jax.runtime import command, storage
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.runtime.storage import write_whole

log = logging.getLogger("wsdl_jax")
Tensors = Mapping[str, Shaped[np.ndarray, "..."]]

NETWORKS: dict[str, type[nnx.Module]] = {
    "dolos-patches": Patches,
    "ffd-attention": Attention,
    "timm-xception": ImageClassifier,
    "dolos-grad-cam-full": FCN,
}
METHODS = {Patches: "patches", Attention: "attention", ImageClassifier: "grad_cam", FCN: "grad_cam"}
LISTED = 12  # names in an error message, of each kind
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}


class WeightsError(UserError, ValueError):
    """Weights that do not fit, or a file that does not hold any."""


# ----- Names ------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a tensor goes: its PyTorch name, our variable, and whether it is a 1×1 kernel there."""

    name: str
    variable: nnx.Variable
    pointwise: bool = False

    def torch_shape(self) -> tuple[int, ...]:
        return self.to_torch(np.empty(self.variable.shape, np.uint8)).shape

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        """HWIO kernels to OIHW; [inputs, outputs] to its transpose, with two axes if pointwise."""
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif value.ndim == 2:
            value = value.T
        return value[:, :, None, None] if self.pointwise else value

    def fits(self, tensor: np.ndarray) -> bool:
        shape = self.torch_shape()
        # Older files have 1×1 kernels without their two last axes.
        return tensor.shape == shape or (self.pointwise and tensor.shape == shape[:2])

    def from_torch(self, tensor: np.ndarray) -> np.ndarray:
        if tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0].T if self.pointwise else tensor.transpose(2, 3, 1, 0)
        elif tensor.ndim == 2:
            tensor = tensor.T
        return tensor.astype(np.float32)


class _Dialect:
    """How one PyTorch code base names the pieces of Xception."""

    def __init__(self, prefix: str = "", depthwise: str = "conv1", shortcut_norm: str = "skipbn"):
        self.prefix, self.depthwise, self.shortcut_norm = prefix, depthwise, shortcut_norm

    def kernel(self, name: str, layer: nnx.Module) -> Iterator[_Place]:
        yield _Place(f"{self.prefix}{name}.weight", layer.kernel, isinstance(layer, Pointwise))
        if getattr(layer, "bias", None) is not None:
            yield _Place(f"{self.prefix}{name}.bias", layer.bias)

    def separable(self, name: str, layer: SeparableConv) -> Iterator[_Place]:
        yield _Place(f"{self.prefix}{name}.{self.depthwise}.weight", layer.kernel)
        yield from self.kernel(f"{name}.pointwise", layer.pointwise)

    def norm(self, name: str, layer: BatchNorm) -> Iterator[_Place]:
        yield _Place(f"{self.prefix}{name}.weight", layer.scale)
        yield _Place(f"{self.prefix}{name}.bias", layer.bias)
        yield _Place(f"{self.prefix}{name}.running_mean", layer.mean)
        yield _Place(f"{self.prefix}{name}.running_var", layer.var)

    def block(self, name: str, block: Block) -> Iterator[_Place]:
        if block.shortcut is not None:
            yield from self.kernel(f"{name}.skip", block.shortcut)
            yield from self.norm(f"{name}.{self.shortcut_norm}", block.shortcut_norm)
        for index, (conv, norm) in enumerate(zip(block.convs, block.norms, strict=True)):
            # `rep` lists ReLU, convolution and BatchNorm in turn, without a first ReLU in block 1.
            place = 3 * index + block.leading_relu
            yield from self.separable(f"{name}.rep.{place}", conv)
            yield from self.norm(f"{name}.rep.{place + 1}", norm)

    def trunk(self, trunk: Trunk) -> Iterator[_Place]:
        for index in (1, 2):
            yield from self.kernel(f"conv{index}", getattr(trunk, f"conv{index}"))
            yield from self.norm(f"bn{index}", getattr(trunk, f"norm{index}"))
        for index, block in enumerate(trunk.blocks, start=1):
            yield from self.block(f"block{index}", block)

    def top(self, top: Top) -> Iterator[_Place]:
        for index in (3, 4):
            yield from self.separable(f"conv{index}", getattr(top, f"conv{index}"))
            yield from self.norm(f"bn{index}", getattr(top, f"norm{index}"))


def _places(model: nnx.Module) -> Iterator[_Place]:
    """Every parameter and statistic of a network, by its name in the network's PyTorch layout."""
    match model:
        case Patches():
            dialect = _Dialect()
            yield from dialect.trunk(model.trunk)
            yield from dialect.kernel("convout", model.classifier)
        case ImageClassifier():
            dialect = _Dialect()
            yield from dialect.trunk(model.trunk)
            yield from dialect.top(model.top)
            yield from dialect.kernel("fc", model.top.linear)
        case Attention():
            dialect = _Dialect(depthwise="c", shortcut_norm="skip_bn")
            yield from dialect.trunk(model.trunk)
            yield from dialect.top(model.top)
            yield from dialect.kernel("last_linear", model.top.linear)
            yield from dialect.separable("map.c", model.map)
        case FCN():
            yield from _Dialect("xcp_backbone.").trunk(model.trunk)
            head = _Dialect("head.")
            yield from head.kernel("0", model.conv)
            yield from head.norm("1", model.norm)
            yield from head.kernel("4", model.classifier)
        case _:
            raise TypeError(f"no PyTorch layout is known for {type(model).__name__}")


def torch_names(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Every parameter and BatchNorm statistic of a network, by its name in PyTorch.

    Raises TypeError for a network that has no published counterpart.
    """
    return {place.name: place.variable for place in _places(model)}


def _unused(model: FCN) -> Iterator[_Place]:
    """The FCN is published with the whole backbone, of which it uses the first eleven blocks."""
    width = model.trunk.width
    whole = nnx.eval_shape(lambda: ImageClassifier(width=width, rngs=nnx.Rngs(0)))
    dialect = _Dialect("xcp_backbone.")
    yield from dialect.block("block12", whole.trunk.blocks[11])
    yield from dialect.top(whole.top)


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")  # used by PyTorch only without a momentum


# ----- Arrays → network, and back ----------------------------------------------------------------


def detect(tensors: Tensors) -> str | None:
    """The layout whose names these tensors have; None if it is none of `NETWORKS`."""
    signs = {
        "dolos-grad-cam-full": "head.0.weight",
        "ffd-attention": "map.c.c.weight",
        "dolos-patches": "convout.weight",
        "timm-xception": "conv4.conv1.weight",
    }
    return next((layout for layout, sign in signs.items() if sign in tensors), None)


def from_torch(state_dict: Tensors, layout: str) -> nnx.Module:
    """The network of a published PyTorch layout with its weights, in evaluation mode.

    The block after which Patches is cut, and the width, are read from the arrays. A `timm-xception`
    whose `fc` is not for two classes (ImageNet has 1,000) gets a new one with PyTorch's random
    initialization; a warning says so.

    Args:
      state_dict: arrays by their PyTorch names, as a published state_dict has them, in any floating
        precision; a prefix "module." of all names is taken off. Pointwise kernels may be
        [outputs, inputs] or [outputs, inputs, 1, 1].
      layout: one of `NETWORKS`.

    Raises:
      WeightsError: an unknown layout, or tensors that are missing, unexpected, misshapen, not
        floating-point or not finite: all of them by name.
    """
    model, new_head = _network(state_dict, layout)
    if new_head:
        log.warning("%s: fc is not for two classes: it starts anew and has to be trained", layout)
    return model


def _network(state_dict: Tensors, layout: str) -> tuple[nnx.Module, bool]:
    """The network, and whether its last layer is a new one."""
    if layout not in NETWORKS:
        raise WeightsError(f"layout {layout!r}: choose from {', '.join(NETWORKS)}")
    tensors = {name: np.asarray(tensor) for name, tensor in state_dict.items()}
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    found = detect(tensors)
    if found not in (layout, None):
        raise WeightsError(f"these tensors are in layout {found}, not {layout}")

    kwargs: dict[str, Any] = {"depth": _depth(tensors)} if layout == "dolos-patches" else {}
    network = NETWORKS[layout]
    kwargs["width"] = _width(nnx.eval_shape(lambda: network(**kwargs, rngs=nnx.Rngs(0))), tensors)
    model = network(**kwargs, rngs=nnx.Rngs(0))
    places = list(_places(model))
    optional = {p.name for p in _unused(model)} if isinstance(model, FCN) else set()
    head = ("fc.weight", "fc.bias")
    new_head = layout == "timm-xception" and np.shape(tensors.get("fc.weight"))[:1] != (2,)
    if new_head:
        places = [place for place in places if place.name not in head]
        optional.update(head)
        initialize(model.top.linear, "torch", seed=0)
    _check(places, tensors, optional)
    for place in places:
        place.variable[...] = jnp.asarray(place.from_torch(tensors[place.name]))
    model.eval()
    return model, new_head


def _depth(tensors: Tensors) -> int:
    blocks = [n.removeprefix("block").split(".")[0] for n in tensors if n.startswith("block")]
    return min(12, max((int(number) for number in blocks if number.isdecimal()), default=1))


def _width(model: nnx.Module, tensors: Tensors) -> float:
    """The width multiplier that the arrays' channels have; 1 where there is no such number."""
    channels = {
        (place.variable.shape[-1], tensors[place.name].shape[0])
        for place in _places(model)
        # The attention map has one channel at any width.
        if place.name.endswith("pointwise.weight") and place.variable.shape[-1] > 1
        if np.ndim(tensors.get(place.name)) >= 2
    }
    widest = min((actual / full for full, actual in channels), default=1.0)
    # Several numbers round to the same channels. The ratio itself fits unless all are rounded.
    candidates = [widest, *(math.floor(widest * 10**digits) / 10**digits for digits in range(1, 7))]
    fitting = (w for w in candidates if all(scaled(full, w) == n for full, n in channels))
    return next(fitting, 1.0)


def _check(places: list[_Place], tensors: Tensors, optional: set[str]) -> None:
    known = {place.name for place in places}
    present = [place for place in places if place.name in tensors]
    problems = {
        "missing": [place.name for place in places if place.name not in tensors],
        "unexpected": [
            n for n in tensors if n not in known and n not in optional and not _is_counter(n)
        ],
        "misshapen": [
            f"{place.name} {_shape(tensors[place.name].shape)} for {_shape(place.torch_shape())}"
            for place in present
            if not place.fits(tensors[place.name])
        ],
        "not floating-point": [
            f"{place.name} ({tensors[place.name].dtype})"
            for place in present
            if not jnp.issubdtype(tensors[place.name].dtype, jnp.floating)
        ],
    }
    if not any(problems.values()):
        with np.errstate(over="ignore"):
            problems["not finite"] = [
                place.name
                for place in present
                if not np.isfinite(tensors[place.name].astype(np.float32)).all()
            ]
    said = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if said:
        raise WeightsError("; ".join(said))


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(itertools.islice(names, LISTED))
    return f"{shown}, …" if len(names) > LISTED else shown


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "()"


def to_torch(model: nnx.Module, layout: str) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The tensors of a network, float32, by name and shape as the published code loads them.

    `from_torch` gives back the same network, bit by bit. What PyTorch wants and no network here has
    is filled in: counters of BatchNorm with 0, and the part of the backbone that the FCN does not
    use with zeros.

    Raises WeightsError for a network of another layout.
    """
    if layout not in NETWORKS:
        raise WeightsError(f"layout {layout!r}: choose from {', '.join(NETWORKS)}")
    if type(model) is not NETWORKS[layout]:
        fitting = [name for name, network in NETWORKS.items() if network is type(model)]
        raise WeightsError(
            f"a network {type(model).__name__} is not of layout {layout}"
            + (f" but of {fitting[0]}" if fitting else "")
        )
    tensors = {
        place.name: np.array(place.to_torch(np.asarray(place.variable[...])), order="C")
        for place in _places(model)
    }
    if isinstance(model, FCN):
        tensors |= {p.name: np.zeros(p.torch_shape(), np.float32) for p in _unused(model)}
    for name in [name for name in tensors if name.endswith(".running_mean")]:
        tensors[name.replace("running_mean", "num_batches_tracked")] = np.array(0, np.int64)
    return tensors


# ----- Files --------------------------------------------------------------------------------------


def read(file: epath.Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The tensors of a `.safetensors` file, or of a PyTorch file with a state_dict in it.

    A PyTorch file may keep its state_dict under "net" (as FFD's do), "state_dict" or "model". It is
    read with `weights_only=True`; one that would have to run code is refused.

    Raises WeightsError for a file that is missing, truncated, or holds something else, and where
    PyTorch is needed and not installed.
    """
    if not file.exists() or file.is_dir():
        raise WeightsError(f"{file} is {'a folder' if file.exists() else 'not there'}")
    if file.suffix == ".safetensors":
        try:
            content = safetensors.deserialize(file.read_bytes())
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file} cannot be read: {_line(error)}") from error
        unknown = {
            f"{name} ({view['dtype']})" for name, view in content if view["dtype"] not in _DTYPES
        }
        if unknown:
            raise WeightsError(f"{file} has numbers of a kind that is not read: {_listed(unknown)}")
        return {
            name: np.frombuffer(view["data"], _DTYPES[view["dtype"]]).reshape(view["shape"])
            for name, view in content
        }
    torch = _torch(file)
    try:
        with warnings.catch_warnings(action="ignore"):  # of old pickles, which do not concern users
            content = torch.load(
                io.BytesIO(file.read_bytes()), map_location="cpu", weights_only=True
            )
    except pickle.UnpicklingError as error:
        culprit = re.search(r"(?:GLOBAL|class) (\S+)", str(error))
        what = f"holds more than tensors ({culprit[1]})" if culprit else "is no PyTorch file"
        raise WeightsError(
            f"{file} {what}: refused, since loading it could run code; save a state_dict instead"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = _line(error).split(". ")[0]
        raise WeightsError(f"{file} is no PyTorch file, or a damaged one: {reason}") from error
    for key in ("net", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if isinstance(content, Mapping):
        other = [str(k) for k, v in content.items() if not isinstance(v, torch.Tensor)]
    else:
        other = [type(content).__name__]
    if other:
        raise WeightsError(f"{file} holds no state_dict but {_listed(other)}")
    return {
        str(name): (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in content.items()
    }


def write(tensors: Tensors, file: epath.Path) -> None:
    """Writes a `.safetensors` file, or a PyTorch file; a `.tar` with {"net": …} as FFD's are.

    Nothing is left of a file that could not be written whole. Raises WeightsError for another
    suffix, for a file that is there already, and where PyTorch is needed and not installed.
    """
    if file.exists():
        raise WeightsError(f"{file} is there already")
    if file.suffix == ".safetensors":
        content = safetensors.numpy.save(dict(tensors))
    elif file.suffix in (".pth", ".pt", ".tar"):
        torch = _torch(file)
        state_dict = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
        buffer = io.BytesIO()
        torch.save({"net": state_dict} if file.suffix == ".tar" else state_dict, buffer)
        content = buffer.getvalue()
    else:
        raise WeightsError(f"{file}: the name must end in .safetensors, .pth, .pt or .tar")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    except OSError as error:
        raise WeightsError(f"{file} cannot be written: {_line(error)}") from error


def _torch(file: epath.Path) -> Any:
    try:
        import torch  # an extra: no other part of this project needs it
    except ImportError as error:
        raise WeightsError(
            f"{file} is a PyTorch file: pip install 'wsdl-jax[torch]', or use .safetensors"
        ) from error
    return torch


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# ----- Runs ---------------------------------------------------------------------------------------


def make_run(file: epath.Path, layout: str, run: epath.Path, setup: str | None = None) -> None:
    """Makes a run directory of a weight file, as if the network had been trained here.

    Its config tests on the paper's data and resizes images as the recipe of `setup` does; the
    recipe's training fields are not filled in.

    Args:
      file: see `read`.
      layout: one of `NETWORKS`.
      run: a folder that is empty or not there yet.
      setup: a, b or c, what the network was trained on; by default c for `dolos-grad-cam-full`, a
        for the others.

    Raises:
      UserError: a file that does not fit, or a folder that is not empty. Nothing is written then.
    """
    storage.check_folder(run)
    try:
        model, new_head = _network(read(file), layout)
    except WeightsError as error:
        raise WeightsError(str(error) if str(file) in str(error) else f"{file}: {error}") from error
    if new_head:
        raise WeightsError(
            f"{file}: fc is not for two classes, so there is nothing to evaluate yet: start "
            "training from this file with --config.init.path"
        )
    config = _config(model, setup or ("c" if layout == "dolos-grad-cam-full" else "a"))
    with storage.whole_folder(run) as folder:
        runs.RunDirectory(folder).config.write_text(configuration.save(config))
        checkpoints = Checkpoints(folder, keep_best=config.train.keep_best)
        checkpoints.save(0, runs.initial_state(model, config.train), math.inf)  # never validated
        checkpoints.close()
    log.info("%s: %s of %s, to be evaluated as setup %s", run, config.method, file, config.setup)


def _config(model: nnx.Module, setup: str) -> ml_collections.ConfigDict:
    config = configuration.base()
    config.method = METHODS[type(model)]
    configuration.set_data(config, setup=setup, source="celebahq")
    if isinstance(model, (FCN, ImageClassifier)) and isinstance(model, FCN) != (setup == "c"):
        network = "the FCN is" if isinstance(model, FCN) else "the classifier is not"
        raise UserError(f"setup {setup}: {network} the network of Grad-CAM's setup c")
    if setup != "c" and config.method != "attention":
        config.data.resize = "lanczos"  # as configs/ have it
    config.model.width = model.trunk.width
    if isinstance(model, Patches):
        config.model.depth = len(model.trunk.blocks)
    configuration.validate(config)
    return config


def start(model: nnx.Module, path: epath.Path, layout: str | None) -> list[str]:
    """Starts a network from pretrained weights, in place.

    A file or run of the same network gives all of them; one of another network the part of Xception
    that both have.

    Args:
      model: the network to start.
      path: a weight file, or a run directory, of which the best checkpoint is taken.
      layout: of the file, one of `NETWORKS`; None: found out.

    Returns:
      The layers that stay as they were.

    Raises:
      UserError: not such a file or run; fewer blocks than `model` has; another width.
    """
    if path.is_dir():
        source, new_head = runs.load(path).model, False
    else:
        tensors = read(path)
        found = layout or detect(tensors)
        if found is None:
            raise WeightsError(f"{path} is in none of the layouts {', '.join(NETWORKS)}")
        try:
            source, new_head = _network(tensors, found)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
    has, needs = (network.trunk for network in (source, model))
    if len(has.blocks) < len(needs.blocks):
        raise UserError(
            f"{path} has blocks 1 to {len(has.blocks)} of Xception, where {len(needs.blocks)} are "
            "needed"
        )
    whole = type(model) is type(source) and len(has.blocks) == len(needs.blocks)
    kinds = (nnx.Param, nnx.BatchStat)
    mine, theirs = (dict(nnx.to_flat_state(nnx.state(m, kinds))) for m in (model, source))
    taken = {
        name: theirs[name]
        for name in mine.keys() & theirs.keys()
        if (whole or name[0] in ("trunk", "top"))
        and not (new_head and name[:2] == ("top", "linear"))
    }
    if any(mine[name].shape != variable.shape for name, variable in taken.items()):
        raise UserError(
            f"{path} has a network of width {has.width}, where config.model.width = {needs.width}"
        )
    nnx.update(model, nnx.from_flat_state(taken))
    return sorted({".".join(map(str, name[:-1])) for name in mine.keys() - taken.keys()})


# ----- Command ------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """The command."""
    source, out = epath.Path(arguments[1]), epath.Path(_OUT.value)
    if not source.is_dir():
        make_run(source, _LAYOUT.value, out, _SETUP.value)
        return
    if _SETUP.value:
        raise UserError(f"--setup goes with a weight file; {source} is a run")
    write(to_torch(runs.load(source).model, _LAYOUT.value), out)
    log.info("%s: the best network of %s, in layout %s", out, source, _LAYOUT.value)


if __name__ == "__main__":
    _LAYOUT = flags.DEFINE_enum(
        "layout", None, configuration.LAYOUTS, "Of the weight file.", required=True
    )
    _OUT = flags.DEFINE_string("out", None, "A new run directory, or weight file.", required=True)
    _SETUP = flags.DEFINE_enum(
        "setup", None, configuration.SETUPS, "What a published network was trained on; default: a."
    )
    command.run(main, operands=("FILE",))
