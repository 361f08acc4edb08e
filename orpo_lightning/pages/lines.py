"""Line charts as SVG: several series over one axis, each with a look, a name and maybe a band.

As in `charts`: across in percent, down in pixels, colours by class. Lines themselves are drawn 100 wide and
stretched to the chart's width; strokes and dashes keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

HEIGHT = 208
LOOKS = 6
"""How many series one chart tells apart, by colour and by dash (`.line0` … in the style sheet)."""
MOST = 200
"""The most points of one series: more cannot be seen, and each is an element of the page."""
_TOP, _AXIS = 8, 22
_DOWN, _ACROSS = 4, 5  # how many parts the numbers beside the axes divide them into, at the most about
_DOTS = 30  # so few points are marked; more of them would hide the line


class Point(NamedTuple):
    """A value at a place, with the ends of its interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Series(NamedTuple):
    """What one line shows; points with rising x. A value that is not finite leaves a gap."""

    name: str
    points: Sequence[Point]


class Scale(NamedTuple):
    """The two axes of a chart: where each begins and ends, and the numbers beside them."""

    left: float
    right: float
    bottom: float
    top: float
    xs: tuple[float, ...]
    ys: tuple[float, ...]

    def across(self, x: float) -> float:
        """Return where x stands, in percent."""
        return 100 * (x - self.left) / (self.right - self.left)

    def down(self, y: float) -> float:
        """Return where y stands, in pixels from above."""
        return _TOP + (HEIGHT - _AXIS - _TOP) * (self.top - y) / (self.top - self.bottom)


def figure(value: float | None) -> str:
    """Return a measured number with four digits that count."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "−")  # as wide as a digit


def with_interval(point: Point) -> str:
    """Return a value and the ends of its interval."""
    if point.low is None or point.high is None:
        return figure(point.y)
    return f"{figure(point.y)} [{figure(point.low)}, {figure(point.high)}]"


def thinned(points: Sequence[Point], most: int = MOST) -> list[Point]:
    """Return at most so many points: each the mean of its neighbours', their range being its interval.

    A single value that is not finite makes its point so: that must not disappear.
    """
    if len(points) <= most:
        return list(points)
    each = -(-len(points) // most)
    return [_merged(points[start : start + each]) for start in range(0, len(points), each)]


def _merged(points: Sequence[Point]) -> Point:
    values = [point.y for point in points]
    mean = sum(values) / len(values)
    if not math.isfinite(mean):
        return Point(points[-1].x, math.nan)
    return Point(points[-1].x, mean, min(values), max(values))


def drawable(series: Sequence[Series]) -> list[Series]:
    """Return the series that have a finite value, thinned, as many as can be told apart."""
    there = [one for one in series if any(math.isfinite(point.y) for point in one.points)]
    return [Series(one.name, thinned(one.points)) for one in there[:LOOKS]]


def lines(series: Sequence[Series], *, label: str, x: str = "step") -> Markup:
    """Return a chart of several series, with the numbers of both axes; "" where nothing is finite.

    Args:
        series: as `drawable` returns them.
        label: what the chart shows, for those who do not see it.
        x: what is counted across.
    """
    if not series:
        return Markup("")
    scale = _scale(series)
    plot = [_grid(scale), *_x_axis(scale, x), _stretched(series, scale), *_dots(series, scale)]
    plot += _hits(series, scale, x)
    head = f'<svg class="lines" width="100%" height="{HEIGHT}" role="img" aria-label="{escape(label)}">'
    # Every text among the parts is escaped where it is made.
    return Markup(f'<div class="plot">{_y_axis(scale)}{head}{"".join(plot)}</svg></div>')


def key(index: int) -> Markup:
    """Return a sample of a series' line, to stand before its name."""
    return Markup(
        f'<svg class="sample" width="32" height="10" aria-hidden="true">'
        f'<line class="line{index}" x1="0" x2="32" y1="5" y2="5"/></svg>'
    )


def table(series: Sequence[Series]) -> list[tuple[str, list[str]]]:
    """Return a row for each place on the axis: its number, and each series' value there or ""."""
    columns = [{point.x: with_interval(point) for point in one.points} for one in series]
    return [(figure(x), [column.get(x, "") for column in columns]) for x in _places(series)]


def _places(series: Sequence[Series]) -> list[float]:
    return sorted({point.x for one in series for point in one.points})


def _scale(series: Sequence[Series]) -> Scale:
    places, values = _places(series), []
    for one in series:
        for point in one.points:
            values += [value for value in point[1:] if value is not None and math.isfinite(value)]
    left, right = places[0], places[-1]
    if left == right:
        left, right = left - 1, right + 1
    bottom, top = min(values), max(values)
    if top - bottom < 1e-9 * max(1.0, abs(top)):  # a constant stands in the middle
        room = 0.1 * abs(top) or 1.0
        bottom, top = bottom - room, top + room
    step = nice_step((top - bottom) / _DOWN)
    first, last = math.floor(bottom / step + 1e-9), math.ceil(top / step - 1e-9)
    ys = tuple(index * step for index in range(first, last + 1))
    across = nice_step((right - left) / _ACROSS)
    begin, end = math.ceil(left / across - 1e-9), math.floor(right / across + 1e-9)
    xs = tuple(index * across for index in range(begin, end + 1))
    return Scale(left, right, ys[0], ys[-1], xs, ys)


def nice_step(least: float) -> float:
    """Return the smallest of …, 0.1, 0.2, 0.5, 1, 2, 5, … that is not below a positive number."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _grid(scale: Scale) -> str:
    heights = [scale.down(y) for y in scale.ys[1:]]
    return "".join(f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>' for y in heights)


def _x_axis(scale: Scale, x: str) -> list[str]:
    floor = HEIGHT - _AXIS
    parts = [f'<line class="axis" x1="0" x2="100%" y1="{floor}" y2="{floor}"/>']
    for index, value in enumerate(scale.xs):
        at = scale.across(value)
        anchor = "start" if at < 8 else "end" if at > 92 else "middle"
        text = escape(f"{x} {figure(value)}" if index == 0 else figure(value))
        parts.append(f'<text x="{at:.2f}%" y="{HEIGHT - 6}" text-anchor="{anchor}">{text}</text>')
    return parts


def _y_axis(scale: Scale) -> str:
    """Return the numbers of the vertical axis: a drawing of its own, as wide as they are."""
    texts = [figure(0.0 if abs(y) < 1e-9 * scale.ys[-1] else y) for y in scale.ys]
    wide = 7 * max(map(len, texts)) + 8
    parts = [
        f'<text x="{wide - 6}" y="{scale.down(y) + 4:.1f}" text-anchor="end">{text}</text>'
        for y, text in zip(scale.ys, texts, strict=True)
    ]
    return f'<svg class="ys" width="{wide}" height="{HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def _stretched(series: Sequence[Series], scale: Scale) -> str:
    """Return bands and lines, the bands behind all of the lines."""
    shapes = [_band(index, one, scale) for index, one in enumerate(series)]
    shapes += [_line(index, one, scale) for index, one in enumerate(series)]
    return (
        f'<svg width="100%" height="{HEIGHT}" viewBox="0 0 100 {HEIGHT}" preserveAspectRatio="none">'
        f"{''.join(shapes)}</svg>"
    )


def _at(x: float, y: float, scale: Scale) -> str:
    return f"{scale.across(x):.2f} {scale.down(y):.1f}"


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """Return the points in pieces without a gap."""
    pieces: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point.y):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _line(index: int, series: Series, scale: Scale) -> str:
    pieces = [" L".join(_at(p.x, p.y, scale) for p in piece) for piece in _runs(series.points)]
    path = " ".join(f"M{piece}" for piece in pieces)
    return f'<path class="line line{index}" vector-effect="non-scaling-stroke" d="{path}"/>'


def _band(index: int, series: Series, scale: Scale) -> str:
    shapes = []
    for piece in _runs(series.points):
        ends = [(p.x, p.low, p.high) for p in piece if p.low is not None and p.high is not None]
        if len(ends) > 1 and all(math.isfinite(low) and math.isfinite(high) for _, low, high in ends):
            around = [_at(x, high, scale) for x, _, high in ends]
            around += [_at(x, low, scale) for x, low, _ in reversed(ends)]
            shapes.append(f'<path class="band band{index}" d="M{" L".join(around)} Z"/>')
    return "".join(shapes)


def _dots(series: Sequence[Series], scale: Scale) -> list[str]:
    """Return a mark at each point of the series that have few, and the interval of one that stands alone."""
    parts = []
    for index, one in enumerate(series):
        if len(one.points) > _DOTS:
            continue
        for point in one.points:
            if math.isfinite(point.y):
                x, y = f"{scale.across(point.x):.2f}%", scale.down(point.y)
                parts.append(f'<circle class="dot{index}" cx="{x}" cy="{y:.1f}" r="2.5"/>')
                if len(one.points) == 1 and point.low is not None and point.high is not None:
                    ends = f'y1="{scale.down(point.low):.1f}" y2="{scale.down(point.high):.1f}"'
                    parts.append(f'<line class="line line{index}" x1="{x}" x2="{x}" {ends}/>')
    return parts


def _hits(series: Sequence[Series], scale: Scale, x: str) -> list[str]:
    """Return a column for each place: what the pointer and the arrow keys read there."""
    places = _places(series)
    middles = [scale.across((a + b) / 2) for a, b in pairwise(places)]
    parts = []
    for place, left, right in zip(places, [0.0, *middles], [*middles, 100.0], strict=True):
        found = [(one.name, point) for one in series for point in one.points if point.x == place]
        values = ", ".join(f"{name} {with_interval(point)}" for name, point in found)
        at, floor = f"{scale.across(place):.2f}%", HEIGHT - _AXIS
        parts.append(
            f'<g class="hit"><title>{escape(f"{x} {figure(place)}: {values}")}</title>'
            f'<rect x="{left:.2f}%" y="{_TOP}" width="{right - left:.2f}%" height="{floor - _TOP}"/>'
            f'<line x1="{at}" x2="{at}" y1="{_TOP}" y2="{floor}"/></g>'
        )
    return parts
