"""The gallery's images: which they are, and the pictures of them, by NumPy and Pillow."""

import io
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image
from report_pages import Cards, scored_images, table_rows

from wsdl_jax import evaluation, methods, runs
from wsdl_jax.evaluation import rendering
from wsdl_jax.reporting import gallery, page
from wsdl_jax.reporting.evaluated_runs import ScoredImage


def test_chosen_are_the_best_the_worst_and_others():
    rows = scored_images(90, 1)
    places = gallery.chosen(rows, 27)
    ious = np.array([row.iou for row in rows["fake"]])
    scores = np.array([row.score for row in rows["real"]])
    assert {*np.argsort(ious)[:6], *np.argsort(ious)[-6:], 0, 89} <= set(places["fake"])
    assert 12 <= len(places["fake"]) <= 18 and len(places["real"]) <= 9
    high = sorted(scores)[-3]
    assert sum(scores[k] >= high for k in places["real"]) >= 3
    every = gallery.chosen(rows, 1000)
    assert every == {"fake": list(range(90)), "real": list(range(90))}


def test_maps_are_the_networks(evaluated, dolos_folder):
    fakes = sorted((dolos_folder / "celebahq/fake/repaint-p2/images/test").iterdir())
    trained = runs.load(evaluated)
    test = evaluation.load(evaluated)
    places = [2, 3, 9]
    found = list(gallery._maps(test, "fake", places))
    assert [place for place, _, _ in found] == places
    resized = [
        Image.open(fakes[place]).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
        for place in places
    ]
    images = jnp.asarray(np.stack(resized).astype(np.float32) / 127.5 - 1)
    method = methods.from_config(trained.config)
    localized = method.localize(trained.model, images)
    expected = np.asarray(localized.maps)
    np.testing.assert_allclose([score for _, score, _ in found], localized.scores, rtol=1e-4)
    differences = np.abs(expected[:, None] - expected[None]).max((2, 3))[~np.eye(3, dtype=bool)]
    got = np.stack([localization_map for _, _, localization_map in found])
    assert np.abs(got - expected).max() < differences.min() / 10  # each is of its own image


def test_pictures(evaluated, dolos_folder, tmp_path, monkeypatch):
    drawn = np.random.default_rng(0).random((11, 5, 6)).astype(np.float32)

    def maps(_, side: str, places: list[int]) -> Iterator:
        scores = [float(row["score"]) for row in table_rows(evaluated) if row["label"] == side]
        yield from ((place, scores[place], drawn[place]) for place in places)

    monkeypatch.setattr(gallery, "_maps", maps)
    page.report([evaluated], epath.Path(tmp_path / "out"), count=100)
    cards = Cards((tmp_path / "out" / "index.html").read_text()).cards
    name = "dolos/celebahq_repaint_p2 00004.png"
    card = next(card for card in cards if card["data-name"] == name)
    assert [alt for alt, _ in card["images"]] == [
        *("image", "true mask", "map", "map over the image")
    ]
    pictures = []
    for _, source in card["images"]:
        with Image.open(tmp_path / "out" / source) as picture:
            pictures.append(picture.copy())
    image, mask, heat, overlay = pictures
    path = dolos_folder / "celebahq/fake/repaint-p2/images/test/00004.png"
    with Image.open(path) as file:
        source = file.convert("RGB")
    with Image.open(str(path).replace("/images/", "/masks/")) as file:
        disk = np.asarray(file)[..., 0]
    assert image.size == mask.size == heat.size == overlay.size == source.size
    assert np.abs(np.asarray(image, int) - np.asarray(source, int)).mean() < 6  # JPEG
    np.testing.assert_array_equal(np.asarray(mask.convert("L")) == 255, disk != 255)
    large = Image.fromarray(drawn[4]).resize(source.size, Image.Resampling.BICUBIC)
    values = np.asarray(large).clip(0, 1)
    np.testing.assert_allclose(np.asarray(heat), 255 * values, atol=0.51)  # indices of its palette
    colours = rendering.colour(np.asarray(heat) / 255)
    np.testing.assert_array_equal(np.asarray(heat.convert("RGB")), colours)
    opacity = 0.65 * values[..., None]
    expected = (1 - opacity) * np.asarray(source) + opacity * colours
    assert np.abs(np.asarray(overlay, float) - expected).mean() < 8  # JPEG twice


def test_large_images_are_made_smaller(tmp_path):
    rng = np.random.default_rng(0)
    files = {}
    for feature, array in (
        ("image", rng.integers(0, 256, (500, 1000, 3)).astype(np.uint8)),
        ("mask", (rng.random((500, 1000)) < 0.3).astype(np.uint8)),
    ):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        files[feature] = file.getvalue()
    row = ScoredImage(3, "a.png", 0.5, 0.3, 0.1)
    card = gallery._card(row, {**files, "key": b"a.png"}, "fake", "some/subset", tmp_path)
    for name in (card.image, card.mask):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (384, 192)
