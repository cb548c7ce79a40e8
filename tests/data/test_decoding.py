"""Image files as pixels: every mode, format and orientation against formulas in NumPy."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orientations import UPRIGHT
from PIL import ExifTags, Image, ImageFile

from wsdl_data import decoding

PALETTE = np.random.default_rng(7).integers(0, 256, (256, 3), np.uint8)


# ----- What is meant by the values of a mode ------------------------------------------------------


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours [h, w, 3] with alpha [h, w] in 0 to 255."""
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1).astype(float)


def hsv(values: np.ndarray) -> np.ndarray:
    """The hexcone of Smith (1978), with all three values in 0 to 255."""
    hue, saturation, value = np.moveaxis(values / 255, -1, 0)
    k = (np.array([5, 3, 1]) + 6 * hue[..., None]) % 6
    chroma = np.clip(np.minimum(k, 4 - k), 0, 1) * saturation[..., None]
    return 255 * value[..., None] * (1 - chroma)


def ycbcr(values: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 in full range, as JPEG has it."""
    y, cb, cr = np.moveaxis(values.astype(float), -1, 0)
    cb, cr = cb - 128, cr - 128
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)


# Mode → (channels or data type of its values, values → RGB in 0 to 255)
MEANT: dict[str, tuple[object, Callable[[np.ndarray], np.ndarray]]] = {
    "1": (bool, lambda v: grey(255 * v)),
    "L": (1, grey),
    "P": (1, lambda v: PALETTE[v].astype(float)),
    "LA": (2, lambda v: over_white(grey(v[..., 0]), v[..., 1])),
    "PA": (2, lambda v: over_white(PALETTE[v[..., 0]], v[..., 1])),
    "RGB": (3, lambda v: v.astype(float)),
    "RGBA": (4, lambda v: over_white(v[..., :3], v[..., 3])),
    "RGBX": (4, lambda v: v[..., :3].astype(float)),
    "CMYK": (4, lambda v: (255 - v[..., :3].astype(float)) * (1 - v[..., 3:] / 255)),
    "YCbCr": (3, ycbcr),
    "HSV": (3, hsv),
    "I;16": (np.dtype("<u2"), lambda v: grey(v // 256)),
    "I;16L": (np.dtype("<u2"), lambda v: grey(v // 256)),
    "I;16B": (np.dtype(">u2"), lambda v: grey(v // 256)),
    "I": (np.dtype("<i4"), lambda v: grey(v // 256)),
    "F": (np.dtype("<f4"), lambda v: grey(255 * v)),
    # The colours of these are multiplied by alpha already.
    "La": (2, lambda v: grey(v[..., 0]) + 255 - v[..., 1:]),
    "RGBa": (4, lambda v: v[..., :3] + 255.0 - v[..., 3:]),
}
# The largest difference: of what Pillow works out in integers. Un-multiplying by an alpha is exact
# to a part of alpha.
TOLERANCE = {"YCbCr": 2, "HSV": 3, "F": 0.5, "La": 2, "RGBa": 2}


def draw(mode: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Random values of a mode."""
    kind = MEANT[mode][0]
    if kind is bool:
        return rng.random((height, width)) < 0.5
    if isinstance(kind, int):
        values = rng.integers(0, 256, (height, width, kind), np.uint8)
        if mode in ("La", "RGBa"):
            values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
        return values[..., 0] if kind == 1 else values
    if mode == "F":
        return rng.random((height, width), np.float32)
    return rng.integers(0, 1 << 16, (height, width)).astype(kind)


def as_image(mode: str, values: np.ndarray) -> Image.Image:
    height, width = values.shape[:2]
    if mode == "1":
        return Image.fromarray(values)
    image = Image.frombytes(mode, (width, height), values.tobytes())
    if mode in ("P", "PA"):
        image.putpalette(PALETTE.tobytes())
    return image


def assert_close(found: Image.Image, expected: np.ndarray, tolerance: float) -> None:
    assert found.mode == "RGB"
    assert found.size == expected.shape[1::-1]
    difference = np.abs(np.asarray(found) - np.clip(expected, 0, 255))
    assert difference.max() <= tolerance + 1e-3


@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(list(MEANT)),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    seed=st.integers(0, 2**32),
)
def test_every_mode_becomes_rgb(mode: str, height: int, width: int, seed: int) -> None:
    values = draw(mode, height, width, np.random.default_rng(seed))
    image = as_image(mode, values)
    before = image.tobytes(), dict(image.info)
    found = decoding.to_rgb(image)
    assert_close(found, MEANT[mode][1](values), TOLERANCE.get(mode, 1))
    assert (image.tobytes(), dict(image.info)) == before


# ----- Files ------------------------------------------------------------------------------------

# Which modes a format stores without loss. A file opens in another mode where a format has no name
# for the mode, as what is "LA" in a WebP is "RGBA".
LOSSLESS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": (
        "1",
        "L",
        "LA",
        "P",
        "RGB",
        "RGBA",
        "RGBX",
        "CMYK",
        "YCbCr",
        "I;16",
        "I;16B",
        "I",
        "F",
    ),
    "WEBP": ("RGB", "RGBA", "L", "LA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("1", "L", "P"),
    "PPM": ("1", "L", "RGB", "I"),
    "TGA": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "PCX": ("1", "L", "P", "RGB"),
    "DDS": ("L", "LA", "RGB", "RGBA"),
    "SGI": ("L", "RGB", "RGBA"),
    "ICO": ("RGBA",),
}
PAIRS = [(name, mode) for name, modes in LOSSLESS.items() for mode in modes]


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    if name == "WEBP":
        options |= {"lossless": True, "exact": True}
    image.save(stream, name, **options)
    return stream.getvalue()


@pytest.mark.parametrize(("name", "mode"), PAIRS)
def test_every_format_keeps_its_modes(name: str, mode: str) -> None:
    size = 16 if name == "ICO" else 17  # icons have their own sizes
    values = draw(mode, size, size, np.random.default_rng(0))
    data = encoded(as_image(mode, values), name)
    assert_close(decoding.decode(data), MEANT[mode][1](values), TOLERANCE.get(mode, 1))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
def test_jpeg_is_near(mode: str) -> None:
    rows, columns = np.mgrid[:32, :32]
    count = MEANT[mode][0]
    values = np.stack([(rows * (i + 1) + columns * 2) for i in range(count)], -1).astype(np.uint8)
    values = values[..., 0] if count == 1 else values
    data = encoded(as_image(mode, values), "JPEG", quality=100, subsampling=0)
    assert_close(decoding.decode(data), MEANT[mode][1](values), 8)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 30),
    height=st.integers(1, 30),
    orientation=st.sampled_from(list(UPRIGHT)),
    kind=st.sampled_from(
        [("PNG", "RGB"), ("PNG", "LA"), ("PNG", "I;16"), ("TIFF", "F"), ("WEBP", "RGBA")]
    ),
)
def test_images_are_turned_as_their_exif_says(
    width: int, height: int, orientation: int, kind: tuple[str, str]
) -> None:
    name, mode = kind
    values = draw(mode, height, width, np.random.default_rng(width))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(as_image(mode, values), name, exif=exif)
    if name != "TIFF":  # which Pillow turns itself
        assert decoding.is_upright(decoding.load(data)) == (orientation == 1)
    assert_close(decoding.decode(data), UPRIGHT[orientation](MEANT[mode][1](values)), 1)


@pytest.mark.parametrize("name", ["TIFF", "GIF", "WEBP", "PNG"])
def test_of_several_pages_the_first_is_read(name: str) -> None:
    pages = [Image.fromarray(np.full((9, 8, 3), value, np.uint8)) for value in (40, 90, 200)]
    data = encoded(pages[0], name, save_all=True, append_images=pages[1:])
    assert_close(decoding.decode(data), np.full((9, 8, 3), 40.0), 1)


def png(width: int, bits: int, colour: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of one row whose transparent colour is in a tRNS chunk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)),
            chunk(b"tRNS", transparent),
            chunk(b"IDAT", zlib.compress(b"\0" + row)),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_value_becomes_white(bits: int) -> None:
    values = np.arange(2**bits if bits < 8 else 256) * (257 if bits == 16 else 1)
    row = b"".join(int(value).to_bytes(2) for value in values)
    if bits < 16:
        all_bits = "".join(f"{value:0{bits}b}" for value in values)
        row = int(all_bits, 2).to_bytes(-(-len(all_bits) // 8)) if len(all_bits) >= 8 else b"\x40"
    for place in (0, len(values) // 2):
        data = png(len(values), bits, 0, row, int(values[place]).to_bytes(2))
        expected = grey(values[None] * 255 // (2**bits - 1))
        expected[0, place] = 255
        assert_close(decoding.decode(data), expected, 0)


def test_a_transparent_colour_becomes_white() -> None:
    data = png(2, 8, 2, bytes([1, 2, 3, 4, 5, 6]), bytes([0, 4, 0, 5, 0, 6]))
    assert_close(decoding.decode(data), np.array([[[1, 2, 3], [255] * 3]], float), 0)


@pytest.mark.parametrize("form", ["index", "alphas"])
def test_transparent_colours_of_a_palette_are_laid_over_white(form: str) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    alphas = np.random.default_rng(3).integers(0, 256, 256, np.uint8)
    if form == "index":
        alphas = np.where(np.arange(256) == 77, 0, 255).astype(np.uint8)
    transparency = 77 if form == "index" else alphas.tobytes()
    for name in ("PNG", "GIF") if form == "index" else ("PNG",):
        data = encoded(as_image("P", values), name, transparency=transparency)
        assert_close(decoding.decode(data), over_white(PALETTE[values], alphas[values]), 1)


def test_colours_of_16_bits_keep_the_higher_8() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (1, 5, 3)).astype(">u2")
    transparent = bytes([1, 0, 2, 0, 3, 0])  # which none of them is
    assert_close(decoding.decode(png(5, 16, 2, values.tobytes(), transparent)), values // 256, 0)


# ----- What is refused ----------------------------------------------------------------------------

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8))


def one_line(source: bytes | Path, **options: object) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        decoding.decode(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"])
def test_what_is_cut_off_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(NOISE, name)
    decoding.decode(data)
    # What another library may have asked of Pillow is no excuse for a truncated image.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for share in (0.6, 0.75, 0.9):
        assert one_line(data[: int(share * len(data))]).startswith("unreadable or truncated image")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_png_with_a_changed_or_missing_byte_is_refused(data: st.DataObject) -> None:
    whole = encoded(NOISE, "PNG")
    at = data.draw(st.integers(8, len(whole) - 1))
    if data.draw(st.booleans()):
        assert one_line(whole[:at])
    else:
        assert one_line(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    assert one_line(b"") == "an empty file"
    assert one_line(b"text") == "not an image"
    formats = ("PNG", "JPEG", "WebP")
    assert one_line(encoded(NOISE, "GIF"), formats=formats) == "not a PNG, JPEG or WebP image"
    decoding.decode(encoded(NOISE, "WEBP"), formats=formats)
    (tmp_path / "text.png").write_text("text")
    assert one_line(tmp_path / "text.png") == "not an image"
    with pytest.raises(FileNotFoundError):
        decoding.decode(tmp_path / "nothing.png")


def test_a_format_whose_package_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_register_formats", lambda: None)
    for start, name in (
        (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\xff\x0a" + bytes(20), "JXL"),
        (b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a" + bytes(20), "JXL"),
    ):
        with monkeypatch.context() as patch:
            Image.init()
            patch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k != name})
            patch.setattr(Image, "ID", [known for known in Image.ID if known != name])
            expected = f"a {name} image, which is read with pip install 'wsdl-jax[formats]'"
            assert one_line(start + bytes(40), formats=("PNG", name)) == expected
            assert one_line(start + bytes(40)) == expected


def test_turned_heic(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    image = Image.fromarray(np.repeat(np.repeat(np.asarray(NOISE)[:4, :6], 16, 0), 16, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "image.heic", exif=exif.tobytes(), quality=-1)
    found = np.asarray(decoding.decode(tmp_path / "image.heic"), np.int16)
    expected = np.rot90(np.asarray(image), -1)
    assert found.shape == expected.shape and np.abs(found - expected).mean() < 12


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    data = encoded(NOISE, "PNG")
    decoding.decode(data, max_pixels=720)
    asked = []
    assert one_line(data, max_pixels=719, before_pixels=asked.append) == (
        "30×24 pixels, taken for a decompression bomb: the limit is 0 megapixels"
    )
    assert asked == []


def test_pixels_are_told_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda self: (events.append("decoded"), load(self))[1]
    )
    decoding.decode(encoded(NOISE, "PNG"), before_pixels=events.append)
    assert events[:2] == [720, "decoded"]
    events.clear()
    decoding.decode(encoded(NOISE.convert("RGBA"), "PNG"), before_pixels=events.append)
    assert events[:2] == [4 * 720, "decoded"]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("F", (3, 2), 1.01), "floating-point grey values beyond 0 to 1"),
        (Image.new("F", (3, 2), -0.01), "floating-point grey values beyond 0 to 1"),
        (Image.new("F", (3, 2), float("nan")), "floating-point grey values beyond 0 to 1"),
        (Image.new("I", (3, 2), 1 << 16), "grey values beyond 16 bits"),
        (Image.new("I", (3, 2), -1), "grey values beyond 16 bits"),
        (Image.new("LAB", (3, 2)), "pixels of mode LAB, which are not converted to RGB"),
    ],
)
def test_values_without_a_meaning_are_refused(image: Image.Image, reason: str) -> None:
    assert one_line(encoded(image, "TIFF")) == reason
    with pytest.raises(ValueError, match=reason):
        decoding.to_rgb(image)
