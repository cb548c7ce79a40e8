"""OpenCV's inpainters, and a pipeline of diffusers as one: tiny, with random weights."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wsdl_data import inpainters
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
    return path / "whole"


def test_a_pipeline_is_an_inpainter(folder, torch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)
    masks = np.zeros((2, SIZE, SIZE), bool)
    masks[:, 8:20, 8:20] = True

    def inpaint(seed):
        return inpainters.from_diffusers(str(folder), seed=seed, num_inference_steps=2)

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
        inpainters.from_diffusers(str(tmp_path / "nothing"))


@pytest.mark.parametrize(("name", "flag"), [("telea", 1), ("navier_stokes", 0)])
def test_opencvs_methods(name, flag):
    assert flag == (cv2.INPAINT_TELEA if name == "telea" else cv2.INPAINT_NS)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    smooth = np.stack([4 * rows, 4 * columns, 2 * (rows + columns)], axis=-1).astype(np.uint8)
    images = np.stack([smooth, smooth[::-1]])
    holes = np.zeros((2, SIZE, SIZE), bool)
    holes[:, 10:18, 12:20] = True
    made = inpainters.INPAINTERS[name](images, holes)
    np.testing.assert_array_equal(made[~holes], images[~holes])
    np.testing.assert_array_equal(
        made[1], cv2.inpaint(images[1].copy(), holes[1].view(np.uint8), 3, flag)
    )
    assert np.abs(made.astype(int) - images)[holes].max() < 25  # it goes on as around the hole
