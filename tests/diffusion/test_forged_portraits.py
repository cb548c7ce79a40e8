"""Portraits by diffusion models and by OpenCV: sources and masks are those of other generators."""

import io

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from wsdl_data import build
from wsdl_data.portraits import forged, samples
from wsdl_data.portraits.portraits_dataset_builder import Builder
from wsdl_jax.diffusion import figures, trained
from wsdl_jax.diffusion.maker import Maker, Sampling

SIZE = 32
COUNTS = {"train": 12, "valid": 3, "test": 5}


@pytest.fixture
def models(trained_forgers, tmp_path, monkeypatch):
    """Small models in place of those that come with the dataset."""
    folder = tmp_path / "models"
    folder.mkdir()
    for part, file in (("pixel", "ddpm"), ("latent", "latent_ddpm")):
        trained.save(trained.load(trained_forgers[part]), folder / f"{file}.safetensors")
    monkeypatch.setattr(forged, "FOLDER", folder)
    monkeypatch.setattr(forged, "SIZE", SIZE)
    monkeypatch.setattr(forged, "_BATCH", 8)
    monkeypatch.setattr(samples, "SPLITS", COUNTS)
    return folder


def built(subset, root):
    """Split → records, images and masks as they are stored."""
    name = f"{subset}-{SIZE}px-seed3"
    builder = Builder(config=Builder.config_for(name), data_dir=root, file_format="array_record")
    builder.download_and_prepare()
    skip = {
        key: tfds.decode.SkipDecoding() for key in ("image", "mask") if key in builder.info.features
    }
    splits = builder.info.splits
    return {split: list(builder.as_data_source(split, decoders=skip)) for split in splits}


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)))


@pytest.mark.slow
@pytest.mark.parametrize("subset", ["ddpm_repaint", "latent_ddpm", "telea", "navier_stokes"])
def test_partial_fakes_are_of_the_same_sources_and_masks(subset, models, tmp_path):
    found = built(subset, tmp_path / "data")
    assert {split: len(records) for split, records in found.items()} == COUNTS
    for split, records in found.items():
        for index, record in enumerate(records):
            source, edit, *_ = samples.make_source(3, split, index, SIZE)
            image = pixels(record["image"])
            assert record["key"].decode() == f"{split}/{index:06d}" and record["label"] == 1
            np.testing.assert_array_equal(pixels(record["mask"]) > 0, edit.mask)
            outside = (image != source)[~edit.mask].mean()
            # The decoder of latents makes the whole image, the others the masked part alone.
            assert outside > 0.5 if subset == "latent_ddpm" else outside == 0
            assert (image != source)[edit.mask].mean() > 0.5
    if subset in ("telea", "navier_stokes"):
        flag = {"telea": cv2.INPAINT_TELEA, "navier_stokes": cv2.INPAINT_NS}[subset]
        expected = cv2.inpaint(source, edit.mask.astype(np.uint8), 3, flag)
        np.testing.assert_array_equal(image, expected)


@pytest.mark.slow
def test_whole_portraits_are_a_function_of_seed_and_number(models, tmp_path):
    one, two = (built("ddpm_full", tmp_path / name) for name in ("one", "two"))
    assert {split: len(records) for split, records in one.items()} == {"train": 12, "valid": 3}
    for split, records in one.items():
        assert [r["image"] for r in records] == [r["image"] for r in two[split]]
    images = {r["image"] for records in one.values() for r in records}
    assert len(images) == 15


def test_without_a_model_one_line_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(forged, "FOLDER", tmp_path)
    builder = build.make_builder("portraits/ddpm_full", str(tmp_path / "data"))
    with pytest.raises(build.BuildError, match=r"portraits/ddpm_full: .*ddpm.safetensors is") as e:
        build.prepare(builder)
    assert "\n" not in str(e.value) and "wsdl_jax.diffusion.forger --run RUN" in str(e.value)
    assert not build.is_prepared(builder)


def test_a_model_of_another_size_is_refused(models, tmp_path, monkeypatch):
    monkeypatch.setattr(forged, "SIZE", 64)
    builder = build.make_builder("portraits/ddpm_full-64px", str(tmp_path / "data"))
    with pytest.raises(build.BuildError, match="makes images of 32 pixels"):
        build.prepare(builder)


def test_names_of_subsets():
    assert Builder.config_for("ddpm_full").size == Builder.config_for("telea").size == 96
    assert Builder.config_for("telea-128px").size == 128
    assert Builder.config_for("ddpm_repaint-seed2").size == 96
    with pytest.raises(ValueError, match="the size must be 96 px, for which its model"):
        Builder.config_for("latent_ddpm-128px")


@pytest.mark.slow
def test_the_models_that_come_with_it_draw_portraits():
    """Far nearer to real portraits than others are to them; and of none of the dataset's scenes."""
    files = [forged.FOLDER / f"{name}.safetensors" for name in ("ddpm", "latent_ddpm")]
    assert sum(file.stat().st_size for file in files) < 6e6
    sampling = Sampling(steps=8)
    real = [
        np.stack([samples.make_real(0, split, i, forged.SIZE).image for i in range(48)])
        for split in ("valid", "test")
    ]
    chance = figures.frechet_distance(*map(figures.features, real))
    others = np.stack([image[::-1] for image in real[0]])  # upside down: the same colours
    for file in files:
        one = trained.load(file)
        assert not any(name.endswith(("px", "seed0")) for name in one.config.data.real)
        make = Maker(one, sampling, "draw", batch=48, seed=0)
        made = make(np.arange(48))
        distance = figures.frechet_distance(*map(figures.features, (made, real[1])))
        turned = figures.frechet_distance(*map(figures.features, (others, real[1])))
        assert distance < min(3 * chance, turned)
