"""Which runs of a sweep are done, by what is in their directories."""

import json
import shutil

import pytest
from etils import epath
from planned_runs import figures, finish, save, two

from wsdl_jax import configuration
from wsdl_jax.runtime.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


def test_done_is_trained_to_the_end_and_evaluated_on_everything(tmp_path):
    first, second = two(workdir=epath.Path(tmp_path))
    assert not first.is_done()
    finish(first)
    assert first.is_done() and not second.is_done()
    assert first.results()["portraits/upsample"]["test_fake"] == "portraits/upsample"
    shutil.rmtree(first.folder / "evaluations")
    assert not first.is_done()
    assert first.results()["portraits/upsample"] is None
    finish(second, step=100)  # evaluated by hand half-way
    assert not second.is_done()
    assert set(second.results().values()) == {None}


def test_results_of_an_older_network_are_none(tmp_path, caplog):
    run, _ = two(workdir=epath.Path(tmp_path))
    finish(run, step=100)
    total = run.config.train.epochs * run.config.train.steps_per_epoch
    save(run, total, loss=2.0)
    assert run.is_done()  # the last one is not the best one
    shutil.rmtree(run.folder / f"checkpoints/{total}")
    save(run, total, loss=0.5)
    assert not run.is_done() and set(run.results().values()) == {None}
    # Nor are those of another training that ended at the same step.
    path = run.folder / "results.json"
    kept = figures(run, run.config.data.test_fake, total)
    path.write_text(json.dumps(kept))
    found = run.results()[run.config.data.test_fake]
    assert {name: found[name] for name in kept} == kept
    later = found.keys() - kept.keys()  # what earlier evaluations have not measured
    assert {"iou_fitted", "map_threshold", "parts", "intervals", "verdicts"} <= later
    assert all(found[name] in (None, {}, 0) for name in later)
    path.write_text(json.dumps({**kept, "weights": kept["weights"] + 1}))
    assert run.results()[run.config.data.test_fake] is None
    path.write_text("{}")
    assert run.results()[run.config.data.test_fake] is None
    assert "results.json has no 'iou_lg': it is of another version" in caplog.text


def test_results_without_checkpoints_are_taken_and_told(tmp_path, caplog):
    """As when they were copied alone, or checkpoints were removed to save space."""
    run, _ = two(workdir=epath.Path(tmp_path))
    finish(run)
    shutil.rmtree(run.folder / "checkpoints")
    assert run.is_done()
    assert "seed-0 has no checkpoints: its results are taken as they are" in caplog.text


def test_a_directory_of_another_config_is_not_taken_for_the_run(tmp_path):
    workdir = epath.Path(tmp_path)
    first, _ = two(workdir=workdir)
    finish(first)
    again, _ = two(["data.dir=/elsewhere"], workdir)
    assert again.is_done()
    other, _ = two(["train.learning_rate=0.5"], workdir)
    with pytest.raises(UserError, match=r"learning_rate: 0.003 → 0.5"):
        other.is_done()


def test_a_batch_per_device_is_any_number_of_devices(tmp_path):
    run, _ = two(["train.per_device_batch=4"], epath.Path(tmp_path))
    finish(run._replace(config=configuration.for_devices(run.config, 8)))
    assert run.is_done()
