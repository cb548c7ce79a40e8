"""Files of published weights: safetensors, and PyTorch's where PyTorch is installed."""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from jaxtyping import Shaped
from safetensors import SafetensorError

from wsdl_jax.runtime.storage import write_whole
from wsdl_jax.weights.tensors import Tensors, WeightsError, listed

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}


def read(file: epath.Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Returns the tensors of a `.safetensors` file, or of a PyTorch file with a state_dict in it.

    A PyTorch file may keep its state_dict under "net" (as FFD's do), "state_dict" or "model". It is
    read with `weights_only=True`; one that would have to run Python is refused. A TorchScript
    archive, as which OpenAI publishes CLIP, has no Python in it.

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
            raise WeightsError(f"{file} has numbers of a kind that is not read: {listed(unknown)}")
        return {
            name: np.frombuffer(view["data"], _DTYPES[view["dtype"]]).reshape(view["shape"])
            for name, view in content
        }
    torch = _torch(file)
    try:
        with warnings.catch_warnings(action="ignore"):  # of old pickles, which do not concern users
            data = io.BytesIO(file.read_bytes())
            if _is_torch_script(data):
                content = torch.jit.load(data, map_location="cpu").state_dict()
            else:
                content = torch.load(data, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"(?:GLOBAL|class) (\S+)", str(error))
        what = f"holds more than tensors ({culprit[1]})" if culprit else "is no PyTorch file"
        raise WeightsError(
            f"{file} {what}: refused, since loading it could run code; save a state_dict instead"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
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
        raise WeightsError(f"{file} holds no state_dict but {listed(other)}")
    return {
        str(name): (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in content.items()
    }


def _is_torch_script(data: io.BytesIO) -> bool:
    names: list[str] = []
    if zipfile.is_zipfile(data):
        with zipfile.ZipFile(data) as archive:
            names = archive.namelist()
    data.seek(0)
    return any(name.endswith("/constants.pkl") for name in names)


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
