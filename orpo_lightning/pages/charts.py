"""Charts as SVG: numbers in, a string out.

Across, everything is in percent, so that a chart takes the width it is given and its letters keep their size;
down, in pixels. Colours come from the page's style sheet by class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from orpo_lightning.pages.words import number, percent

HEIGHT = 172
_TOP = 30  # above it: the cut's name
_AXIS = 22  # below the bars: the numbers of the axis
_GAP = 0.3  # between two bars, in percent of the width
_STEPS = (4, 5, 3)  # how many parts the numbers below a chart may divide it into, the best first


class Bin(NamedTuple):
    """One bar of a histogram."""

    span: str
    number: int
    share: float


class Cut(NamedTuple):
    """A limit, drawn as a line across a histogram."""

    value: float
    name: str


def bins(edges: Sequence[float], counts: Sequence[int]) -> list[Bin]:
    """Return the bars of a histogram with one edge more than counts, in words and numbers."""
    total = sum(counts) or 1
    spans = zip(pairwise(edges), counts, strict=True)
    return [Bin(f"{number(low)} to {number(high)}", count, count / total) for (low, high), count in spans]


def place(value: float, edges: Sequence[float]) -> float | None:
    """Return where a value stands on an axis whose bars are all equally wide, in percent; None beside it."""
    for index, (low, high) in enumerate(pairwise(edges)):
        if low <= value <= high and low < high:
            return 100 * (index + (value - low) / (high - low)) / (len(edges) - 1)
    return None


def odd_bars(edges: Sequence[float]) -> str:
    """Return which bars stand for another range than the rest, though drawn as wide; "" for none."""
    gaps = [high - low for low, high in pairwise(edges)]
    usual, last = sorted(gaps)[len(gaps) // 2], len(gaps) - 1
    odd = {index for index, gap in enumerate(gaps) if abs(gap - usual) > 1e-3 * usual}
    if not odd <= {0, last}:
        return "The bars stand for ranges that are not equally wide."
    first = f"The first bar holds all below {number(edges[1])}." if 0 in odd else ""
    return f"{first} {f'The last bar holds all from {number(edges[-2])} on.' if last in odd else ''}".strip()


def round_below(value: float) -> int:
    """Return the largest of 1, 2, 5, 10, 20, 50 … that is not above a value of at least 1."""
    power = 10 ** math.floor(math.log10(value))
    return int(next(factor * power for factor in (5, 2, 1) if factor * power <= value))


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    label: str,
    of: str,
    unit: str = "",
    cut: Cut | None = None,
) -> Markup:
    """Return a histogram; its bars are equally wide, however far apart the edges are.

    Args:
        edges: one more than counts, rising.
        counts: what falls between each two edges.
        label: what the chart shows, for those who do not see it.
        of: what is counted, in the plural.
        unit: of the edges.
        cut: a limit to draw, where it lies between the edges.
    """
    if not sum(counts or ()):
        return Markup("")
    at = None if cut is None else place(cut.value, edges)
    parts = [_grid(max(counts), of), *_bars(edges, counts, of, unit, at), *_axis(edges)]
    if cut is not None and at is not None:
        parts.append(_cut(at, cut.name))
    return _svg("histogram", HEIGHT, label, parts)


def _svg(kind: str, height: int, label: str, parts: Sequence[str]) -> Markup:
    head = f'<svg class="{kind}" width="100%" height="{height}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(parts) + "</svg>")  # every text among the parts is escaped where it is made


def _level(count: float, top: int) -> float:
    """Return how high a count stands in the chart, in pixels from above."""
    return _TOP + (HEIGHT - _AXIS - _TOP) * (1 - count / top)


def _bars(edges: Sequence[float], counts: Sequence[int], of: str, unit: str, cut: float | None) -> list[str]:
    width, floor, parts = 100 / len(counts), HEIGHT - _AXIS, []
    for index, one in enumerate(bins(edges, counts)):
        left = index * width
        if one.number:
            top = min(_level(one.number, max(counts)), floor - 1.5)  # a single pair among thousands is seen
            kind = "bar" if cut is None or left < cut else "bar over"
            parts.append(
                f'<rect class="{kind}" x="{left + _GAP / 2:.2f}%" y="{top:.1f}" '
                f'width="{width - _GAP:.2f}%" height="{floor - top:.1f}"/>'
            )
        span = f"{one.span} {unit}".strip()
        words = escape(f"{span}: {one.number:,} {of}, {percent(one.share)}")
        parts.append(
            f'<rect class="hit" x="{left:.2f}%" y="{_TOP}" width="{width:.2f}%" height="{floor - _TOP}">'
            f"<title>{words}</title></rect>"
        )
    return parts


def _grid(top: int, of: str) -> str:
    count = round_below(top)
    y = _level(count, top)
    return (
        f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="100%" y="{y - 4:.1f}" text-anchor="end">{count:,} {escape(of)}</text>'
    )


def _axis(edges: Sequence[float]) -> list[str]:
    floor, last = HEIGHT - _AXIS, len(edges) - 1
    parts = [f'<line class="axis" x1="0" x2="100%" y1="{floor}" y2="{floor}"/>']
    steps = next((steps for steps in _STEPS if last % steps == 0), _STEPS[0])
    for index in range(0, last + 1, -(-last // steps)):
        anchor = {0: "start", last: "end"}.get(index, "middle")
        x, text = f"{100 * index / last:.2f}%", escape(number(edges[index]))
        parts.append(f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}">{text}</text>')
    return parts


def _cut(at: float, name: str) -> str:
    anchor, away = ("start", 5) if at < 50 else ("end", -5)
    return (
        f'<line class="cut" x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="{HEIGHT - _AXIS}"/>'
        f'<text class="cut" x="{at:.2f}%" dx="{away}" y="11" text-anchor="{anchor}">{escape(name)}</text>'
    )


def stack(shares: Sequence[tuple[str, Any]], label: str) -> Markup:
    """Return one bar made of shares of 1, in the order given; the page says beside it which is which."""
    parts, left = [], 0.0
    for index, (name, share) in enumerate(shares):
        wide = 100 * (share or 0)
        words = escape(f"{name}: {percent(share)}")
        parts.append(
            f'<rect class="piece{index}" x="{left:.2f}%" width="{max(0, wide - _GAP):.2f}%" height="28">'
            f"<title>{words}</title></rect>"
        )
        left += wide
    return _svg("stack", 28, label, parts)


def meter(share: Any, mark: float | None = None) -> Markup:
    """Return a share of 1 as a thin bar beside its number, with a mark to compare it with."""
    width = 100 * min(1.0, max(0.0, share)) if isinstance(share, int | float) else 0
    line = "" if mark is None else f'<rect class="mark" x="{100 * mark:g}%" y="0" width="2" height="10"/>'
    return Markup(
        '<svg class="meter" width="100%" height="10" aria-hidden="true">'
        '<rect class="track" y="3" width="100%" height="4"/>'
        f'<rect class="bar" y="3" width="{width:.2f}%" height="4"/>{line}</svg>'
    )
