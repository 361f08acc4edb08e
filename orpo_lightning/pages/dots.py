"""Charts of single values as SVG: a dot for each, by where it stands on an axis of numbers or of words.

As in `charts`: across in percent, down in pixels, colours by class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from orpo_lightning.pages.lines import HEIGHT, figure, nice_step

_TOP, _AXIS = 10, 22
_LEFT, _RIGHT = 4.0, 96.0  # no dot is cut at an edge
_TICKS = 4
_MOST_TEXTS = 6
_FAR = 4.0


class Dot(NamedTuple):
    """A value at a place."""

    x: Any
    y: float
    look: str
    """best, usual or ended: ended early."""
    words: str
    """What is read when it is pointed at."""


class Axis(NamedTuple):
    """What stands where across: of each value its place in percent, and the texts below."""

    places: Mapping[Any, float]
    ticks: Sequence[tuple[float, str]]


def axis_of(values: Sequence[Any], *, log: bool = False) -> Axis:
    """Return an axis of numbers, or of words where one of the values is none.

    Args:
        values: that dots stand at, and the ends.
        log: whether powers of ten are equally far apart.
    """
    different = list(dict.fromkeys(values))
    if not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in different):
        return _of_words(different)
    turned = {one: math.log10(one) if log else float(one) for one in different}
    low, high = min(turned.values()), max(turned.values())
    wide = (high - low) or 1.0

    def at(number: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * ((number - low) / wide if high > low else 0.5)

    places = {one: at(number) for one, number in turned.items()}
    ticks = _powers(low, high) if log else _round(low, high, wide)
    return Axis(places, [(at(number), text) for number, text in ticks])


def _of_words(values: Sequence[Any]) -> Axis:
    step = (_RIGHT - _LEFT) / len(values)
    places = {one: _LEFT + (index + 0.5) * step for index, one in enumerate(values)}
    every = -(-len(values) // _MOST_TEXTS)
    texts = [(place, str(one)[: 96 // len(values) + 4]) for one, place in places.items()]
    return Axis(places, texts[::every])


def _powers(low: float, high: float) -> list[tuple[float, str]]:
    inside = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    ends = [low, high] if len(inside) < 2 else list(map(float, inside))
    return [(end, f"{10**end:.2g}") for end in ends]


def _round(low: float, high: float, wide: float) -> list[tuple[float, str]]:
    if low == high:
        return [(low, figure(low))]
    step = nice_step(wide / _TICKS)
    return [
        (n * step, figure(n * step))
        for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def limits(values: Sequence[float], *, low_is_good: bool) -> tuple[float, float]:
    """Return the ends of the vertical axis: values far worse than most are drawn at its edge.

    Args:
        values: finite ones, at least one.
        low_is_good: or else high.
    """
    ordered = sorted(values, reverse=not low_is_good)
    best, middle = ordered[0], ordered[len(ordered) // 2]
    far = best + _FAR * (middle - best)
    worst = ordered[-1]
    if middle != best and abs(worst - best) > abs(far - best):
        worst = far
    return (best, worst) if low_is_good else (worst, best)


def dots(
    shown: Sequence[Dot], axis: Axis, *, label: str, low_is_good: bool, path: Sequence[Dot] = ()
) -> Markup:
    """Return a chart of dots; "" where none has a finite value.

    Args:
        shown: in the order in which the arrow keys read them.
        axis: of all their x.
        label: what the chart shows, for those who do not see it.
        low_is_good: or else high; the far worse ones are drawn at the edge.
        path: points of a line behind the dots, a step each.
    """
    finite = [dot for dot in shown if math.isfinite(dot.y)]
    if not finite:
        return Markup("")
    low, high = limits([dot.y for dot in finite], low_is_good=low_is_good)
    ys = _ticks(low, high)
    bottom, top = min(low, ys[0]), max(high, ys[-1])

    def down(value: float) -> float:
        kept = min(max(value, bottom), top)
        return _TOP + (HEIGHT - _AXIS - _TOP) * (top - kept) / (top - bottom)

    parts = [f'<line class="grid" x1="0" x2="100%" y1="{down(y):.1f}" y2="{down(y):.1f}"/>' for y in ys[1:]]
    parts += [*_across(axis), *_steps(path, axis, down)]
    # The best one last: it is never hidden.
    parts += [_dot(dot, axis, down) for dot in sorted(finite, key=lambda dot: dot.look == "best")]
    head = f'<svg class="lines" width="100%" height="{HEIGHT}" role="img" aria-label="{escape(label)}">'
    return Markup(f'<div class="plot">{_numbers(ys, down)}{head}{"".join(parts)}</svg></div>')


def _ticks(low: float, high: float) -> list[float]:
    if high - low < 1e-9 * max(1.0, abs(high)):
        room = 0.1 * abs(high) or 1.0
        low, high = low - room, high + room
    step = nice_step((high - low) / _TICKS)
    return [n * step for n in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _numbers(ys: Sequence[float], down: Any) -> str:
    texts = [figure(0.0 if abs(y) < 1e-9 * abs(ys[-1]) else y) for y in ys]
    wide = 7 * max(map(len, texts)) + 8
    parts = [
        f'<text x="{wide - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{text}</text>'
        for y, text in zip(ys, texts, strict=True)
    ]
    return f'<svg class="ys" width="{wide}" height="{HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def _across(axis: Axis) -> list[str]:
    floor = HEIGHT - _AXIS
    parts = [f'<line class="axis" x1="0" x2="100%" y1="{floor}" y2="{floor}"/>']
    for at, text in axis.ticks:
        anchor = "start" if at < 8 else "end" if at > 92 else "middle"
        parts.append(f'<text x="{at:.2f}%" y="{HEIGHT - 6}" text-anchor="{anchor}">{escape(text)}</text>')
    return parts


def _steps(path: Sequence[Dot], axis: Axis, down: Any) -> list[str]:
    """Return a line that keeps each value up to the next one."""
    parts = []
    for one, following in pairwise(path):
        x1, x2 = axis.places[one.x], axis.places[following.x]
        y1, y2 = down(one.y), down(following.y)
        parts.append(f'<line class="line line0" x1="{x1:.2f}%" x2="{x2:.2f}%" y1="{y1:.1f}" y2="{y1:.1f}"/>')
        if y1 != y2:
            parts.append(
                f'<line class="line line0" x1="{x2:.2f}%" x2="{x2:.2f}%" y1="{y1:.1f}" y2="{y2:.1f}"/>'
            )
    return parts


def _dot(dot: Dot, axis: Axis, down: Any) -> str:
    at, y = f"{axis.places[dot.x]:.2f}%", down(dot.y)
    size = {"best": 6, "usual": 4, "ended": 3}[dot.look]
    return (
        f'<g class="hit"><title>{escape(dot.words)}</title>'
        f'<circle class="trial {dot.look}" cx="{at}" cy="{y:.1f}" r="{size}"/>'
        f'<circle class="near" cx="{at}" cy="{y:.1f}" r="11"/></g>'
    )
