"""Portraits: scenes, the camera and the generators' traces, against independent computations."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, signal

from wsdl_data.portraits import camera
from wsdl_data.portraits.generators import GENERATORS, UPSAMPLE_OVERLAP
from wsdl_data.portraits.scene import GAMMA, PARTS, PRIOR, draw_scene, redraw, render

SIZE = 128
GRAY = np.full((SIZE, SIZE, 3), 0.2, np.float32)
MAKERS = {"camera": camera.capture, **GENERATORS}


def portrait(seed, size=SIZE):
    return render(draw_scene(np.random.default_rng(seed)), size)


def noise_of(name, iso=2.0, seed=0, light=GRAY):
    """What the maker adds to a flat gray, in levels of 255."""
    made = MAKERS[name](light, camera.Settings(1.0, iso), np.random.default_rng(seed))
    return made.astype(np.float64) - 255 * light.astype(np.float64) ** (1 / GAMMA)


# --- scenes ---


@given(seed=st.integers(0, 2**32), half=st.integers(16, 80))
@settings(max_examples=25, deadline=None)
def test_rendering_is_light_and_masks_share_out_the_image(seed, half):
    light, masks = portrait(seed, 2 * half)
    assert light.shape == (2 * half, 2 * half, 3) and light.dtype == np.float32
    assert light.min() >= 0 and light.max() <= 1
    assert list(masks) == list(PARTS)
    assert (sum(mask.astype(int) for mask in masks.values()) == 1).all()


def test_portraits_show_every_part_and_vary():
    shares, tones = [], []
    for seed in range(60):
        light, masks = portrait(seed)
        shares.append([masks[part].mean() for part in PARTS])
        tones.append(light[masks["skin"]].mean(axis=0))
    low = dict(zip(PARTS, np.quantile(shares, 0.05, axis=0), strict=True))
    for part, least in {"hair": 0.06, "skin": 0.2, "eyes": 0.015, "nose": 0.02}.items():
        assert low[part] > least, part
    assert low["mouth"] > 0.005 and low["brows"] > 0.003
    # From light to dark skin, and always redder than blue.
    tones = np.array(tones)
    assert tones[:, 0].max() > 4 * tones[:, 0].min()
    assert (tones[:, 0] > tones[:, 2]).all()


def test_size_is_only_a_matter_of_sampling():
    for seed in range(4):
        large, _ = portrait(seed, 256)
        small, _ = portrait(seed, 128)
        pooled = large.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        assert np.abs(pooled - small).mean() < 0.01


@pytest.mark.parametrize("part", [part for part in PARTS if part != "background"])
def test_redraw_replaces_one_part_only(part):
    scene = draw_scene(np.random.default_rng(1))
    again = redraw(scene, [part], np.random.default_rng(2))
    same = {
        field.name
        for field in dataclasses.fields(scene)
        if getattr(scene, field.name) is getattr(again, field.name)
    }
    assert same == set(PRIOR) - {part}
    before, masks_before = render(scene, SIZE)
    after, masks_after = render(again, SIZE)
    changed = (before != after).any(axis=-1)
    assert changed.any()
    if part not in ("hair", "skin", "clothes"):  # a feature acts on itself and close by only
        near = ndimage.binary_dilation(masks_before[part] | masks_after[part], iterations=14)
        assert not changed[~near].any()


# --- the camera ---


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_demosaic_is_bilinear(rows, columns, seed):
    shape = (2 * rows, 2 * columns)
    mosaic = np.random.default_rng(seed).random(shape).astype(np.float32)
    red, blue = np.zeros(shape), np.zeros(shape)
    red[0::2, 0::2] = mosaic[0::2, 0::2]
    blue[1::2, 1::2] = mosaic[1::2, 1::2]
    green = np.zeros(shape)
    green[0::2, 1::2], green[1::2, 0::2] = mosaic[0::2, 1::2], mosaic[1::2, 0::2]
    cross = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    tent = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    expected = [
        ndimage.convolve(plane, kernel, mode="mirror")
        for plane, kernel in ((red, tent), (green, cross), (blue, tent))
    ]
    np.testing.assert_allclose(camera.demosaic(mosaic), np.stack(expected, -1), atol=1e-6)


def test_camera_noise_is_the_formula_with_the_mosaics_pattern():
    light, iso = 0.2, 2.0
    images = np.stack([noise_of("camera", iso, seed) for seed in range(12)])
    sensor = iso * np.sqrt(camera.SHOT * light + camera.READ**2)
    levels = sensor * 255 / GAMMA * light ** (1 / GAMMA - 1)  # through the gamma curve's slope
    measured = images.reshape(12, 64, 2, 64, 2, 3).var(axis=(0, 1, 3)) - 1 / 12  # rounding
    quarter, half, full = levels**2 / 4, levels**2 / 2, levels**2
    expected = np.zeros((2, 2, 3))
    expected[..., 0] = [[full, half], [half, quarter]]
    expected[..., 1] = [[quarter, full], [full, quarter]]
    expected[..., 2] = [[quarter, half], [half, full]]
    np.testing.assert_allclose(measured, expected, rtol=0.05)
    assert 1.5 < levels < 6


def test_camera_refuses_half_a_bayer_cell():
    with pytest.raises(ValueError, match="even height and width, got 6x5"):
        camera.capture(
            np.zeros((6, 5, 3), np.float32), camera.Settings(1.0, 1.0), np.random.default_rng(0)
        )


def test_settings_cover_a_factor_of_four_in_noise():
    drawn = [camera.draw_settings(np.random.default_rng(seed)) for seed in range(300)]
    iso = [one.iso for one in drawn]
    assert 1 <= min(iso) < 1.05 and 3.9 < max(iso) <= 4
    assert all(0.8 <= one.exposure <= 1.25 for one in drawn)


# --- traces ---


def high_share(noise):
    """Share of the noise's power above half the Nyquist frequency, along rows, per channel."""
    frequencies, power = signal.periodogram(noise, axis=1, detrend="constant")
    power = power.mean(axis=0)
    return power[frequencies > 0.25].sum(axis=0) / power.sum(axis=0)


def neighbors(noise):
    """Correlation of pixels side by side, per channel."""
    return np.array(
        [np.corrcoef(noise[:, :-1, c].ravel(), noise[:, 1:, c].ravel())[0, 1] for c in range(3)]
    )


def channels(noise):
    """Correlation of red with blue in the same pixel."""
    return np.corrcoef(noise[..., 0].ravel(), noise[..., 2].ravel())[0, 1]


def test_camera_trace_next_to_no_energy_at_nyquist_and_correlated_neighbors():
    noise = noise_of("camera")
    assert (high_share(noise)[[0, 2]] < 0.25).all()
    assert (neighbors(noise)[[0, 2]] > 0.4).all() and neighbors(noise)[1] > 0.2
    assert abs(channels(noise)) < 0.05


def test_regrain_trace_is_white():
    noise = noise_of("regrain")
    np.testing.assert_allclose(high_share(noise), 0.5, atol=0.03)
    assert np.abs(neighbors(noise)).max() < 0.03 and abs(channels(noise)) < 0.03
    cells = noise.reshape(64, 2, 64, 2, 3).var(axis=(0, 2))
    np.testing.assert_allclose(cells / cells.mean(), 1.0, atol=0.1)  # and of no period


def test_upsample_trace_is_an_uneven_transposed_convolution():
    noise = noise_of("upsample")
    assert (high_share(noise) < 0.25).all() and (neighbors(noise) > 0.4).all()
    np.testing.assert_allclose(channels(noise), 0.5, atol=0.1)  # features shared by channels
    variance = noise.reshape(64, 2, 64, 2, 3).var(axis=(0, 2)).mean(axis=-1)
    np.testing.assert_allclose(variance / variance[0, 0], [[1, 0.5], [0.5, 0.25]], atol=0.06)


def test_upsample_equals_zero_stuffing_and_convolution():
    light, _ = portrait(3)
    made = GENERATORS["upsample"](light, camera.Settings(1.0, 0.0), np.random.default_rng(0))
    kernel = np.array([1, 2, 1]) / 4
    coarse = light.astype(np.float64)
    for axis in (0, 1):
        coarse = ndimage.convolve1d(coarse, kernel, axis=axis, mode="mirror")
    stuffed = np.zeros_like(coarse)
    stuffed[::2, ::2] = coarse[::2, ::2]
    for axis in (0, 1):
        stuffed = ndimage.convolve1d(stuffed, 2 * kernel, axis=axis, mode="constant")
    gain = np.where(np.arange(SIZE) % 2, 1 - UPSAMPLE_OVERLAP, 1 + UPSAMPLE_OVERLAP)
    expected = 255 * np.clip(stuffed * np.outer(gain, gain)[..., None], 0, 1) ** (1 / GAMMA)
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(made[inner] - expected[inner]).max() < 0.51  # rounding


@pytest.mark.parametrize("name", list(GENERATORS))
@pytest.mark.parametrize("light", [0.08, 0.2, 0.6])
def test_generators_keep_the_level_and_follow_the_iso(name, light):
    gray = np.full_like(GRAY, light)
    soft, rough = (noise_of(name, iso, light=gray) for iso in (1.2, 3.6))
    assert np.abs(soft.mean(axis=(0, 1)) - noise_of("camera", 1.2, light=gray).mean()).max() < 0.25
    assert 2.4 < rough.std() / soft.std() < 3.4
