"""The table of text shows what was put into it."""

import pytest

from wsdl_jax.evaluation import summary


def test_text_table_has_every_figure():
    names = ("iou_lg", "iou_sm", "pbca_lg", "pbca_sm", "f1", "pixel_auc", "pixel_ap")
    more = ("iou_best", "f1_best", "mcc", "f1_tolerant", "f1_tolerant_best")
    figures = {
        row: {name: 20.0 * r + c for c, name in enumerate((*names, *more))}
        for r, row in enumerate(("this run", "all real", "all fake", "random"))
    }
    results = {
        **figures["this run"],
        "trivial": {name: figures[name] for name in ("all real", "all fake", "random")},
        "f1_best_fixed": 66.61,
        "f1_best_fixed_at": 0.1525,
        "image_f1": 71.24,
        "image_f1_verdict": 70.15,
        "ap": 91.26,
        "ap_2sd": 1.04,
        "auc": 87.5,
        "balanced_accuracy": 77.77,
        "threshold": 0.123456,
        "fake_above": 66.66,
        "real_above": 5.04,
        "map_threshold": 0.12345,
        "iou_fitted": 43.21,
        "pixel_images": 8500,
        "tolerant_images": 8500,
        "manipulated_share": 12.34,
        "test_fake": "dolos/fakes",
        "test_real": "dolos/reals",
        "fake_images": 8500,
        "real_images": 900,
        "parts": {},
        "intervals": None,
        "verdicts": {
            "false_positive_rate": 5.0,
            "fake": {"real": 12.34, "fake": 80.04, "unsure": 7.62, "unlike": 1.5},
            "real": {"real": 90.0, "fake": 4.44, "unsure": 5.56, "unlike": 2.55},
            "pooled_false_positives": 4.56,
        },
    }
    text = summary.text_table(results, title="patches, setup a")
    assert text.endswith("\n") and max(map(len, text.splitlines())) <= 100
    lines = text.splitlines()
    assert "patches, setup a" in text
    for part in ("8500", "dolos/fakes", "12.3%", "900", "dolos/reals"):
        assert part in text
    assert "ap 91.3 ± 1.0, auc 87.5, balanced_accuracy 77.8, image_f1 71.2" in text
    assert "suits these images best, 0.152: 66.6" in text
    above = "above 0.1235: 66.7% of the fake images, 5.0% of the real ones; F1 70.2"
    assert above in text
    assert "both classes" not in text
    said = "fake images: 12.3% real, 80.0% fake, 7.6% unsure (unlike known images: 1.5%)"
    assert said in text and "random halves, 4.6% are called fake" in text
    assert "verdicts" not in summary.text_table({**results, "verdicts": None}, title="x")
    cut = "iou_lg where maps are cut at 0.123, as fitted on validation images: 43.2"
    assert cut in lines
    unfitted = summary.text_table({**results, "map_threshold": None}, title="patches, setup a")
    assert unfitted.splitlines() == [line for line in lines if line != cut]
    nothing = dict.fromkeys((*names, *more))
    bare = {**results, **nothing, "manipulated_share": None, "threshold": None}
    lines_without_masks = summary.text_table(bare, title="bare").splitlines()
    assert lines_without_masks[0] == "bare: 8500 images of dolos/fakes, without masks"
    assert lines_without_masks[1:] == [line for line in text.splitlines()[-7:] if above not in line]
    for block in (names, more):
        at = next(n for n, line in enumerate(lines) if line.split()[-len(block) :] == [*block])
        for line, (row, values) in zip(lines[at + 1 :], figures.items(), strict=False):
            assert line.startswith(row)
            # A figure ends where its column's name ends.
            for name in block:
                end = lines[at].index(f" {name} " if name != block[-1] else f" {name}")
                end += 1 + len(name)
                assert float(line[end - 6 : end]) == pytest.approx(values[name])

    for figure in (results, *results["trivial"].values()):
        figure["pixel_auc"] = None
    fewer = {"pixel_images": 8321, "tolerant_images": 8123}
    text = summary.text_table({**results, **fewer}, title="patches, setup a")
    assert "over the 8321 images whose mask has both classes" in text
    assert "over the 8123 images with both classes away from the outline" in text
    assert max(map(len, text.splitlines())) <= 100
    line = next(line for line in text.splitlines() if line.startswith("this run"))
    assert line.split()[2:][names.index("pixel_auc")] == "–"
