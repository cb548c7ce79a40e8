"""What pipelines of Hugging Face's diffusers make: parts of images, and whole images again."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from wsdl_data.inpainters import Inpainter
from wsdl_jax.runtime.errors import UserError

# (numbers, images [n, h, w, 3] uint8, masks or None) → images
Make = Callable[
    [Int[np.ndarray, "n"], UInt8[np.ndarray, "n h w 3"], Bool[np.ndarray, "n h w"] | None],
    UInt8[np.ndarray, "n h w 3"],
]


def inpainter(pipeline: Any, *, seed: int = 0, **arguments: Any) -> Inpainter:
    """Makes an inpainter of an inpainting pipeline.

    Args:
      pipeline: such as diffusers.AutoPipelineForInpainting.from_pretrained(…), or a folder or a
        name that this takes; white is made anew in the masks that it is given.
      seed: of all randomness; images are numbered in the order in which they come.
      arguments: of its call, such as num_inference_steps; `prompt` is empty by default.

    Raises:
      UserError: diffusers is not installed, or there is no such pipeline.
    """
    diffusers, torch = _libraries()
    pipeline = _loaded(pipeline, diffusers.AutoPipelineForInpainting, "inpainting pipeline")
    number = 0

    def inpaint(
        images: UInt8[np.ndarray, "n h w 3"], masks: Bool[np.ndarray, "n h w"]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        nonlocal number
        count, height, width = masks.shape
        generators = _generators(torch, seed, range(number, number + count))
        number += count
        made = pipeline(
            **{"prompt": [""] * count} | arguments,
            image=[Image.fromarray(image) for image in images],
            mask_image=[Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks],
            height=height,
            width=width,
            generator=generators,
            output_type="np",
        ).images
        return np.rint(255 * made).astype(np.uint8)

    return inpaint


def reconstructor(pipeline: Any, *, strength: float, steps: int, seed: int = 0) -> Make:
    """Makes a generator that noises images part of the way and brings them back (SDEdit).

    Args:
      pipeline: such as diffusers.AutoPipelineForImage2Image.from_pretrained(…), or a folder or a
        name that this takes.
      strength: how far images are noised, as a share of the schedule, in (0, 1].
      steps: from noise to image, of which this share is gone.
      seed: of all randomness; an image follows from it and its number.

    Raises:
      UserError: diffusers is not installed, there is no such pipeline, or no step is gone.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength = {strength}: must be above 0, and at most 1")
    if int(steps * strength) < 1:  # as diffusers counts them
        raise UserError(f"strength = {strength} of {steps} steps is not a single step")
    diffusers, torch = _libraries()
    pipeline = _loaded(pipeline, diffusers.AutoPipelineForImage2Image, "image-to-image pipeline")

    def make(
        numbers: Int[np.ndarray, "n"],
        images: UInt8[np.ndarray, "n h w 3"],
        masks: Bool[np.ndarray, "n h w"] | None = None,
    ) -> UInt8[np.ndarray, "n h w 3"]:
        del masks
        made = pipeline(
            prompt=[""] * len(images),
            image=[Image.fromarray(image) for image in images],
            strength=strength,
            num_inference_steps=steps,
            generator=_generators(torch, seed, numbers.tolist()),
            output_type="np",
        ).images
        return np.rint(255 * made).astype(np.uint8)

    return make


def autoencoder(pipeline: Any) -> Make:
    """Makes a generator that sends images through the autoencoder of latent diffusion alone.

    Args:
      pipeline: a diffusers.AutoencoderKL; or a folder or a name of one, or of a pipeline whose
        folder vae/ is one. Only this part of a pipeline is loaded.

    Raises:
      UserError: diffusers is not installed, or there is no such autoencoder.
    """
    diffusers, torch = _libraries()
    if isinstance(pipeline, str):
        try:
            vae = diffusers.AutoencoderKL.from_pretrained(pipeline, subfolder="vae")
        except (OSError, ValueError):
            vae = _loaded(pipeline, diffusers.AutoencoderKL, "autoencoder")
    else:
        vae = pipeline

    def make(
        numbers: Int[np.ndarray, "n"],
        images: UInt8[np.ndarray, "n h w 3"],
        masks: Bool[np.ndarray, "n h w"] | None = None,
    ) -> UInt8[np.ndarray, "n h w 3"]:
        del numbers, masks  # it draws nothing at random
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
        with torch.no_grad():
            latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
            made = vae.decode(latents).sample.float().cpu().numpy()
        return np.rint((made.transpose(0, 2, 3, 1) + 1) * 127.5).clip(0, 255).astype(np.uint8)

    return make


def _libraries() -> tuple[Any, Any]:
    try:
        import diffusers
        import torch
    except ImportError as error:
        needed = "diffusers is needed: pip install 'wsdl-jax[diffusers]'"
        raise UserError(f"{needed} ({error})") from error
    return diffusers, torch


def _loaded(pipeline: Any, kind: Any, description: str) -> Any:
    if not isinstance(pipeline, str):
        return pipeline
    try:
        return kind.from_pretrained(pipeline)
    except (OSError, ValueError) as error:
        raise UserError(f"no {description} {pipeline}: {error}") from error


def _generators(torch: Any, seed: int, numbers: Sequence[int]) -> list[Any]:
    return [torch.Generator().manual_seed(seed + number) for number in numbers]
