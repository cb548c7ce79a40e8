"""What a plot shows is read back from its SVG, by the ticks of its axes alone."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from wsdl_jax.reporting import plots
from wsdl_jax.reporting.plots import Series

AXES = {"title": "Plot", "x_label": "across", "y_label": "up"}


def drawing(markup: Markup) -> tuple[ET.Element, ET.Element]:
    figure = ET.fromstring(str(markup))
    return figure, figure.find("svg")


def scale(svg: ET.Element, anchor: str, coordinate: str) -> np.ndarray:
    """[value, place] of the ticks of an axis; text of x is centred, of y ends at it."""
    ticks = []
    for text in svg.findall("text"):
        if text.get("text-anchor") == anchor and re.fullmatch(r"-?[\d,.e+-]+", text.text):
            ticks.append((float(text.text.replace(",", "")), float(text.get(coordinate))))
    assert len(ticks) >= 2
    return np.array(ticks)


def values(svg: ET.Element, points: np.ndarray) -> np.ndarray:
    """Places in the drawing → values, by the straight line through the ticks."""
    out = []
    for axis, (anchor, coordinate, offset) in enumerate((("middle", "x", 0), ("end", "y", -4))):
        ticks = scale(svg, anchor, coordinate)
        slope, start = np.polyfit(ticks[:, 1] + offset, ticks[:, 0], 1)
        fitted = slope * (ticks[:, 1] + offset) + start
        np.testing.assert_allclose(fitted, ticks[:, 0], atol=abs(slope) * 0.2)
        out.append(slope * points[:, axis] + start)
    return np.stack(out, 1)


def points(path: str) -> np.ndarray:
    return np.array([[float(n) for n in pair.split()] for pair in path[1:].split("L")])


def lines(svg: ET.Element) -> list[ET.Element]:
    return [path for path in svg.findall("path") if path.get("class") != "grid"]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 30),
    st.integers(-3, 6),
    st.integers(-3, 6),
    st.integers(0, 2**32 - 1),
)
def test_lines_are_where_the_axes_say(count, x_power, y_power, seed):
    rng = np.random.default_rng(seed)
    x = np.sort(rng.random(count)) * 10.0**x_power
    y = (rng.random(count) - rng.random()) * 10.0**y_power
    _, svg = drawing(plots.plot([Series("one", x, y, 0)], **AXES))
    (path,) = lines(svg)
    width, height = (float(n) for n in svg.get("viewBox").split()[2:])
    drawn = points(path.get("d"))
    assert (drawn >= 0).all() and (drawn <= [width, height]).all()
    # To half a unit of the drawing, of some 350 × 220.
    expected = np.stack([x, y], 1)
    spans = np.array([scale(svg, "middle", "x"), scale(svg, "end", "y")], dtype=object)
    tolerance = [np.ptp(s[:, 0]) / np.ptp(s[:, 1]) * 0.5 for s in spans]
    assert (np.abs(values(svg, drawn) - expected) <= tolerance).all()


def test_given_limits_and_several_series():
    series = [
        Series("first", (0, 50, 100), (10, 20, 30), 0, "dots"),
        Series("second", (0, 100), (40, 40), 9, "dashed"),
    ]
    figure, svg = drawing(plots.plot(series, **AXES, x_range=(0.0, 100.0), y_range=(0.0, 100.0)))
    assert scale(svg, "middle", "x")[:, 0].tolist() == [0, 20, 40, 60, 80, 100]
    first, second = lines(svg)
    np.testing.assert_allclose(
        values(svg, points(first.get("d"))), [(0, 10), (50, 20), (100, 30)], atol=0.2
    )
    np.testing.assert_allclose(values(svg, points(second.get("d")))[:, 1], 40, atol=0.2)
    assert second.get("class").split() == ["c1", "dashed"]  # the tenth colour is the second
    marks = svg.findall("circle")
    places = np.array([[float(mark.get(c)) for c in ("cx", "cy")] for mark in marks])
    np.testing.assert_allclose(values(svg, places)[:, 1], [10, 20, 30], atol=0.2)
    assert [mark.find("title").text for mark in marks][1] == "first: 50, 20"
    assert ["".join(item.itertext()) for item in figure.find("ul")] == ["first", "second"]


def test_bars_have_the_heights_of_the_counts():
    counts, edges = np.histogram([0.1, 0.1, 0.3, 0.9], bins=5, range=(0, 1))
    _, svg = drawing(plots.plot([Series("scores", edges, counts, 0, "bars")], **AXES))
    (path,) = lines(svg)
    assert "area" in path.get("class")
    tops = np.array(
        [(float(x), float(y)) for y, x in re.findall(r"V([\d.]+)H([\d.]+)", path.get("d"))]
    )
    got = values(svg, tops)
    np.testing.assert_allclose(got[:, 0], edges[1:], atol=0.01)
    np.testing.assert_allclose(got[:, 1], counts, atol=0.02)


def test_long_lines_are_thinned_and_keep_their_ends():
    x = np.arange(100_000.0)
    _, svg = drawing(plots.plot([Series("long", x, x, 0)], **AXES))
    (path,) = lines(svg)
    drawn = values(svg, points(path.get("d")))
    assert len(drawn) < 1000
    np.testing.assert_allclose(drawn[[0, -1]], [(0, 0), (99_999, 99_999)], atol=200)


def test_what_is_not_finite_is_left_out():
    series = [
        Series("some", (1, 2, 3, 4), (1, np.nan, np.inf, 2), 0),
        Series("none", (1, 2), (np.nan, np.nan), 1),
    ]
    figure, svg = drawing(plots.plot(series, **AXES))
    (path,) = lines(svg)
    np.testing.assert_allclose(values(svg, points(path.get("d"))), [(1, 1), (4, 2)], atol=0.02)
    assert len(figure.find("ul")) == 1
    with pytest.raises(ValueError, match="Plot: nothing to plot"):
        plots.plot(series[1:], **AXES)


def test_one_point():
    _, svg = drawing(plots.plot([Series("one", (90.0,), (55.0,), 0, "dots")], **AXES))
    (mark,) = svg.findall("circle")
    place = np.array([[float(mark.get("cx")), float(mark.get("cy"))]])
    np.testing.assert_allclose(values(svg, place), [(90, 55)], atol=0.02)


def test_text_from_outside_is_escaped():
    evil = '</text><script>alert("1")</script>&amp;\''
    series = [Series(evil, (0, 1), (0, 1), 0, "dots"), Series(evil, (0, 1), (3,), 1, "bars")]
    markup = plots.plot(series, title=evil, x_label=evil, y_label=evil)
    assert "<script" not in markup
    figure, svg = drawing(markup)  # still well-formed
    assert figure.find("figcaption").text == evil == svg.get("aria-label")
    assert ["".join(item.itertext()) for item in figure.find("ul")] == [evil, evil]


def test_bars_by_name_are_as_long_as_the_axis_says():
    names = ["jpeg 60", "resize 0.75, jpeg 75", "<blur & noise>"]
    series = [
        plots.Bars("one", [25.0, 80.5, math.nan], 1),
        plots.Bars("<two>", [-20.0, 150.0, 50.0], 9),  # beyond both ends
    ]
    figure, svg = drawing(plots.bars(names, series, title="Bars", x_range=(0.0, 100.0)))
    slope, start = np.polyfit(*scale(svg, "middle", "x").T[::-1], 1)
    shown = {}
    for path in lines(svg):
        start_at, end, bottom, back = map(float, re.findall(r"[MHV](-?[\d.]+)", path.get("d")))
        assert back == start_at and slope * start_at + start == pytest.approx(0, abs=0.2)
        shown[path.find("title").text] = slope * end + start, bottom, path.get("class")
    assert {name: length for name, (length, _, _) in shown.items()} == pytest.approx(
        {
            **{"one: jpeg 60, 25": 25, "one: resize 0.75, jpeg 75, 80.5": 80.5},
            **{"<two>: jpeg 60, -20": 0, "<two>: resize 0.75, jpeg 75, 150": 100},
            "<two>: <blur & noise>, 50": 50,
        },
        abs=0.2,
    )
    assert {style for *_, style in shown.values()} == {"c1 area"}  # colours come again after 8
    assert len({bottom for _, bottom, _ in shown.values()}) == 5  # no two at one place
    labels = [t for t in svg.findall("text") if t.get("text-anchor") == "end"]
    assert [label.text for label in labels] == names
    # The longest name has room on the left.
    assert 6 * len(names[1]) < min(float(label.get("x")) for label in labels)
    assert [entry.text or entry[0].tail for entry in figure.iter("li")] == ["one", "<two>"]
