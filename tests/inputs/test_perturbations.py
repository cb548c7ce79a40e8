"""Perturbed images against the definitions, by NumPy, SciPy and Pillow."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from wsdl_jax.inputs import perturbations
from wsdl_jax.inputs.perturbations import EVERYDAY, KINDS, Chain, Perturbation
from wsdl_jax.runtime.errors import ConfigError

WITH_IDENTITY = [kind for kind in KINDS if kind not in ("jpeg", "webp")]


def photograph(height: int = 61, width: int = 48) -> np.ndarray:
    """Smooth colours with some grain and the whole range of values."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    channels = [np.sin(x / 9 + phase) * np.cos(y / 7 - phase) for phase in range(3)]
    values = 127.5 + 140 * np.stack(channels, -1) + rng.normal(0, 5, (height, width, 3))
    return values.clip(0, 255).astype(np.uint8)


def eight_bits(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@settings(deadline=None, max_examples=20)
@given(
    kind=st.sampled_from(list(KINDS)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    data=st.data(),
)
def test_any_size_and_default_strength(kind, height, width, data):
    strength = data.draw(st.sampled_from(KINDS[kind].defaults))
    image = photograph(height, width)
    before = image.copy()
    out = Perturbation(kind, float(strength))(image, 3)
    assert out.shape == image.shape and out.dtype == np.uint8
    np.testing.assert_array_equal(image, before)  # the argument stays as it was


@pytest.mark.parametrize("kind", WITH_IDENTITY)
def test_identity(kind):
    image = photograph()
    out = Perturbation(kind, float(KINDS[kind].identity))(image, 0)
    np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize("kind", list(KINDS))
def test_stronger_is_further_from_the_image(kind):
    image = photograph().astype(int)
    series = perturbations.series(kind, None)
    strengths = [p.strength for p in series if kind != "gamma" or p.strength > 1]
    errors = [
        np.square(Perturbation(kind, s)(image.astype(np.uint8), 0) - image).mean()
        for s in strengths
    ]
    assert errors[0] > 0 and (np.diff(errors) > 0).all()


def test_jpeg_is_pillows():
    image = photograph()
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=40)
    expected = np.asarray(Image.open(file))
    np.testing.assert_array_equal(Perturbation("jpeg", 40.0)(image, 0), expected)
    file.seek(0)
    # Luminance quantized in steps of 16·50/40 at quality 40 (Annex K, the IJG's scaling).
    assert Image.open(file).quantization[0][0] == round(16 * 50 / 40)


def test_webp_is_pillows_and_lossy():
    image = photograph()
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=40)
    assert file.getvalue()[8:16] == b"WEBPVP8 "  # of the container: one lossy frame
    expected = np.asarray(Image.open(file))
    np.testing.assert_array_equal(Perturbation("webp", 40.0)(image, 0), expected)


@pytest.mark.parametrize("sigma", [0.5, 1.5, 3])
def test_blur_is_a_sum_of_products(sigma):
    image = photograph()
    radius = int(4 * sigma + 0.5)
    kernel = stats.norm.pdf(np.arange(-radius, radius + 1), scale=sigma)
    kernel /= kernel.sum()
    padded = np.pad(image.astype(float), ((radius, radius), (radius, radius), (0, 0)), "edge")
    rows = sum(w * padded[k : k + image.shape[0]] for k, w in enumerate(kernel))
    expected = sum(w * rows[:, k : k + image.shape[1]] for k, w in enumerate(kernel))
    out = Perturbation("blur", float(sigma))(image, 0)
    np.testing.assert_allclose(out, expected, atol=0.5 + 1e-3)  # rounded to whole numbers


def test_noise_is_normal_and_of_the_image():
    grey = np.full((200, 300, 3), 128, np.uint8)
    out = Perturbation("noise", 10.0)(grey, 7)
    drawn = out.astype(float) - 128
    # Rounding adds a variance of 1/12; 180,000 values.
    assert drawn.std() == pytest.approx(np.sqrt(100 + 1 / 12), rel=0.01)
    assert abs(drawn.mean()) < 0.1
    dithered = drawn + np.random.default_rng(0).uniform(-0.5, 0.5, drawn.shape)
    normal = stats.norm(0, np.sqrt(100 + 1 / 12))
    assert stats.kstest(dithered.ravel(), normal.cdf).pvalue > 0.001
    # Channels are independent.
    assert np.abs(np.corrcoef(drawn.reshape(-1, 3).T) - np.eye(3)).max() < 0.02
    np.testing.assert_array_equal(Perturbation("noise", 10.0)(grey, 7), out)
    assert (Perturbation("noise", 10.0)(grey, 8) != out).mean() > 0.9
    # The same noise at every strength, but for the factor.
    twice = Perturbation("noise", 20.0)(grey, 7) - 128.0
    np.testing.assert_allclose(twice, 2 * drawn, atol=1.5)


def test_noise_is_clipped():
    ends = np.zeros((64, 64, 3), np.uint8)
    ends[32:] = 255
    out = Perturbation("noise", 40.0)(ends, 0)
    assert (out[:32] == 0).mean() == pytest.approx(0.5, abs=0.03)
    assert (out[32:] == 255).mean() == pytest.approx(0.5, abs=0.03)


def test_resize_is_pillows_down_and_up():
    image = photograph(61, 48)
    small = Image.fromarray(image).resize((24, 30), Image.Resampling.BICUBIC)  # 30.5: to even
    expected = np.asarray(small.resize((48, 61), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(Perturbation("resize", 0.5)(image, 0), expected)


@pytest.mark.parametrize("exponent", [0.5, 0.85, 2.2])
def test_gamma(exponent):
    image = photograph()
    expected = eight_bits(255 * (image / 255.0) ** exponent)
    np.testing.assert_array_equal(Perturbation("gamma", exponent)(image, 0), expected)


def test_series():
    assert [p.strength for p in perturbations.series("jpeg", ["90", "5e1"])] == [90, 50]
    for kind, of_kind in KINDS.items():
        identity, defaults = of_kind.identity, of_kind.defaults
        series = perturbations.series(kind, None)
        assert [(p.kind, p.strength) for p in series] == [(kind, s) for s in defaults]
        assert identity not in defaults
        assert pickle.loads(pickle.dumps(series)) == series  # they go to worker processes


def test_a_chain_is_one_after_the_other():
    image, resize, jpeg = photograph(), Perturbation("resize", 0.5), Perturbation("jpeg", 30.0)
    chain = Chain((resize, jpeg))
    np.testing.assert_array_equal(chain(image, 3), jpeg(resize(image, 3), 3))
    assert not np.array_equal(chain(image, 3), Chain((jpeg, resize))(image, 3))
    np.testing.assert_array_equal(Chain((jpeg,))(image, 3), jpeg(image, 3))
    noise = Chain((Perturbation("noise", 3.0),))  # which goes by the image's place
    assert not np.array_equal(noise(image, 3), noise(image, 4))
    assert pickle.loads(pickle.dumps(chain)) == chain  # they go to worker processes


def test_everyday_perturbations():
    assert [str(chain) for chain in EVERYDAY] == [
        *("jpeg 90", "jpeg 80", "jpeg 70", "jpeg 60", "webp 80", "resize 0.75", "resize 0.5"),
        *("blur 1", "noise 2", "gamma 0.7", "gamma 1.5", "resize 0.75, jpeg 75"),
    ]
    for chain in EVERYDAY:
        for step in chain.steps:  # of strengths that there are
            assert perturbations.series(step.kind, [step.strength]) == [step]


@pytest.mark.parametrize(
    ("kind", "strength", "message"),
    [
        ("jpeg", "high", "'high' is no strength of jpeg .JPEG quality.: a whole number from 1 to"),
        ("jpeg", "0", "'0' is no strength"),
        ("jpeg", "72.5", "'72.5' is no strength"),
        ("webp", "72.5", "'72.5' is no strength of webp .WebP quality.: a whole number from 1 to"),
        ("blur", "-1", "'-1' is no strength of blur .*pixels"),
        ("blur", "inf", "'inf'"),
        ("noise", "nan", "'nan' .* from 0 to 255"),
        ("noise", "", "'' is no strength"),
        ("resize", "0", "'0' is no strength of resize"),
        ("resize", "1.5", "'1.5' .* to 1$"),
        ("gamma", "0", "'0'"),
    ],
)
def test_strengths_that_there_are_not(kind, strength, message):
    with pytest.raises(ConfigError, match=message) as caught:
        perturbations.series(kind, ["1", strength])
    assert "\n" not in str(caught.value)
