"""Operations on masks, True where an image is or will be manipulated."""

import numpy as np
from jaxtyping import Bool
from scipy import ndimage


def dilate(mask: Bool[np.ndarray, "h w"], pixels: int) -> Bool[np.ndarray, "h w"]:
    """Returns the mask grown by a square of `pixels` on every side."""
    width = 2 * pixels + 1
    return ndimage.maximum_filter(mask.view(np.uint8), size=width).view(bool)
