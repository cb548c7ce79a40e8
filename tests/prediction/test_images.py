"""Files that users have: found, read as 8-bit RGB, or refused with a reason."""

import re
from typing import Any

import numpy as np
import pytest
from etils import epath
from made_images import noise, smooth
from PIL import Image

from wsdl_jax.prediction import images
from wsdl_jax.prediction.folder import MAX_PIXELS
from wsdl_jax.runtime.errors import UserError

LIMIT = MAX_PIXELS["resize"]


@pytest.mark.parametrize(
    "suffix", ["png", "bmp", "tif", "webp", "jpg", "gif", "avif", "heic", "jxl"]
)
def test_formats(tmp_path, suffix):
    if suffix == "heic":
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.register_heif_opener()
    elif suffix == "jxl":
        pytest.importorskip("pillow_jxl")
    image, path = smooth(40, 50), epath.Path(tmp_path / f"image.{suffix}")
    image.save(path, lossless=True, quality=100)
    difference = np.abs(np.subtract(images.read(path, LIMIT)[0], image, dtype=np.int16))
    assert difference.max() <= {"jpg": 16, "heic": 40, "avif": 16, "gif": 40}.get(suffix, 0)


def test_of_several_pictures_the_first_is_read(tmp_path):
    pictures = [smooth(20, 30, shade) for shade in (0, 100)]
    for suffix in ("gif", "tif", "webp", "png", "avif"):
        for count in (1, 2):
            path = epath.Path(tmp_path / f"{count}.{suffix}")
            more = {"save_all": True, "append_images": pictures[1:]} if count == 2 else {}
            pictures[0].save(path, lossless=True, quality=100, **more)
            image, is_first = images.read(path, LIMIT)
            assert is_first == (count == 2)
            assert np.abs(np.subtract(image, pictures[0], dtype=np.int16)).max() <= 40


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for name in ("image.png", "image.tif"):
        Image.fromarray(values).save(tmp_path / name)
        pixels = np.asarray(images.read(epath.Path(tmp_path / name), LIMIT)[0])
        assert pixels.shape == (256, 256, 3)
        assert np.abs(pixels - values[..., None] / 257).max() <= 1


def test_transparency_is_over_white(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)
    pixels, alpha = rgba[..., :3].astype(float), rgba[..., 3:] / 255
    expected = pixels * alpha + 255 * (1 - alpha)
    for name in ("image.png", "image.webp", "image.tif"):
        Image.fromarray(rgba).save(tmp_path / name, lossless=True, exact=True)
        found = np.asarray(images.read(epath.Path(tmp_path / name), LIMIT)[0])
        assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = noise(20, 30)
    # What a camera stores, by EXIF's table: where the picture's first row and column lie in it.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = epath.Path(tmp_path / "image.png")
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    np.testing.assert_array_equal(images.read(path, LIMIT)[0], upright)


def test_finding_files(tmp_path, monkeypatch):
    names = [
        "b.png",
        "a.png",
        "[1].png",
        ".hidden.png",
        "sub/c.png",
        ".git/d.png",
        "out/maps/a.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    out = epath.Path("out")
    find: Any = lambda *patterns: list(images.find(patterns, out))  # noqa: E731
    assert find(".") == ["[1].png", "a.png", "b.png", "sub/c.png"]
    assert find("*.png") == ["[1].png", "a.png", "b.png"]
    assert find("b.png", "[ab].png") == ["b.png", "a.png"]
    assert find("[1].png") == ["[1].png"]
    assert find("**/c.png", str(tmp_path / "sub")) == ["sub/c.png"]
    assert images.find(["sub/c.png"], out) == {"sub/c.png": "c.png"}
    (tmp_path / "nothing").mkdir()
    for pattern in ("c.png", "*.tif"):
        with pytest.raises(
            UserError, match=f"--images {re.escape(pattern)}: there is no such file"
        ):
            find("a.png", pattern)
    with pytest.raises(UserError, match="--images nothing: no files in there"):
        find("nothing")
