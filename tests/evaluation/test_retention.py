"""What is retained after perturbations: the formula, the table and the picture."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsdl_jax.evaluation import retention
from wsdl_jax.inputs.perturbations import Chain, Perturbation

CHAINS = [
    Chain((Perturbation("jpeg", 60.0),)),
    Chain((Perturbation("resize", 0.75), Perturbation("jpeg", 75.0))),
    Chain((Perturbation("blur", 1.0),)),
]
percent = st.integers(0, 10**8).map(lambda millionths: millionths / 1e6)


def figures(iou: float | None, fitted: float | None = None, ap: float = 90.0) -> dict[str, Any]:
    threshold = None if fitted is None else 0.125
    iou, fitted = (None if value is None else float(value) for value in (iou, fitted))
    return {
        **{"iou_lg": iou, "iou_fitted": fitted, "ap": float(ap), "map_threshold": threshold},
        **{"real_above": ap / 10, "threshold": 0.25},
    }


def found(clean: dict, all_fake: float | None, *perturbed: dict) -> dict[str, Any]:
    subject = {
        **{"fake_images": 7, "test_fake": "own/fake", "real_images": 5, "test_real": "own/real"}
    }
    pairs = list(zip(CHAINS, perturbed, strict=True))
    return {**retention.results(clean, all_fake, pairs), **subject}


@given(iou=percent, clean=percent, all_fake=percent)
def test_retained(iou, clean, all_fake):
    value = retention.retained(iou, clean, all_fake)
    if clean <= all_fake:
        assert value is None
    else:
        # What is left above the all-fake map, and so the IoU again.
        assert all_fake + value * (clean - all_fake) == pytest.approx(iou, abs=1e-6)


def test_what_there_is_nothing_of():
    for unknown in range(3):
        values = [50.0, 60.0, 20.0]
        values[unknown] = None
        assert retention.retained(*values) is None
    assert retention.retained(60.0, 60.0, 20.0) == 1 and retention.retained(20.0, 60.0, 20.0) == 0
    assert retention.retained(10.0, 60.0, 20.0) < 0 and retention.retained(70.0, 60.0, 20.0) > 1


def test_results():
    of = found(figures(70, 80), 20.0, figures(45, 50), figures(20, 26), figures(75, 80))
    assert [point["retained"] for point in of["points"]] == [0.5, 0, 1.1]
    assert [point["retained_fitted"] for point in of["points"]] == pytest.approx([0.5, 0.1, 1])
    assert of["retained"] == pytest.approx(1.6 / 3)
    assert of["retained_fitted"] == pytest.approx(1.6 / 3)
    assert of["all_fake_iou"] == 20 and of["clean"]["iou_lg"] == 70
    names = [point["perturbation"] for point in of["points"]]
    assert names == ["jpeg 60", "resize 0.75, jpeg 75", "blur 1"]
    # A network that is no better than the all-fake map at one half may be at its own threshold.
    of = found(figures(15, 60), 20.0, *[figures(10, 40)] * 3)
    assert of["retained"] is None and of["retained_fitted"] == pytest.approx(0.5)


def read_markdown(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1  # readable as it is
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(set(cell) <= {"-", ":"} for cell in rows.pop(1))
    return rows


def test_markdown():
    of = found(figures(70, 80), 20.0, figures(45, 50, 80), figures(20, 26), figures(75, 80))
    text = retention.markdown(of, "patches")
    assert text.startswith("patches: 7 images of own/fake and 5 of own/real")
    assert "(20.0)" in text and "score above 0.25" in text
    assert read_markdown(text) == [
        ["", "iou_lg", "retained", "iou_fitted", "retained, fitted", "ap", "real called fake"],
        ["clean", "70.0", "–", "80.0", "–", "90.0", "9.0"],
        ["jpeg 60", "45.0", "50.0", "50.0", "50.0", "80.0", "8.0"],
        ["resize 0.75, jpeg 75", "20.0", "0.0", "26.0", "10.0", "90.0", "9.0"],
        ["blur 1", "75.0", "110.0", "80.0", "100.0", "90.0", "9.0"],
        ["mean of the perturbed", "46.7", "53.3", "52.0", "53.3", "86.7", "8.7"],
    ]


def test_markdown_without_masks_and_thresholds():
    nothing = {**figures(None), "real_above": None, "threshold": None}
    text = retention.markdown(found(nothing, None, *[nothing] * 3), "patches")
    rows = read_markdown(text)
    assert rows[0] == ["", "iou_lg", "retained", "ap", "real called fake"]
    assert rows[2] == ["jpeg 60", "–", "–", "90.0", "–"]
    assert "called fake:" not in text


def picture(of: dict[str, Any]) -> np.ndarray:
    file = io.BytesIO()
    retention.save_picture(of, file)
    return np.asarray(Image.open(file)).astype(int)


def bars(pixels: np.ndarray, colour: tuple[int, int, int]) -> list[int]:
    """The lengths of the bars of a colour, from top to bottom, without the legend."""
    lengths = (pixels == colour).all(-1).sum(1)[2 * retention._ROW :]
    starts = np.flatnonzero((lengths[1:] > 0) & (lengths[:-1] == 0)) + 1
    return [int(lengths[start : start + 3].max()) for start in starts]


def test_picture():
    of = found(figures(70), 20.0, figures(45), figures(10), figures(95))
    assert [point["retained"] for point in of["points"]] == [0.5, -0.2, 1.5]
    first, second = retention._COLOURS
    full = retention._BARS + 1
    # Cut off at 0 and 1; the last is the mean.
    lengths = bars(picture(of), first)
    assert lengths == pytest.approx([full / 2, full, full * 0.6], abs=1)
    assert not (picture(of) == second).all(-1).any()
    # Two bars where maps have a threshold of their own.
    of = found(figures(70, 80), 20.0, *[figures(45, 50)] * 3)
    for colour in (first, second):
        assert bars(picture(of), colour) == pytest.approx([full / 2] * 4, abs=1)
    nothing = found(figures(10), 20.0, *[figures(5)] * 3)
    assert bars(picture(nothing), first) == []
