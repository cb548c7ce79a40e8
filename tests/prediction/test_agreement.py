"""How far views agree: of networks that do not care, and of one that does; and where they look."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsdl_jax.methods import Localization
from wsdl_jax.prediction import agreement

SIZE = 64


def blobs(seed: int, count: int = 3) -> np.ndarray:
    """Smooth images, brighter in some places, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    small = rng.random((count, 8, 8)) ** 3
    large = [
        Image.fromarray(one.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        for one in small
    ]
    grey = np.clip(np.stack([np.asarray(one) for one in large]), 0, 1)
    return np.repeat(2 * grey[..., None] - 1, 3, -1).astype(np.float32)


def found(maps) -> Localization:
    scores = maps.mean((1, 2))
    return Localization(scores, scores, maps)


def by_brightness(model, images) -> Localization:
    """Pools the brightness of 4×4 pixels, whatever there is around them."""
    means = images.mean(-1).reshape(len(images), SIZE // 4, 4, SIZE // 4, 4).mean((2, 4))
    return found(jnp.clip((means + 1) / 2, 0, 1))


def by_place(model, images) -> Localization:
    """Calls the left quarter manipulated, whatever it shows."""
    columns = jnp.arange(16) < 4
    return found(jnp.broadcast_to(columns.astype(jnp.float32), (len(images), 16, 16)))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_what_depends_on_what_is_there_agrees(seed):
    images = jnp.asarray(blobs(seed))
    seen = agreement.checked(by_brightness, 0.3)(None, images)
    plain = by_brightness(None, images)
    for one, other in zip(seen[:3], plain[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    assert seen.agreement.shape == (3, 16, 16) and seen.agreement.dtype == jnp.float32
    assert seen.agreement.min() >= 0 and seen.agreement.max() <= 1
    assert seen.agreement.mean() > 0.9


def test_what_depends_on_the_place_agrees_where_views_do_not_move_it():
    seen = agreement.checked(by_place, 0.5)(None, jnp.asarray(blobs(0)))
    of_columns = np.asarray(seen.agreement).mean((0, 1))
    # Two of five views are mirrored, and say the contrary on both sides.
    assert of_columns[:2] == pytest.approx(0.6, abs=0.01)
    assert of_columns[12:14] == pytest.approx(0.6, abs=0.05)  # not seen in all, farther right
    assert of_columns[7:9] == pytest.approx(1)


def test_a_view_that_is_suspicious_as_a_whole_does_not_count_for_more():
    def by_contrast(model, images):
        """As by brightness, but all that is interpolated looks suspicious."""
        rough = jnp.abs(jnp.diff(images, axis=1)).mean((1, 2, 3))
        maps = by_brightness(None, images).maps
        return found(jnp.clip(maps + 10 * jnp.maximum(0.02 - rough, 0)[:, None, None], 0, 1))

    rng = np.random.default_rng(0)
    images = blobs(3) * 0.8 + rng.uniform(-0.1, 0.1, (3, SIZE, SIZE, 3)).astype(np.float32)
    seen = agreement.checked(by_contrast, 0.3)(None, jnp.asarray(images))
    assert seen.agreement.mean() > 0.85


@pytest.mark.parametrize("value", [0.0, 0.2, 0.9])
def test_maps_of_one_value_agree(value):
    def constant(model, images):
        return found(jnp.full((len(images), 16, 16), value, jnp.float32))

    seen = agreement.checked(constant, 0.3)(None, jnp.asarray(blobs(0)))
    np.testing.assert_array_equal(seen.agreement, 1)


def test_views_show_what_they_say():
    images = jnp.asarray(blobs(5))
    flipped = agreement._View(*map(jnp.asarray, (True, 1.0, 0, 0)))
    np.testing.assert_allclose(agreement._seen(images, flipped), images[:, :, ::-1], atol=1e-5)
    moved = agreement._View(*map(jnp.asarray, (False, 1.0, 3, -5)))
    seen = np.asarray(agreement._seen(images, moved))
    np.testing.assert_allclose(seen[:, 3:, :-5], images[:, :-3, 5:], atol=1e-5)
    np.testing.assert_allclose(seen[:, :3], seen[:, 3:6][:, ::-1], atol=1e-5)  # mirrored
    larger = agreement._View(*map(jnp.asarray, (False, 1.1, 0, 0)))
    seen = np.asarray(agreement._seen(images, larger))
    box = (SIZE * (1 - 1 / 1.1) / 2,) * 2 + (SIZE * (1 + 1 / 1.1) / 2,) * 2
    for one, image in zip(seen, images, strict=True):
        grey = Image.fromarray(np.asarray(image[..., 0]))
        theirs = np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box))
        assert np.abs(one[..., 0] - theirs.clip(-1, 1))[4:-4, 4:-4].max() < 0.02
    # And back again, for maps of as many cells as pixels.
    for view in (flipped, moved, larger):
        back = np.asarray(agreement._back(agreement._seen(images, view)[..., 0], view, SIZE))
        assert np.abs(back - images[..., 0])[:, 8:-8, 8:-8].max() < 0.05
