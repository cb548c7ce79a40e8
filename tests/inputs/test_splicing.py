"""Splices against what they are made of: every pixel is of one of two images, or a mix of them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsdl_data import shapes
from wsdl_jax.inputs import FAKE, REAL, splicing

# Images of one grey each tell by their pixels where these are from.
GREYS = {"real": 10, "other real": 60, "fake": 200, "other fake": 250}


def image(name: str, height: int = 40, width: int = 40) -> dict[str, Any]:
    label = np.int32("fake" in name)
    return {"image": np.full((height, width, 3), GREYS[name], np.uint8), "label": label}


def partner(label: int, rng: np.random.Generator) -> dict[str, Any]:
    return image("other fake" if label == FAKE else "other real")


def spliced(name: str, share: float, seed: int) -> dict[str, Any]:
    return splicing.splice(image(name), partner, share, np.random.default_rng(seed))


def test_a_spliced_fake_is_fake_in_its_region_and_real_around_it():
    for seed in range(100):
        made = spliced("fake", 1.0, seed)
        assert made["label"] == FAKE and made["region"].dtype == np.float32
        region = made["region"]
        expected = 60 + region * (200 - 60)  # of the fake, and of the real image around it
        np.testing.assert_allclose(made["image"], np.repeat(expected[..., None], 3, -1), atol=0.51)
        share = region.mean()
        assert shapes.MIN_SHARE * 0.5 < share < shapes.MAX_SHARE * 1.2  # a soft seam moves it


def test_seams_tell_nothing():
    """Real images and fakes that stay fake have as many seams, which look alike."""
    seams = {name: [] for name in ("real", "fake")}
    for seed in range(600):
        for name, other in (("real", 60), ("fake", 250)):
            made = spliced(name, 0.5, seed)
            if made["region"].min() == made["region"].max():  # nothing of the other kind
                expected = 1 if name == "fake" else 0
                assert (made["region"] == expected).all() and made["label"] == expected
                opacity = (made["image"][..., 0] - np.float32(GREYS[name])) / (other - GREYS[name])
                seams[name].append(opacity.mean())
    with_seam = {name: np.mean(np.array(values) > 0) for name, values in seams.items()}
    assert with_seam["real"] == pytest.approx(0.5, abs=0.07)
    assert with_seam["fake"] == pytest.approx(0.5, abs=0.1)
    real, fake = (np.array(values)[np.array(values) > 0] for values in seams.values())
    assert real.mean() == pytest.approx(fake.mean(), abs=0.04)


def test_how_many_fakes_are_spliced():
    regions = [spliced("fake", 0.7, seed)["region"] for seed in range(600)]
    assert np.mean([region.min() < 1 for region in regions]) == pytest.approx(0.7, abs=0.06)


def test_seams_are_hard_or_soft():
    regions = [spliced("fake", 1.0, seed)["region"] for seed in range(300)]
    soft = [(region % 1 > 0).any() for region in regions]
    assert np.mean(soft) == pytest.approx(0.5, abs=0.1)


@given(
    one=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    two=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_images_of_two_sizes_are_cut(one, two, seed):
    """Coordinates as pixels show that nothing is scaled, and that JPEG's blocks stay aligned."""

    def coordinates(size: tuple[int, int], label: int) -> dict[str, Any]:
        rows, columns = np.mgrid[: size[0], : size[1]]
        flag = np.full(size, 255 * label)
        return {"image": np.stack([rows, columns, flag], -1).astype(np.uint8), "label": label}

    made = splicing.splice(
        coordinates(one, FAKE),
        lambda label, rng: coordinates(two, label),
        1.0,
        np.random.default_rng(seed),
    )
    height, width = min(one[0], two[0]), min(one[1], two[1])
    assert made["image"].shape == (height, width, 3) and made["region"].shape == (height, width)
    for value in (0, 1):  # where all is of one of the two images
        pixels = made["image"][made["region"] == value].astype(int)
        assert (pixels[:, 2] == 255 * value).all()
        places = np.argwhere(made["region"] == value)
        offsets = np.unique(pixels[:, :2] - places, axis=0)
        assert len(offsets) <= 1 and (offsets % 8 == 0).all()


@given(
    height=st.integers(16, 130),
    width=st.integers(16, 130),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_shares_are_means_over_the_locations(height, width, size, seed):
    region = np.random.default_rng(seed).random((height, width), np.float32)
    shares = splicing.shares(region, size)
    assert shares.shape == (size, size) and shares.dtype == np.float32
    # Blown up by the number of locations, every location is a block of whole pixels.
    blown_up = region.repeat(size, 0).repeat(size, 1)
    blocks = blown_up.reshape(size, height, size, width).mean((1, 3), dtype=np.float64)
    np.testing.assert_allclose(shares, blocks, atol=2e-5)


def test_labels_are_those_of_the_inputs():
    assert (REAL, FAKE) == (0, 1)
