"""One evaluation as text: a table for the terminal and for results.txt."""

import textwrap
from typing import Any

from wsdl_jax.evaluation import metrics
from wsdl_jax.evaluation.verdict import ANSWERS

_OF_PART = ("iou_lg", "iou_fitted", "f1", "pixel_auc", "ap", "auc", "above")
PART_HEAD = ("images", *_OF_PART[:-1], "called fake")  # of the columns of `part_cells`
_LONGEST = 40  # characters of a part's name
_WIDTH = 9  # characters of a column, at least
_BLOCKS = {"localization": metrics.LOCALIZATION[:7], "": metrics.LOCALIZATION[7:]}  # of columns


def figure(value: float | None) -> str:
    """Returns a figure × 100 as text, "–" where there is none."""
    return "–" if value is None else f"{value:.1f}"


def masks(results: dict) -> str:
    """Describes in words how much of the fake images is manipulated."""
    share = results["manipulated_share"]
    return "without masks" if share is None else f"{share:.1f}% manipulated"


def text_table(results: dict, title: str) -> str:
    """Returns results as a table of fixed-width text.

    Args:
      results: the content of results.json.
      title: the first words of the table.
    """
    tested = f"{results['fake_images']} images of {results['test_fake']}"
    lines = [f"{title}: {tested}, {masks(results)}"]
    if results["manipulated_share"] is not None:
        for title, columns in _BLOCKS.items():
            widths = {name: 2 + max(len(name), _WIDTH) for name in columns}
            heads = (f"{name:>{width}}" for name, width in widths.items())
            lines.append(f"{title:<14}" + "".join(heads))
            for name, figures in {"this run": results, **results["trivial"]}.items():
                cells = (f"{figure(figures[c]):>{width}}" for c, width in widths.items())
                lines.append(f"{name:<14}" + "".join(cells))
        if results["f1_best_fixed"] is not None:
            lines.append(
                f"f1 at the one threshold that suits these images best, "
                f"{results['f1_best_fixed_at']:.3g}: {figure(results['f1_best_fixed'])}"
            )
        if results["map_threshold"] is not None:
            lines.append(
                f"iou_lg where maps are cut at {results['map_threshold']:.3g}, as fitted on "
                f"validation images: {figure(results['iou_fitted'])}"
            )
        if results["pixel_images"] < results["fake_images"]:
            lines.append(
                "pixel_auc, pixel_ap, iou_best, f1_best: over the "
                f"{results['pixel_images']} images whose mask has both classes"
            )
        if results["tolerant_images"] < results["fake_images"]:
            lines.append(
                f"f1_tolerant, f1_tolerant_best: over the {results['tolerant_images']} images with "
                "both classes away from the outline"
            )
    lines += [
        f"detection, against {results['real_images']} images of {results['test_real']}:",
        f"  ap {results['ap']:.1f} ± {results['ap_2sd']:.1f}, auc {results['auc']:.1f}, "
        f"balanced_accuracy {results['balanced_accuracy']:.1f}, "
        f"image_f1 {figure(results['image_f1'])}",
    ]
    if results["threshold"] is not None:
        lines.append(
            f"  called fake, score above {results['threshold']:.4g}: {results['fake_above']:.1f}% "
            f"of the fake images, {results['real_above']:.1f}% of the real ones; "
            f"F1 {figure(results['image_f1_verdict'])}"
        )
    if results["verdicts"] is not None:
        lines += verdict_lines(results["verdicts"])
    if results["intervals"] is not None:
        lines += ["", *_intervals(results["intervals"])]
    for fact, parts in results["parts"].items():
        lines += ["", *_parts_table(fact, parts)]
    return "\n".join(lines) + "\n"


def verdict_lines(verdicts: dict[str, Any]) -> list[str]:
    """Returns in words how many images are called what.

    verdicts: those of results.json.
    """

    def shares(of: dict[str, float]) -> str:
        answers = ", ".join(f"{figure(of[answer])}% {answer}" for answer in ANSWERS)
        return f"{answers} (unlike known images: {figure(of['unlike'])}%)"

    return [
        f"  verdicts at a false-positive rate of {verdicts['false_positive_rate']:g}%:",
        *(f"    {side} images: {shares(verdicts[side])}" for side in ("fake", "real")),
        "    of real images judged by others of them, over random halves, "
        f"{figure(verdicts['pooled_false_positives'])}% are called fake",
    ]


def interval(ends: dict[str, float] | None) -> str:
    """Returns an interval × 100 as text, "–" where there is none."""
    return "–" if ends is None else f"{figure(ends['low'])} to {figure(ends['high'])}"


def drawn(intervals: dict[str, Any]) -> str:
    """Describes in words what the intervals of results are of.

    intervals: those of results.json.
    """
    units = dict.fromkeys(f"{intervals['drawn'][side]}s" for side in ("fake", "real"))
    return (
        f"{intervals['level']:.0f}% intervals over {' and '.join(units)}, bootstrap of "
        f"{intervals['resamples']:,} resamples"
    )


def _intervals(intervals: dict[str, Any]) -> list[str]:
    known = {name: ends for name, ends in intervals["figures"].items() if ends is not None}
    text = ", ".join(f"{name} {interval(ends)}" for name, ends in known.items())
    return [
        f"{drawn(intervals)}:",
        *textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="  "),
    ]


def part_name(value: str) -> str:
    """Returns what is known of a part's images as text of one line."""
    text = " ".join(value.split()) or repr(value)
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[: half - 1]}…{text[-half:]}"


def part_cells(figures: dict[str, Any]) -> list[str]:
    """Returns the figures of a part of the fakes as text, see `parts`."""
    return [str(figures["images"]), *(figure(figures[name]) for name in _OF_PART)]


def _parts_table(fact: str, parts: dict[str, dict[str, Any]]) -> list[str]:
    rows = [(part_name(value), part_cells(figures)) for value, figures in parts.items()]
    rows = [(f"by {fact}", list(PART_HEAD)), *rows]
    wide = 2 + max(len(name) for name, _ in rows)
    widths = [max(len(name), len("100.0")) + 2 for name in PART_HEAD]
    return [
        f"{name:<{wide}}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
        for name, cells in rows
    ]
