"""What is collected of runs for the tables."""

import json

import pytest
from etils import epath
from planned_runs import finish, read, two

from wsdl_jax.runtime.errors import UserError
from wsdl_jax.sweeps import collected

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


def test_results_of_different_images_do_not_stand_in_one_table(tmp_path):
    planned = two(workdir=epath.Path(tmp_path))
    for run in planned:
        finish(run)
    assert all(finding.results for finding in collected.findings(planned))
    path = planned[1].folder / "results.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "data": {"fake": "of others", "real": ""}}))
    with pytest.raises(UserError, match=r"were evaluated on different images of portraits/latent"):
        collected.findings(planned)


def test_figures_of_figure_6_are_of_its_subsets():
    sweep = "cross_generator.py:source=celebahq"
    figures = collected.published(f"configs/sweeps/{sweep}")
    subsets = set(read(sweep)[0].tested)
    assert {figure.tested for figure in figures} == subsets | {"in-domain", "out-of-domain"}
    cells = {(f.tested[15:], f.trained[15:]): f.value for f in figures}
    assert cells["ldm", "pluralistic"] == 4.9 and cells["pluralistic", "ldm"] == 56.4


def test_a_damaged_record_of_failures_is_named(tmp_path):
    (tmp_path / "failures.json").write_text('{"a": 3}')
    with pytest.raises(UserError, match=r"failures.json is damaged"):
        collected.collect("configs/sweeps/setups.py", [], epath.Path(tmp_path))
