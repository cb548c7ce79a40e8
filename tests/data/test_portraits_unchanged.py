"""The test splits that published figures were measured on stay what they were in version 2.1.0.

`portraits_test_split.json` was made of the data that version 2.1.0 had prepared: SHA-256 over the
pixels that are a function of NumPy alone, and the mean level inside each mask of what a diffusion
model made, whose last bits are those of the machine.
"""

import hashlib
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsdl_data.portraits import forged, samples

KEPT = json.loads(Path(__file__).with_name("portraits_test_split.json").read_text())


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


def digest(arrays):
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def assert_is_kept(images, masks, count):
    """Compares the first images of `ddpm_repaint`."""
    kept = KEPT["ddpm_repaint"]
    assert digest(masks) == kept["masks"][str(count)]
    hidden = [np.where(m[..., None], np.uint8(0), i) for i, m in zip(images, masks, strict=True)]
    assert digest(hidden) == kept["outside"][str(count)]


def test_first_images():
    real = [pixels(samples.encoded(0, "test", index, 96, "real", None)[0]) for index in range(8)]
    assert digest(real) == KEPT["real"]["pixels"]["8"]
    sources = [samples.make_source(0, "test", index, 96) for index in range(8)]
    assert_is_kept([image for image, *_ in sources], [edit.mask for _, edit, *_ in sources], 8)


@pytest.mark.slow
def test_all_real_images():
    made = samples.encoded_split(0, "test", 96, "real", None)
    assert digest(pixels(image) for image, _ in made) == KEPT["real"]["pixels"]["300"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, 300])
def test_images_with_a_part_made_by_the_diffusion_model(count):
    made = list(itertools.islice(forged.encoded_split(0, "test", "ddpm_repaint"), count))
    images = [pixels(image) for image, _ in made]
    masks = [pixels(mask) > 0 for _, mask in made]
    assert_is_kept(images, masks, count)
    inside = [image[mask].mean(axis=0) for image, mask in zip(images, masks, strict=True)]
    # The file has one decimal. Of two machines a few pixels differ by a level.
    np.testing.assert_allclose(inside, KEPT["ddpm_repaint"]["mean_inside"][:count], atol=0.15)
