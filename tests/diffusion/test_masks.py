"""Masks that are drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wsdl_jax.diffusion import masks


@pytest.mark.parametrize("policy", masks.POLICIES)
@given(seed=st.integers(0, 2**32), size=st.integers(16, 200))
@settings(max_examples=30, deadline=None)
def test_masks_cover_a_part_and_are_a_function_of_the_generator(policy, seed, size):
    mask = masks.draw(policy, np.random.default_rng(seed), size)
    assert mask.shape == (size, size) and mask.dtype == bool
    assert masks.MIN_SHARE <= mask.mean() <= masks.MAX_SHARE
    np.testing.assert_array_equal(mask, masks.draw(policy, np.random.default_rng(seed), size))


def test_boxes_are_boxes_and_lie_all_over_the_image():
    singles, total = 0, np.zeros((64, 64))
    for seed in range(300):
        mask = masks.draw("boxes", np.random.default_rng(seed), 64)
        total += mask
        parts, count = ndimage.label(mask)
        rows, columns = ndimage.find_objects(parts)[0]
        singles += count == 1 and (parts[rows, columns] == 1).all()
    assert singles > 60
    assert (total[4:-4, 4:-4] > 0).all()


def test_strokes_are_no_boxes():
    fill = []
    for seed in range(50):
        mask = masks.draw("strokes", np.random.default_rng(seed), 96)
        rows, columns = ndimage.find_objects(mask.astype(int))[0]
        fill.append(mask[rows, columns].mean())
    assert np.mean(fill) < 0.75
