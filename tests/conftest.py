"""Tests run on eight simulated CPU devices; set here, before anything imports jax."""

import atexit
import os
import runpy
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# A program is compiled once a session, by whichever test or subprocess comes first. The workers of
# pytest-xdist have the folder from the process that has started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="wsdl-jax-tests-")
    os.chmod(_CACHE, 0o777)  # some tests give up root's rights
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# A shell lets jobs in the background ignore Ctrl-C, and what they start inherits that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import ml_collections
import pytest
from dolos_folder import make_dolos_folder
from etils import epath

# The project itself is imported in the fixtures: jaxtyping has to see it first.
CONFIGS = Path(__file__).parent.parent / "configs"

SUBSETS = ("celebahq_real", "celebahq_p2", "celebahq_repaint_p2", "celebahq_repaint_p2_9k")


# Fixtures of what not every machine has, and that takes long.
HEAVY = {"torch", "diffusers", "libtpu", "gcsfs", "chromium"}


# Fixtures that train or run for tens of seconds.
LONG = {"trained_forgers", "forgers", "story", "attempts", "undisturbed", "on_two_hosts"}


# Before pytest itself deselects by marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        for name in HEAVY.intersection(fixtures):
            item.add_marker(name)
        marked = any(item.get_closest_marker(name) for name in (*HEAVY, "slurm", "faults"))
        if marked or LONG.intersection(fixtures):
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def _orbax_is_quiet() -> None:
    """As in every command: what orbax leaves behind an error is no warning of a test."""
    from wsdl_jax.runtime import settings

    settings.quiet_orbax()


@pytest.fixture
def compile_quickly() -> Iterator[None]:
    """For what looks at the results of programs, not at their speed."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch, where it is installed."""
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def diffusers() -> Any:
    """Hugging Face's diffusers, where it is installed, and what its pipelines need."""
    pytest.importorskip("transformers")
    return pytest.importorskip("diffusers")


@pytest.fixture(scope="session")
def libtpu() -> Any:
    """The compiler for TPUs, where it is installed."""
    return pytest.importorskip("libtpu")


@pytest.fixture(scope="session")
def gcsfs() -> Any:
    """Google Cloud Storage for fsspec, and its emulator, where they are installed."""
    pytest.importorskip("gcp_storage_emulator")
    return pytest.importorskip("gcsfs")


@pytest.fixture(scope="session")
def dolos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Dolos in its authors' layout: 80 px, with fewer real than fake test images."""
    root = make_dolos_folder(
        tmp_path_factory.mktemp("dolos"), {"train": 40, "valid": 9, "test": 11}, size=80
    )
    for name in ("00002.png", "00005.png", "00007.png"):
        (root / "celebahq/real/test" / name).unlink()
    return root


@pytest.fixture(scope="session")
def data_dir(dolos_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`SUBSETS` of the small Dolos, prepared."""
    from wsdl_data import build

    root = tmp_path_factory.mktemp("prepared")
    for subset in SUBSETS:
        build.prepare(build.make_builder(f"dolos/{subset}", str(root)), str(dolos_folder))
    return root


@pytest.fixture(scope="session")
def shrunk(data_dir: Path) -> dict[str, Any]:
    """Overrides that make a run of a config of `configs/` small: 2 epochs of 2 steps."""
    return {
        "data.dir": str(data_dir),
        "data.image_size": 64,
        "model.width": 0.05,
        "train.batch": 16,
        "train.epochs": 2,
        "train.steps_per_epoch": 2,
        "train.log_every": 1,
        "eval.batch": 8,
    }


@pytest.fixture(scope="session")
def real_config(shrunk: dict[str, Any]) -> Callable[..., ml_collections.ConfigDict]:
    """(name, variant, overrides) → a config of `configs/`, shrunk."""

    from wsdl_jax import configuration

    def get(name: str, variant: str, overrides: dict[str, Any]) -> ml_collections.ConfigDict:
        config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](variant)
        config.update_from_flattened_dict({**shrunk, **overrides})
        configuration.validate(config)
        return config

    return get


@pytest.fixture(scope="session")
def trained(
    real_config: Callable[..., ml_collections.ConfigDict],
    tmp_path_factory: pytest.TempPathFactory,
) -> epath.Path:
    """The run directory of a finished Patches, setup A. To be read only."""
    from wsdl_jax import training

    run = epath.Path(tmp_path_factory.mktemp("trained") / "run")
    overrides = {"model.depth": 1, "train.learning_rate": 0.01}
    training.train(real_config("patches", "source=celebahq", overrides), run)
    return run


@pytest.fixture(scope="session")
def evaluated(trained: epath.Path, tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    """A trained run, evaluated on its own test subsets. To be read only.

    Four steps leave all of its maps on one side of the threshold. Its last checkpoint is one whose
    bias was moved to the middle.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from wsdl_jax import evaluation, inputs, methods, runs
    from wsdl_jax.runs.checkpoints import Checkpoints

    run = epath.Path(shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run"))
    config = runs.load_config(run)
    model = methods.blank(config, None)
    checkpoints = Checkpoints(run, keep_best=config.train.keep_best)
    state = checkpoints.restore(4, runs.initial_state(model, config.train))
    nnx.update(model, *jax.tree.map(jnp.asarray, (state["params"], state["stats"])))
    model.eval()
    fakes = inputs.Examples((config.data.test_fake,), "test", config.data.dir)
    reading = inputs.Reading.of(config.data)
    batches = inputs.eval_batches(fakes, reading, batch=config.eval.batch)
    images = [methods.network_input(jnp.asarray(batch["image"])) for batch in batches]
    logits = np.concatenate([model(x).map_logits for x in images])
    middle = np.median(logits[: len(fakes), ..., 1] - logits[: len(fakes), ..., 0])
    bias = state["params"]["classifier"]["bias"]
    bias.set_value(bias.get_value() - jnp.asarray([0, middle], jnp.float32))
    checkpoints.save(5, jax.device_get(state), valid_loss=0.0)
    checkpoints.close()
    evaluation.evaluate(run)
    return run
