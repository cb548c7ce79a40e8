"""Self-blended images: what lies outside the region stays, what lies inside is the target."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wsdl_data import shapes
from wsdl_jax.inputs import FAKE, REAL
from wsdl_jax.inputs.self_blending import self_blend


def example(height: int, width: int, label: int, region: np.ndarray) -> dict[str, Any]:
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    return {"image": image, "label": np.int32(label), "region": region, "key": "kept"}


@given(
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    dtype=st.sampled_from([np.uint8, np.float32]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=30, deadline=None)
def test_a_region_is_changed_and_counts_as_manipulated(height, width, dtype, seed):
    given_one = example(height, width, REAL, np.zeros((height, width), dtype))
    before = given_one["image"].copy()
    made = self_blend(given_one, 1.0, np.random.default_rng(seed))
    assume(made is not given_one)  # in a few pixels there may be nothing to see, see below
    np.testing.assert_array_equal(given_one["image"], before)  # the argument stays as it was
    assert not given_one["region"].any()
    image, region = made["image"], made["region"]
    assert image.dtype == np.uint8 and image.shape == before.shape
    assert region.dtype == dtype and region.shape == (height, width)
    assert region.min() >= 0 and region.max() <= 1 and made["key"] == "kept"
    assert made["label"] == FAKE and made["label"].dtype == np.int32
    assert shapes.MIN_SHARE * 0.5 < region.mean() < shapes.MAX_SHARE * 1.2
    if dtype == np.float32:  # a soft seam goes beyond what is a target as a whole
        np.testing.assert_array_equal(image[region == 0], before[region == 0])
    again = self_blend(given_one, 1.0, np.random.default_rng(seed))
    np.testing.assert_array_equal(again["image"], image)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_was_manipulated_stays_so(dtype):
    region = np.zeros((40, 40), dtype)
    region[:10] = 1
    more = []
    for seed in range(20):
        made = self_blend(example(40, 40, FAKE, region), 1.0, np.random.default_rng(seed))
        assert made["label"] == FAKE
        assert (made["region"][:10] == 1).all()
        more.append(made["region"][10:].any())
    assert any(more)


def test_every_way_changes_most_of_a_region():
    changed = []
    for seed in range(80):
        given_one = example(48, 48, REAL, np.zeros((48, 48), np.float32))
        made = self_blend(given_one, 1.0, np.random.default_rng(seed))
        is_changed = (made["image"] != given_one["image"]).any(-1)[made["region"] > 0.9]
        if is_changed.size:  # there are regions that are a soft seam throughout
            changed.append(is_changed.mean())
    assert min(changed) > 0.5


def test_how_many_are_changed():
    rng = np.random.default_rng(0)
    region = np.zeros((16, 16), np.uint8)
    same = [self_blend(one := example(16, 16, REAL, region), 0.3, rng) is one for _ in range(600)]
    assert np.mean(same) == pytest.approx(0.7, abs=0.06)


def test_where_nothing_is_seen_nothing_counts_as_manipulated():
    white = {**example(48, 48, REAL, np.zeros((48, 48), np.float32))}
    white["image"] = np.full((48, 48, 3), 255, np.uint8)
    for seed in range(40):
        made = self_blend(white, 1.0, np.random.default_rng(seed))
        assert (made is white) == np.array_equal(made["image"], white["image"])
