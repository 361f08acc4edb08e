"""What pages are made of: numbers as words, charts as SVG, tokens in colour."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from orpo_lightning.pages import charts, tokens, words
from tests.page_report import report


def drawn(svg: Markup) -> list[tuple[str, dict[str, str]]]:
    return [(element.get("class", ""), element.attrib) for element in ElementTree.fromstring(svg).iter()]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (999, "999"), (1234567, "1,234,567"), (60.0, "60"), (80.14, "80.1"), (-2.0, "−2")),
        *((1234.56, "1,235"), (0.256, "0.26"), (None, "–"), (math.nan, "–"), ("word", "word")),
    ],
)
def test_numbers_are_written_for_people(value: Any, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0.0 %"),
        (0.0001, "< 0.1 %"),
        (0.034, "3.4 %"),
        (0.9999, "> 99.9 %"),
        (1.0, "100.0 %"),
        (None, "–"),
    ],
)
def test_a_share_is_never_rounded_to_none_or_all(share: float | None, text: str) -> None:
    assert words.percent(share).replace("\u00a0", " ") == text


def test_white_space_and_what_cannot_be_seen_get_a_sign() -> None:
    html = words.visible(" a\n\t\u202e\u200b<b>")
    seen = "".join(ElementTree.fromstring(f"<p>{html}</p>").itertext())
    assert seen == "·a⏎\n→U+202EU+200B<b>"


def test_bars_are_as_high_as_their_counts_and_cover_the_width() -> None:
    counts = [100, 50, 0, 25]
    parts = drawn(charts.histogram([0, 10, 20, 30, 40], counts, label="lengths", of="pairs", unit="tokens"))
    heights = [float(attrs["height"]) for kind, attrs in parts if kind == "bar"]
    assert [height / heights[0] for height in heights] == pytest.approx([1, 0.5, 0.25], abs=1e-3)
    hits = [attrs for kind, attrs in parts if kind == "hit"]
    assert [attrs["x"] for attrs in hits] == ["0.00%", "25.00%", "50.00%", "75.00%"]
    titles = [
        element.text
        for element in ElementTree.fromstring(
            charts.histogram([0, 10, 20, 30, 40], counts, label="", of="pairs", unit="tokens")
        ).iter("title")
    ]
    assert titles[1] == "10 to 20 tokens: 50 pairs, 28.6\u00a0%"


@pytest.mark.parametrize(
    ("edges", "value", "place"),
    [
        ([0, 10, 20], 5, 25.0),
        ([0, 10, 20], 20, 100.0),
        ([0, 10, 1010], 510, 75.0),  # bars are equally wide, so an uneven axis is stretched
        ([0, 10, 20], 21, None),
    ],
)
def test_the_cut_stands_where_its_value_lies(edges: list[float], value: float, place: float | None) -> None:
    parts = drawn(
        charts.histogram(edges, [1, 1], label="", of="pairs", cut=charts.Cut(value, f"limit {value}"))
    )
    lines = [attrs["x1"] for kind, attrs in parts if kind == "cut" and "x1" in attrs]
    assert lines == ([] if place is None else [f"{place:.2f}%"])


@pytest.mark.parametrize(
    ("edges", "said"),
    [
        ([0, 10, 20, 30], ""),
        ([0.0, 0.1, 0.2, 0.30000000000000004], ""),
        ([0, 32, 64, 96, 974], "The last bar holds all from 96 on."),
        ([-9, -1, 0, 1, 2], "The first bar holds all below −1."),
        ([0, 1, 10, 100, 1000], "The bars stand for ranges that are not equally wide."),
    ],
)
def test_bars_of_unlike_ranges_are_pointed_out(edges: list[float], said: str) -> None:
    assert charts.odd_bars(edges) == said


def test_bars_beyond_the_cut_are_told_apart() -> None:
    parts = drawn(charts.histogram([0, 1, 2, 3], [5, 5, 5], label="", of="pairs", cut=charts.Cut(2, "")))
    assert [kind for kind, _ in parts if kind.startswith("bar")] == ["bar", "bar", "bar over"]


@pytest.mark.parametrize(
    ("value", "below"), [(1, 1), (1.9, 1), (2, 2), (4, 2), (7, 5), (10, 10), (2085, 2000)]
)
def test_the_line_across_a_chart_stands_at_a_round_number(value: float, below: int) -> None:
    assert charts.round_below(value) == below


def test_a_row_is_shown_as_prompt_and_answers_with_every_token_in_its_kind() -> None:
    row = report()["splits"]["train"]["rendered"][0]["tokens"]
    blocks = tokens.blocks(row)
    assert [block.name for block in blocks] == ["prompt", "chosen", "rejected"]
    assert sum(block.size for block in blocks) == len(row)
    shown = [
        (run.get("class"), "".join(token.itertext()))
        for block in blocks
        for run in ElementTree.fromstring(f"<p>{block.html}</p>")
        for token in run
    ]
    signs = str.maketrans({" ": "·", "\n": "⏎\n"})
    assert shown == [(token["kind"], token["text"].translate(signs)) for token in row]


def test_of_a_long_answer_both_ends_are_shown_and_the_rest_counted() -> None:
    row = [{"text": f"t{index}", "kind": "chosen"} for index in range(1000)]
    (block,) = tokens.blocks(row)
    shown = ElementTree.fromstring(f"<p>{block.html}</p>")
    texts = [token.text for token in shown.iter("i")]
    assert texts[0] == "t0"
    assert texts[-1] == "t999"
    note = next(part.text for part in shown if part.get("class") == "elided")
    assert note == f"{1000 - len(texts):,} tokens not shown"
