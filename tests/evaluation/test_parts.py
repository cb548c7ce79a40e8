"""Figures of each generator and kind, against the rows of predictions.csv and scikit-learn."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from sklearn.metrics import roc_auc_score

from wsdl_data import build
from wsdl_jax.evaluation import evaluate, results, summary
from wsdl_jax.reporting.page import report

GENERATORS = ("ldm", "a longer name,\nin two lines", "")


def generator(key: str) -> str:
    """The generator that the test says an image is of."""
    return GENERATORS[sum(map(ord, Path(key).stem)) % len(GENERATORS)]


@pytest.fixture(scope="module")
def tested(
    evaluated: epath.Path, dolos_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[epath.Path, dict[str, Any]]:
    """A run that was tested on a manifest of Dolos' images, and the results."""
    root = tmp_path_factory.mktemp("parts")
    run = epath.Path(shutil.copytree(evaluated, root / "run"))
    fakes = dolos_folder / "celebahq/fake/repaint-p2"
    rows = [
        {"image": path, "label": "real", "mask": "", "generator": "", "kind": ""}
        for path in sorted((dolos_folder / "celebahq/real/test").iterdir())
    ]
    for path in sorted((fakes / "images/test").iterdir()):
        (mask,) = (fakes / "masks/test").glob(f"{path.stem}.*")
        known = {"generator": generator(path.name), "kind": "spliced"}
        rows.append({"image": path, "label": "fake", "mask": mask, **known})
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        writer.writerows({**row, "split": "test"} for row in rows)
    where = ["--root", str(dolos_folder), "--data_dir", str(root / "data")]
    arguments = ["--images", str(root / "list.csv"), "--manipulated", "black", *where]
    assert build.main(["manifest/parts", *arguments]) == 0
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
