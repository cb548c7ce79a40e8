"""Small portraits to learn, and small forgers trained on them."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_collections
import pytest
from etils import epath

SIZE = 32


@contextlib.contextmanager
def compiled_quickly() -> Iterator[None]:
    """What is tested are programs, not their speed."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def compile_quickly() -> Iterator[None]:
    with compiled_quickly():
        yield


@pytest.fixture(scope="session")
def small_portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real portraits and partial fakes of 32 px, prepared: 24, 5 and 10 a split."""
    from wsdl_data import build
    from wsdl_data.portraits import samples

    root = tmp_path_factory.mktemp("portraits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SPLITS", {"train": 24, "valid": 5, "test": 10})
        for name in ("real", "regrain"):
            build.prepare(build.make_builder(f"portraits/{name}-{SIZE}px", str(root)))
    return root


@pytest.fixture(scope="session")
def small_config(small_portraits: Path) -> Callable[..., ml_collections.ConfigDict]:
    """(part, overrides) → a forger's config: 2 epochs of 2 steps on tiny networks."""
    from wsdl_jax.diffusion import configuration

    def get(part: str, **overrides: object) -> ml_collections.ConfigDict:
        config = configuration.base()
        small = {
            "part": part,
            "data.dir": str(small_portraits),
            "data.real": (f"portraits/real-{SIZE}px",),
            "data.image_size": SIZE,
            "network.widths": (8, 8),
            "network.patch": 2,
            "autoencoder.widths": (8, 8),
            "process.steps": 20,
            "train.batch": 8,
            "train.epochs": 2,
            "train.steps_per_epoch": 2,
            "train.warmup": 0,
            "train.log_every": 1,
            "eval.batch": 8,
        }
        config.update_from_flattened_dict({**small, **overrides})
        configuration.validate(config)
        return config

    return get


@pytest.fixture(scope="session")
def trained_forgers(
    small_config: Callable[..., ml_collections.ConfigDict],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, epath.Path]:
    """Part → the run directory of a finished training. To be read only."""
    from wsdl_jax.diffusion import training

    root = epath.Path(tmp_path_factory.mktemp("forgers"))
    overrides = {"latent": {"autoencoder.path": str(root / "autoencoder")}}
    with compiled_quickly():
        for part in ("autoencoder", "pixel", "latent"):
            training.train(small_config(part, **overrides.get(part, {})), root / part)
    return {part: root / part for part in ("autoencoder", "pixel", "latent")}
