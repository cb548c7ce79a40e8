"""CLIP's ResNet-50; its features are held to open_clip's in tests/weights/test_backbone_file.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from wsdl_jax.models import clip_resnet
from wsdl_jax.models.backbone import Features


@pytest.fixture(scope="module")
def trunk() -> clip_resnet.ModifiedResNet:
    """All four stages, without values."""
    return nnx.eval_shape(lambda: clip_resnet.ModifiedResNet(4, rngs=nnx.Rngs(0)))


@settings(max_examples=5, deadline=None)
@given(height=st.integers(32, 100), width=st.integers(32, 100))
def test_sizes(trunk, height, width):
    """Half the locations, any rest left out."""
    x = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    found = nnx.eval_shape(lambda trunk, x: trunk.through(trunk.stem(x), 0, 2).map, trunk, x)
    assert found.shape == (1, *((side + 1) // 2 // 2 // 2 for side in (height, width)), 512)


def test_size_of_the_published(trunk):
    def maps(trunk, x):
        found = [trunk.stem(x)]
        for stage in range(4):
            found.append(trunk.through(found[-1], stage, stage + 1))
        return [features.map for features in found]

    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    features = nnx.eval_shape(maps, trunk, x)
    assert [f.shape[1:] for f in features] == [
        (56, 56, 64),
        (56, 56, 256),
        (28, 28, 512),
        (14, 14, 1024),
        (7, 7, 2048),
    ]
    assert trunk.widths == (256, 512, 1024, 2048)


@pytest.mark.parametrize("size", [(31, 40), (64, 8)])
def test_small_images_are_refused(trunk, size):
    with pytest.raises(ValueError, match=f"^images of {size[0]}×{size[1]} pixels; CLIP's"):
        trunk.stem(jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize("depth", [0, 5])
def test_no_such_stage(depth):
    with pytest.raises(ValueError, match=f"stages 1 to 4, not {depth}"):
        clip_resnet.ModifiedResNet(depth, rngs=nnx.Rngs(0))


def test_mean_pool():
    x = np.arange(2 * 5 * 4 * 3, dtype=np.float32).reshape(2, 5, 4, 3)
    found = clip_resnet.mean_pool_2x2(jnp.asarray(x))
    expected = sum(x[:, i:4:2, j:4:2] for i in (0, 1) for j in (0, 1)) / 4
    np.testing.assert_allclose(found, expected)


def test_top():
    top = clip_resnet.Top(8, dtype=jnp.bfloat16, axis_name=None, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 8)).astype(np.float32)
    np.testing.assert_array_equal(top(Features(jnp.asarray(x))), 0)
    kernel = np.random.default_rng(1).standard_normal((8, 2)).astype(np.float32)
    top.linear.kernel[...] = jnp.asarray(kernel)
    expected = x.mean((1, 2)) @ kernel
    np.testing.assert_allclose(top(Features(jnp.asarray(x))), expected, rtol=1e-4, atol=1e-5)
