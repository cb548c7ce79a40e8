"""OpenCV's inpainters."""

import cv2
import numpy as np
import pytest

from wsdl_data import inpainters

SIZE = 32


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
