"""One evaluation as text: a table for the terminal and for results.txt."""

from wsdl_jax.evaluation import metrics


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
    return "\n".join(lines) + "\n"
