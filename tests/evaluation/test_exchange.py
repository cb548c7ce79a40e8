"""Original pixels put back: of a manifest whose fakes were changed outside their masks as well."""

import csv
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from PIL import Image

from wsdl_data import build
from wsdl_data.portraits import samples
from wsdl_jax import inputs
from wsdl_jax.configuration import ConfigError
from wsdl_jax.evaluation import exchange, exchanged
from wsdl_jax.evaluation.exchange import Exchanged, Pair

NAMES = {"fake": "manifest/exchange_fake", "real": "manifest/exchange_real"}


@pytest.fixture(scope="module")
def tested(
    evaluated: epath.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[epath.Path, str]:
    """A run, and the folder of a prepared manifest with fakes of each sort.

    The first has another brightness than its original everywhere, the second only inside; one is
    manipulated as a whole, and one has nothing in common with the real image of its group.
    """
    root = tmp_path_factory.mktemp("exchange")
    rng = np.random.default_rng(0)
    rows = []

    def add(name: str, group: str, pixels: np.ndarray, mask: np.ndarray | None = None) -> None:
        Image.fromarray(pixels).save(root / f"{name}.png")
        row = {"image": f"{name}.png", "label": "real", "mask": "", "group": group}
        if mask is not None:
            Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(root / f"{name}_mask.png")
            row |= {"label": "fake", "mask": f"{name}_mask.png"}
        rows.append({**row, "split": "test"})

    for n, group in enumerate(("a", "b", "c", "d", "d", "w", "u")):
        originals = rng.integers(0, 200, (64, 64, 3), np.uint8)
        add(f"real{n}", group, originals)
        mask = np.zeros((64, 64), bool)
        mask[10:30, 5 : 40 + n] = True
        if group == "a":
            add("everywhere", group, originals + np.uint8(25), mask)
        if group == "b":
            add(
                "inside",
                group,
                np.where(mask[..., None], originals + np.uint8(50), originals),
                mask,
            )
        if group == "c":
            add(
                "larger",
                group,
                np.kron(originals, np.ones((2, 2, 1), np.uint8)),
                np.kron(mask, [[True] * 2] * 2),
            )
        if group == "w":
            add("whole", group, originals, np.ones((64, 64), bool))
        if group == "u":
            add("unlike", group, originals[::-1, ::-1], mask)
    add("several", "d", originals, mask)
    add("unknown", "e", originals, mask)
    add("alone", "f", originals, mask)
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    data_dir = str(root / "data")
    arguments = ["--images", str(root / "list.csv"), "--manipulated", "white"]
    where = ["--root", str(root), "--data_dir", data_dir]
    assert build.main(["manifest/exchange", *arguments, *where]) == 0
    return epath.Path(shutil.copytree(evaluated, root / "run")), data_dir


def examples(data_dir: str) -> tuple[inputs.Examples, inputs.Examples]:
    fakes, reals = (inputs.Examples((NAMES[side],), "test", data_dir) for side in ("fake", "real"))
    return fakes, reals


def keyed(source: inputs.Examples) -> dict[str, int]:
    return {Path(source[n]["key"].decode()).stem: n for n in range(len(source))}


def test_which_original_is_known(tested: tuple[epath.Path, str]) -> None:
    fakes, reals = examples(tested[1])
    pairs = exchange.find(fakes, reals)
    at, of = keyed(fakes), keyed(reals)
    expected = {Pair(at["everywhere"], of["real0"]), Pair(at["inside"], of["real1"])}
    assert {*pairs.found} == expected and len(pairs.found) == 2
    assert pairs.counts() == {
        "unchanged": 1,
        "unknown": 2,
        "several": 1,
        "other_size": 1,
        "whole": 1,
        "unlike": 1,
    }


def test_groups_of_another_dataset_are_others(tested: tuple[epath.Path, str]) -> None:
    run, data_dir = tested
    root = Path(run).parent
    with (root / "list.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["group"] == "a"]
    with (root / "other.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    arguments = ["--images", str(root / "other.csv"), "--manipulated", "white"]
    where = ["--root", str(root), "--data_dir", data_dir]
    assert build.main(["manifest/other", *arguments, *where]) == 0
    sides = {
        side: [f"manifest/other_{side}", f"manifest/exchange_{side}"] for side in ("fake", "real")
    }
    others = {side: inputs.Examples(of[:1], "test", data_dir) for side, of in sides.items()}
    fakes, reals = examples(data_dir)
    assert not exchange.find(fakes, others["real"]).found
    assert exchange.find(others["fake"], others["real"]).found == (Pair(0, 0),)
    # Of both datasets at once each fake has the original of its own.
    both = [inputs.Examples(of, "test", data_dir) for of in sides.values()]
    pairs = exchange.find(*both)
    shift = Pair(1, 1)
    own = exchange.find(fakes, reals).found
    moved = [Pair(p.fake + shift.fake, p.original + shift.original) for p in own]
    assert pairs.found == (Pair(0, 0), *moved) and pairs.several == 1
    chosen = Exchanged(*both, pairs.found, put_back=True)
    assert [chosen.subset(n) for n in range(3)] == [sides["fake"][0], *[sides["fake"][1]] * 2]
    names = {side: ",".join(of) for side, of in sides.items()}
    assert exchanged(run, **names, data_dir=data_dir)["exchanged_images"] == 3


def test_pixels_are_put_back(tested: tuple[epath.Path, str]) -> None:
    fakes, reals = examples(tested[1])
    pair = Pair(keyed(fakes)["everywhere"], keyed(reals)["real0"])
    before, after = (Exchanged(fakes, reals, [pair], put_back=back) for back in (False, True))
    assert len(before) == len(after) == 1 and before[0]["image"] == fakes[pair.fake]["image"]
    record = pickle.loads(pickle.dumps(after))[0]  # as worker processes have it
    pixels = np.asarray(Image.open(io.BytesIO(record["image"])))
    original = inputs.full_image(reals[pair.original]).astype(int)
    inside = inputs.full_mask(record) > 0
    assert record["key"] == fakes[pair.fake]["key"] and 0 < inside.mean() < 1
    np.testing.assert_array_equal(pixels[~inside], original[~inside])
    np.testing.assert_array_equal(pixels[inside], original[inside] + 25)


def test_figures_before_and_after(tested: tuple[epath.Path, str]) -> None:
    run, data_dir = tested
    found = exchanged(run, **NAMES, data_dir=data_dir)
    folder = run / "evaluations/manifest-exchange_fake+manifest-exchange_real"
    assert json.loads((folder / "exchange.json").read_text()) == found
    assert (found["exchanged_images"], found["fake_images"], found["real_images"]) == (2, 8, 7)
    assert found["before"]["manipulated_share"] == found["after"]["manipulated_share"] > 0
    assert found["before"] != found["after"]
    text = (folder / "exchange.txt").read_text()
    assert "2 of 8 images" in text and "1 had these pixels already" in text
    assert "1 have nothing outside the mask, 1 are unlike" in " ".join(text.split())
    lines = [line.split() for line in text.splitlines()]
    for row in ("before", "after"):
        cells: list[Any] = next(line for line in lines if line[:1] == [row])
        assert cells[1:4] == [f"{found[row][n]:.1f}" for n in ("iou_lg", "iou_fitted", "f1")]
    again = exchanged(run, **NAMES, data_dir=data_dir)
    assert again == found


def test_portraits_are_made_again(tmp_path: Path) -> None:
    """The pixels outside the mask are the camera's, as the dataset's README says."""
    builder = build.make_builder("portraits/upsample-32px-seed3", str(tmp_path))
    assert isinstance(builder, build.MakesOriginals)
    for index in (0, 7):
        sample = samples.make_partial(3, "test", index, 32, "upsample")
        original = builder.original(f"test/{index:06d}")
        np.testing.assert_array_equal(sample.image[~sample.mask], original[~sample.mask])
        assert (sample.image[sample.mask] != original[sample.mask]).any()
    whole = build.make_builder("portraits/upsample_full-32px", str(tmp_path))
    assert whole.original("test/000000") is None


def test_what_the_dataset_makes_again_comes_first(
    tested: tuple[epath.Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = type(build.make_builder(NAMES["fake"], tested[1]))
    monkeypatch.setattr(
        builder,
        "original",
        lambda self, key: np.full((64, 64, 3), len(key), np.uint8),
        raising=False,
    )
    fakes, reals = examples(tested[1])
    pairs = exchange.find(fakes, reals)
    assert {pair.original for pair in pairs.found} == {None} and pairs.other_size == 1
    record = Exchanged(fakes, reals, pairs.found, put_back=True)[0]
    pixels = np.asarray(Image.open(io.BytesIO(record["image"])))
    assert (pixels[inputs.full_mask(record) == 0] == len(record["key"])).all()


def test_what_has_no_originals_is_told(evaluated: epath.Path) -> None:
    with pytest.raises(ConfigError, match=r"of its 11 images 11 have no real image of the same g"):
        exchanged(evaluated)
    assert not (evaluated / "exchange.json").exists()
