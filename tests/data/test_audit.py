"""The audit: its rule against formulas, what it finds of planted leaks, and the command.

Numbers are compared with scikit-learn, Pillow, loops over all pairs and the README's table.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import planted_leaks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from planted_leaks import Entry, Set
from scipy import stats
from sklearn.metrics import roc_auc_score

from wsdl_data import build
from wsdl_data.audit import auc, findings, likeness, masks, report, seen, traces
from wsdl_data.audit.__main__ import main
from wsdl_data.audit.images import Source, sampled

README = (Path(__file__).parents[2] / "data/audit/README.md").read_text()


# ----- The rule -----------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 5)), min_size=2).filter(
        lambda rows: len({row[1] for row in rows}) == 2
    )
)
def test_the_deviation_is_obuchowskis(rows: list[tuple[int, bool, int]]) -> None:
    scores, fake, groups = (np.array(column) for column in zip(*rows, strict=True))
    value, deviation = auc.clustered_deviation(scores.astype(float), fake, groups)
    assert value == pytest.approx(roc_auc_score(fake, scores))
    # The paper's sums, image by image.
    wins = (scores[fake][:, None] > scores[~fake]) + 0.5 * (scores[fake][:, None] == scores[~fake])
    ten, one = np.zeros(6), np.zeros(6)
    for group, share in zip(groups[fake], wins.mean(1), strict=True):
        ten[group] += share - value
    for group, share in zip(groups[~fake], wins.mean(0), strict=True):
        one[group] += share - value
    n_ten, n_one, n = (len(set(of)) for of in (groups[fake], groups[~fake], groups))
    m, k = fake.sum(), (~fake).sum()
    variance = 0.0
    if n_ten > 1:
        variance += n_ten / ((n_ten - 1) * m) * (ten**2).sum() / m
    if n_one > 1:
        variance += n_one / ((n_one - 1) * k) * (one**2).sum() / k
    if n > 1:
        variance += 2 * n / (n - 1) * (ten * one).sum() / (m * k)
    assert deviation == pytest.approx(np.sqrt(max(variance, 0)), abs=1e-7)


def test_of_single_images_it_is_delongs() -> None:
    rng = np.random.default_rng(0)
    fake, reals = rng.normal(1, 1, 40), rng.normal(0, 1, 60)
    scores, labels = np.concatenate([fake, reals]), np.arange(100) < 40
    _, deviation = auc.clustered_deviation(scores, labels, np.arange(100))
    wins = fake[:, None] > reals
    expected = wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 60
    assert deviation == pytest.approx(np.sqrt(expected), rel=0.02)  # their covariance is of chance


@given(st.floats(0, 1), st.integers(2, 500), st.integers(2, 500), st.floats(1, 4))
def test_newcombes_bounds_solve_his_equation(
    value: float, reals: int, fakes: int, normal: float
) -> None:
    low, high = auc.newcombe(value, reals, fakes, normal)
    assert 0 <= low <= value <= high <= 1
    for bound in (low, high):
        if 1e-6 < bound < 1 - 1e-6:
            odds = (1 - bound) / (2 - bound) + bound / (1 + bound)
            variance = bound * (1 - bound) * (1 + ((reals + fakes) / 2 - 1) * odds)
            apart = normal * np.sqrt(variance / (reals * fakes))
            assert abs(value - bound) == pytest.approx(apart, abs=1e-5)


def test_the_table_of_the_readme_is_newcombes() -> None:
    cells = re.search(r"\| groups of each kind (\|.*)\n.*\n\| AUC (\|.*)", README)
    counts = [int(cell.replace(",", "")) for cell in cells[1].strip("| ").split("|")]
    said = [cell.strip() for cell in cells[2].strip("| ").split("|")]
    normal = stats.norm.isf(findings.BOUND)
    assert f"a normal quantile of {normal:.2f}" in README
    assert f"1% divided by {len(findings.PROBE_NAMES)}" in README
    for count, cell in zip(counts, said, strict=True):
        if cell == "–":
            assert auc.newcombe(1.0, count, count, normal)[0] <= findings.LEVEL
            continue
        value = float(cell)
        assert auc.newcombe(min(1, value + 0.006), count, count, normal)[0] > findings.LEVEL
        assert auc.newcombe(value - 0.006, count, count, normal)[0] < findings.LEVEL


def test_bounds_are_the_wider_ones() -> None:
    labels, groups = np.repeat([0, 1], 20), np.tile(np.arange(20), 2)
    perfect = auc.estimate(labels.astype(float), labels, groups, 0.001)
    normal = float(stats.norm.isf(0.001))
    assert perfect.value == 1 and perfect.upper == 1
    assert perfect.lower == pytest.approx(auc.newcombe(1.0, 20, 20, normal)[0])
    # Ten copies of each image are no more images.
    many = [np.repeat(of, 10) for of in (labels, groups)]
    assert auc.estimate(many[0].astype(float), *many, 0.001).lower == pytest.approx(perfect.lower)


def test_what_is_learned_of_a_group_does_not_count() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 6)
    labels = np.repeat(rng.integers(0, 2, 60), 6)  # the number of a group tells its label
    columns = np.stack([rng.permutation(60)[groups].astype(float)] * 2, 1)
    alone = auc.out_of_fold(columns, labels, np.arange(360))
    together = auc.out_of_fold(columns, labels, groups)
    assert roc_auc_score(labels, alone) > 0.95
    assert roc_auc_score(labels, together) < 0.65


# ----- What is seen -------------------------------------------------------------------------------


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    scenes = [planted_leaks.scene(rng, 80, 72) for _ in range(count)]
    return [Image.fromarray(planted_leaks.photographed(rng, s.light, s.noise)) for s in scenes]


def saved_again(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.resize((60, 54), Image.Resampling.LANCZOS).save(stream, "JPEG", quality=70)
    return Image.open(stream).convert("RGB")


def pairs_of(images: Iterable[Image.Image]) -> set[tuple[int, int]]:
    small = [likeness.thumbnail(image) for image in images]
    hashes = np.array([likeness.perceptual_hash(one) for one in small], np.uint64)
    found = likeness.near_duplicates(hashes, np.stack(small), ["train"] * len(small))
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True))


def test_photographs_that_are_saved_again_are_near_duplicates() -> None:
    images = pictures(300)
    flat = [Image.new("RGB", (40, 40), colour) for colour in ("red", "red", "blue")]
    again = [saved_again(image) for image in images[:40]]
    expected = {(number, 303 + number) for number in range(40)}
    assert pairs_of([*images, *flat, *again]) == expected


def drifting(count: int) -> np.ndarray:
    """Thumbnails of which neighbours are alike, and the first and the last are not."""
    one, other = (np.asarray(image.resize((32, 32)), float) for image in pictures(2))
    shares = np.linspace(0, 0.6, count)[:, None, None, None]
    return planted_leaks.as_bytes((1 - shares) * one + shares * other)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 3, 0xFF, 0x1FF, 0xFFFFFF, 1 << 62]),
            st.integers(0, 9),
            st.sampled_from(["train", "valid", "test"]),
        ),
        min_size=1,
        max_size=24,
    )
)
@settings(deadline=None)
def test_pairs_are_as_many_as_all_pairs_need(images: list[tuple[int, int, str]]) -> None:
    hashes, places, splits = (list(column) for column in zip(*images, strict=True))
    small = drifting(10)[places]
    found = likeness.near_duplicates(np.array(hashes, np.uint64), small, splits)
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    levels = small.astype(float) - small.mean((1, 2), keepdims=True)
    alike = np.corrcoef(levels.reshape(len(small), -1)) >= 0.98
    expected = {
        (i, j)
        for i, one in enumerate(hashes)
        for j, other in enumerate(hashes)
        if i < j and (one ^ other).bit_count() <= 8 and alike[i, j]
    }
    assert pairs <= expected

    def elsewhere(of: set[tuple[int, int]]) -> set[int]:
        return {place for pair in of if len({splits[i] for i in pair}) == 2 for place in pair}

    assert elsewhere(pairs) == elsewhere(expected)
    names = [str(number) for number in range(len(hashes))]
    every = np.array(sorted(expected), np.int64).reshape(-1, 2)
    joined = likeness.joined(names, found), likeness.joined(names, likeness.Pairs(*every.T))
    assert np.array_equal(*joined)


@pytest.mark.parametrize("splits", [["train"], ["train", "test"]])
def test_copies_are_not_all_compared(splits: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand images that are nearly the same have 499,500 pairs."""
    rng, compared, compare = np.random.default_rng(0), [], likeness._alike
    image = np.asarray(pictures(1)[0].resize((32, 32)), np.int64)
    small = planted_leaks.as_bytes(image + rng.integers(-3, 4, (1000, 32, 32, 3)))
    flat = np.full((1000, 32, 32, 3), 90, np.uint8)  # their hashes are the same as well
    monkeypatch.setattr(
        likeness, "_alike", lambda one, other: compared.append(len(one)) or compare(one, other)
    )
    hashes = np.repeat(np.array([5, 9], np.uint64), 1000)
    where = np.resize(splits, 2000).tolist()
    found = likeness.near_duplicates(hashes, np.concatenate([small, flat]), where)
    joined = likeness.joined([str(number) for number in range(2000)], found)
    assert len(set(joined[:1000])) == 1 and len(set(joined)) == 1001
    if len(splits) == 2:
        across = np.array(where)[found.first] != np.array(where)[found.second]
        twice = np.concatenate([found.first[across], found.second[across]])
        assert set(twice.tolist()) == set(range(1000))
    assert sum(compared) < 10_000 and max(compared) <= likeness._AT_ONCE


def test_the_place_of_masks_is_the_mean_auc_of_the_others_mean() -> None:
    rng = np.random.default_rng(0)
    coverages = np.stack(
        [masks.seen(planted_leaks.region(rng, 64, 64)).coverage for _ in range(30)]
    )
    groups = np.repeat(np.arange(15), 2)
    found = masks.place_known(coverages, groups, 0.01)
    from sklearn.model_selection import GroupKFold

    values = np.empty(30)
    for known, held in GroupKFold(5).split(coverages, groups=groups):
        mean = coverages[known].astype(float).mean(0).ravel()
        for index in held:
            inside = coverages[index].ravel() >= coverages[index].max() / 2
            values[index] = roc_auc_score(inside, mean)
    means = values.reshape(15, 2).mean(1)
    assert found.value == pytest.approx(means.mean())
    half = stats.t(14).isf(0.01) * stats.sem(means)
    assert (found.lower, found.upper) == pytest.approx((means.mean() - half, means.mean() + half))


def looked(image: Image.Image, probe: str, **options: object) -> traces.Traces:
    stream = io.BytesIO()
    image.save(stream, **options)
    encoded = stream.getvalue()
    opened = Image.open(io.BytesIO(encoded))
    opened.load()
    file = traces.File(encoded, opened, opened.convert("RGB"))
    return next(one for one in traces.PROBES if one.name == probe).look(file)


def test_jpeg_is_seen_after_it_is_gone_where_pixels_stay_in_place() -> None:
    image = pictures(1)[0]
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=75)
    once = Image.open(stream).convert("RGB")

    def gone(of: Image.Image) -> float:
        return looked(of, "compressed before", format="PNG").numbers["middle waves gone"]

    assert gone(once) > 0.3
    for other in (image, once.crop((3, 3, 80, 72)), once.resize((70, 60))):
        assert gone(other) == 0
    assert gone(Image.new("RGB", (80, 72), "red")) == gone(once.crop((0, 0, 16, 72))) == 0
    assert looked(image, "compressed before", format="JPEG") == traces.Traces()


def test_traces_of_files() -> None:
    image = pictures(1)[0]
    progressive = looked(image, "coding", format="JPEG", progressive=True, subsampling=1)
    assert {"progressive", "colours 4:2:2"} < progressive.marks
    assert "zlib level 0 of 3" in looked(image, "coding", format="PNG", compress_level=1).marks
    tables = looked(image, "quantization", format="JPEG", qtables=[planted_leaks.LUMA] * 2).numbers
    assert tables["mean of table 0"] == np.mean(planted_leaks.LUMA)
    assert looked(image, "quantization", format="PNG") == traces.Traces()
    note = looked(image, "metadata", format="PNG", pnginfo=planted_leaks.text("gen")).marks
    assert note == {"text Software", "text Software 'gen'", "chunk tEXt"}
    camera = looked(image, "metadata", format="JPEG", exif=planted_leaks.exif())
    assert "EXIF Make 'Maker'" in camera.marks and camera.numbers["EXIF tags"] == 2
    assert "sides are multiples of 8" in looked(image, "size", format="PNG").marks
    assert looked(image.convert("L"), "contrast", format="PNG").marks == {"grey"}
    assert looked(image, "format", format="WEBP", lossless=True).marks >= {"WEBP", "WebP VP8L"}
    framed = Image.fromarray(planted_leaks.framed(np.asarray(image)))
    border = looked(framed, "border", format="PNG").numbers
    assert border["border at the top"] == 4 / 72 and border["border at the left"] == 0


# ----- Planted leaks ------------------------------------------------------------------------------


def leaks(entries: list[Entry]) -> list[str]:
    found = findings.audit(Set(entries))
    assert not found.is_undecided
    return [leak.name for leak in found.leaks]


def test_several_leaks_at_once_and_nothing_else() -> None:
    entries = planted_leaks.saved(
        {"format": "PNG", "exif": planted_leaks.exif()}, {"format": "PNG"}
    )
    fakes = planted_leaks.of(entries, 1)
    planted_leaks.mixed_up(fakes[:100])
    planted_leaks.empty(fakes[100:])
    reals = planted_leaks.of(entries, 0)
    fakes[1].pixels, fakes[2].pixels = reals[1].pixels, reals[2].pixels
    assert leaks(entries) == [
        "metadata",
        "masks of another image",
        "fakes that are a real image",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("leak", planted_leaks.LEAKS, ids=lambda leak: leak[0])
def test_a_planted_leak_is_found(leak: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the probe that is meant, whose bound is as wide as with all others beside it."""
    _, meant, make = leak
    probes = tuple(probe for probe in traces.PROBES if probe.name == meant)
    monkeypatch.setattr(findings, "PROBES", probes)
    monkeypatch.setattr(seen, "PROBES", probes)
    assert meant in leaks(make())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "seed"), [(recipe, 11 + n % 2) for n, recipe in enumerate(planted_leaks.CLEAN)]
)
def test_a_clean_set_is_not_accused(recipe: str, seed: int) -> None:
    assert leaks(planted_leaks.CLEAN[recipe](seed)) == []


def test_few_images_tell_nothing() -> None:
    entries = planted_leaks.clean(1)
    for count, has_auc in ((8, False), (60, True)):
        found = findings.audit(Set(entries[: 2 * count]))
        assert found.is_undecided and not found.leaks
        assert {probe.verdict for probe in found.probes} == {findings.TOO_FEW}
        assert all((probe.auc is not None) == has_auc for probe in found.probes)
        assert report.verdict(found).startswith("too few images to tell: 100 groups of each kind")


def test_a_sample_is_of_whole_groups() -> None:
    images = Set(planted_leaks.clean(1, fakes=2))
    chosen, counts = sampled(images, 50)
    chosen = list(chosen)
    assert counts == {0: 120, 1: 240}
    labels = [one.label for one in chosen]
    assert labels.count(0) == 50 and labels.count(1) == 50
    fakes = {one.group for one in chosen if one.label}
    assert len(fakes) == 25 and fakes <= {one.group for one in chosen if not one.label}
    assert [one.name for one in sampled(images, 50)[0]] == [one.name for one in chosen]
    assert len(list(sampled(images, 0)[0])) == 360


@pytest.fixture
def without_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes time and is not what is tested."""
    monkeypatch.setattr(findings, "PROBES", ())
    monkeypatch.setattr(seen, "PROBES", ())


def with_doubles(share: float) -> Set:
    """1,200 images of a kind, of which a share is there twice, under other names.

    Test images are training images as well, and fakes are real images.
    """
    rng, made = np.random.default_rng(0), []
    for label in (0, 1):
        for number in range(1200):
            noise = rng.integers(0, 256, (6, 6, 3), np.uint8)
            pixels = Image.fromarray(noise).resize((32, 32), Image.Resampling.BICUBIC)
            split = "train" if number % 2 else "test"
            made.append(Entry(label, split, f"{label}, {number}", np.asarray(pixels), None))
    reals, fakes = planted_leaks.of(made, 0), planted_leaks.of(made, 1)
    for number in range(0, int(1200 * share), 2):
        for entries in (reals, fakes):
            entries[number].pixels = entries[number + 1].pixels
    for number in range(1, int(1200 * share) + 1):
        fakes[-number].pixels = reals[-number].pixels
    return Set(made)


def counts_of_pairs(share: float, limit: int) -> list[findings.Counted]:
    found = findings.audit(with_doubles(share), limit)
    assert [fault.name for fault in found.faults] == [
        "images that are in two splits",
        "fakes that are a real image",
    ]
    assert found.is_undecided == any(one.verdict == findings.TOO_FEW for one in found.faults)
    assert any(note.startswith("a sample") for note in found.notes) == bool(limit)
    if found.is_undecided and not found.leaks:
        said = report.verdict(found)
        assert said.startswith("too few images to tell: ") and said.endswith("0 looks at all")
    return list(found.faults)


@pytest.mark.usefixtures("without_probes")
def test_a_sample_does_not_acquit() -> None:
    for fault in counts_of_pairs(0.2, 120):  # a tenth, in which a fiftieth is found
        assert fault.of >= 100 and 2 <= fault.found < 0.04 * fault.of
        assert fault.estimated == pytest.approx(10 * fault.found)
        assert fault.verdict == findings.LEAK
    for fault in counts_of_pairs(0.2, 60):  # a twentieth, in which one is found at most
        assert fault.found < 2 and fault.verdict == findings.TOO_FEW
    for fault in counts_of_pairs(0.03, 300):  # what is found is less than 1%, but not its estimate
        assert (
            2 <= fault.found < 0.01 * fault.of < fault.estimated == pytest.approx(4 * fault.found)
        )
        assert fault.verdict == findings.LEAK
    assert [fault.verdict for fault in counts_of_pairs(0, 120)] == [findings.TOO_FEW] * 2
    for fault in counts_of_pairs(0.2, 0):
        assert (fault.found, fault.estimated, fault.of) == (240, 240, 1200)
        assert fault.verdict == findings.LEAK


@pytest.mark.usefixtures("without_probes")
def test_what_is_of_one_group_is_in_a_sample_together() -> None:
    entries = planted_leaks.of(planted_leaks.clean(1), 0)
    fakes = [dataclasses.replace(entry, label=1) for entry in entries]
    (fault,) = [
        one
        for one in findings.audit(Set([*entries, *fakes]), 60).faults
        if one.name == "fakes that are a real image"
    ]
    assert (fault.found, fault.of, fault.estimated) == (60, 60, 60)


# ----- The command --------------------------------------------------------------------------------


def written(entries: list[Entry], root: Path) -> Path:
    """A folder of real/, fake/ and masks/ by the names of groups, and a manifest of the same."""
    rows = []
    for entry in entries:
        kind = ("real", "fake")[entry.label]
        ending = {"PNG": "png", "JPEG": "jpg"}[entry.saved["format"]]
        row = {"image": f"{kind}/{entry.group}.{ending}", "label": kind, "group": entry.group}
        row["split"] = entry.split
        path = root / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(planted_leaks.stored(entry).encoded)
        if entry.mask is not None:
            row["mask"] = f"masks/{entry.group}.png"
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(entry.mask).save(root / row["mask"])
        rows.append(row)
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "label", "mask", "group", "split", "kind"])
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real JPEG files and fake PNG files, with masks. To be read only."""
    root = tmp_path_factory.mktemp("source")
    written(planted_leaks.saved(planted_leaks.jpeg(), planted_leaks.PNG), root)
    (root / "list.csv").rename(root.with_suffix(".csv"))
    return root


@pytest.fixture(scope="module")
def prepared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with image_folder/mine of it."""
    root = tmp_path_factory.mktemp("prepared")
    source = ["--images", str(folder), "--manipulated", "white", "--data_dir", str(root)]
    assert build.main(["image_folder/mine", *source]) == 0
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_prepared_and_not_yet_prepared_say_the_same(
    folder: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = ["--out", str(tmp_path / "out")], ["--data_dir", str(prepared)]
    assert main(["image_folder/mine", *data, *out]) == 3
    first, (text, error) = contents(tmp_path / "out"), capsys.readouterr()
    assert error == "" and text.splitlines()[-1].startswith("leak: format, coding, quantization")
    found = json.loads(first["audit.json"])
    assert found["images"] == found["groups"] == {"real": 120, "fake": 120}
    assert first["audit.md"].decode().strip() in text
    assert Image.open(io.BytesIO(first["audit.png"])).size[0] > 600
    by_name = {probe["name"]: probe for probe in found["probes"]}
    assert list(by_name) == list(findings.PROBE_NAMES)
    assert by_name["format"]["saw"] in (
        "JPEG: real 100%, fake 0%",
        "PNG: real 0%, fake 100%",
        "8 bits: real 0%, fake 100%",
    )
    # The files are kept as they were, so that the source says the same, in the same folder.
    source = ["--images", str(folder), "--manipulated", "white"]
    assert main(["image_folder/mine", *source, *out]) == 3
    assert contents(tmp_path / "out") == first


@pytest.mark.usefixtures("without_probes")
def test_prepared_images_are_grouped_as_they_were_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "source"
    for entry in planted_leaks.clean(1):
        kind = ("real", "fake")[entry.label]
        path = root / kind / f"{int(entry.group) // 2:02d}-{kind}{entry.group}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(planted_leaks.stored(entry).encoded)
    data = ["--data_dir", str(tmp_path / "data")]
    given = ["--images", str(root), "--group", "^(?:.*/)?([0-9]+)-"]
    assert build.main(["image_folder/mine", *given, *data]) == 0
    capsys.readouterr()

    def said(*words: str) -> tuple[str, str]:
        main(["image_folder/mine", *words])
        text, _ = capsys.readouterr()
        return text.splitlines()[0], next(x for x in text.splitlines() if "groups are told" in x)

    first, note = said(*data)
    assert "120 real images of 60 groups and 120 fake images of 60 groups" in first
    assert note == "note: groups are told by --group '^(?:.*/)?([0-9]+)-'"
    assert said(*given) == (first, note)
    first, note = said(*data, "--group", "[0-9]+-real|[0-9]+-fake")
    assert note == "note: groups are told by --group '[0-9]+-real|[0-9]+-fake'"
    # An expression that finds nothing is one line, of what is prepared and of a source.
    for more in (data, given[:2]):
        told = fails(capsys, "image_folder/mine", *more, "--group", r"zzz(\d+)")
        assert "names no group of " in told and "zzz" in told
    kept = next(tmp_path.glob("data/image_folder/mine_fake/*/sources.sqlite"))
    kept.write_bytes(b"damaged")
    assert f"{kept} is damaged (" in fails(capsys, "image_folder/mine", *data)


@pytest.mark.usefixtures("without_probes")
def test_any_name_fits_into_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = planted_leaks.clean(1)
    root = written(entries, tmp_path / "source")
    (root / "list.csv").unlink()
    names = [os.fsdecode(b"caf\xe9.png"), "a|b.png", "two\nlines.png"]
    reals = sorted((root / "real").iterdir())
    for number, name in enumerate(names):
        (root / f"fake/{name}").write_bytes(reals[number].read_bytes())
        (root / f"masks/{name}").write_bytes((root / f"masks/{number:03d}.png").read_bytes())
    out, source = tmp_path / "out", ["--images", str(root), "--manipulated", "white"]
    assert main(["image_folder/mine", *source, "--out", str(out)]) == 3
    (row,) = [
        line for line in (out / "audit.md").read_text().splitlines() if line.startswith("| fakes")
    ]
    assert "caf\ufffd.png" in row and r"a\|b.png" in row and r"two\nlines.png'" in row
    assert len(re.split(r"(?<!\\)\|", row)) == 7
    found = json.loads((out / "audit.json").read_text())
    assert [f["examples"] for f in found["faults"] if f["name"] == "fakes that are a real image"]


def test_a_folder_of_something_else_is_left(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own").write_text("mine")
    assert main(["image_folder/mine", "--data_dir", str(prepared), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is there and is no audit")
    assert contents(tmp_path) == {"own": b"mine"}


def test_a_manifest_says_groups_and_whole_fakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = written(planted_leaks.masks(planted_leaks.full), tmp_path / "source")
    path = root / "list.csv"
    rows = path.read_text().splitlines()
    whole = [f"masks/{number:03d}.png" for number in range(0, 120, 20)]
    changed = [row + "full" if any(mask in row for mask in whole) else row for row in rows]
    source = ["--images", str(path), "--manipulated", "white", "--limit", "110"]
    assert main(["manifest/mine", *source]) == 3
    assert "leak: masks that are full: name whole fakes" in capsys.readouterr().out
    path.write_text("\n".join(changed) + "\n")
    assert main(["manifest/mine", *source]) == 1
    text, error = capsys.readouterr()
    assert "images that are in two splits, fakes that are a real image: a sample may" in error
    assert "110 real images of 110 groups and 110 fake images of 110 groups" in text
    assert "note: a sample was looked at, 110 of 120 real and 110 of 120 fake" in text
    assert main(["manifest/mine", *source[:-1], "0"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == "no leak found"


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line in which the command says what is wrong."""
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_what_is_wrong_is_said_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    listed = ["manifest/mine", "--images", str(tmp_path / "list.csv"), "--manipulated"]
    listed += ["white", "--root", str(source)]
    os.symlink(folder, source)
    rows = folder.with_suffix(".csv").read_text().splitlines()
    (tmp_path / "list.csv").write_text("\n".join([rows[0], *rows[1::2]]))
    assert "no row has a mask" in fails(capsys, *listed)
    alone = [*listed[:-4], "--manipulated", "none", "--root", str(source)]
    assert "there are no fake images" in fails(capsys, *alone)
    # Whole files are read; a fault names the file.
    broken = tmp_path / "broken"
    written(planted_leaks.clean(3)[:24], broken)
    image = broken / "fake/003.png"
    image.write_bytes(image.read_bytes()[:-40])
    by_list = ["manifest/mine", "--images", str(broken / "list.csv"), "--manipulated", "white"]
    assert str(image) in fails(capsys, *by_list)
    image.write_bytes((broken / "fake/004.png").read_bytes())
    Image.new("L", (9, 9)).save(broken / "masks/003.png")
    assert f"{image}: its mask is 9x9, the image 72x64" in fails(capsys, *by_list)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name a dataset, or two subsets"),
        (["image_folder/none"], "image_folder/none_real is not prepared"),
        (["--real", "portraits/real"], "name a dataset, or two subsets"),
        (["--real", "portraits/ral", "--fake", "portraits/real"], "ral"),
        (["portraits"], "is not image_folder/NAME or manifest/NAME"),
        (["image_folder/mine", "--manipulated", "white"], "go with --images"),
        (["image_folder/mine", "--images", "x", "--manipulated", "red"], "'red': choose white"),
        (["image_folder/mine", "--images", "x", "--layout", "tgif"], "go with manifest/NAME"),
        (["manifest/mine", "--images", "x", "--layout", "none"], "no layout 'none'"),
        (["image_folder/mine", "--limit", "-3"], "is no number of images"),
        (["image_folder/mine", "--group", "("], "is no regular expression"),
    ],
)
def test_command_lines_that_are_wrong(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--data_dir", str(tmp_path)])
    out, err = capsys.readouterr()
    assert out == "" and told in err.splitlines()[-1]


def test_subsets_of_the_other_kind_are_refused(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = ["--real", "image_folder/mine_fake", "--fake", "image_folder/mine_real"]
    with pytest.raises(SystemExit, match="2"):
        main([*swapped, "--data_dir", str(prepared)])
    assert "mine_fake holds fake images, where real ones" in capsys.readouterr().err


def test_a_source_has_the_files_that_were_given(tmp_path: Path) -> None:
    """A WebP file is kept as PNG when it is built, so that only its source says what it was."""
    for kind in ("real", "fake"):
        (tmp_path / kind).mkdir()
        for number, image in enumerate(pictures(40, len(kind))):
            image.save(tmp_path / kind / f"{number:02d}.webp", quality=80)
    source = Source.of("image_folder/mine", str(tmp_path), None, None)
    encoded = [listed.read().encoded for listed in source]
    assert len(encoded) == 80 and all(one[8:12] == b"WEBP" for one in encoded)
