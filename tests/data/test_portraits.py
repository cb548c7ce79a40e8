"""Portraits: what each image is, and the TFDS builder."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy import ndimage

from wsdl_data import masks
from wsdl_data.portraits import camera, samples
from wsdl_data.portraits.generators import GENERATORS
from wsdl_data.portraits.portraits_dataset_builder import SUBSETS, Builder

SIZE = 64
WAYS = {
    "real": lambda *where: samples.make_real(*where),
    "full": lambda *where: samples.make_full(*where, "regrain"),
    "partial": lambda *where: samples.make_partial(*where, "regrain"),
}


def test_regions_are_a_distribution():
    assert np.isclose(sum(samples.REGIONS.values()), 1)


@pytest.mark.parametrize("way", WAYS)
def test_an_image_is_a_function_of_seed_split_and_index(way):
    make = WAYS[way]
    first = make(0, "train", 5, SIZE)
    make(0, "train", 6, SIZE)  # what else is made in between does not matter
    np.testing.assert_array_equal(make(0, "train", 5, SIZE).image, first.image)
    for other in ((1, "train", 5), (0, "valid", 5), (0, "train", 6)):
        assert (make(*other, SIZE).image != first.image).mean() > 0.5


def test_no_scene_is_in_two_splits_or_two_kinds():
    draws = [
        samples.streams(0, split, kind, index, 1)[0].integers(2**63)
        for split in samples.SPLITS
        for kind in samples.KINDS
        for index in range(samples.SPLITS[split])
    ]
    assert len(set(draws)) == len(draws) == 3 * 2000


def test_partial_fake_is_the_camera_image_outside_its_mask():
    for index in range(20):
        where = (0, "test", index, SIZE)
        source, edit, settings, _ = samples.make_source(*where)
        assert not (edit.before != edit.after).any(axis=-1)[~edit.mask].any()
        for generator in GENERATORS:
            fake = samples.make_partial(*where, generator)
            np.testing.assert_array_equal(fake.mask, edit.mask)  # generators share it
            np.testing.assert_array_equal(fake.image[~fake.mask], source[~fake.mask])
            inside = (fake.image != source).any(axis=-1)[fake.mask]
            assert inside.mean() > 0.8
        # The camera image is that of the scene as it was before, whole.
        scene_rng, camera_rng, _ = samples.streams(0, "test", "partial", index, 3)
        again = samples.draw_edit(scene_rng, SIZE)
        assert camera.draw_settings(camera_rng) == settings
        np.testing.assert_array_equal(camera.capture(again.before, settings, camera_rng), source)


def test_full_fakes_of_two_generators_are_of_the_same_scene():
    one, two = (samples.make_full(0, "train", 3, SIZE, name).image for name in GENERATORS)
    coarse = [
        ndimage.uniform_filter(image.astype(float), (9, 9, 0))[8:-8, 8:-8] for image in (one, two)
    ]
    assert np.abs(coarse[0] - coarse[1]).mean() < 3
    assert (one != two).mean() > 0.5


@pytest.mark.slow
def test_share_of_the_mask():
    shares = np.array(
        [samples.draw_edit(np.random.default_rng(seed), 128).mask.mean() for seed in range(200)]
    )
    assert shares.min() >= samples.MIN_SHARE and shares.max() <= samples.MAX_SHARE
    assert shares.min() < 0.05 and shares.max() > 0.4
    assert 0.14 < shares.mean() < 0.22


def test_dilation_is_a_square_and_its_most_is_dolos():
    assert [samples.max_dilation(size) for size in (32, 128, 256)] == [2, 8, 15]
    mask = np.random.default_rng(0).random((40, 30)) > 0.98
    expected = ndimage.binary_dilation(mask, np.ones((7, 7)))
    np.testing.assert_array_equal(masks.dilate(mask, 3), expected)


def test_config_names():
    config = Builder.config_for("upsample_full-128px-seed7")
    assert (config.kind, config.generator, config.size, config.seed) == (
        "full",
        "upsample",
        128,
        7,
    )
    assert (Builder.config_for("real-seed7").size, Builder.config_for("real-64px").seed) == (96, 0)
    assert Builder.config_for("regrain") is Builder.builder_configs["regrain"]
    rendered = ["real", "regrain_full", "regrain", "upsample_full", "upsample"]
    inpainted = ["telea", "navier_stokes"]
    diffusion = ["ddpm_full", "ddpm_reconstructed", "ddpm_repaint", "latent_ddpm"]
    assert list(SUBSETS) == rendered + inpainted + diffusion


@pytest.mark.parametrize(
    "name", ["reel", "", "real-", "real-96", "real-seed1-96px", "real-96px-seed", "real_full"]
)
def test_unknown_config_is_refused_with_the_choices(name):
    with pytest.raises(ValueError, match=r"choose one of real, regrain_full, regrain, upsample"):
        Builder.config_for(name)


@pytest.mark.parametrize("name", ["real-97px", "real-16px", "real-2048px"])
def test_impossible_size_is_refused(name):
    with pytest.raises(ValueError, match=r"must be even and within 32\.\.1024 px"):
        Builder.config_for(name)


@pytest.mark.parametrize("name", ["real-32px-seed3", "upsample_full-32px", "regrain-32px-seed3"])
def test_build_and_read_back(name, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "SPLITS", {"train": 40, "valid": 3, "test": 5})
    config = Builder.config_for(name)
    builder = Builder(config=config, data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert counts == {split: samples.SPLITS[split] for split in config.splits}
    assert ("test" in counts) == (config.kind != "full")
    assert ("mask" in builder.info.features) == (config.kind == "partial")
    assert builder.info.features["label"].names == ["real", "fake"]
    skip = {key: tfds.decode.SkipDecoding() for key in ("image", "mask")}
    skip = {key: value for key, value in skip.items() if key in builder.info.features}
    for split in counts:
        # Made here, one after the other, or there by several processes: the same bytes.
        records = list(builder.as_data_source(split, decoders=skip))
        for index, record in enumerate(records):
            image, mask = samples.encoded(
                config.seed, split, index, 32, config.kind, config.generator
            )
            assert record["key"].decode() == f"{split}/{index:06d}"
            assert record["label"] == (config.kind != "real")
            assert record["image"] == image
            if config.kind == "partial":
                assert record["mask"] == mask
                sample = samples.make_partial(config.seed, split, index, 32, config.generator)
                pixels = np.asarray(Image.open(io.BytesIO(mask)))
                np.testing.assert_array_equal(pixels, np.where(sample.mask, 255, 0))


def test_decoded_as_the_features_say(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "SPLITS", {"train": 2, "valid": 1, "test": 1})
    config = Builder.config_for("regrain-32px")
    builder = Builder(config=config, data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    for index, record in enumerate(builder.as_data_source("train")):
        sample = samples.make_partial(0, "train", index, 32, "regrain")
        np.testing.assert_array_equal(record["image"], sample.image)
        assert record["mask"].shape == (32, 32, 1)
        np.testing.assert_array_equal(record["mask"][..., 0] > 0, sample.mask)


def test_sizes_show_the_same_people():
    small, large = (samples.make_real(0, "test", 1, size).image for size in (64, 128))
    pooled = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(pooled - small).mean() < 8
