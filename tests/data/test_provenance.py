"""What prepared data was made of: hashes against hashlib, and what tells datasets apart."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from wsdl_data import build, provenance
from wsdl_data.portraits import forged, samples
from wsdl_data.provenance import Contents, Origin
from wsdl_jax import inputs
from wsdl_jax.runtime.errors import ConfigError


def test_contents_are_of_names_and_bytes_in_any_order(tmp_path: Path):
    for name, content in (("a", b"1"), ("b", b"22"), ("c", b"")):
        (tmp_path / name).write_bytes(content)
    one, other, third = Contents(), Contents(), Contents()
    one.add("x", [tmp_path / "a", None])
    one.add("y", [tmp_path / "b", tmp_path / "c"])
    other.add("y", [tmp_path / "b", tmp_path / "c"])
    other.add("x", [tmp_path / "a", None])
    third.add("x", [None, tmp_path / "a"])  # the image and the mask change places
    third.add("y", [tmp_path / "b", tmp_path / "c"])
    assert one.digest() == other.digest() != third.digest()
    x = hashlib.sha256((1).to_bytes(8) + b"1" + (0).to_bytes(8)).hexdigest()
    y = hashlib.sha256((2).to_bytes(8) + b"22" + (0).to_bytes(8)).hexdigest()
    pairs = json.dumps([["x", x], ["y", y]]).encode()
    assert one.digest() == hashlib.sha256(pairs).hexdigest()
    recorded = one.recorded()
    assert (recorded["images"], recorded["bytes"]) == (2, 3)
    assert recorded["newest"] == max((tmp_path / name).stat().st_mtime for name in "abc")
    with pytest.raises(FileNotFoundError):
        one.add("z", [tmp_path / "none"])


def test_what_is_recorded_is_not_compared():
    kept = {"version": "1.1.0", "splits": {"train": 3}, **Origin({"masks": "white"}).metadata()}
    elsewhere = {**kept, "recorded": {"source": "/elsewhere"}}
    assert provenance.differences(kept, elsewhere) == []
    assert provenance.digests({"a": kept}) == provenance.digests({"a": elsewhere})
    other = {**kept, "splits": {"train": 4}, "content": {"sources": "0" * 64}}
    assert provenance.differences(kept, other) == [
        "content.sources: none → 000000000000…",
        "splits.train: 3 → 4",
    ]
    assert provenance.digests({"a": kept}) != provenance.digests({"a": other})


def test_dolos_is_known_by_its_files(dolos_folder: Path, tmp_path: Path):
    moved = tmp_path / "moved"
    shutil.copytree(dolos_folder, moved)
    found = []
    for number, source in enumerate((dolos_folder, moved)):
        if number:
            next((moved / "celebahq/real/valid").iterdir()).touch()  # its time is not compared
        root = str(tmp_path / f"data{number}")
        build.prepare(build.make_builder("dolos/celebahq_real", root), str(source))
        found.append(inputs.Examples(("dolos/celebahq_real",), "test", root).provenance)
    one, other = (kept["dolos/celebahq_real"] for kept in found)
    assert provenance.differences(one, other) == []
    assert one["recorded"]["source"] != other["recorded"]["source"] == str(moved)
    assert one["recipe"] == {"images": "celebahq/real", "masks": None, "label": "real"}
    contents = Contents()
    for path in (dolos_folder / "celebahq/real").rglob("*.png"):
        contents.add(f"{path.parent.name}/{path.name}", [path, None])
    assert one["content"] == {"sources": contents.digest()}


def test_portraits_of_another_forger_are_told(tmp_path: Path, monkeypatch):
    """As when an installation with another forger reads what an earlier one has prepared."""
    monkeypatch.setattr(samples, "SPLITS", {"train": 2, "valid": 1, "test": 1})
    whole = [(samples.encode(samples.make_real(0, "train", 0, 96).image), None)]
    monkeypatch.setattr(forged, "encoded_split", lambda *_: whole * 2)
    name, root = "portraits/ddpm_full", str(tmp_path)
    build.prepare(build.make_builder(name, root))
    forger = hashlib.sha256((forged.FOLDER / "ddpm.safetensors").read_bytes()).hexdigest()
    examples = inputs.Examples((name,), "train", root)
    assert examples.provenance[name]["content"] == {"forger": forger}
    assert examples.provenance[name]["recipe"]["steps"] == forged.MODELS["ddpm"].steps

    monkeypatch.setattr(forged, "FOLDER", tmp_path)
    # Without the forger at hand what it has made can be used.
    assert build.is_prepared(build.make_builder(name, root))
    (tmp_path / "ddpm.safetensors").write_bytes(b"another")
    told = rf"made otherwise than it would be now \(content.forger: {forger[:12]}… → \w{{12}}…\)"
    with pytest.raises(ConfigError, match=told):
        inputs.Examples((name,), "train", root)
    with pytest.raises(build.BuildError, match=told + "; delete this folder and build again"):
        build.prepare(build.make_builder(name, root))
