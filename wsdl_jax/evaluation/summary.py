"""One evaluation as text: a table for the terminal and for results.txt."""

from typing import Any

from wsdl_jax.evaluation import metrics

_OF_PART = ("iou_lg", "iou_fitted", "f1", "pixel_auc", "ap", "auc", "above")
PART_HEAD = ("images", *_OF_PART[:-1], "called fake")  # of the columns of `part_cells`
_LONGEST = 40  # characters of a part's name


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
    columns = metrics.LOCALIZATION
    width = 2 + max(map(len, columns))
    tested = f"{results['fake_images']} images of {results['test_fake']}"
    lines = [f"{title}: {tested}, {masks(results)}"]
    if results["manipulated_share"] is not None:
        lines.append(f"{'localization':<14}" + "".join(f"{name:>{width}}" for name in columns))
        for name, figures in {"this run": results, **results["trivial"]}.items():
            cells = (f"{figure(figures[column]):>{width}}" for column in columns)
            lines.append(f"{name:<14}" + "".join(cells))
        if results["map_threshold"] is not None:
            lines.append(
                f"iou_lg where maps are cut at {results['map_threshold']:.3g}, as fitted on "
                f"validation images: {figure(results['iou_fitted'])}"
            )
        if results["pixel_images"] < results["fake_images"]:
            lines.append(
                f"pixel_auc and pixel_ap: over the {results['pixel_images']} images whose mask has "
                "both classes"
            )
    lines += [
        f"detection, against {results['real_images']} images of {results['test_real']}:",
        f"  ap {results['ap']:.1f} ± {results['ap_2sd']:.1f}, auc {results['auc']:.1f}, "
        f"balanced_accuracy {results['balanced_accuracy']:.1f}",
    ]
    if results["threshold"] is not None:
        lines.append(
            f"  called fake, score above {results['threshold']:.4g}: {results['fake_above']:.1f}% "
            f"of the fake images, {results['real_above']:.1f}% of the real ones"
        )
    for fact, parts in results["parts"].items():
        lines += ["", *_parts_table(fact, parts)]
    return "\n".join(lines) + "\n"


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
