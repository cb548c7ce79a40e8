"""Published files of backbones alone."""

from wsdl_jax.models.backbone import Backbone
from wsdl_jax.weights.tensors import Tensors, WeightsError


def fill(trunk: Backbone, tensors: Tensors) -> None:
    """Fills a backbone from the tensors of a file. Raises WeightsError for those of another one."""
    raise WeightsError(f"no layout of files is known for {type(trunk).__name__}")
