"""Runs of earlier versions, as users have them: read, or refused in a line that says what to do."""

import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from wsdl_jax import configuration, runs
from wsdl_jax.evaluation import results, verdict
from wsdl_jax.prediction.localizer import Localizer
from wsdl_jax.reporting import page
from wsdl_jax.runtime.errors import UserError

# A run that wsdl-jax 0.1.0 has trained and evaluated, setup b, with two of its test images.
FORMAT_1 = Path(__file__).parent / "format_1.tar.gz"


@pytest.fixture
def run(tmp_path: Path) -> epath.Path:
    with tarfile.open(FORMAT_1) as archive:
        archive.extractall(tmp_path, filter="data")
    return epath.Path(tmp_path / "run")


def test_a_run_of_format_1_is_read(run: epath.Path):
    config, model, step, checksum = runs.load(run)
    assert (config.method, config.setup, config.supervision) == ("patches", "b", "weak")
    assert (config.data.image_size, config.model.depth, config.train.epochs) == (64, 1, 2)
    assert config.variant == ""
    figures = results.read(runs.RunDirectory(run).results)
    assert (step, checksum) == results.network(figures)
    assert set(runs.data_of(run)) == {"image_folder/kept_fake", "image_folder/kept_real"}
    assert model.trunk.width == config.model.width


def test_its_network_scores_as_it_did(run: epath.Path):
    with runs.RunDirectory(run).predictions.open() as file:
        rows = {(row["label"], row["key"]): row for row in csv.DictReader(file)}
    localizer = Localizer.load(run)
    figures = json.loads(runs.RunDirectory(run).results.read_text())
    (known,) = localizer.calibrations
    assert verdict.threshold(known.real, 0.05) == figures["threshold"]
    assert (known.fake, known.likeness) == ((), None)  # which was not known then
    for side in ("fake", "real"):
        with Image.open(run.parent / f"images/{side}-0.png") as image:
            (found,) = localizer([np.asarray(image)])
        (known,) = (row for (label, key), row in rows.items() if label == side and "0" in key)
        assert found.score == pytest.approx(float(known["score"]), rel=1e-5)


def test_it_is_reported(run: epath.Path, tmp_path: Path):
    page.report([run], epath.Path(tmp_path / "report"), count=0, data_dir=None)
    assert "image_folder/kept_fake" in (tmp_path / "report/index.html").read_text()


def test_it_can_be_continued(run: epath.Path):
    """Its config is that of the same command today."""
    config, _ = configuration.start("patches", "setup=b,source=image_folder/kept")
    stored = runs.load_config(run)
    fields = dict(configuration.essence(stored))
    assert fields.keys() == dict(configuration.essence(config)).keys()
    runs.check(run, stored)


def test_a_config_says_what_has_written_it(run: epath.Path):
    config = runs.load_config(run)
    written_by = json.loads(configuration.save(config))["written_by"]
    assert written_by["format"] == configuration.FORMAT
    assert configuration.load(configuration.save(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"written_by": {"format": 99, "wsdl_jax": "7.0"}},
            "it has format 99, where 1 to 2 are read; wsdl-jax 7.0, which has written it, works",
        ),
        ({"written_by": {"format": 2, "wsdl_jax": "7.0"}, "heads": 3}, "'heads'; wsdl-jax 7.0"),
        ({"written_by": 3}, "not a config of this version"),
        ({"written_by": {"format": "2"}}, "not a config of this version"),
        ({"heads": 3}, "'heads'"),
    ],
)
def test_what_is_not_read_says_why(run: epath.Path, changes: dict, reason: str):
    file = runs.RunDirectory(run).config
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(UserError) as raised:
        runs.load(run)
    assert reason in str(raised.value) and "\n" not in str(raised.value)
