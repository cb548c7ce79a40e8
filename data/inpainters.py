"""Inpainters that are not trained here: any function of images and masks is one."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, UInt8

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
