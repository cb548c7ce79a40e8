"""What is kept of a network's scores: of which network, of which images, and read back."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from etils import epath

from wsdl_jax.evaluation import calibration, likeness
from wsdl_jax.evaluation.verdict import Calibration
from wsdl_jax.runtime.errors import UserError

KNOWN = Calibration(
    {"clean": (-1.0, 0.5), "jpeg 90": (1.0, 2.0)},
    fake=(0.25, 3.0),
    likeness=likeness.fit([np.random.default_rng(0).random((40, 3), np.float32)]),
)


def same(one: Calibration, other: Calibration) -> bool:
    return one.digest() == other.digest() and (one.source, one.mode) == (other.source, other.mode)


def test_what_is_kept_is_of_one_network_and_one_dataset(tmp_path):
    run, data = epath.Path(tmp_path), {"a/real": "0f"}
    assert calibration.load(run, (7, 1)) is None
    calibration.save(run, (7, 1), data, KNOWN)
    for found in (calibration.load(run, (7, 1)), calibration.load(run, (7, 1), data)):
        assert same(found, KNOWN)
    for network, real in (
        ((8, 1), data),
        ((7, 2), data),  # the same step of another training
        ((7, None), data),
        ((7, 1), {"a/real": "1f"}),  # built again, of other images
        ((7, 1), {"b/real": "0f"}),
        ((7, 1), {}),
    ):
        assert calibration.load(run, network, real) is None
    assert calibration.load(run, (7, 1), data, kinds=["clean", "jpeg 90"]) is not None
    assert calibration.load(run, (7, 1), data, kinds=["clean"]) is None
    plain = dataclasses.replace(KNOWN, real={"clean": (0.5,)}, fake=(), likeness=None)
    calibration.save(run, (7, 1), data, plain)
    assert same(calibration.load(run, (7, 1), data, kinds=["clean"]), plain)
    assert "perturbed" not in json.loads((tmp_path / "real_scores.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["real_scores.json"]


def test_a_file_of_an_earlier_version_is_read_and_measured_again(tmp_path):
    text = {"checkpoint": 7, "weights": 1, "real": {}, "split": "valid", "scores": [0.5, -1.0]}
    (tmp_path / "real_scores.json").write_text(json.dumps(text))
    run = epath.Path(tmp_path)
    assert calibration.load(run, (7, 1)) == Calibration({"clean": (-1.0, 0.5)})
    assert calibration.load(run, (7, 1), {}, kinds=["clean"]) is not None  # without fakes at hand
    assert calibration.load(run, (7, 1), {}, kinds=["clean"], fakes={"a/fake": "1"}) is None


def test_known_fakes_are_of_one_dataset(tmp_path):
    run, data, fakes = epath.Path(tmp_path), {"a/real": "0f"}, {"a/fake": "1f"}
    calibration.save(run, (7, 1), data, KNOWN)
    assert calibration.load(run, (7, 1), data) is not None
    assert calibration.load(run, (7, 1), data, fakes=fakes) is None  # they are at hand by now
    calibration.save(run, (7, 1), data, KNOWN, fakes)
    assert same(calibration.load(run, (7, 1), data, fakes=fakes), KNOWN)
    assert calibration.load(run, (7, 1), data, fakes={"a/fake": "2f"}) is None
    assert calibration.load(run, (7, 1), data) is not None


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"checkpoint": 7, "scores": ["x"]}'),
        '{"checkpoint": 7, "weights": 1, "scores": [1], "perturbed": [1]}',
        '{"checkpoint": 7, "weights": 1, "scores": [1], "perturbed": {"blur 1": 1}}',
        '{"checkpoint": 7, "weights": 1, "scores": [1], "fakes": 3}',
        '{"checkpoint": 7, "weights": 1, "scores": [1], "fakes": [], "likeness": {"mean": {}}}',
    ],
)
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "real_scores.json").write_text(text)
    with pytest.raises(UserError, match=r"real_scores.json cannot be read .*delete it"):
        calibration.load(epath.Path(tmp_path), (7, 1))
    json_of_another = json.dumps({"checkpoint": 7, "weights": 1, "scores": []})
    (tmp_path / "real_scores.json").write_text(json_of_another)
    assert calibration.load(epath.Path(tmp_path), (7, 1)) is None


# ----- Of a user's own images ---------------------------------------------------------------------


OWN = dataclasses.replace(
    KNOWN, real={"clean": (0.0, 1.0)}, source="the images of x/", mode="tile", files=("ab", "cd")
)


def test_own_images(tmp_path):
    path = epath.Path(tmp_path) / "calibration.json"
    calibration.save_own(path, (7, 1), OWN)
    found = calibration.load_own(path, (7, 1))
    assert same(found, OWN) and found.files == OWN.files
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"calibration.json is there already: delete it, or"):
        calibration.save_own(path, (7, 1), KNOWN)
    assert path.read_bytes() == before
    for network in ((8, 1), (7, 2), (7, None)):
        with pytest.raises(UserError, match=r"is of another network, of checkpoint 7"):
            calibration.load_own(path, network)
    nowhere = epath.Path(tmp_path) / "nowhere/c.json"
    with pytest.raises(UserError, match=r"nowhere/c.json cannot be read"):
        calibration.load_own(nowhere, (7, 1))
    with pytest.raises(UserError, match=r"there is no folder .*/nowhere to write it to"):
        calibration.check_new(nowhere)


@pytest.mark.parametrize(
    "damage",
    [
        *({"scores": []}, {"scores": ["x"]}, {"scores": [float("nan")]}, {"files": 3}),
        *({"likeness": []}, {"source": None, "checkpoint": None, "scores": None}),
    ],
)
def test_damaged_own_images_are_named(tmp_path, damage: dict[str, Any]):
    path = epath.Path(tmp_path) / "c.json"
    calibration.save_own(path, (7, 1), OWN)
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(UserError, match=r"c.json cannot be read .*calibrate again"):
        calibration.load_own(path, (7, 1))
    for text in ("[]", "{", "3"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"c.json cannot be read"):
            calibration.load_own(path, (7, 1))
