"""Inpainters that are not trained here: any function of images and masks is one."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from wsdl_jax.runtime.errors import UserError

# (images [n, h, w, 3] uint8, masks [n, h, w], True = to be made anew) → images
Inpainter = Callable[
    [UInt8[np.ndarray, "n h w 3"], Bool[np.ndarray, "n h w"]], UInt8[np.ndarray, "n h w 3"]
]
_RADIUS = 3  # pixels around a point from which OpenCV's methods take its value


def _opencv(method: str) -> Inpainter:
    def inpaint(
        images: UInt8[np.ndarray, "n h w 3"], masks: Bool[np.ndarray, "n h w"]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        import cv2  # an import of a third of a second, for those who use it

        flag = getattr(cv2, method)
        made = [
            cv2.inpaint(np.ascontiguousarray(image), mask.astype(np.uint8), _RADIUS, flag)
            for image, mask in zip(images, masks, strict=True)
        ]
        return np.stack(made)

    return inpaint


# Telea (2004), by fast marching; Bertalmio et al. (2001), by the flow of a fluid.
INPAINTERS: dict[str, Inpainter] = {
    "telea": _opencv("INPAINT_TELEA"),
    "navier_stokes": _opencv("INPAINT_NS"),
}


def from_diffusers(pipeline: Any, *, seed: int = 0, **arguments: Any) -> Inpainter:
    """Makes an inpainter of an inpainting pipeline of Hugging Face's diffusers.

    Args:
      pipeline: such as diffusers.AutoPipelineForInpainting.from_pretrained(…), or a folder or a
        name that this takes; white is made anew in the masks that it is given.
      seed: of all randomness; images are numbered in the order in which they come.
      arguments: of its call, such as num_inference_steps; `prompt` is empty by default.

    Raises:
      UserError: diffusers is not installed, or there is no such pipeline.
    """
    try:
        import diffusers
        import torch
    except ImportError as error:
        needed = "diffusers is needed: pip install 'wsdl-jax[diffusers]'"
        raise UserError(f"{needed} ({error})") from error
    if isinstance(pipeline, str):
        try:
            pipeline = diffusers.AutoPipelineForInpainting.from_pretrained(pipeline)
        except (OSError, ValueError) as error:
            raise UserError(f"no inpainting pipeline {pipeline}: {error}") from error
    number = 0

    def inpaint(
        images: UInt8[np.ndarray, "n h w 3"], masks: Bool[np.ndarray, "n h w"]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        nonlocal number
        count, height, width = masks.shape
        generators = [torch.Generator().manual_seed(seed + number + i) for i in range(count)]
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
