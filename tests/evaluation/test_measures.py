"""Records of images, and the vectors that they travel as."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsdl_jax import inputs
from wsdl_jax.evaluation import measures, metrics
from wsdl_jax.evaluation.measures import Comparison, ImageMeasures, MapMeasures
from wsdl_jax.evaluation.metrics import LocalizationFigures
from wsdl_jax.runtime import hosts
from wsdl_jax.runtime.errors import UserError

FIGURES, THRESHOLDS = len(metrics.LOCALIZATION), len(metrics.THRESHOLDS)
COUNT = 4 + FIGURES + THRESHOLDS + len(measures.TRIVIAL) * FIGURES
# Numbers of a record, NaN, infinite and denormal ones too, and which of its parts it has.
PARTS = st.tuples(hnp.arrays(np.float64, COUNT), st.integers(0, 2))


def record(index: int, parts: tuple[np.ndarray, int]) -> ImageMeasures:
    """A record of numbers: of an image alone, of its map, too, or of a comparison as well."""
    score, probability, share, iou_fitted, *numbers = parts[0].tolist()

    def figures() -> LocalizationFigures:
        return LocalizationFigures(*(numbers.pop() for _ in range(FIGURES)))

    localization = comparison = None
    if parts[1] == 2:
        by_threshold = tuple(numbers.pop() for _ in range(THRESHOLDS))
        comparison = Comparison(by_threshold, tuple(figures() for _ in measures.TRIVIAL))
    if parts[1] > 0:
        localization = MapMeasures(figures(), share, iou_fitted, comparison)
    return ImageMeasures(index, score, probability, localization)


def bits(measured: ImageMeasures) -> str:
    """All values of a record, in which NaN is like NaN and 0 unlike -0."""
    return repr(measured)


@settings(deadline=None)
@given(st.integers(-1, 2**53 - 1), PARTS)
def test_a_record_comes_back_to_the_bit(index, parts):
    measured = record(index, parts)
    vector = measures.encode(measured)
    assert vector.dtype == np.float64
    assert vector.shape == measures.encode(ImageMeasures(0)).shape
    assert bits(measures.decode(vector)) == bits(measured)


class Keys(inputs.Examples):
    """Images of which nothing is known but their keys."""

    def __init__(self):
        pass

    def __getitem__(self, index):
        return {"key": b"%d.png" % index}


def of_three_hosts(records: list[ImageMeasures]) -> list[ImageMeasures]:
    """What every host knows of six records, of which each of three has measured two."""
    own = [[*records[i : i + 2], ImageMeasures(-1)] for i in (0, 2, 4)]
    with pytest.MonkeyPatch.context() as patch:
        vectors = np.array([list(map(measures.encode, of_host)) for of_host in own])
        patch.setattr(hosts, "gather", lambda values: vectors)
        return measures.of_all_hosts(own[0], Keys())


@settings(deadline=None, max_examples=20)
@given(st.permutations([-1, 0, 1, 2, 40, 2**53 - 1]), PARTS)
def test_records_of_all_hosts_are_in_order_and_without_padding(indices, parts):
    parts[0][:2] = 0.25, 0.5
    records = [record(index, parts) for index in indices]
    images = sorted((r for r in records if r.index >= 0), key=lambda r: r.index)
    assert list(map(bits, of_three_hosts(records))) == list(map(bits, images))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_image_that_is_not_finite_is_named(value):
    records = [ImageMeasures(index, 0.5, 0.5) for index in range(6)]
    records[3] = ImageMeasures(3, 0.5, value)
    records[2] = ImageMeasures(7, value, 0.5)
    with pytest.raises(UserError, match=r"not finite, first those of 3\.png$"):
        of_three_hosts(records)


def test_measures_of_an_image():
    rng = np.random.default_rng(0)
    localization_map = rng.random((6, 5), np.float32)
    mask = np.zeros((12, 10), np.uint8)
    mask[3:9] = 1
    plain, compared = (
        measures.measure(3, 0.25, 0.5, localization_map, mask, map_threshold=0.3, compared=compared)
        for compared in (False, True)
    )
    assert (plain.index, plain.score, plain.probability) == (3, 0.25, 0.5)
    large = metrics.resize_map(localization_map, 12, 10)
    fitted = metrics.iou(large > 0.3, mask > 0)
    assert plain.localization.iou_fitted == pytest.approx(fitted)
    assert dataclasses.replace(plain.localization, iou_fitted=0.0) == MapMeasures(
        metrics.localization(localization_map, mask), 0.5, 0.0
    )
    comparison = compared.localization.comparison
    assert dataclasses.replace(compared.localization, comparison=None) == plain.localization
    by_threshold = [metrics.iou(large > at, mask > 0) for at in metrics.THRESHOLDS]
    np.testing.assert_array_equal(comparison.iou_by_threshold, by_threshold)
    for value, figures in zip((0, 1), comparison.trivial, strict=False):
        assert figures == metrics.localization(np.full((6, 5), value, np.float32), mask)
    without = {"map_threshold": None, "compared": True}
    other = measures.measure(4, 0.25, 0.5, localization_map, mask, **without)
    assert math.isnan(other.localization.iou_fitted)
    *constant, random = zip(comparison.trivial, other.localization.comparison.trivial, strict=True)
    assert all(one == two for one, two in constant)
    assert random[0] != random[1]  # its seed is the image's index
    unmasked = measures.measure(3, 0.25, 0.5, localization_map, None, **without)
    assert unmasked == ImageMeasures(3, 0.25, 0.5)
