"""What is kept of a network is found again for that network and data alone."""

import pytest
from etils import epath

from wsdl_jax.evaluation import kept
from wsdl_jax.runtime.errors import UserError

NETWORK, DATA = (30, 12345), {"a": "x"}


def double(stored):
    return 2 * stored["value"]


def test_it_is_of_one_network_and_data(tmp_path):
    path = epath.Path(tmp_path / "kept.json")
    assert kept.load(path, NETWORK, "subsets", DATA, double) is None
    kept.save(path, NETWORK, "subsets", DATA, {"value": 4})
    for data in (DATA, None):
        assert kept.load(path, NETWORK, "subsets", data, double) == 8
    for network, data in (((31, 12345), DATA), ((30, None), DATA), (NETWORK, {"a": "y"})):
        assert kept.load(path, network, "subsets", data, double) is None


@pytest.mark.parametrize("text", ["", "[]", '{"value": 1, "checkpoint": 30}', '{"value": null}'])
def test_what_cannot_be_read_is_named(tmp_path, text):
    path = epath.Path(tmp_path / "kept.json")
    path.write_text(text)
    with pytest.raises(UserError, match=r"kept\.json cannot be read .*delete it, and evaluate"):
        kept.load(path, NETWORK, "subsets", None, double)
