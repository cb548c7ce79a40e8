"""Image files: what becomes of every mode, orientation and depth, against Pillow and NumPy."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from orientations import UPRIGHT
from PIL import ExifTags, Image

from wsdl_data import image_files


def pixels(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        assert (image.mode, "transparency" in image.info) == ("RGB", False)
        return np.asarray(image)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 30),
    height=st.integers(1, 30),
    orientation=st.sampled_from(list(UPRIGHT)),
    suffix=st.sampled_from([".png", ".jpg", ".tif", ".webp"]),
)
def test_images_are_turned_as_their_exif_says(
    width: int, height: int, orientation: int, suffix: str
) -> None:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        options = {"lossless": True} if suffix == ".webp" else {}
        Image.fromarray(noise).save(path, exif=exif, **options)
        if suffix == ".jpg":  # Its pixels, but not turned.
            with Image.open(path) as image:
                noise = np.asarray(image)
        encoded, image = image_files.read_rgb(path)
        kept = suffix in (".png", ".jpg") and orientation == 1
        assert (encoded == path.read_bytes()) == kept
        np.testing.assert_array_equal(image_files.read_pixels(path), np.asarray(image))
    np.testing.assert_array_equal(pixels(encoded), UPRIGHT[orientation](noise))
    np.testing.assert_array_equal(np.asarray(image), pixels(encoded))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_of_16_bit_grey_the_higher_8_stay(suffix: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (9, 7), np.uint16)
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(values).save(path)
    found = pixels(image_files.read_rgb(path)[0])
    np.testing.assert_array_equal(found, np.repeat((values // 256)[..., None], 3, -1))


@pytest.mark.parametrize("suffix", ["gif", "bmp", "webp", "ppm", "tga", "jp2"])
def test_other_formats_become_png(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.effect_noise((12, 10), 60).convert("RGB").save(path)
    encoded, _ = image_files.read_rgb(path)
    assert encoded.startswith(b"\x89PNG")
    with Image.open(path) as image:
        np.testing.assert_array_equal(pixels(encoded), np.asarray(image.convert("RGB")))


def test_grey_of_more_than_16_bits_is_refused_unless_its_range_is_known(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "float.tif")
    found = pixels(image_files.read_rgb(tmp_path / "float.tif")[0])
    assert np.abs(found - 255 * values[..., None]).max() <= 0.5001
    Image.fromarray(values + 1).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 1 << 16, np.int32)).save(tmp_path / "int.tif")
    with pytest.raises(ValueError, match=r"float\.tif: floating-point grey values beyond 0 to 1"):
        image_files.read_rgb(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"int\.tif: grey values beyond 16 bits"):
        image_files.read_rgb(tmp_path / "int.tif")


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "gif"])
def test_what_is_transparent_becomes_white(suffix: str, tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    shown = np.random.default_rng(1).random((9, 7)) < 0.5
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(np.dstack([colours, shown.astype(np.uint8) * 255]))
    image.save(path, **({"lossless": True} if suffix == "webp" else {}))
    encoded, image = image_files.read_rgb(path)
    np.testing.assert_array_equal(np.asarray(image), pixels(encoded))
    np.testing.assert_array_equal(pixels(encoded)[~shown], 255)
    if suffix != "gif":  # which has fewer colours
        np.testing.assert_array_equal(pixels(encoded)[shown], colours[shown])


def test_a_picture_replaces_one_of_the_same_program_alone(tmp_path: Path) -> None:
    out = epath.Path(tmp_path / "sheet.png")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    for picture in (pixels, 255 - pixels):
        image_files.save_sheet(Image.fromarray(picture), out, "a.program", optimize=True)
        np.testing.assert_array_equal(np.asarray(Image.open(out)), picture)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    (tmp_path / "notes").write_text("mine")
    for other, program in ((out, "another"), ("mine.png", "a.program"), ("notes", "a.program")):
        path = epath.Path(tmp_path / other)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=rf"^{path} is there and is no picture of {program}"):
            image_files.save_sheet(Image.fromarray(pixels), path, program)
        assert path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.png", "notes", "sheet.png"]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_mask_that_is_transparent_in_parts_is_refused(mode: str, tmp_path: Path) -> None:
    """White paint on a transparent ground would be all white over white, and so all manipulated."""
    path = tmp_path / "mask.png"
    paint = np.zeros((4, 5, len(mode)), np.uint8)
    paint[1:3, 1:4] = 255
    Image.fromarray(paint, mode).save(path)
    with pytest.raises(ValueError, match=r"mask\.png: the mask is transparent in parts"):
        image_files.read_mask(path)
    paint[..., -1] = 255
    Image.fromarray(paint, mode).save(path)
    expected = np.repeat(paint[..., :1], 3, -1)
    np.testing.assert_array_equal(np.asarray(image_files.read_mask(path)), expected)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    orientation=st.sampled_from(list(UPRIGHT)),
    mode=st.sampled_from(["RGB", "L"]),
    quality=st.integers(30, 98),
    subsampling=st.integers(0, 2),
)
def test_pixels_are_compressed_as_a_file_is(
    width: int, height: int, orientation: int, mode: str, quality: int, subsampling: int
) -> None:
    """Its own pixels become what Pillow makes of the file when it is to keep its quality."""
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "a.jpg", Path(folder) / "b.jpg"
        options = {"subsampling": subsampling} if mode == "RGB" else {}
        image = Image.fromarray(noise).convert(mode)
        image.save(path, quality=quality, exif=exif, **options)
        found = image_files.compressed_as(image_files.read_pixels(path), path)
        with Image.open(path) as file:
            file.save(again, quality="keep", exif=exif)
        expected = np.asarray(image_files.read_pixels(again)).astype(int)
    difference = np.abs(np.asarray(found) - expected)
    assert difference.max() <= (0 if mode == "RGB" else 6)  # grey as colour is rounded once more


def test_what_is_no_jpeg_file_compresses_nothing(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    image.save(tmp_path / "a.png")
    assert image_files.compressed_as(image, tmp_path / "a.png") is image
    (tmp_path / "b.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"b\.jpg: no image"):
        image_files.compressed_as(image, tmp_path / "b.jpg")
