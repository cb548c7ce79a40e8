"""Figures of each set, generator and kind, against the rows of predictions.csv and scikit-learn."""

import csv
import json
import shutil
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from sklearn.metrics import roc_auc_score

from wsdl_data import build, provenance
from wsdl_jax import configuration, runs
from wsdl_jax.evaluation import evaluate, intervals, results, summary
from wsdl_jax.reporting.page import report
from wsdl_jax.runtime.errors import ConfigError

GENERATORS = ("ldm", "a longer name,\nin two lines", "")


def generator(key: str) -> str:
    """The generator that the test says an image is of."""
    return GENERATORS[sum(map(ord, Path(key).stem)) % len(GENERATORS)]


@pytest.fixture(scope="module")
def tested(
    evaluated: epath.Path,
    dolos_folder: Path,
    data_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[epath.Path, dict[str, Any]]:
    """A run that was tested on a manifest of Dolos' images, and the results."""
    root = tmp_path_factory.mktemp("parts")
    run = epath.Path(shutil.copytree(evaluated, root / "run"))
    fakes = dolos_folder / "celebahq/fake/repaint-p2"
    rows = [
        {
            "image": path,
            "label": "real",
            "mask": "",
            "generator": "",
            "kind": "",
            "group": path.stem,
        }
        for path in sorted((dolos_folder / "celebahq/real/test").iterdir())
    ]
    for path in sorted((fakes / "images/test").iterdir()):
        (mask,) = (fakes / "masks/test").glob(f"{path.stem}.*")
        known = {"generator": generator(path.name), "kind": "spliced", "group": path.stem[:-1]}
        rows.append({"image": path, "label": "fake", "mask": mask, **known})
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        writer.writerows({**row, "split": "test"} for row in rows)
    where = ["--root", str(dolos_folder), "--data_dir", str(root / "data")]
    arguments = ["--images", str(root / "list.csv"), "--manipulated", "black", *where]
    assert build.main(["manifest/parts", *arguments]) == 0
    (root / "data/dolos").symlink_to(data_dir / "dolos")
    names = {"fake": "manifest/parts_fake", "real": "manifest/parts_real"}
    return run, evaluate(run, **names, data_dir=str(root / "data"))


def test_figures_of_each_part(tested: tuple[epath.Path, dict[str, Any]]) -> None:
    run, found = tested
    folder = run / "evaluations/manifest-parts_fake+manifest-parts_real"
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    real = [float(row["score"]) for row in rows if row["label"] == "real"]
    fakes = [row for row in rows if row["label"] == "fake"]
    assert found["parts"].keys() == {"generator", "kind"}
    assert list(found["parts"]["generator"]) == sorted(filter(None, GENERATORS))
    for fact, parts in found["parts"].items():
        for value, part in parts.items():
            own = [row for row in fakes if fact == "kind" or generator(row["key"]) == value]
            assert part["images"] == len(own) > 0
            for name in ("iou_lg", "f1", "manipulated_share", "iou_fitted"):
                mean = np.mean([float(row[name]) for row in own])
                assert part[name] == pytest.approx(100 * mean)
            scores = [float(row["score"]) for row in own]
            labels = np.repeat([0, 1], [len(real), len(scores)])
            auc = roc_auc_score(labels, [*real, *scores])
            assert part["auc"] == pytest.approx(100 * auc)
            above = np.mean(np.array(scores) > found["threshold"])
            assert part["above"] == pytest.approx(100 * above)
    # Of one kind are all fakes.
    whole = found["parts"]["kind"]["spliced"]
    for name in ("iou_lg", "pixel_auc", "ap", "auc", "balanced_accuracy"):
        assert whole[name] == pytest.approx(found[name])


def test_intervals_are_over_groups(tested: tuple[epath.Path, dict[str, Any]]) -> None:
    run, found = tested
    folder = run / "evaluations/manifest-parts_fake+manifest-parts_real"
    with (folder / "predictions.csv").open() as file:
        fakes = [row for row in csv.DictReader(file) if row["label"] == "fake"]
    groups = [row["group"] for row in fakes]
    assert groups == [Path(row["key"]).stem[:-1] for row in fakes]
    assert 1 < len({*groups}) < len(groups)
    assert found["intervals"]["drawn"] == {"fake": "group", "real": "group"}
    assert "over groups, bootstrap" in (folder / "results.txt").read_text()
    values = {"f1": np.array([float(row["f1"]) for row in fakes])}
    expected = intervals.of_means(values, np.unique(groups, return_inverse=True)[1])["f1"]
    stored = found["intervals"]["figures"]["f1"]
    assert (stored["low"], stored["high"]) == pytest.approx(
        (100 * expected.low, 100 * expected.high)
    )


def test_where_parts_are_shown(tested: tuple[epath.Path, dict[str, Any]], tmp_path: Path) -> None:
    run, found = tested
    folder = run / "evaluations/manifest-parts_fake+manifest-parts_real"
    lines = (folder / "results.txt").read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("by generator"))
    assert lines[at + 1].startswith("a longer name, in two lines  ")
    cells = lines[at + 2].split()
    ldm = found["parts"]["generator"]["ldm"]
    shown = ("iou_lg", "iou_fitted", "f1", "pixel_auc", "ap", "auc", "above")
    assert cells == ["ldm", str(ldm["images"]), *(f"{ldm[name]:.1f}" for name in shown)]
    report([run], epath.Path(tmp_path / "report"), count=0)
    page = (tmp_path / "report/index.html").read_text()
    assert "manifest/parts_fake, by generator" in page and "manifest/parts_fake, by kind" in page
    assert f"<td>{ldm['iou_lg']:.1f}</td>" in page


def test_figures_of_each_set(tested: tuple[epath.Path, dict[str, Any]], tmp_path: Path) -> None:
    run, alone = epath.Path(shutil.copytree(tested[0], tmp_path / "run")), tested[1]
    fakes = ("manifest/parts_fake", "dolos/celebahq_repaint_p2_9k")
    reals = ("dolos/celebahq_real", "manifest/parts_real")
    data_dir = str(tested[0].parent / "data")
    found = evaluate(run, fake=", ".join(fakes), real=",".join(reals), data_dir=data_dir)
    assert (found["test_fake"], found["test_real"]) == (",".join(fakes), ",".join(reals))
    (folder,) = (run / "evaluations").glob("manifest-parts_fake,dolos*+*,manifest-parts_real")
    assert results.read(folder / "results.json") == found
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Of a side the images of one set follow on those of the other.
    sides = {}
    for side, names, first in (
        ("fake", fakes, alone["fake_images"]),
        ("real", reals, alone["real_images"]),
    ):
        of_side = [row for row in rows if row["label"] == side]
        assert len(of_side) == found[f"{side}_images"]
        sides[side] = dict(zip(names, (of_side[:first], of_side[first:]), strict=True))
    assert found["parts"].keys() == {"set", "real set", "generator", "kind"}
    for fact, side, other in (("set", "fake", "real"), ("real set", "real", "fake")):
        others = [float(row["score"]) for of_set in sides[other].values() for row in of_set]
        assert found["parts"][fact].keys() == sides[side].keys()
        for name, of_set in sides[side].items():
            part, scores = found["parts"][fact][name], [float(row["score"]) for row in of_set]
            assert part["images"] == len(of_set) > 0
            labels = [side == "fake"] * len(scores) + [other == "fake"] * len(others)
            auc = roc_auc_score(labels, [*scores, *others])
            assert part["auc"] == pytest.approx(100 * auc)
            above = np.mean(np.array(scores) > found["threshold"])
            assert part["above"] == pytest.approx(100 * above)
            if side == "fake":
                iou = np.mean([float(row["iou_lg"]) for row in of_set])
                assert part["iou_lg"] == pytest.approx(100 * iou)
            else:
                assert part["iou_lg"] is None
    # The one set has the figures that it has alone, and its generators, which the other lacks.
    for name in ("iou_lg", "pixel_auc", "manipulated_share"):
        assert found["parts"]["set"][fakes[0]][name] == pytest.approx(alone[name], abs=1e-3)
    ldm, before = (of["parts"]["generator"]["ldm"] for of in (found, alone))
    assert ldm["images"] == before["images"]
    assert ldm["iou_lg"] == pytest.approx(before["iou_lg"], abs=1e-3)
    text = (folder / "results.txt").read_text()
    assert "\nby set " in text and "\nby real set " in text
    report([run], epath.Path(tmp_path / "report"), count=0)
    page = (tmp_path / "report/index.html").read_text()
    assert f"{','.join(fakes)}, by real set" in page


def test_a_config_of_several_sets(evaluated: epath.Path, data_dir: Path, tmp_path: Path) -> None:
    run = epath.Path(shutil.copytree(evaluated, tmp_path / "run"))
    config = runs.load_config(run)
    fakes = ("dolos/celebahq_repaint_p2", "dolos/celebahq_repaint_p2_9k")
    config.data.test_fake = ",".join(fakes)
    (run / "config.json").write_text(configuration.save(config))
    found = evaluate(run)
    assert results.read(run / "results.json") == found
    assert list(found["parts"]) == ["set"] and list(found["parts"]["set"]) == list(fakes)
    digests = provenance.digests(runs.data_of(run))
    assert digests.keys() >= {*fakes}  # so that it is noticed when one of them changes
    assert found["data"]["fake"] == provenance.digest_of([digests[name] for name in fakes])
    assert found["data"]["real"] == digests[found["test_real"]]
    report([run], epath.Path(tmp_path / "report"), count=8)
    page = (tmp_path / "report/index.html").read_text()
    pictures = [path.name for path in (tmp_path / "report").rglob("*-fake-0*")]
    stem = config.data.test_fake.replace("/", "-")
    assert pictures and {name.partition("-fake-0")[0] for name in pictures} == {stem}
    assert all(urllib.parse.quote(name) in page for name in pictures)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("dolos/celebahq_repaint_p2,", "one is empty"),
        ("dolos/celebahq_ldm,dolos/celebahq_ldm", "dolos/celebahq_ldm is there twice"),
    ],
)
def test_sets_that_cannot_be(names: str, message: str, evaluated: epath.Path) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(evaluated, fake=names)
    config = runs.load_config(evaluated)
    config.data.test_fake = names
    with pytest.raises(ConfigError, match=message):
        configuration.validate(config)


def test_results_on_sets_have_a_folder_of_their_own(evaluated: epath.Path) -> None:
    config, directory = runs.load_config(evaluated), runs.RunDirectory(evaluated)
    own = {"fake": config.data.test_fake, "real": config.data.test_real}
    assert directory.evaluation(config, **own) is directory
    config.data.test_fake = "a/b, a/c"
    assert directory.evaluation(config, fake="a/b,a/c", real=own["real"]) is directory
    many = [",".join(f"manifest/a_long_name_{n}_fake" for n in range(k, 20)) for k in range(2)]
    names = [directory.evaluation(config, fake=of, real="a/b").path.name for of in many]
    assert len({*names}) == 2 and max(map(len, names)) < 200


def test_names_of_parts_stay_apart() -> None:
    names = [
        f"diffusers/stable-diffusion-xl-1.0-inpainting-{n}, with {'more ' * 9}{n}" for n in "ab"
    ]
    shown = [summary.part_name(name) for name in names]
    assert len({*shown}) == 2 and {len(name) for name in shown} == {40}
    assert summary.part_name(" ") == "' '" and summary.part_name("a\n b") == "a b"


def test_results_without_parts_and_with_damaged_ones(
    tested: tuple[epath.Path, dict[str, Any]], tmp_path: Path
) -> None:
    path = epath.Path(tmp_path / "results.json")
    earlier = {name: value for name, value in tested[1].items() if name != "parts"}
    path.write_text(json.dumps(earlier))
    assert results.read(path)["parts"] == {}
    for damaged in ([], {"generator": {"a": {"images": 1}}}, {"generator": {"a": None}}):
        path.write_text(json.dumps({**earlier, "parts": damaged}))
        with pytest.raises(results.UserError, match=r"results\.json (is damaged|has no) "):
            results.read(path)
