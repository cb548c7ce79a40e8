"""What the log of a training says of the stage that is read of its backbone."""

import pytest

from wsdl_jax.training import detector


@pytest.mark.parametrize(
    ("variant", "backbone", "said"),
    [
        ("source=celebahq,backbone=dinov2_b14", "dinov2_b14", None),
        (
            "source=celebahq,backbone=dinov2_b14",
            "dinov2_l14",
            "config.model.depth = 12: of 24 stages of dinov2_l14; usual is 24",
        ),
        ("source=celebahq,backbone=dinov2_l14", "dinov2_l14", None),
    ],
)
def test_another_stage_than_the_usual_one_is_told(real_config, variant, backbone, said, caplog):
    caplog.set_level("INFO")
    fields = {"data.image_size": 70, "model.width": 1.0, "model.backbone": backbone}
    detector._say_stage(real_config("dino", variant, fields))
    assert [record.getMessage() for record in caplog.records] == [said] * (said is not None)
