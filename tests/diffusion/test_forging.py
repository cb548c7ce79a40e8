"""Forging: datasets of fakes out of subsets and folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import PurePath

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from scipy import ndimage

from wsdl_data import build, image_files, shapes
from wsdl_data.own import items
from wsdl_jax import inputs
from wsdl_jax.diffusion import forging, generators, trained
from wsdl_jax.diffusion.forging import forge
from wsdl_jax.diffusion.maker import Sampling
from wsdl_jax.diffusion.networks import structures
from wsdl_jax.runtime.errors import ConfigError, UserError

SIZE = 32
FAKES = f"portraits/regrain-{SIZE}px"
REALS = f"portraits/real-{SIZE}px"
COUNTS = {"train": 24, "valid": 5, "test": 10}


def paint_it_black(images, masks):
    """An inpainter of one's own, found as test_forging:paint_it_black."""
    return np.where(masks[..., None], np.uint8(0), images)


def wrong_size(images, masks):
    return images[:, ::2]


BLACK = f"{__name__}:paint_it_black"


@pytest.fixture
def place(small_portraits, tmp_path):
    """The small portraits, in a place where more can be made."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "portraits").symlink_to(small_portraits / "portraits")
    return str(root)


@pytest.fixture
def photos(tmp_path):
    """A folder of 40 images of several sizes, and masks of theirs: black is to be made anew."""
    rng = np.random.default_rng(0)
    for number in range(40):
        shape = (20 + number, 40, 3)
        name = f"{'trips/' if number % 2 else ''}photo{number}"
        for folder, suffix in (("photos", "jpg"), ("holes", "png")):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, shape).astype(np.uint8)
            if folder == "holes":
                pixels = np.full(shape, 255, np.uint8)
                pixels[:10, 8:30] = 0
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.{suffix}")
    return tmp_path


def records(name, split, data_dir):
    return list(inputs.Examples((name,), split, data_dir))


def metadata(name, data_dir):
    """Recipe, content and what is recorded, of a prepared subset."""
    kept = dict(build.make_builder(name, data_dir).info.metadata)
    assert set(kept) == {"recipe", "content", "recorded"}
    return kept


# ----- From prepared subsets ----------------------------------------------------------------------


def test_a_subset_with_its_own_masks(place):
    made = forge("mine", FAKES, masks="own", generator=BLACK, size=SIZE, data_dir=place)
    assert made == ["image_folder/mine_fake"]  # the sources are fakes: no real ones
    for split, count in COUNTS.items():
        forged, sources = (records(n, split, place) for n in (made[0], FAKES))
        by_key = {record["key"].decode(): record for record in sources}
        assert len(forged) == count
        for record in forged:
            source = by_key[f"{split}/{record['key'].decode().removesuffix('.png')}"]
            mask = inputs.full_mask(source).astype(bool)
            np.testing.assert_array_equal(inputs.full_mask(record).astype(bool), mask)
            image = inputs.full_image(record)
            assert (image[mask] == 0).all() and record["label"] == inputs.FAKE
            np.testing.assert_array_equal(image[~mask], inputs.full_image(source)[~mask])
    recipe = metadata(made[0], place)["recipe"]
    assert (recipe["generator"], recipe["source"], recipe["mask_policy"]) == (BLACK, FAKES, "own")


def test_drawn_masks_grow_and_real_sources_are_kept(place, monkeypatch):
    settings = {"masks": "boxes", "generator": BLACK, "size": SIZE, "data_dir": place}
    made = forge("mine", REALS, dilation=(1, 3), **settings)
    assert sorted(made) == ["image_folder/mine_fake", "image_folder/mine_real"]
    reals = {record["key"]: record for record in records("image_folder/mine_real", "test", place)}
    before = {
        record["key"].decode().removeprefix("test/") + ".png": inputs.full_image(record)
        for record in records(REALS, "test", place)
    }
    grown = set()
    for number, record in enumerate(records("image_folder/mine_fake", "test", place), 29):
        real = inputs.full_image(reals[record["key"]])
        np.testing.assert_array_equal(real, before[record["key"].decode()])
        drawn = shapes.draw("boxes", np.random.default_rng([0, number]), SIZE, SIZE)
        mask = inputs.full_mask(record).astype(bool)
        sizes = [
            n
            for n in (1, 2, 3)
            if (ndimage.binary_dilation(drawn, np.ones((2 * n + 1,) * 2)) == mask).all()
        ]
        assert len(sizes) >= 1
        grown.update(sizes)
    assert len(grown) > 1
    # The same again is ready at once; another way under the same name is refused.
    monkeypatch.setattr(forging, "_write", lambda *_: pytest.fail("made again"))
    assert sorted(forge("mine", REALS, dilation=(1, 3), **settings)) == sorted(made)
    with pytest.raises(build.BuildError, match=r"there already, .* \(recipe.dilation: 1,3 → 0,0\)"):
        forge("mine", REALS, dilation=(0, 0), **settings)


def test_limit_takes_the_first_of_each_split(place):
    forge("few", REALS, masks="strokes", generator="telea", size=SIZE, limit=4, data_dir=place)
    for split in COUNTS:
        keys = [r["key"].decode() for r in records("image_folder/few_fake", split, place)]
        assert sorted(keys) == [f"{i:06d}.png" for i in range(4)]


# ----- With forgers that are trained here ---------------------------------------------------------


@pytest.mark.parametrize("generator", ["repaint", "latent", "full", "reconstruct"])
def test_forgers_of_ones_own(generator, place, trained_forgers):
    sampling = Sampling(steps=4, jump=2, times=2)
    part = "latent" if generator == "latent" else "pixel"
    without = generator in generators.WHOLE
    settings = {
        "masks": None if without else "own",
        "generator": generator,
        "path": trained_forgers[part],
        "sampling": sampling,
        "limit": 8,
        "batch": 8,
        "data_dir": place,
    }
    forge("mine", FAKES, **settings)
    sources = {r["key"].decode(): inputs.full_image(r) for r in records(FAKES, "test", place)}
    forged = records("image_folder/mine_fake", "test", place)
    changed = []
    for record in forged:
        image = inputs.full_image(record)
        source = sources["test/" + record["key"].decode().removesuffix(".png")]
        mask = np.zeros(image.shape[:2], bool) if without else inputs.full_mask(record)
        changed.append((image != source)[mask == 0].mean())
    assert len(forged) == 8
    assert (max(changed) == 0) if generator == "repaint" else (min(changed) > 0.5)
    kept = metadata("image_folder/mine_fake", place)
    recipe = kept["recipe"]
    assert recipe["forger_step"] == recipe["steps"] == 4 and len(kept["content"]["forger"]) == 64
    assert ("jump" in recipe) == (not without)
    assert recipe.get("strength") == (0.3 if generator == "reconstruct" else None)


@pytest.mark.parametrize("part", ["latent", "autoencoder"])
def test_an_autoencoder_alone(part, place, trained_forgers):
    """What it makes of other sizes, too, is a decoder's image of the source."""
    settings = {"generator": "autoencode", "path": trained_forgers[part], "masks": None}
    forge("mine", REALS, size=40, limit=3, data_dir=place, **settings)
    autoencoder = nnx.merge(
        structures(trained.load(trained_forgers[part]).config)["autoencoder"][0],
        trained.load(trained_forgers[part]).weights["autoencoder"],
    )
    reals = {
        r["key"]: inputs.full_image(r) for r in records("image_folder/mine_real", "test", place)
    }
    found = records("image_folder/mine_fake", "test", place)
    assert len(found) == 3 and "mask" not in found[0]
    for record in found:
        given = jnp.asarray(reals[record["key"]][None] / 127.5 - 1, jnp.float32)
        decoded = autoencoder.decode(autoencoder.encode(given)[0])[0]
        expected = np.clip(127.5 * (np.asarray(decoded) + 1), 0, 255)
        np.testing.assert_allclose(inputs.full_image(record), expected, atol=0.6)
    recipe = metadata("image_folder/mine_fake", place)["recipe"]
    assert "steps" not in recipe and recipe["size"] == 40


@pytest.mark.slow
def test_a_run_on_forged_images(place, real_config):
    """What is forged trains and tests as any other dataset."""
    from etils import epath

    from wsdl_jax import training

    forge("mine", REALS, masks="boxes", generator="telea", size=SIZE, data_dir=place)
    config = real_config(
        "patches",
        "setup=b,source=image_folder/mine",
        {"data.dir": place, "model.depth": 1, "train.epochs": 1},
    )
    training.train(config, epath.Path(place) / "run")
    lines = (epath.Path(place) / "run/metrics.jsonl").read_text().splitlines()
    assert np.isfinite(json.loads(lines[-1])["valid_loss"])


# ----- Crops --------------------------------------------------------------------------------------


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    size=st.integers(16, 130),
    count=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_crops_lie_in_the_image_on_the_grid_and_apart(width, height, size, count, seed):
    places = forging.crop_places((width, height), size, count, np.random.default_rng(seed))
    assert len(places) <= count and bool(places) == (min(width, height) >= size)
    covered = np.zeros((height, width), int)
    for left, top in places:
        assert left % 16 == top % 16 == 0
        assert left + size <= width and top + size <= height
        covered[top : top + size, left : left + size] += 1
    assert covered.max() <= 1
    if places:  # As many as there is room for, but for a row and a column at the border.
        pitch = -(-size // 16) * 16
        rows, columns = ((length - size) // pitch for length in (height, width))
        assert len(places) >= min(count, max(1, rows) * max(1, columns))


def test_crops_get_everywhere():
    """Over many images no place is left out, and none is preferred by far."""
    counts = np.zeros((9, 9))
    for seed in range(1500):
        for left, top in forging.crop_places((160, 160), 32, 2, np.random.default_rng(seed)):
            counts[top // 16, left // 16] += 1
    assert counts.sum() == 3000 and counts.min() > 15 and counts.max() < 3 * counts.mean()


@pytest.fixture
def album(tmp_path):
    """Photographs of several kinds: JPEG files, some turned, PNG files, and one that is small."""
    folder = tmp_path / "album"
    (folder / "trips").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number in range(30):
        noise = rng.normal(0, 12, (96, 128, 3))
        smooth = np.linspace(40, 200, 128)[None, :, None] + noise
        image = Image.fromarray(smooth.clip(0, 255).astype(np.uint8))
        if number % 3 == 0:
            image.save(folder / f"trips/{number}.jpg", quality=70, subsampling=2)
        elif number % 3 == 1:
            turned = Image.Exif()
            turned[ExifTags.Base.Orientation] = 6
            image.save(folder / f"{number}.jpg", quality=60, subsampling=1, exif=turned)
        else:
            image.save(folder / f"{number}.png")
    image.crop((0, 0, 30, 90)).save(folder / "small.png")
    return folder


def test_crops_of_photographs_in_their_own_resolution(album, tmp_path):
    data_dir = str(tmp_path / "data")
    settings = {"size": 32, "crops": 3, "data_dir": data_dir}
    forge("mine", str(album), masks="blobs", generator=BLACK, **settings)
    found, splits = {}, {}
    for split in items.SHARES:
        fakes, reals = (
            records(f"image_folder/mine_{k}", split, data_dir) for k in ("fake", "real")
        )
        assert [r["key"] for r in fakes] == [r["key"] for r in reals]
        for fake, real in zip(fakes, reals, strict=True):
            name, left, top = fake["key"].decode().removesuffix(".png").rsplit("-", 2)
            left, top = int(left), int(top)
            found.setdefault(name, []).append((left, top))
            splits.setdefault(name, set()).add(split)
            photo = image_files.read_pixels(album / name)
            crop = np.asarray(photo)[top : top + 32, left : left + 32]
            np.testing.assert_array_equal(inputs.full_image(real), crop)
            mask = inputs.full_mask(fake).astype(bool)
            assert 0.02 <= mask.mean() <= 0.6
            edited = Image.fromarray(np.where(mask[..., None], np.uint8(0), crop))
            expected = image_files.compressed_as(edited, album / name)
            np.testing.assert_array_equal(inputs.full_image(fake), expected)
            if name.endswith("png"):
                np.testing.assert_array_equal(expected, edited)
            else:  # what was compressed so before hardly changes
                far = ~ndimage.binary_dilation(mask, iterations=16)
                changed = np.abs(np.asarray(expected).astype(int) - crop)[far]
                assert changed.size < 100 or changed.mean() < 1.2
    assert len(found) == 30 and all(len(set(places)) == 3 for places in found.values())
    for name, of in splits.items():  # all crops of a photograph are in its split
        assert of == {items.split_of(PurePath(name).stem)}
    assert metadata("image_folder/mine_fake", data_dir)["recipe"]["crops"] == 3
    # Another generator takes the same crops.
    forge("other", str(album), masks="boxes", generator="telea", **settings)
    for split in items.SHARES:
        one, two = (records(f"image_folder/{n}_real", split, data_dir) for n in ("mine", "other"))
        assert [(r["key"], r["image"]) for r in one] == [(r["key"], r["image"]) for r in two]


def test_crops_by_a_forger_of_another_size(album, tmp_path, trained_forgers):
    data_dir = str(tmp_path / "data")
    settings = {"generator": "reconstruct", "path": trained_forgers["pixel"], "masks": None}
    settings |= {"sampling": Sampling(steps=10, strength=0.2), "data_dir": data_dir, "batch": 8}
    forge("mine", str(album), size=48, crops=1, **settings)
    fakes, reals = (records(f"image_folder/mine_{k}", "train", data_dir) for k in ("fake", "real"))
    for fake, real in zip(fakes, reals, strict=True):
        pixels = [inputs.full_image(record).astype(int) for record in (fake, real)]
        assert pixels[0].shape == (48, 48, 3)
        assert 0 < np.abs(pixels[0] - pixels[1]).mean() < 60


def test_a_crop_is_made_with_what_surrounds_it(album, tmp_path, trained_forgers):
    """So that it has no border: it is cut out of what the forger makes of more than it."""
    (tmp_path / "photos").mkdir()
    for split in items.SHARES:
        (tmp_path / "photos" / split).mkdir()
        shutil.copy(album / "2.png", tmp_path / "photos" / split)
    settings = {"path": trained_forgers["latent"], "size": 32, "sampling": Sampling(), "seed": 0}
    settings |= {"batch": 4}
    data_dir = str(tmp_path / "data")
    photos = str(tmp_path / "photos")
    forge(
        "mine", photos, generator="autoencode", masks=None, crops=4, data_dir=data_dir, **settings
    )
    made_by = forging.make_generator("autoencode", **settings)
    photo = np.asarray(image_files.read_pixels(album / "2.png"))
    wide = np.pad(photo, ((16, 16), (16, 16), (0, 0)), mode="reflect")
    fakes = records("image_folder/mine_fake", "train", data_dir)
    assert len(fakes) == 4
    for fake in fakes:
        left, top = map(int, fake["key"].decode().removesuffix(".png").rsplit("-", 2)[1:])
        given = wide[top : top + 64, left : left + 64]
        expected = made_by.make(np.zeros(1, int), given[None], None)[0, 16:-16, 16:-16]
        difference = np.abs(inputs.full_image(fake).astype(int) - expected)
        assert difference.max() <= 1
        alone = made_by.make(np.zeros(1, int), given[None, 16:-16, 16:-16], None)[0]
        assert np.abs(alone.astype(int) - expected)[0].max() > 1  # its border would be another


@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    size=st.integers(1, 60),
    margin=st.integers(0, 20),
    data=st.data(),
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_surroundings_are_those_of_the_image_mirrored_at_its_ends(
    width, height, size, margin, data
):
    size = min(size, width, height)
    pixels = np.arange(width * height * 3).reshape(height, width, 3).astype(np.uint8)
    left, top = (data.draw(st.integers(0, length - size)) for length in (width, height))
    found = forging.with_surroundings(Image.fromarray(pixels), (left, top), size, margin)
    assert found.shape == (size + 2 * margin, size + 2 * margin, 3)
    inner = found[margin : margin + size, margin : margin + size]
    np.testing.assert_array_equal(inner, pixels[top : top + size, left : left + size])
    if margin < size:  # so that it is mirrored once at most, whatever the image's size is
        wide = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
        expected = wide[top : top + size + 2 * margin, left : left + size + 2 * margin]
        np.testing.assert_array_equal(found, expected)


def test_crops_that_find_no_room_or_no_mask(album, tmp_path):
    settings = {"generator": "telea", "data_dir": str(tmp_path / "data"), "crops": 2}
    with pytest.raises(UserError, match="none of its images has 112 pixels a side"):
        forge("mine", str(album), masks="boxes", size=112, **settings)
    masks = tmp_path / "masks"
    for path in album.rglob("*.*"):
        target = (masks / path.relative_to(album)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (96, 128), 255).save(target)
    told = "its mask is 96x128, the image 128x96"
    with pytest.raises(UserError, match=told):
        forge("mine", str(album), masks=str(masks), manipulated="white", size=32, **settings)


# ----- From folders -------------------------------------------------------------------------------


def test_a_folder_with_masks_of_its_own(photos, tmp_path):
    data_dir = str(tmp_path / "data")
    forge(
        "mine",
        str(photos / "photos"),
        masks=str(photos / "holes"),
        manipulated="black",
        generator=BLACK,
        size=48,
        data_dir=data_dir,
    )
    found = 0
    for split in items.SHARES:
        for record in records("image_folder/mine_fake", split, data_dir):
            key = record["key"].decode()
            assert items.split_of(PurePath(key.removesuffix(".png")).stem) == split
            file = (photos / "holes" / key).with_suffix("").with_suffix(".png")
            hole = Image.fromarray(np.asarray(Image.open(file))[..., 0] == 0)
            expected = np.asarray(hole.resize((48, 48), Image.Resampling.NEAREST))
            np.testing.assert_array_equal(inputs.full_mask(record).astype(bool), expected)
            photo = Image.open(photos / "photos" / key.removesuffix(".png"))
            image = np.asarray(photo.resize((48, 48), Image.Resampling.LANCZOS))
            expected = np.where(expected[..., None], 0, image)
            np.testing.assert_array_equal(inputs.full_image(record), expected)
            found += 1
    assert found == 40


def test_one_name_is_one_dataset(photos, tmp_path, monkeypatch):
    """The same command with the same files finds it ready, wherever they are; any other is told."""
    settings = {"manipulated": "black", "generator": "telea", "size": 32}
    settings["data_dir"] = str(tmp_path / "data")
    monkeypatch.chdir(photos)
    made = forge("mine", "photos", masks="holes", **settings)
    recorded = metadata(made[0], settings["data_dir"])["recorded"]
    assert recorded["source"] == str(photos / "photos") and recorded["images"] == 40
    elsewhere = tmp_path / "elsewhere"
    for folder in ("photos", "holes"):
        shutil.copytree(photos / folder, elsewhere / folder)
    monkeypatch.chdir(elsewhere)
    with monkeypatch.context() as patch:
        patch.setattr(forging, "_write", lambda *_: pytest.fail("made again"))
        assert sorted(forge("mine", "photos", masks="holes", **settings)) == sorted(made)
    told = r"mine: is there already, made of \S+photos otherwise \({};? ?.*\); choose another name"
    with pytest.raises(build.BuildError, match=told.format("recipe.manipulated: black → white")):
        forge("mine", "photos", masks="holes", **settings | {"manipulated": "white"})
    # Relative paths that are the same, of other files.
    for folder, name, what in (
        ("photos", "photo0.jpg", "sources"),
        ("holes", "photo0.png", "masks"),
    ):
        before = (elsewhere / folder / name).read_bytes()
        Image.new("RGB", (40, 20)).save(elsewhere / folder / name)
        with pytest.raises(build.BuildError, match=told.format(rf"content\.{what}: .*")):
            forge("mine", "photos", masks="holes", **settings)
        (elsewhere / folder / name).write_bytes(before)
    # A function of one's own that has changed.
    module = tmp_path / "my_inpainter.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    settings |= {"generator": "my_inpainter:paint"}
    module.write_text("def paint(images, masks):\n    return images * 0\n")
    forge("own", "photos", masks="holes", **settings)
    module.write_text("def paint(images, masks):\n    return images\n")
    with pytest.raises(build.BuildError, match=r"own: .*content.generator: "):
        forge("own", "photos", masks="holes", **settings)


def test_what_was_killed_between_the_two_subsets_is_finished(place):
    settings = {"masks": "boxes", "generator": BLACK, "size": SIZE, "limit": 4, "data_dir": place}
    made = forge("mine", REALS, **settings)
    before = [record["image"] for record in records("image_folder/mine_fake", "train", place)]
    shutil.rmtree(f"{place}/image_folder/mine_fake/1.2.0")
    with pytest.raises(ConfigError, match="mine_fake is not prepared"):
        records("image_folder/mine_fake", "train", place)
    assert sorted(forge("mine", REALS, **settings)) == sorted(made)
    assert len(made) == 2
    after = [record["image"] for record in records("image_folder/mine_fake", "train", place)]
    assert before == after


def test_no_split_is_left_empty(photos, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for number in range(3):
        shutil.copy(photos / "photos/photo0.jpg", few / f"{number}.jpg")
    settings = {"masks": "boxes", "generator": "telea", "size": 32}
    settings |= {"data_dir": str(tmp_path / "data")}
    with pytest.raises(UserError, match=r"of 3 given images none falls to the \w+ split"):
        forge("mine", str(few), **settings)
    for number, split in enumerate(("train", "valid", "test")):
        (few / split).mkdir()
        (few / f"{number}.jpg").rename(few / split / "a.jpg")
    forge("mine", str(few), **settings)
    for split in ("train", "valid", "test"):
        assert len(records("image_folder/mine_fake", split, settings["data_dir"])) == 1
    # Masks that mark nothing leave their images out.
    masks = tmp_path / "flat"
    masks.mkdir()
    Image.new("L", (32, 32)).save(masks / "a.png")
    settings |= {"masks": str(masks), "manipulated": "white"}
    with pytest.raises(UserError, match="all masks are empty"):
        forge("other", str(few), **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": "magic"}, "no generator 'magic': choose from full, repaint"),
        ({"generator": "nowhere:at_all"}, "no inpainter nowhere:at_all"),
        ({"generator": f"{__name__}:wrong_size"}, "must keep shape and type"),
        ({"generator": "repaint", "path": "/nowhere"}, "no forger /nowhere"),
        ({"generator": "diffusers"}, "needs --pipeline"),
        ({"generator": "full"}, "goes with every generator but full, reconstruct, autoencode"),
        ({"generator": "reconstruct"}, "goes with every generator but full, reconstruct, autoenc"),
        ({"masks": None}, "goes with every generator but full"),
        ({"generator": "telea", "diffusers": "x"}, "--pipeline does not go with --generator telea"),
        (
            {"generator": "reconstruct", "masks": None, "diffusers": "x", "path": "y"},
            "--pipeline does not go with --forger",
        ),
        ({"masks": "own"}, "has no masks of its own"),
        ({"masks": "/nowhere"}, "say what is made anew in them, --manipulated"),
        ({"masks": "/nowhere", "manipulated": "white"}, "/nowhere: no folder of masks"),
        ({"dilation": (3, 1)}, "not pixels FEWEST,MOST"),
        ({"images": "nothing"}, "neither a folder nor a prepared subset"),
        ({"images": "portraits/nobody"}, "no portraits config"),
        ({"name": "a/b"}, "image_folder"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line_and_leaves_nothing(changes, message, place):
    settings = {"name": "mine", "images": REALS, "masks": "boxes", "generator": BLACK, "size": SIZE}
    before = sorted(os.listdir(place))
    with pytest.raises((UserError, build.BuildError), match=message) as error:
        forge(**(settings | changes), data_dir=place)
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(place)) == before


def test_forgers_are_of_a_part_and_a_size(trained_forgers, place, tmp_path, monkeypatch):
    monkeypatch.setattr(generators, "packaged", lambda name: tmp_path / "ddpm.safetensors")
    with pytest.raises(UserError, match=r"ddpm\.safetensors is missing: name another forger"):
        forge("mine", REALS, masks="boxes", generator="repaint", data_dir=place)
    settings = {"images": REALS, "masks": "boxes", "data_dir": place}
    with pytest.raises(UserError, match="is of part pixel: latent needs part latent"):
        forge("mine", generator="latent", path=trained_forgers["pixel"], **settings)
    autoencode = {"generator": "autoencode", "images": REALS, "masks": None, "data_dir": place}
    with pytest.raises(UserError, match="a forger on pixels has no autoencoder"):
        forge("mine", path=trained_forgers["pixel"], **autoencode)
    with pytest.raises(UserError, match="makes images of multiples of 4 pixels, not of 30"):
        forge("mine", path=trained_forgers["latent"], size=30, **autoencode)
    with pytest.raises(UserError, match="an autoencoder alone forges nothing"):
        forge("mine", path=trained_forgers["autoencoder"], **autoencode | {"generator": "full"})
    reconstruct = autoencode | {"generator": "reconstruct", "path": trained_forgers["pixel"]}
    with pytest.raises(UserError, match=r"strength = 0\.0: must be above 0, and at most 1"):
        forge("mine", **reconstruct, sampling=Sampling(steps=10, strength=0.0))
    with pytest.raises(UserError, match="makes images of 32 pixels, not of 64"):
        forge("mine", generator="repaint", path=trained_forgers["pixel"], size=64, **settings)


@pytest.mark.slow
def test_the_command(place, tmp_path):
    def command(*arguments):
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "wsdl_jax.diffusion.forge",
                f"--data_dir={place}",
                *arguments,
            ],
            capture_output=True,
            text=True,
        )

    some = ("--images", REALS, "--masks=boxes", "--size=32", "--name=mine")
    done = command(*some, "--generator=navier_stokes", "--dilate=1,2")
    assert done.returncode == 0 and "image_folder/mine_fake" in done.stderr, done.stderr
    assert metadata("image_folder/mine_fake", place)["recipe"]["dilation"] == "1,2"
    wrong = command(*some, "--generator=magic")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: no generator 'magic'")
    wrong = command(*some, "--generator=reconstruct", "--strength=1.2")
    assert wrong.returncode == 2 and "strength" in wrong.stderr, wrong.stderr
    wrong = command(*some, "--generator=telea", "--dilate=1,x")
    assert wrong.returncode == 2 and "FEWEST,MOST" in wrong.stderr, wrong.stderr
