"""Results read back: whatever others have made of them is told in one line."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from wsdl_jax.evaluation import everyday_robustness, results, retention, robustness, summary
from wsdl_jax.inputs import perturbations
from wsdl_jax.runtime.errors import UserError

READERS = {
    "results.json": results.read,
    "robustness-gamma.json": results.read_robustness,
    "robustness-all.json": results.read_everyday,
}


@pytest.fixture(scope="module")
def written(evaluated: epath.Path, tmp_path_factory) -> dict[str, str]:
    """What evaluations have written, by the names of their files."""
    run = epath.Path(shutil.copytree(evaluated, tmp_path_factory.mktemp("written") / "run"))
    robustness(run, "gamma", [1.5])
    with pytest.MonkeyPatch.context() as patch:  # one of them is enough
        patch.setattr(perturbations, "EVERYDAY", perturbations.EVERYDAY[-1:])
        everyday_robustness(run)
    return {name: (run / name).read_text() for name in READERS}


def test_what_was_written_is_read(written, tmp_path: Path):
    for name, text in written.items():
        (tmp_path / name).write_text(text)
        found = READERS[name](epath.Path(tmp_path / name))
        assert found == json.loads(text)
        assert results.network(found) == (found["checkpoint"], found["weights"])


def test_what_earlier_evaluations_have_not_measured_is_unknown(written, tmp_path: Path):
    later = ("iou_best", "f1_best", "mcc", "f1_tolerant", "f1_tolerant_best")
    images = ("image_f1", "image_f1_verdict", "tolerant_images")
    rest = (
        "iou_fitted",
        "map_threshold",
        "f1_best_fixed",
        "f1_best_fixed_at",
        "intervals",
        "parts",
    )
    for name, text in written.items():
        earlier = json.loads(text)
        trivial = earlier.get("trivial", {}).values()
        for figures in (earlier, *trivial, earlier.get("clean", {}), *earlier.get("points", ())):
            for figure in (*later, *images, *rest):
                figures.pop(figure, None)
        (tmp_path / name).write_text(json.dumps(earlier))
        found = READERS[name](epath.Path(tmp_path / name))
        for figures in (found.get("clean", found), *found.get("trivial", {}).values()):
            assert {figures[figure] for figure in later} == {None}
        assert found.get("clean", found)["image_f1"] is None
        if name == "results.json":
            assert found["intervals"] is None and found["f1_best_fixed"] is None
            assert "iou_lg" in summary.text_table(found, title="earlier")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"text"', "[" * 100_000])
def test_what_is_no_object_is_told(text: str, tmp_path: Path):
    for name, read in READERS.items():
        path = epath.Path(tmp_path / name)
        path.write_text(text)
        with pytest.raises(UserError, match=rf"^{path} (cannot be read|is damaged|has no)") as told:
            read(path)
        assert "\n" not in str(told.value)


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values in a tree of objects and lists."""
    entries = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [path, *(p for key, value in entries for p in places(value, (*path, key)))]


@given(data=st.data())
def test_one_changed_value_is_read_or_told(written, tmp_path_factory, data):
    """It never fails in another way, here or where figures are shown."""
    name = data.draw(st.sampled_from(sorted(written)))
    tree = json.loads(written[name])
    *parents, key = data.draw(st.sampled_from(places(tree)[1:]))
    changed = copy.deepcopy(tree)
    parent = changed
    for step in parents:
        parent = parent[step]
    odd = st.sampled_from([None, True, "x", -1, 1.5, [], {}, [1], {"a": 1}, float("nan"), 10**400])
    parent[key] = data.draw(odd)
    path = epath.Path(tmp_path_factory.mktemp("odd") / name)
    path.write_text(json.dumps(changed))
    try:
        found = READERS[name](path)
    except UserError as error:
        told = str(error)
        assert "\n" not in told and str(path) in told
    else:
        for figure in ("ap", "auc"):
            figures = found.get("clean", found)
            assert f"{figures[figure]:.1f}"
        if "all_fake_iou" in found:
            assert retention.table(found)
