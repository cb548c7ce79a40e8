"""Plots as inline SVG.

The page that shows them gives their classes a stroke or a fill, in light and in dark: c0 … c7 for
colours, dashed, area and grid.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

COLOURS = 8  # c0 … c7, then from the first again
_WIDTH, _HEIGHT = 360.0, 250.0  # of the drawing, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 22.0, 12.0, 44.0  # margins
_LETTER = 6.4  # width of a letter, on average
_MOST_POINTS = 600  # of a line


class Series(NamedTuple):
    """One line, or one histogram, of a plot.

    Attributes:
      name: shown in the legend, and when the mouse points at the drawing.
      x: values in rising order; for "bars" the edges of the bins, one more than there are values.
      y: values; what is not finite is left out.
      colour: a number, of which the page makes a colour; the same for all series of a run.
      style: "line", "dots" (a line with a mark at every point), "dashed" or "bars".
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    style: str = "line"


class Bars(NamedTuple):
    """One bar for each name of a plot of bars.

    Attributes:
      name: shown in the legend, and when the mouse points at a bar.
      values: one for each name; what is not finite is left out.
      colour: as of a `Series`.
    """

    name: str
    values: Sequence[float]
    colour: int


def plot(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Markup:
    """Returns a plot with axes and a legend, as a `figure` element. Its texts are escaped.

    Args:
      series: what is plotted; drawn in this order.
      title: of the plot.
      x_label: of the horizontal axis.
      y_label: of the vertical axis.
      x_range: ends of the horizontal axis; by default the data's, widened to ticks.
      y_range: ends of the vertical axis, likewise. What lies beyond is drawn at the end.

    Raises:
      ValueError: there is not one finite value to plot.
    """
    drawn = [_finite(one) for one in series]
    drawn = [one for one in drawn if len(one.y)]
    if not drawn:
        raise ValueError(f"{title}: nothing to plot")
    x_ticks, x_low, x_high = _axis(np.concatenate([one.x for one in drawn]), x_range)
    bottom = [[0.0] for one in drawn if one.style == "bars"]
    y_ticks, y_low, y_high = _axis(np.concatenate([*(one.y for one in drawn), *bottom]), y_range)

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        share = (min(max(y, y_low), y_high) - y_low) / (y_high - y_low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in x_ticks:
        x = across(tick)
        parts.append(Markup(f'<path class="grid" d="M{x:.1f} {_TOP}V{floor}"/>'))
        parts.append(_text(_number(tick), x, floor + 15, "middle"))
    for tick in y_ticks:
        y = down(tick)
        parts.append(Markup(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>'))
        parts.append(_text(_number(tick), _LEFT - 6, y + 4, "end"))
    parts.append(_text(x_label, (_LEFT + right) / 2, _HEIGHT - 8, "middle"))
    middle = (_TOP + floor) / 2
    parts.append(_text(y_label, 12.0, middle, "middle", f' transform="rotate(-90 12 {middle})"'))
    for one in drawn:
        parts.append(_draw(one, [across(x) for x in one.x], [down(y) for y in one.y], floor))
    drawing = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, title, Markup("").join(parts)
    )
    return _figure(title, drawing, [(one.colour, one.style, one.name) for one in drawn])


def bars(
    names: Sequence[str], series: Sequence[Bars], *, title: str, x_range: tuple[float, float]
) -> Markup:
    """Returns horizontal bars, grouped by names, as a `figure` element. Its texts are escaped.

    Args:
      names: of the groups, from top to bottom.
      series: bars of each group, from top to bottom.
      title: of the plot.
      x_range: ends of the horizontal axis, at which bars are cut off; the number beside a bar is
        its whole value.
    """
    left = max(_LEFT, _LETTER * max(map(len, names)) + 12)
    right, thickness, gap = _WIDTH - _RIGHT - 24, 12, 6
    group = thickness * len(series) + gap
    floor = _TOP + group * len(names)
    ticks, low, high = _axis(np.asarray(x_range), x_range)

    def across(x: float) -> float:
        return left + (min(max(x, low), high) - low) / (high - low) * (right - left)

    parts = []
    for tick in ticks:
        x = across(tick)
        parts.append(Markup(f'<path class="grid" d="M{x:.1f} {_TOP}V{floor}"/>'))
        parts.append(_text(_number(tick), x, floor + 15, "middle"))
    for place, name in enumerate(names):
        top = _TOP + group * place + gap / 2
        parts.append(_text(name, left - 6, top + (group - gap) / 2 + 4, "end"))
        for one in series:
            value = one.values[place]
            if math.isfinite(value):
                start, end = across(0.0), across(value)
                shape = f"M{start:.1f} {top:.1f}H{end:.1f}V{top + thickness - 1:.1f}H{start:.1f}Z"
                path = Markup('<path class="c{} area" d="{}"><title>{}: {}, {}</title></path>')
                number = _number(round(value, 1))
                colour = one.colour % COLOURS
                parts.append(path.format(colour, shape, one.name, name, number))
                parts.append(_text(number, end + 4, top + thickness - 2, "start"))
            top += thickness
    drawing = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, floor + 24, title, Markup("").join(parts)
    )
    return _figure(title, drawing, [(one.colour, "area", one.name) for one in series])


def _figure(title: str, drawing: Markup, legend: Sequence[tuple[int, str, str]]) -> Markup:
    """Returns a drawing with its title and a legend of colours, styles and names."""
    entries = Markup("").join(
        Markup('<li><i class="c{} {}"></i>{}</li>').format(colour % COLOURS, style, name)
        for colour, style, name in legend
    )
    return Markup("<figure><figcaption>{}</figcaption>{}<ul>{}</ul></figure>").format(
        title, drawing, entries
    )


def _finite(one: Series) -> Series:
    """Returns a series without values that are not finite, thinned to what can be seen."""
    x, y = np.asarray(one.x, float), np.asarray(one.y, float)
    if one.style == "bars":
        return one._replace(x=x.tolist(), y=y.tolist())
    kept = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(kept) > _MOST_POINTS:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, _MOST_POINTS).astype(int))]
    return one._replace(x=x[kept].tolist(), y=y[kept].tolist())


def _axis(
    values: np.ndarray, limits: tuple[float, float] | None
) -> tuple[list[float], float, float]:
    """Returns an axis's ticks, at 1, 2 or 5 times a power of ten, and its lower and upper end.

    Args:
      values: of the data.
      limits: the ends; by default the data's, widened to ticks.
    """
    low, high = limits or (float(values.min()), float(values.max()))
    if low == high:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if limits:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        low, high = first * step, last * step
    return [k * step for k in range(first, last + 1)], low, high


def _number(value: float) -> str:
    """Returns a number as short text: 0.25, 1,500, 2e+06."""
    value = round(value, 10)
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:g}"
    return f"{value:,.10f}".rstrip("0").rstrip(".")


def _text(text: str, x: float, y: float, anchor: str, more: str = "") -> Markup:
    place = Markup(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>')
    return place + Markup("{}</text>").format(text)


def _draw(one: Series, x: list[float], y: list[float], floor: float) -> Markup:
    colour = f"c{one.colour % COLOURS}"
    if one.style == "bars":
        tops = "".join(f"V{top:.1f}H{end:.1f}" for top, end in zip(y, x[1:], strict=True))
        path = f'<path class="{colour} area" d="M{x[0]:.1f} {floor}{tops}V{floor}Z">'
        return Markup(path) + Markup("<title>{}</title></path>").format(one.name)
    points = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
    style = "dashed" if one.style == "dashed" else ""
    path = Markup(f'<path class="{colour} {style}" d="M{points}">')
    drawing = path + Markup("<title>{}</title></path>").format(one.name)
    if one.style != "dots":
        return drawing
    marks = (
        Markup(
            '<circle class="{}" cx="{}" cy="{}" r="3"><title>{}: {}, {}</title></circle>'
        ).format(
            colour, f"{a:.1f}", f"{b:.1f}", one.name, _number(round(u, 4)), _number(round(v, 2))
        )
        for a, b, u, v in zip(x, y, one.x, one.y, strict=True)
    )
    return drawing + Markup("").join(marks)
