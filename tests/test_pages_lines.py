"""Line charts: what is drawn where, what is read there, and what a gap or a crowd of points becomes."""

from __future__ import annotations

import math
import re

import pytest

from orpo_lightning.pages.lines import (
    LOOKS,
    MOST,
    Point,
    Series,
    drawable,
    figure,
    lines,
    nice_step,
    table,
    thinned,
)


def path_of(markup: str, kind: str) -> list[list[tuple[float, float]]]:
    """Return the points of each piece of a line or band, in percent across and pixels down."""
    found = re.search(rf'<path class="{kind} [^>]* d="([^"]*)"', markup) or re.search(
        rf'<path class="{kind} [^"]*" d="([^"]*)"', markup
    )
    assert found, markup
    pieces = [piece for piece in found[1].split("M") if piece.strip()]
    pairs = [re.findall(r"(-?[\d.]+) (-?[\d.]+)", piece) for piece in pieces]
    return [[(float(x), float(y)) for x, y in piece] for piece in pairs]


def test_a_line_goes_from_edge_to_edge_and_higher_values_stand_higher() -> None:
    markup = str(lines(drawable([Series("a", [Point(10, 0.0), Point(20, 1.0), Point(40, 0.5)])]), label="l"))
    ((first, second, third),) = path_of(markup, "line")
    assert [first[0], second[0], third[0]] == [0, 33.33, 100]
    assert second[1] < third[1] < first[1]
    assert math.isclose(third[1], (first[1] + second[1]) / 2, abs_tol=0.11)


def test_a_band_holds_the_interval_around_its_line() -> None:
    markup = str(lines([Series("a", [Point(0, 1.0, 0.5, 2.0), Point(1, 1.0, 0.5, 2.0)])], label="l"))
    (((_, line), _),) = path_of(markup, "line")
    ((high, _, low, _),) = path_of(markup, "band")
    assert high[1] < line < low[1]


def test_a_value_that_is_not_finite_leaves_a_gap_and_is_said_to_be_so() -> None:
    series = [Series("a", [Point(0, 1.0), Point(1, 2.0), Point(2, math.nan), Point(3, 2.0), Point(4, 1.0)])]
    markup = str(lines(drawable(series), label="l"))
    assert [len(piece) for piece in path_of(markup, "line")] == [2, 2]
    assert "<title>step 2: a not finite</title>" in markup
    assert "nan" not in markup.lower().replace("nance", "")


def test_nothing_is_drawn_of_nothing_finite() -> None:
    assert drawable([Series("a", []), Series("b", [Point(0, math.inf)])]) == []
    assert lines([], label="l") == ""


def test_a_constant_and_a_single_point_have_a_scale_too() -> None:
    for points in ([Point(5, 3.0)], [Point(5, 0.0), Point(6, 0.0)], [Point(0, 1e-5), Point(1, 1e-5)]):
        markup = str(lines([Series("a", points)], label="l"))
        assert all(0 <= x <= 100 and 0 < y < 300 for piece in path_of(markup, "line") for x, y in piece)


def test_many_points_become_few_means_with_the_range_they_stand_for() -> None:
    points = [Point(x, float(x % 2)) for x in range(1, 1001)]
    few = thinned(points)
    assert len(few) == 200 == MOST
    assert few[0] == Point(5, 0.6, 0.0, 1.0)
    assert few[-1].x == 1000
    points[501] = Point(502, math.nan)
    assert [math.isnan(point.y) for point in thinned(points)].count(True) == 1


def test_more_series_than_looks_are_not_drawn() -> None:
    crowd = [Series(str(index), [Point(0, index), Point(1, index)]) for index in range(LOOKS + 2)]
    assert [one.name for one in drawable(crowd)] == [str(index) for index in range(LOOKS)]


def test_each_place_is_read_with_every_series_there_and_its_interval() -> None:
    series = [
        Series("train", [Point(1, 0.5), Point(2, 0.25)]),
        Series("<val>", [Point(2, -0.125, -0.25, 0.0)]),
    ]
    markup = str(lines(series, label="l"))
    assert re.findall("<title>(.*?)</title>", markup) == [
        "step 1: train 0.5",
        "step 2: train 0.25, &lt;val&gt; −0.125 [−0.25, 0]",
    ]
    assert table(series) == [("1", ["0.5", ""]), ("2", ["0.25", "−0.125 [−0.25, 0]"])]


def test_numbers_have_four_digits_that_count() -> None:
    words = [figure(value) for value in (0.00012345, 1e-5, -2.5, 0.1 + 0.2, 12345.6, None, math.inf)]
    assert words == ["0.0001234", "1e−05", "−2.5", "0.3", "12,346", "–", "not finite"]
    assert [nice_step(least) for least in (0.3, 1.0, 3.1, 7e-6)] == pytest.approx([0.5, 1.0, 5.0, 1e-5])
