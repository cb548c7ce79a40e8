"""Portraits: nothing but local traces tells fake from real.

Each test tries to guess the label from something that must not help; ROC AUC 0.5 is chance.
"""

import copy
import io

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from wsdl_data.masks import dilate
from wsdl_data.portraits import samples
from wsdl_data.portraits.generators import GENERATORS
from wsdl_data.portraits.scene import draw_scene, render

FAKES = [name + kind for name in GENERATORS for kind in ("", "_full")]
COUNT, SIZE = 240, 96
# 240 + 240 draws of the same distribution give 0.5 with a standard deviation of 0.026.
CHANCE = (0.4, 0.6)


def auc(real, fake):
    truth = np.repeat([0, 1], [len(real), len(fake)])
    return roc_auc_score(truth, np.concatenate([real, fake]))


def assert_chance(real, fake, what):
    value = auc(real, fake)
    assert CHANCE[0] < value < CHANCE[1], f"{what} tells fake from real: ROC AUC {value:.3f}"


pytestmark = pytest.mark.slow  # it looks at hundreds of images


@pytest.fixture(scope="module")
def images():
    """Sources (camera image and edit of each partial fake), real images and all kinds of fake."""
    made = {"real": [], "source": []} | {fake: [] for fake in FAKES}
    for index in range(COUNT):
        where = 0, "train", index, SIZE
        made["real"].append(samples.make_real(*where).image)
        source, edit, settings, rng = samples.make_source(*where)
        made["source"].append((source, edit))
        for name, generate in GENERATORS.items():
            made[f"{name}_full"].append(samples.make_full(*where, name).image)
            redrawn = generate(edit.after, settings, copy.deepcopy(rng))
            made[name].append(np.where(edit.mask[..., None], redrawn, source))
    return made


@pytest.mark.parametrize("fake", FAKES)
def test_file_size(images, fake):
    written = [[len(samples.encode(image)) for image in images[kind]] for kind in ("real", fake)]
    assert_chance(*written, "file size")


@pytest.mark.parametrize("fake", FAKES)
def test_file_size_of_another_encoder(images, fake):
    sizes = {}
    for kind in ("real", fake):
        sizes[kind] = []
        for image in images[kind][:150]:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="PNG")
            sizes[kind].append(len(buffer.getvalue()))
    assert_chance(*sizes.values(), "file size at the default compression")


@pytest.mark.parametrize("fake", FAKES)
def test_mean_color(images, fake):
    means = {kind: np.mean(images[kind], axis=(1, 2)) for kind in ("real", fake)}
    for channel in range(3):
        assert_chance(means["real"][:, channel], means[fake][:, channel], f"channel {channel}")


@pytest.mark.parametrize("name", list(GENERATORS))
def test_mean_color_inside_the_mask(images, name):
    """Against the camera's image of the same region before, and after, manipulation."""
    before, after = [], []
    for (source, edit), fake in zip(images["source"], images[name], strict=True):
        before.append(source[edit.mask].mean(axis=0))
        after.append(fake[edit.mask].mean(axis=0))
    before, after = np.array(before), np.array(after)
    for channel in range(3):
        assert_chance(before[:, channel], after[:, channel], f"channel {channel} in the mask")


def test_content_inside_the_mask(images):
    """Clean renderings before and after have the same spread of light within the mask."""
    edits = [edit for _, edit in images["source"]]
    before = [edit.before[edit.mask].std() for edit in edits]
    after = [edit.after[edit.mask].std() for edit in edits]
    assert_chance(before, after, "contrast of the content")


def test_position_and_area_of_parts(images):
    """Parts of redrawn scenes lie where those of any other scene lie."""
    redrawn, other = [], []
    everything = ["hair", "skin", "brows", "eyes", "nose", "mouth"]
    for index in range(COUNT):
        rng = samples.streams(0, "valid", "partial", index, 1)[0]
        scene = draw_scene(rng)
        again = samples.redraw(scene, everything, rng)
        for drawn, rows in ((scene, other), (again, redrawn)):
            masks = render(drawn, 64)[1]
            rows.append(
                [
                    value
                    for part in everything
                    for value in (masks[part].sum(), *np.argwhere(masks[part]).mean(axis=0))
                ]
            )
    for column in range(len(redrawn[0])):
        assert_chance(np.array(other)[:, column], np.array(redrawn)[:, column], f"column {column}")


@pytest.mark.parametrize("name", list(GENERATORS))
def test_no_step_at_the_seam(images, name):
    """Just inside the mask the content is the same, so the generator may only change its noise."""
    steps = []
    for (source, edit), fake in zip(images["source"], images[name], strict=True):
        same = (edit.before == edit.after).all(axis=-1)
        ring = edit.mask & dilate(~edit.mask, 1) & same
        difference = fake[ring].astype(float) - source[ring]
        steps.append(difference.mean(axis=0))
    # Levels of 255. Not quite 0: dark noise is clipped, and resampling and gamma do not commute.
    assert np.abs(np.mean(steps, axis=0)).max() < 0.6


def test_no_fixed_map_finds_the_masks(images):
    """Masks lie all over the frame: the best map that is the same for all images does badly."""
    masks = np.stack([edit.mask for _, edit in images["source"]])
    known, new = masks[::2], masks[1::2]
    frequency = known.mean(axis=0)
    scores = []
    for threshold in np.linspace(0.02, 0.6, 30):
        fixed = frequency > threshold
        scores.append(np.mean((new & fixed).sum((1, 2)) / (new | fixed).sum((1, 2))))
    assert max(scores) < 0.32
