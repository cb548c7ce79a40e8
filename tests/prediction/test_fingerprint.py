"""Fingerprints against hashlib, of files that are read in pieces."""

import hashlib

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from wsdl_jax.prediction import fingerprint


@given(
    before=st.binary(max_size=40),
    between=st.binary(max_size=40),
    mark=st.booleans(),
    piece=st.integers(1, 50),
)
def test_fingerprint(tmp_path_factory, before, between, mark, piece):
    content = before + b"jumb" + between + (b"c2pa" if mark else b"") + before
    path = epath.Path(tmp_path_factory.mktemp("file") / "x")
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "_PIECE", piece)
        found = fingerprint.of(path)
    assert found == (hashlib.sha256(content).hexdigest(), len(content), b"c2pa" in content)
