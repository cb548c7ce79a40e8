"""Pipelines of diffusers as generators: tiny, with random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsdl_jax.diffusion import generators, pipelines
from wsdl_jax.diffusion.maker import Sampling
from wsdl_jax.runtime.errors import UserError

SIZE = 32


@pytest.fixture(scope="module")
def folder(diffusers: Any, torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion for inpainting, saved as its users have it."""
    import transformers

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pipeline")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (path / "vocab.json").write_text(json.dumps(words))
    (path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(path, model_max_length=8)
    text = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
    )
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=SIZE // 2,
        in_channels=9,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    pipeline = diffusers.StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(path / "whole")
    # What makes images of images has a U-Net of the latents alone.
    unet = diffusers.UNet2DConditionModel.from_config(unet.config, in_channels=4)
    diffusers.StableDiffusionPipeline(**{**pipeline.components, "unet": unet}).save_pretrained(
        path / "of_images"
    )
    return path / "whole"


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)


def test_a_pipeline_is_an_inpainter(folder, torch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)
    masks = np.zeros((2, SIZE, SIZE), bool)
    masks[:, 8:20, 8:20] = True

    def inpaint(seed):
        return pipelines.inpainter(str(folder), seed=seed, num_inference_steps=2)

    one = inpaint(0)
    made = one(images, masks)
    assert made.shape == images.shape and made.dtype == np.uint8
    assert (made != images)[~masks].mean() > 0.5  # its decoder makes the whole image
    np.testing.assert_array_equal(inpaint(0)(images, masks), made)
    assert (inpaint(1)(images, masks) != made).any()
    # The next images have numbers, and noise, of their own.
    assert (one(images, masks) != made).any()


def test_a_pipeline_that_is_not_there(diffusers, torch, tmp_path):
    with pytest.raises(UserError, match=r"no inpainting pipeline .*/nothing"):
        pipelines.inpainter(str(tmp_path / "nothing"))


def test_reconstructions_are_functions_of_seed_and_number(folder, images):
    def make(strength, seed=0, numbers=(4, 5)):
        generator = pipelines.reconstructor(
            str(folder.parent / "of_images"), strength=strength, steps=10, seed=seed
        )
        return generator(np.array(numbers), images)

    made = make(0.5)
    assert made.shape == images.shape and made.dtype == np.uint8
    np.testing.assert_array_equal(make(0.5), made)
    np.testing.assert_array_equal(make(0.5, numbers=(9, 5))[1], made[1])
    for other in (make(0.5, seed=1), make(0.5, numbers=(5, 4)), make(1.0)):
        assert (other != made).any()


def test_the_autoencoder_of_a_pipeline_alone(folder, images, diffusers, torch, tmp_path):
    made = pipelines.autoencoder(str(folder))(np.arange(2), images)
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        pixels = torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        expected = vae(pixels).sample.permute(0, 2, 3, 1).numpy()
    expected = np.clip(255 * (expected + 1) / 2, 0, 255)
    np.testing.assert_allclose(made, expected, atol=0.51)
    # A folder with nothing but it, and one that is loaded.
    for given in (str(folder / "vae"), vae):
        np.testing.assert_array_equal(pipelines.autoencoder(given)(np.arange(2), images), made)
    with pytest.raises(UserError, match=r"no autoencoder .*/nothing"):
        pipelines.autoencoder(str(tmp_path / "nothing"))


@pytest.mark.parametrize("name", ["reconstruct", "autoencode", "diffusers"])
def test_pipelines_are_generators(name, folder, images):
    path = str(folder.parent / "of_images" if name == "reconstruct" else folder)
    settings = {"path": None, "size": SIZE, "batch": 2, "seed": 0, "diffusers": path}
    generator = generators.make_generator(
        name, sampling=Sampling(steps=4, strength=0.5), **settings
    )
    masks = np.ones(images.shape[:3], bool) if name == "diffusers" else None
    made = generator.make(np.arange(2), images, masks)
    assert made.shape == images.shape and generator.at_once == 1
    used = {
        "reconstruct": {"steps": 4, "strength": 0.5},
        "autoencode": {},
        "diffusers": {"steps": 4},
    }
    assert generator.origin.recipe == used[name] and len(generator.origin.content["pipeline"]) == 64


def test_what_diffusers_cannot_do_is_refused_before_it_is_asked():
    for strength in (0.0, 1.5):
        with pytest.raises(UserError, match=r"strength = .*: must be above 0, and at most 1"):
            pipelines.reconstructor("nothing", strength=strength, steps=10)
    with pytest.raises(UserError, match=r"strength = 0\.05 of 10 steps is not a single step"):
        pipelines.reconstructor("nothing", strength=0.05, steps=10)
