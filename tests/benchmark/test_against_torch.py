"""The benchmark still runs: tiny networks, and no look at the time that they take."""

import against_torch
import pytest
from against_torch import CHANNELS_LAST, DEFAULT, OURS, TUNED, Work


@pytest.mark.parametrize(
    "task", ["patches/train", "attention/infer", "grad_cam/infer", "grad_cam/folder"]
)
def test_contenders_agree_and_take_steps(torch, task, tmp_path):
    work = Work(task, batch=8, size=64, width=0.05, gpu=False, folder=str(tmp_path))
    against_torch.make_ours(work)()
    against_torch.make_torch(work, CHANNELS_LAST)()
    against_torch.TOLERANCE, tolerance = 0.0, against_torch.TOLERANCE
    with pytest.raises(against_torch.UserError, match=f"{task}: PyTorch's scores are .* off ours"):
        against_torch.make_torch(work, DEFAULT)
    against_torch.TOLERANCE = tolerance


def test_contest_and_table(torch, tmp_path):
    work = Work("patches/infer", batch=8, size=64, width=0.05, gpu=False, folder=str(tmp_path))
    groups = {
        "as it comes": against_torch.contest(work, (DEFAULT, "nothing"), {}, rounds=3),
        "tuned": against_torch.contest(work, (CHANNELS_LAST,), TUNED, rounds=1),
    }
    measured = groups["as it comes"][OURS]
    assert measured["images_per_second"] == pytest.approx(8 / measured["seconds"])
    assert measured["peak_bytes"] > 2**27  # an interpreter with jax
    rows = {"patches/infer 8": groups}
    cells = [cell.strip() for cell in against_torch.table(rows).splitlines()[-1].split("|")][1:-1]
    assert cells[:2] == ["patches, infer", "8"]
    # One column for each contender that ran: ours, default, and channels_last with the other group.
    assert all(float(cell) > 0 for cell in cells[2:5])
    assert [float(cell) > 0 for cell in cells[5:8]] == [True] * 3  # ratios
    assert cells[8].endswith("GiB")
    assert "nothing: choose from" in against_torch.reasons(rows)


def test_flops_are_those_of_the_network(torch):
    """By hand for the stem, two blocks and the last layer."""
    products = 149**2 * 9 * 3 * 32 + 147**2 * 9 * 32 * 64 + 37**2 * 256 * 2
    products += 74**2 * 64 * 128 + 37**2 * 128 * 256  # shortcuts
    for side, pairs in {147: [(64, 128), (128, 128)], 74: [(128, 256), (256, 256)]}.items():
        products += sum(side**2 * (9 * a + a * b) for a, b in pairs)
    for task, times in (("patches/infer", 1), ("patches/train", 3)):
        work = Work(task, batch=2, size=299, width=1.0, gpu=False, folder="")
        assert against_torch.flops(work) == times * 2 * 2 * products
