"""Localizers of one trained run, and its network alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from etils import epath
from made_images import SIZE
from PIL import Image

# The project itself is imported in the fixtures: jaxtyping has to see it first.


@pytest.fixture(scope="session")
def localizer(trained: epath.Path) -> Any:
    from wsdl_jax.prediction.localizer import Localizer

    return Localizer.load(trained)


@pytest.fixture(scope="session")
def tiler(trained: epath.Path) -> Any:
    from wsdl_jax.prediction.localizer import Localizer

    return Localizer.load(trained, mode="tile", batch=16)


@pytest.fixture(scope="session")
def network(
    trained: epath.Path,
) -> Callable[[list[Image.Image]], tuple[np.ndarray, np.ndarray]]:
    """Scores and maps of images by the network of `trained` alone, which squashes them itself."""
    import jax

    from wsdl_jax import methods, runs

    config, model, *_ = runs.load(trained)
    method = methods.from_config(config)

    def localize(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        small = [image.resize((SIZE, SIZE), Image.Resampling.LANCZOS) for image in images]
        batch = np.stack(small).astype(np.float32) / 127.5 - 1
        found = method.localize(model, jax.numpy.asarray(batch))
        return np.asarray(found.scores), np.asarray(found.maps)

    return localize


@pytest.fixture
def cut_amid(trained: epath.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """(image, mode) → half of its map is above the threshold that the run has fitted."""
    from wsdl_jax.evaluation import map_threshold
    from wsdl_jax.prediction.localizer import Localizer

    def cut(image: Image.Image, mode: str) -> None:
        (found,) = Localizer.load(trained, mode=mode)([image])
        fitted = map_threshold.MapThreshold(float(np.median(found.raw)), 0.5, 9, "spliced")
        monkeypatch.setattr(map_threshold, "load", lambda *_: fitted)

    return cut
