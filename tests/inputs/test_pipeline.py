"""Batches against Pillow and the files themselves, for any number of hosts and workers."""

import dataclasses
import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pytest
from absl import flags
from PIL import Image

from wsdl_data.build import BuildError
from wsdl_jax import configuration, inputs
from wsdl_jax.inputs import batches as batches_module
from wsdl_jax.inputs.perturbations import Perturbation
from wsdl_jax.runtime.errors import ConfigError, UserError

REAL, FAKE, MASKED = "dolos/celebahq_real", "dolos/celebahq_p2", "dolos/celebahq_repaint_p2"
IMAGES = {
    REAL: "celebahq/real",
    FAKE: "celebahq/fake/p2",
    MASKED: "celebahq/fake/repaint-p2/images",
}
TRAIN = 40  # images of each subset


@pytest.fixture
def config(shrunk: dict[str, Any]) -> ml_collections.ConfigDict:
    """Setup A of the small Dolos."""
    config = configuration.base()
    config.method = "patches"
    configuration.set_data(config, setup="a", source="celebahq")
    config.update_from_flattened_dict(shrunk)
    return config


@pytest.fixture
def masked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Setup C of the small Dolos."""
    configuration.set_data(config, setup="c", source="celebahq")
    return config


def examples(config: ml_collections.ConfigDict, split: str, *names: str) -> inputs.Examples:
    return inputs.Examples(names, split, config.data.dir)


def in_order(
    config: ml_collections.ConfigDict, split: str, *names: str, mask_size: int | None = None
) -> dict[str, np.ndarray]:
    """Every example of a split once, without its padding."""
    batches = list(evaluated(examples(config, split, *names), config, mask_size=mask_size))
    rows = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    return {name: values[rows["weight"] > 0] for name, values in rows.items()}


def evaluated(
    source: inputs.Examples,
    config: ml_collections.ConfigDict,
    mask_size: int | None = None,
    varied: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Iterator[inputs.Batch]:
    reading = dataclasses.replace(inputs.Reading.of(config.data, mask_size), **(varied or {}))
    return inputs.eval_batches(source, reading, batch=config.eval.batch, **kwargs)


def trained_on(
    config: ml_collections.ConfigDict,
    mask_size: int | None = None,
    varied: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Iterator[inputs.Batch]:
    source = examples(config, "train", *config.data.real, *config.data.fake)
    reading = dataclasses.replace(inputs.Reading.of(config.data, mask_size), **(varied or {}))
    kwargs = {"batch": config.train.batch, "seed": config.seed, **kwargs}
    return inputs.train_batches(source, reading, **kwargs)


def take(count: int, config: ml_collections.ConfigDict, **kwargs: Any) -> list[inputs.Batch]:
    return list(itertools.islice(trained_on(config, **kwargs), count))


def identify(images: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place in `known` of each image; fails for one that is not there, to the last bit."""
    places = {image.tobytes(): place for place, image in enumerate(known)}
    return np.array([places[image.tobytes()] for image in images])


@pytest.mark.parametrize(
    ("name", "resample"),
    [("bilinear", Image.Resampling.BILINEAR), ("lanczos", Image.Resampling.LANCZOS)],
)
@pytest.mark.parametrize("size", [64, 80, 99])  # smaller than the files, as they are, larger
def test_images_are_pillows_resize(config, dolos_folder: Path, name, resample, size):
    config.data.resize, config.data.image_size = name, size
    loaded = in_order(config, "test", REAL, MASKED)
    files = [
        path
        for subset in (REAL, MASKED)
        for path in sorted((dolos_folder / IMAGES[subset] / "test").iterdir())
    ]
    assert loaded["image"].dtype == np.uint8 and loaded["label"].dtype == np.int32
    assert loaded["image"].shape == (len(files), size, size, 3)
    for path, image in zip(files, loaded["image"], strict=True):
        pixels = np.asarray(Image.open(path).resize((size, size), resample))
        np.testing.assert_array_equal(image, pixels)
    np.testing.assert_array_equal(loaded["label"], ["/fake/" in str(path) for path in files])


def test_full_size_image_and_mask_are_the_files(config, dolos_folder: Path):
    source = examples(config, "test", MASKED)
    images = sorted((dolos_folder / IMAGES[MASKED] / "test").iterdir())
    masks = sorted((dolos_folder / "celebahq/fake/repaint-p2/masks/test").iterdir())
    assert len(source) == len(images) == len(masks) == 11
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        assert source[index]["key"] == image.name.encode()
        np.testing.assert_array_equal(
            inputs.full_image(source[index]), np.asarray(Image.open(image))
        )
        white = np.asarray(Image.open(mask))[..., 0] == 255
        np.testing.assert_array_equal(inputs.full_mask(source[index]), np.where(white, 0, 1))


def test_several_subsets_follow_one_another(config):
    source = examples(config, "test", REAL, MASKED, REAL)
    assert len(source) == 8 + 11 + 8
    labels = [source[np.int64(index)]["label"] for index in range(len(source))]
    assert labels == [0] * 8 + [1] * 11 + [0] * 8


def test_each_pass_is_another_permutation_of_real_and_fake(config):
    known = in_order(config, "train", REAL, FAKE)
    passes = []
    batches = take(15, config)
    for start in (0, 5, 10):
        rows = {
            k: np.concatenate([b[k] for b in batches[start : start + 5]])
            for k in known
            if k in batches[0]
        }
        order = identify(rows["image"], known["image"])
        np.testing.assert_array_equal(np.sort(order), np.arange(2 * TRAIN))
        np.testing.assert_array_equal(rows["label"], order >= TRAIN)
        passes.append(order)
    for one, other in itertools.combinations([np.arange(2 * TRAIN), *passes], 2):
        # Two random orders of 80 agree in one place on average.
        assert np.count_nonzero(one == other) < 10
    assert all(0 < batch["label"].sum() < 16 for batch in batches)


def test_a_pass_drops_what_does_not_fill_a_batch(config):
    config.train.batch = 24
    known = in_order(config, "train", REAL, FAKE)["image"]
    batches = take(6, config)
    dropped = []
    for start in (0, 3):
        rows = np.concatenate([b["image"] for b in batches[start : start + 3]])
        order = identify(rows, known)
        assert len(set(order)) == 72
        dropped.append(set(range(80)) - set(order))
    assert dropped[0] != dropped[1]


def test_another_seed_is_another_order(config):
    first = take(1, config)[0]["image"]
    np.testing.assert_array_equal(first, take(1, config)[0]["image"])
    config.seed = 1
    assert not np.array_equal(first, take(1, config)[0]["image"])


def test_flips_about_half_and_the_mask_with_the_image(masked):
    masked.train.batch = 8
    known = in_order(masked, "train", MASKED, mask_size=16)
    masked.data.flip = True
    both = np.concatenate([known["image"], known["image"][:, :, ::-1]])
    masks = np.concatenate([known["mask"], known["mask"][:, :, ::-1]])
    flipped = []
    for batch in take(20, masked, mask_size=16):
        place = identify(batch["image"], both)
        np.testing.assert_array_equal(batch["mask"], masks[place])
        flipped.append(place >= TRAIN)
    flipped = np.stack(flipped).reshape(4, TRAIN)
    # 160 fair coins: four standard deviations are 25.
    assert 55 < flipped.sum() < 105
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(flipped, 2))
    # Evaluation never flips.
    np.testing.assert_array_equal(in_order(masked, "train", MASKED)["image"], known["image"])


def test_what_is_cached_is_not_decoded_again(masked, monkeypatch):
    masked.train.batch, masked.data.flip = 8, True
    passes = 3 * TRAIN // 8
    plain = take(passes, masked, mask_size=16)
    opened: list[str] = []
    read = batches_module.decoded

    def counted(record: dict[str, Any], feature: str) -> Image.Image:
        opened.append(feature)
        return read(record, feature)

    monkeypatch.setattr(batches_module, "decoded", counted)
    masked.data.cache = True
    for one, other in zip(take(passes, masked, mask_size=16), plain, strict=True):
        for name, values in other.items():
            np.testing.assert_array_equal(one[name], values)
    # Three passes; threads that ask for an image before the first has decoded it do so, too.
    assert TRAIN <= opened.count("image") <= 2 * TRAIN


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 3, 7])
def test_hosts_and_restarts_read_the_same_global_batches(masked, hosts, start):
    masked.data.flip = True
    masked.train.batch = 12  # three steps a pass, four images dropped
    whole = take(11, masked, mask_size=16)
    parts = [
        take(4, masked, mask_size=16, start_step=start, process=host, processes=hosts)
        for host in range(hosts)
    ]
    for step in range(4):
        for host, part in enumerate(parts):
            assert part[step].keys() == whole[0].keys() == {"image", "label", "mask"}
            for name, values in part[step].items():
                np.testing.assert_array_equal(values, whole[start + step][name][host::hosts])


def darker(image: np.ndarray, target: np.ndarray | None, rng: np.random.Generator):
    """An augmentation: darker by a random factor, and without the first random rows."""
    rows = int(rng.integers(9))
    kept = None if target is None else target[rows:]
    return (image[rows:] * rng.uniform(0.5, 1)).astype(np.uint8), kept


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_and_restarts_vary_images_alike(config, hosts):
    varied = {"splice": 0.7, "self_blend": 0.3, "augment": darker, "flip": True}
    config.train.batch = 12
    whole = take(11, config, mask_size=16, varied=varied)
    assert whole[0].keys() == {"image", "label", "spliced"}
    start = 7
    for host in range(hosts):
        place = {"process": host, "processes": hosts, "start_step": start}
        for step, batch in enumerate(take(3, config, mask_size=16, varied=varied, **place)):
            for name, values in batch.items():
                np.testing.assert_array_equal(values, whole[start + step][name][host::hosts])
    # An image looks different in another pass.
    images = [image.tobytes() for batch in whole for image in batch["image"]]
    assert len(set(images)) == len(images)
    for batch in whole:
        means = batch["spliced"].mean((1, 2))
        assert (means[batch["label"] == 0] == 0).all() and (means[batch["label"] == 1] > 0).all()
    config.data.cache = True
    for one, other in zip(take(3, config, mask_size=16, varied=varied), whole, strict=False):
        for name, values in other.items():
            np.testing.assert_array_equal(one[name], values)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 2.0), (3.0, 0.5, 0.5)])
def test_subsets_are_drawn_from_as_their_weights_say(config, dolos_folder: Path, weights):
    config.data.real, config.data.fake = (REAL,), (FAKE, MASKED)
    config.train.batch = 8
    source = examples(config, "train", REAL, FAKE, MASKED)
    assert source.sizes == tuple(len(examples(config, "train", n)) for n in (REAL, FAKE, MASKED))
    known = in_order(config, "train", REAL, FAKE, MASKED)["image"]
    varied, count = {"weights": weights}, 24
    whole = take(count, config, varied=varied)
    places = np.concatenate([identify(batch["image"], known) for batch in whole])
    ends = np.cumsum(source.sizes)
    for number, (size, end) in enumerate(zip(source.sizes, ends, strict=True)):
        own = places[(places >= end - size) & (places < end)]
        expected = 8 * count * weights[number] / sum(weights)
        assert len(own) == pytest.approx(expected, abs=2)
        # In every pass each image of a subset is read once.
        times = np.bincount(own - (end - size), minlength=size)
        assert times.max() - times.min() <= 1
    labels = np.concatenate([batch["label"] for batch in whole])
    np.testing.assert_array_equal(labels, places >= source.sizes[0])
    # What comes is not known from what came, as it would be of subsets in turns.
    same = np.mean(labels[1:] == labels[:-1])
    assert 0.2 < same < 0.8
    # From any step on, and for any number of hosts, batches are the same.
    for hosts, start in ((2, 0), (4, 3)):
        for host in range(hosts):
            rows = take(2, config, varied=varied, start_step=start, process=host, processes=hosts)
            for step, batch in enumerate(rows):
                expected = whole[start + step]["image"][host::hosts]
                np.testing.assert_array_equal(batch["image"], expected)


@pytest.mark.usefixtures("flags_parsed")
def test_validation_varies_an_image_always_alike(config):
    varied = {"splice": 1.0}
    config.eval.batch = 8
    source = examples(config, "test", REAL, MASKED)
    runs = []
    for workers in (0, 1):
        config.data.workers = workers
        batches = list(evaluated(source, config, mask_size=16, varied=varied))
        runs.append({name: np.concatenate([b[name] for b in batches]) for name in batches[0]})
    for name, values in runs[0].items():
        np.testing.assert_array_equal(values, runs[1][name])
    at_own_size, size = inputs.Spliced(source), (config.data.image_size,) * 2
    for index in range(len(source)):
        whole = at_own_size[index]
        resized = Image.fromarray(whole["image"]).resize(size, Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(runs[0]["image"][index], np.asarray(resized))
        assert whole["region"].mean() == pytest.approx(runs[0]["spliced"][index].mean(), abs=1e-5)
        assert (whole["label"] == 1) == (0 < whole["region"].mean() < 1)


def test_of_partial_fakes_without_masks_nothing_is_known(masked):
    masked.data.real = (REAL,)
    masked.train.batch = 20
    varied = {"has_masks": False, "self_blend": 0.5, "augment": darker, "flip": True}
    blended = []
    for batch in take(4, masked, mask_size=16, varied=varied):
        assert batch.keys() == {"image", "label", "spliced"}
        targets, labels = batch["spliced"], batch["label"]
        unknown = np.isnan(targets).any((1, 2))
        assert (labels[unknown] == 1).all() and np.isnan(targets[unknown]).all()
        known = targets[~unknown]  # real images, of which some have become fake
        assert ((known.max((1, 2)) > 0) == labels[~unknown]).all()
        blended += labels[~unknown].tolist()
    assert len(blended) == pytest.approx(40, abs=10)
    assert np.mean(blended) == pytest.approx(0.5, abs=0.25)
    whole = next(trained_on(masked, mask_size=16, varied={"has_masks": False}))
    assert (np.isnan(whole["spliced"]).all((1, 2)) == whole["label"]).all()


def test_masks_are_varied_with_their_images(masked):
    def second_half(image: np.ndarray, target: np.ndarray, _: np.random.Generator):
        half = image.shape[1] // 2
        return image[:, half:], target[:, half:]

    source = examples(masked, "train", MASKED)
    batches = evaluated(source, masked, mask_size=16, varied={"augment": second_half})
    rows = next(batches)
    for index, mask in zip(rows["index"], rows["mask"], strict=True):
        full = inputs.full_mask(source[index])
        half = Image.fromarray(full[:, full.shape[1] // 2 :])
        expected = half.resize((16, 16), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(mask, np.asarray(expected))


@pytest.mark.parametrize("label", [0, 1])
def test_places_of_a_label(config, label):
    source = examples(config, "test", REAL, MASKED, REAL)
    expected = [n for n in range(len(source)) if source[n]["label"] == label]
    assert source.places(label).tolist() == expected


@pytest.fixture
def flags_parsed():
    """grain hands absl's flags to its workers."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["pytest"])


@pytest.mark.usefixtures("flags_parsed")
def test_worker_processes_read_the_same_batches(masked):
    masked.data.flip = True
    alone = take(5, masked, mask_size=16, start_step=1)
    alone_in_order = in_order(masked, "test", MASKED)
    masked.data.workers = 2
    batches = trained_on(masked, mask_size=16, start_step=1)
    for batch in alone:
        from_worker = next(batches)
        for name, values in batch.items():
            np.testing.assert_array_equal(from_worker[name], values)
    del batches
    for name, values in in_order(masked, "test", MASKED).items():
        np.testing.assert_array_equal(values, alone_in_order[name])


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("batch", [4, 8, 12, 32])
def test_evaluation_takes_every_example_once(config, hosts, batch):
    config.eval.batch = batch
    source = examples(config, "test", REAL, MASKED)
    assert len(source) == 19
    parts = [list(evaluated(source, config, process=p, processes=hosts)) for p in range(hosts)]
    counts = {len(part) for part in parts}
    assert counts == {-(-19 // batch)}
    rows = [b for part in parts for b in part]
    for b in rows:
        assert {k: v.shape[0] for k, v in b.items()} == dict.fromkeys(b, batch // hosts)
        assert b["weight"].dtype == np.float32 and b["index"].dtype == np.int32
    weight = np.concatenate([b["weight"] for b in rows])
    index = np.concatenate([b["index"] for b in rows])
    labels = np.concatenate([b["label"] for b in rows])
    assert set(weight) <= {0, 1}
    np.testing.assert_array_equal(np.sort(index[weight == 1]), np.arange(19))
    np.testing.assert_array_equal(labels, index >= 8)
    # In order: batch k of all hosts holds images k·batch and following.
    for k in range(counts.pop()):
        merged = np.stack([part[k]["index"] for part in parts], axis=1).ravel()
        np.testing.assert_array_equal(merged, np.minimum(np.arange(batch) + k * batch, 18))


def test_some_examples_of_a_split(config):
    config.eval.batch = 4
    source = examples(config, "test", MASKED)
    places = [9, 2, 3, 10, 8, 2]
    first, second = evaluated(source, config, mask_size=5, places=places)
    index = np.concatenate([first["index"], second["index"]])
    assert index.tolist() == [*places, 2, 2]
    assert [*first["weight"], *second["weight"]] == [1] * 6 + [0] * 2
    every = in_order(config, "test", MASKED, mask_size=5)
    for name in ("image", "label", "mask"):
        rows = np.concatenate([first[name], second[name]])
        np.testing.assert_array_equal(rows, every[name][index])


@pytest.mark.usefixtures("flags_parsed")
@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_perturbed_at_their_own_size(config, dolos_folder: Path, workers):
    config.data.workers = workers
    config.eval.batch = 8
    perturbation = Perturbation("noise", 12.0)  # which goes by the image's place
    source = examples(config, "test", REAL, MASKED)
    batches = list(evaluated(source, config, perturb=perturbation))
    got = np.concatenate([b["image"] for b in batches])[:19]
    folders = ("celebahq/real/test", "celebahq/fake/repaint-p2/images/test")
    files = [path for folder in folders for path in sorted((dolos_folder / folder).iterdir())]
    assert len(files) == 19
    size = (config.data.image_size,) * 2
    resample = getattr(Image.Resampling, config.data.resize.upper())
    for place, (image, path) in enumerate(zip(got, files, strict=True)):
        with Image.open(path) as file:
            pixels = perturbation(np.asarray(file.convert("RGB")), place)
        np.testing.assert_array_equal(image, Image.fromarray(pixels).resize(size, resample))


@pytest.mark.parametrize("size", [4, 9, 19, 37])
@pytest.mark.parametrize(
    ("name", "resample"),
    [("nearest", Image.Resampling.NEAREST), ("bilinear", Image.Resampling.BILINEAR)],
)
def test_mask_targets(masked, dolos_folder: Path, name, resample, size):
    masked.data.mask_resize = name
    targets = in_order(masked, "train", MASKED, mask_size=size)["mask"]
    assert targets.shape == (TRAIN, size, size)
    assert np.issubdtype(targets.dtype, np.integer)
    folder = dolos_folder / "celebahq/fake/repaint-p2/masks/train"
    for path, target in zip(sorted(folder.iterdir()), targets, strict=True):
        disk = Image.open(path).convert("L").resize((size, size), resample)
        np.testing.assert_array_equal(target, np.asarray(disk) / 255 < 0.5)
    # The files' ellipses are black and never reach the corners.
    assert targets.any((1, 2)).mean() > 0.5
    assert not targets[:, [0, 0, -1, -1], [0, -1, 0, -1]].any()


def one_line(error: BaseException) -> str:
    message = str(error)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("dolos/celebahq_nobody", ["celebahq_nobody", "celebahq_real", "ffhq_p2"]),
        ("nothing/real", ["nothing", "dolos", "portraits"]),
        ("dolos", ["''", "celebahq_real"]),
    ],
)
def test_unknown_subset(config, name, names):
    config.data.test_fake = name
    for attempt in (
        lambda: examples(config, "train", REAL, name),
        lambda: inputs.prepare(config),
    ):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert all(part in one_line(caught.value) for part in names)


def test_unprepared_subset(config):
    with pytest.raises(ConfigError) as caught:
        examples(config, "test", REAL, "dolos/celebahq_lama")
    message = one_line(caught.value)
    assert "dolos/celebahq_lama" in message and config.data.dir in message
    assert "python -m wsdl_data.build dolos --config celebahq_lama" in message


def test_missing_split(config):
    with pytest.raises(ConfigError, match="dolos/celebahq_p2 has no split 'test', only train"):
        examples(config, "test", FAKE)


def test_fewer_examples_than_a_batch(config):
    config.train.batch = 88
    with pytest.raises(ConfigError, match=r"train\.batch = 88, but there are 80 training images"):
        take(1, config)


def test_prepare_builds_what_is_missing(config, dolos_folder: Path, tmp_path: Path):
    config.data.dir, config.data.manual_dir = str(tmp_path), str(dolos_folder)
    inputs.prepare(config)
    subsets = {path.name for path in (tmp_path / "dolos").glob("[!.]*")}
    assert subsets == {"celebahq_real", "celebahq_p2", "celebahq_repaint_p2"}
    assert len(examples(config, "train", REAL, FAKE)) == 2 * TRAIN
    config.data.manual_dir = str(tmp_path / "nowhere")
    inputs.prepare(config)  # all there: nothing is built again
    config.data.dir = str(tmp_path / "other")
    with pytest.raises(BuildError, match="nowhere"):
        inputs.prepare(config)


@pytest.mark.parametrize("feature", ["image", "mask"])
def test_broken_image_names_its_source(masked, monkeypatch, feature):
    read = inputs.Examples.__getitem__

    def truncated(self, index):
        record = read(self, index)
        if record["key"] == b"00003.png":
            record[feature] = record[feature][: len(record[feature]) // 2]
        return record

    monkeypatch.setattr(inputs.Examples, "__getitem__", truncated)
    with pytest.raises(UserError) as caught:
        take(5, masked, mask_size=16)
    assert re.match(rf"the {feature} of 00003\.png cannot be read: ", one_line(caught.value))
    with pytest.raises(UserError, match=r"00003\.png"):
        in_order(masked, "test", MASKED, mask_size=16)
    monkeypatch.setattr(
        inputs.Examples, "__getitem__", lambda self, i: {**read(self, i), feature: b"no image"}
    )
    with pytest.raises(UserError, match=f"the {feature} of 000"):
        take(1, masked, mask_size=16)


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(255 - b for b in content[middle : middle + 64])
        + content[middle + 64 :]
    )


@pytest.mark.parametrize("damage", [truncate, flip])
def test_damaged_records_name_their_folder(config, tmp_path: Path, damage):
    subset = tmp_path / "dolos/celebahq_repaint_p2"
    shutil.copytree(Path(config.data.dir) / "dolos/celebahq_repaint_p2", subset)
    (path,) = subset.glob("1.1.0/*-train.array_record*")
    path.write_bytes(damage(path.read_bytes()))
    config.data.dir = str(tmp_path)
    with pytest.raises(UserError) as caught:
        in_order(config, "train", MASKED)
    message = one_line(caught.value)
    assert message.startswith(f"{subset}/1.1.0 is damaged (")
    assert message.endswith("; delete this folder and build again")


@pytest.mark.parametrize("root", ["gs://bucket/data", "s3://bucket/data"])
def test_a_bucket_is_no_place_for_array_records(root: str):
    with pytest.raises(ConfigError, match=f"^{root} is not on a disk"):
        inputs.Examples(("portraits/real",), "test", root)
