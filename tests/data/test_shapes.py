"""Shapes that are drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from wsdl_data import shapes


@pytest.mark.parametrize("shape", shapes.SHAPES)
@given(seed=st.integers(0, 2**32), height=st.integers(16, 200), width=st.integers(16, 200))
@settings(max_examples=30, deadline=None)
def test_shapes_cover_a_part_and_are_a_function_of_the_generator(shape, seed, height, width):
    mask = shapes.draw(shape, np.random.default_rng(seed), height, width)
    assert mask.shape == (height, width) and mask.dtype == bool
    assert shapes.MIN_SHARE <= mask.mean() <= shapes.MAX_SHARE
    again = shapes.draw(shape, np.random.default_rng(seed), height, width)
    np.testing.assert_array_equal(mask, again)


def test_blobs_have_a_log_uniform_share():
    rngs = map(np.random.default_rng, range(400))
    shares = np.log([shapes.blobs(rng, 96, 96).mean() for rng in rngs])
    low, high = np.log([shapes.MIN_SHARE, shapes.MAX_SHARE])
    expected = stats.uniform(low, high - low)
    assert stats.kstest(shares, expected.cdf).pvalue > 0.01


def test_boxes_are_boxes_and_lie_all_over_the_image():
    singles, total = 0, np.zeros((64, 64))
    for seed in range(300):
        mask = shapes.draw("boxes", np.random.default_rng(seed), 64, 64)
        total += mask
        parts, count = ndimage.label(mask)
        rows, columns = ndimage.find_objects(parts)[0]
        singles += count == 1 and (parts[rows, columns] == 1).all()
    assert singles > 60
    assert (total[4:-4, 4:-4] > 0).all()


def test_strokes_are_no_boxes():
    fill = []
    for seed in range(50):
        mask = shapes.draw("strokes", np.random.default_rng(seed), 96, 96)
        rows, columns = ndimage.find_objects(mask.astype(int))[0]
        fill.append(mask[rows, columns].mean())
    assert np.mean(fill) < 0.75


@pytest.mark.parametrize("shape", shapes.SHAPES)
@pytest.mark.parametrize("size", [(60, 3000), (3000, 20), (16, 2000), (1, 1), (2, 3), (1, 50)])
def test_images_of_any_form_have_a_region(shape, size):
    for seed in range(3):
        mask = shapes.draw(shape, np.random.default_rng(seed), *size)
        assert mask.shape == size and mask.any()
        assert size[0] * size[1] < 50 or mask.mean() <= shapes.MAX_SHARE
