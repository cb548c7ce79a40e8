"""Trained forgers and their files."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax

from wsdl_jax import configuration
from wsdl_jax.diffusion import trained
from wsdl_jax.diffusion.networks import structures
from wsdl_jax.runtime.errors import UserError

CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.mark.parametrize("part", ["pixel", "autoencoder", "latent"])
def test_a_file_holds_the_averaged_weights_as_float16(part, trained_forgers, tmp_path):
    from_run = trained.load(trained_forgers[part])
    trained.save(from_run, tmp_path / "forger.safetensors")
    from_file = trained.load(tmp_path / "forger.safetensors")
    assert from_file.step == from_run.step == 4
    # Nothing tells where it was trained, but all that it was trained by is there.
    assert str(trained_forgers[part].parent) not in from_file.config.to_json()
    different = configuration.differences(from_run.config, from_file.config)
    assert all(line.startswith("autoencoder.path") for line in different)
    assert from_file.weights.keys() == from_run.weights.keys()
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float16).astype(np.float32)),
        {k: v for k, v in from_file.weights.items() if k != "scale"},
        {k: v for k, v in from_run.weights.items() if k != "scale"},
    )
    assert from_file.weights.get("scale") == from_run.weights.get("scale")
    numbers = sum(x.size for x in jax.tree.leaves(from_run.weights))
    assert (tmp_path / "forger.safetensors").stat().st_size < 2 * numbers + 20_000
    trained.save(from_file, tmp_path / "forger.safetensors")  # over the one that is there
    assert [path.name for path in tmp_path.iterdir()] == ["forger.safetensors"]


def test_the_default_forgers_are_small():
    """What is in the repository: under 6 MB together, as float16."""
    get_config = runpy.run_path(str(CONFIGS / "diffusion.py"))["get_config"]
    sizes = {}
    for part in ("pixel", "latent"):
        config = get_config(f"part={part}")
        shapes = [state for _, state in structures(config).values()]
        sizes[part] = 2 * sum(x.size for x in jax.tree.leaves(shapes))
    assert sizes["pixel"] < 2.8e6 and sum(sizes.values()) < 5.8e6


def test_what_is_no_forger_is_told_in_one_line(trained_forgers, tmp_path):
    file = tmp_path / "forger.safetensors"
    trained.save(trained.load(trained_forgers["pixel"]), file)
    whole = file.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1000])
    (tmp_path / "text.safetensors").write_text("no weights")
    safetensors.flax.save_file({"x": jnp.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "folder").mkdir()
    for name in ("cut.safetensors", "text.safetensors", "other.safetensors", "folder", "nothing"):
        with pytest.raises(UserError, match=name) as error:
            trained.load(tmp_path / name)
        assert "\n" not in str(error.value)
    with safetensors.safe_open(file, "flax") as opened:
        flat = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    flat["unet/enter/bias"] = jnp.zeros(3)
    safetensors.flax.save_file(flat, tmp_path / "wrong.safetensors", metadata)
    with pytest.raises(UserError, match=r"unet/enter/bias is \(3,\), not \(8,\)"):
        trained.load(tmp_path / "wrong.safetensors")
