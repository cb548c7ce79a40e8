"""Pictures and tables show what was put into them."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from wsdl_jax.evaluation import summary

CELL, TITLES = 128, 4


def luminance(colours: np.ndarray) -> np.ndarray:
    """Relative luminance of sRGB values (IEC 61966-2-1)."""
    c = colours / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_colour_scale_gets_lighter_throughout():
    scale = summary.colour(np.linspace(0, 1, 256)[None])[0]
    assert scale.shape == (256, 3) and scale.dtype == np.uint8
    assert (np.diff(luminance(scale)) >= 0).all()
    assert luminance(scale[0]) < 0.01 and luminance(scale[-1]) > 0.9
    # No value beyond the ends: maps are probabilities.
    np.testing.assert_array_equal(summary.colour(np.array([[-1.0, 2.0]]))[0], scale[[0, -1]])


def test_overlay_is_denser_where_the_map_is_high():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    values = rng.integers(0, 256, (5, 7)).astype(np.uint8)
    values[0, :3] = 0, 128, 255
    grey = Image.fromarray(values)
    scale = summary.colour(np.linspace(0, 1, 256)[None])[0]
    np.testing.assert_array_equal(summary.heat(grey).convert("RGB"), scale[values])
    opacity = 0.65 * values[..., None] / 255
    expected = (1 - opacity) * image + opacity * scale[values]
    out = np.asarray(summary.overlay(Image.fromarray(image), grey))
    np.testing.assert_allclose(out, expected, atol=1.5)
    np.testing.assert_array_equal(out[0, 0], image[0, 0])
    np.testing.assert_array_equal(np.asarray(grey), values)  # the argument stays as it was


def example(size: int, *, fake: bool) -> summary.Example:
    rng = np.random.default_rng(size)
    mask = np.zeros((size, size), np.uint8)
    mask[: size // 2] = 1
    localization_map = np.full((7, 7), 0.1, np.float32)
    localization_map[:, :3] = 0.9
    image = np.broadcast_to(rng.integers(0, 256, 3), (size, size, 3)).astype(np.uint8)
    return summary.Example(f"{size}.png", image, mask if fake else None, localization_map)


def panels(path: epath.Path, count: int) -> np.ndarray:
    """The cells of a sheet, [titles, images, 128, 128, 3], found from its far corner."""
    with Image.open(path) as image:
        sheet = np.asarray(image)
    pitch_y = (sheet.shape[0] - 6) // TITLES
    pitch_x = 134
    out = np.zeros((TITLES, count, CELL, CELL, 3), np.uint8)
    for row in range(TITLES):
        for column in range(count):
            bottom = sheet.shape[0] - (TITLES - 1 - row) * pitch_y - 6
            right = sheet.shape[1] - (count - 1 - column) * pitch_x - 6
            out[row, column] = sheet[bottom - CELL : bottom, right - CELL : right]
    return out


def test_sheet_shows_image_mask_map_and_threshold(tmp_path):
    examples = [example(256, fake=True), example(64, fake=True), example(100, fake=False)]
    path = epath.Path(tmp_path) / "examples.png"
    summary.save_sheet(examples, path)
    with Image.open(path) as sheet:
        assert (sheet.format, sheet.mode) == ("PNG", "RGB")
    cells = panels(path, len(examples))
    inner = slice(8, -8)  # away from the resampling of edges
    for column, shown in enumerate(examples):
        image, mask, heat, decision = cells[:, column]
        assert (image[inner, inner] == shown.image[0, 0]).all()
        if shown.mask is None:
            assert not mask.any()
        else:
            assert (mask[:56] == 255).all() and not mask[72:].any()
        assert (decision[inner, 8:40] == 255).all() and not decision[inner, 72:-8].any()
        np.testing.assert_allclose(
            heat[64, [12, 120]].astype(int), summary.colour(np.array([[0.9, 0.1]]))[0], atol=12
        )


def test_sheet_of_one(tmp_path):
    path = epath.Path(tmp_path) / "examples.png"
    summary.save_sheet([example(64, fake=True)], path)
    assert (panels(path, 1)[0, 0][8:-8, 8:-8] == example(64, fake=True).image[0, 0]).all()


def test_text_table_has_every_figure():
    names = ("iou_lg", "iou_sm", "pbca_lg", "pbca_sm", "f1", "pixel_auc", "pixel_ap")
    figures = {
        row: {name: 10.0 * r + c for c, name in enumerate(names)}
        for r, row in enumerate(("this run", "all real", "all fake", "random"))
    }
    results = {
        **figures["this run"],
        "trivial": {name: figures[name] for name in ("all real", "all fake", "random")},
        "ap": 91.26,
        "ap_2sd": 1.04,
        "auc": 87.5,
        "balanced_accuracy": 77.77,
        "threshold": 0.123456,
        "fake_above": 66.66,
        "real_above": 5.04,
        "pixel_images": 8500,
        "manipulated_share": 12.34,
        "test_fake": "dolos/fakes",
        "test_real": "dolos/reals",
        "fake_images": 8500,
        "real_images": 900,
    }
    text = summary.text_table(results, title="patches, setup a")
    assert text.endswith("\n") and max(map(len, text.splitlines())) <= 100
    lines = text.splitlines()
    assert "patches, setup a" in text
    for part in ("8500", "dolos/fakes", "12.3%", "900", "dolos/reals"):
        assert part in text
    assert "ap 91.3 ± 1.0, auc 87.5, balanced_accuracy 77.8" in text
    above = "above 0.1235: 66.7% of the fake images, 5.0% of the real ones"
    assert above in text
    assert "both classes" not in text
    bare = {**results, **dict.fromkeys(names), "manipulated_share": None, "threshold": None}
    told = summary.text_table(bare, title="bare").splitlines()
    assert told[0] == "bare: 8500 images of dolos/fakes, without masks"
    assert told[1:] == [line for line in text.splitlines()[-3:] if above not in line]
    header = next(line for line in lines if "iou_lg" in line)
    for row, values in figures.items():
        line = next(line for line in lines if line.startswith(row))
        # A figure ends where its column's name ends.
        for name, value in values.items():
            end = header.index(name) + len(name)
            assert float(line[end - 9 : end]) == pytest.approx(value)

    for figure in (results, *results["trivial"].values()):
        figure["pixel_auc"] = None
    text = summary.text_table({**results, "pixel_images": 8321}, title="patches, setup a")
    assert "over the 8321 images whose mask has both classes" in text
    assert max(map(len, text.splitlines())) <= 100
    line = next(line for line in text.splitlines() if line.startswith("this run"))
    assert line.split()[2:][names.index("pixel_auc")] == "–"
