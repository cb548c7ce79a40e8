"""Reads the results of evaluations back and checks them.

Users may have changed the files since they were written.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from wsdl_jax.evaluation import intervals, metrics, parts, retention, verdict
from wsdl_jax.runtime import storage
from wsdl_jax.runtime.errors import UserError

DETECTION = ("ap", "ap_2sd", "auc", "balanced_accuracy")
_NUMBERS = (*metrics.LOCALIZATION, "manipulated_share", "iou_fitted", *DETECTION)  # or null
_VERDICT = ("threshold", "map_threshold", "real_above", "fake_above")  # likewise
_FIXED = ("f1_best_fixed", "f1_best_fixed_at")  # likewise
# What earlier evaluations have not measured.
_LATER_LOCALIZATION = ("iou_best", "f1_best", "mcc", "f1_tolerant", "f1_tolerant_best")
_LATER_IMAGE = ("image_f1", "image_f1_verdict")
_LATER = ("iou_fitted", "map_threshold", *_LATER_LOCALIZATION, *_LATER_IMAGE)


def read(path: epath.Path) -> dict[str, Any]:
    """Returns the content of the results of an evaluation.

    Raises:
      UserError: a file that is damaged, or that another version has written.
    """

    def check(content: Any) -> None:
        _check_figures(content)
        _check_details(content)

    return _read(path, check)


def read_robustness(path: epath.Path) -> dict[str, Any]:
    """Returns the content of the results of an evaluation on perturbed images.

    Raises:
      UserError: a file that is damaged, or that another version has written.
    """

    def check(content: Any) -> None:
        for figures in (content["clean"], *content["points"]):
            _check_figures(figures)
        _check(all(_is_number(point["strength"]) for point in content["points"]), "points")
        for name in ("perturbation", "unit"):
            _check(isinstance(content[name], str), name)

    return _read(path, check)


def read_everyday(path: epath.Path) -> dict[str, Any]:
    """Returns the content of the results of an evaluation after everyday perturbations.

    Raises:
      UserError: a file that is damaged, or that another version has written.
    """

    def check(content: Any) -> None:
        _check(isinstance(content["perturbation"], str), "perturbation")
        _check_known(content, "all_fake_iou")
        _check(isinstance(content["points"], list) and len(content["points"]) > 0, "points")
        for figures in (content["clean"], *content["points"]):
            _check_figures(figures)
        for point in content["points"]:
            _check(isinstance(point["perturbation"], str), "points")
        for figures in (content, *content["points"]):
            for name in retention.RETAINED:
                _check_known(figures, name)

    return _read(path, check)


def _read(path: epath.Path, check: Callable[[Any], None]) -> dict[str, Any]:
    """Returns the content of a file of results that `check` does not raise an error for."""
    content = storage.read_json(path)
    try:
        check(content)
        for side in ("fake", "real"):
            _check(isinstance(content[f"test_{side}"], str), f"test_{side}")
            _check(_is_count(content[f"{side}_images"]), f"{side}_images")
            _check(isinstance(content["data"][side], str), "data")
        known = content["checkpoint"] is not None  # of maps without a run it is not
        _check(not known or _is_count(content["checkpoint"]), "checkpoint")
        _check(content["weights"] is None or _is_count(content["weights"]), "weights")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
        raise UserError(
            f"{path} {what}: it is of another version or was changed; delete it, and evaluate again"
        ) from error
    return content


def network(results: dict[str, Any]) -> tuple[int | None, int | None]:
    """Returns the step and the checksum of the checkpoint that was evaluated, None if unknown."""
    return results["checkpoint"], results["weights"]


def check_same_data(read: Iterable[tuple[epath.Path, dict[str, Any]]]) -> None:
    """Checks that all results of a subset of one name are of the same images.

    Args:
      read: pairs of a run directory and results of its, which are to stand in one table.

    Raises:
      UserError: two runs were evaluated on different images.
    """
    known: dict[str, tuple[str, epath.Path]] = {}
    for run, results in read:
        for side in ("fake", "real"):
            name, digest = results[f"test_{side}"], results["data"][side]
            other, where = known.setdefault(name, (digest, run))
            if other != digest:
                raise UserError(
                    f"{run} and {where} were evaluated on different images of {name}: evaluate "
                    "both again on the same"
                )


def _check(valid: bool, name: str) -> None:
    if not valid:
        raise ValueError(f"its {name} is not what it should be")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_known(figures: Any, name: str) -> None:
    """Checks that a figure is a number, or null."""
    _check(figures[name] is None or _is_number(figures[name]), name)


def _check_figures(figures: Any) -> None:
    for name in _LATER:
        figures.setdefault(name, None)
    figures.setdefault("tolerant_images", 0)
    for name in (*_NUMBERS, *_VERDICT, *_LATER_IMAGE):
        known = name in DETECTION or figures[name] is not None
        _check(not known or _is_number(figures[name]), name)
    for name in ("pixel_images", "tolerant_images"):
        _check(_is_count(figures[name]), name)


def _check_details(results: Any) -> None:
    results.setdefault("parts", {})  # earlier evaluations have none
    for of_fact in results["parts"].values():
        for figures in of_fact.values():
            _check(_is_count(figures["images"]), "parts")
            for name in _LATER_LOCALIZATION:
                figures.setdefault(name, None)
            for name in parts.FIGURES:
                _check_known(figures, name)
    for name in _FIXED:
        results.setdefault(name, None)
        _check_known(results, name)
    _check_intervals(results.setdefault("intervals", None))  # likewise
    _check_verdicts(results.setdefault("verdicts", None))  # likewise
    _check(isinstance(results["predictions"], str), "predictions")
    maps = results.setdefault("maps", None)  # likewise
    _check(maps is None or isinstance(maps, str), "maps")
    _check(isinstance(results["iou_by_threshold"], list), "iou_by_threshold")
    for point in results["iou_by_threshold"]:
        _check(_is_number(point["threshold"]), "iou_by_threshold")
        unknown = results["iou_lg"] is None and point["iou_lg"] is None
        _check(unknown or _is_number(point["iou_lg"]), "iou_by_threshold")
    _check(len(results["iou_by_threshold"]) == len(metrics.SHOWN_THRESHOLDS), "iou_by_threshold")
    for figures in results["trivial"].values():
        for name in _LATER_LOCALIZATION:
            figures.setdefault(name, None)
        for name in metrics.LOCALIZATION:
            _check(figures[name] is None or _is_number(figures[name]), "trivial")


def _check_verdicts(found: Any) -> None:
    if found is None:
        return
    _check(_is_number(found["false_positive_rate"]), "verdicts")
    _check_known(found, "pooled_false_positives")
    for side in ("fake", "real"):
        for name in (*verdict.ANSWERS, "unlike"):
            _check(_is_number(found[side][name]), "verdicts")


def _check_intervals(found: Any) -> None:
    if found is None:
        return
    _check(_is_number(found["level"]) and _is_count(found["resamples"]), "intervals")
    for side in ("fake", "real"):
        _check(found["drawn"][side] in intervals.KINDS, "intervals")
    for name in (*intervals.LOCALIZATION, *intervals.DETECTION):
        ends = found["figures"][name]
        _check(ends is None or all(_is_number(ends[end]) for end in ("low", "high")), "intervals")
