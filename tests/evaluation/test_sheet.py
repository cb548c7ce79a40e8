"""The sheet of examples shows what was put into it."""

import numpy as np
from etils import epath
from PIL import Image

from wsdl_jax.evaluation import rendering, sheet

CELL, TITLES = 128, 4


def example(size: int, *, fake: bool) -> sheet.Example:
    rng = np.random.default_rng(size)
    mask = np.zeros((size, size), np.uint8)
    mask[: size // 2] = 1
    localization_map = np.full((7, 7), 0.1, np.float32)
    localization_map[:, :3] = 0.9
    image = np.broadcast_to(rng.integers(0, 256, 3), (size, size, 3)).astype(np.uint8)
    return sheet.Example(image, mask if fake else None, localization_map)


def panels(path: epath.Path, count: int) -> np.ndarray:
    """The cells of a sheet, [titles, images, 128, 128, 3], found from its far corner."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    pitch_y = (pixels.shape[0] - 6) // TITLES
    pitch_x = 134
    out = np.zeros((TITLES, count, CELL, CELL, 3), np.uint8)
    for row in range(TITLES):
        for column in range(count):
            bottom = pixels.shape[0] - (TITLES - 1 - row) * pitch_y - 6
            right = pixels.shape[1] - (count - 1 - column) * pitch_x - 6
            out[row, column] = pixels[bottom - CELL : bottom, right - CELL : right]
    return out


def test_sheet_shows_image_mask_map_and_threshold(tmp_path):
    examples = [example(256, fake=True), example(64, fake=True), example(100, fake=False)]
    path = epath.Path(tmp_path) / "examples.png"
    sheet.save(examples, path)
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
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
            heat[64, [12, 120]].astype(int), rendering.colour(np.array([[0.9, 0.1]]))[0], atol=12
        )


def test_sheet_of_one(tmp_path):
    path = epath.Path(tmp_path) / "examples.png"
    sheet.save([example(64, fake=True)], path)
    assert (panels(path, 1)[0, 0][8:-8, 8:-8] == example(64, fake=True).image[0, 0]).all()
