"""A run that is continued, and the file of weights that its backbone started from."""

import pytest
from etils import epath

from wsdl_jax import runs, training
from wsdl_jax.runtime.errors import UserError
from wsdl_jax.training import detector
from wsdl_jax.weights import MissingFileError, WeightsError

FIELDS = {
    "data.image_size": 70,
    "model.width": 1.0,
    "model.depth": 1,
    "model.decoder": "linear",
    "model.frozen": False,
}


def test_what_a_run_started_from_is_kept(real_config, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(detector, "_train", lambda *_: None)  # it is as if it was stopped at once
    file, run = tmp_path / "dinov2.pth", epath.Path(tmp_path / "run")
    file.write_bytes(b"a")

    def config(**model):
        fields = {f"model.{key}": value for key, value in model.items()}
        variant = "setup=c,source=celebahq,backbone=dinov2_s14"
        return real_config("declip", variant, {**FIELDS, **fields})

    training.train(config(backbone_path=str(file)), run)
    assert "config.model.depth = 1: of 12 stages of dinov2_s14; usual is 10" in caplog.text
    began = runs.load_config(run)
    assert began.model.backbone_sha256 == (
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    )
    # Nothing reads it any more.
    file.unlink()
    for again in (config(), config(backbone_path=str(file))):
        training.train(again, run)
        assert runs.load_config(run).to_dict() == began.to_dict()
    other = tmp_path / "other.pth"
    with pytest.raises(MissingFileError, match=r"other\.pth: is not there"):
        training.train(config(backbone_path=str(other)), run)
    for path in (file, other):
        path.write_bytes(b"b")
        with pytest.raises(UserError, match=r"another config \(model\.backbone_sha256: ca97"):
            training.train(config(backbone_path=str(path)), run)
    assert runs.load_config(run).to_dict() == began.to_dict()
    # Nor does one that started without a file have one later.
    training.train(config(), run.with_name("without"))
    with pytest.raises(UserError, match=r"another config \(model\.backbone_sha256: None → 3e23"):
        training.train(config(backbone_path=str(file)), run.with_name("without"))


def test_a_frozen_run_needs_its_file_and_keeps_it(real_config, tmp_path, monkeypatch):
    monkeypatch.setattr(detector, "_train", lambda *_: None)
    file, run = tmp_path / "dinov2.pth", epath.Path(tmp_path / "run")
    file.write_bytes(b"a")
    config = real_config(
        "declip", "setup=c,source=celebahq,backbone=dinov2_s14", {**FIELDS, "model.frozen": True}
    )
    with pytest.raises(UserError, match=r"backbone_path has to name the weights of dinov2_s14"):
        training.train(config, run)
    assert not run.exists()
    began = config.copy_and_resolve_references()
    began.model.backbone_path = str(file)
    training.train(began, run)
    kept = runs.load_config(run)
    training.train(config, run)
    assert runs.load_config(run).to_dict() == kept.to_dict()
    file.write_bytes(b"b")
    with pytest.raises(WeightsError, match="is not the file that the run was trained with"):
        training.train(config, run)
    file.unlink()
    with pytest.raises(MissingFileError, match=r"dinov2\.pth: is not there"):
        training.train(began, run)
