"""The page of `inspect` as text: what it says, what it escapes, what it does without."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from orpo_lightning.pages import charts, tokens, words
from orpo_lightning.pages.inspect_page import inspect_page
from tests.page_report import report

PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img/src=x/onerror=alert(1)>',
    "'/onfocus='alert(1)",
    "{{7*7}}&lt;",
]
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A page taken apart: its elements in order, each with its attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"script", "style"}:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Return a report with every text in it changed: values, but for a token's kind, and names of splits."""
    if isinstance(value, dict):
        changed = {key: with_strings(part, change) for key, part in value.items()}
        for key in {"settings", "splits", "across"} & changed.keys():
            changed[key] = {change(f"{name}"): part for name, part in changed[key].items()}
        return changed
    if isinstance(value, list):
        return [with_strings(part, change) for part in value]
    return change(value) if isinstance(value, str) and value not in tokens.KINDS else value


def without(path: str) -> dict[str, Any]:
    """Return a report in which one part is null."""
    changed = report()
    *way, last = path.split("/")
    inner: Any = changed
    for key in way:
        inner = inner[key]
    inner[last] = None
    return changed


@cache
def whole() -> Page:
    return Page(inspect_page(report()))


def drawn(svg: Markup) -> list[tuple[str, dict[str, str]]]:
    return [(element.get("class", ""), element.attrib) for element in ElementTree.fromstring(svg).iter()]


def test_the_page_tells_every_number_of_the_rows_with_reasons_and_places() -> None:
    data, page = report(), whole()
    for split in data["splits"].values():
        for item in split["left_out"] + split["suspicious"]:
            said = f"{item.get('reason') or item['kind']}"
            assert said in page.text
            assert words.number(item["rows"]) in page.text
            assert words.percent(item["share"]).replace("\u00a0", " ") in page.text
            assert all(example in page.text for example in item["examples"])
        assert f"{split['rows']['read']:,}" in page.text
    for layout in data["epoch"]:
        assert layout["layout"] in page.text
        assert f"{layout['padded_tokens']:,}" in page.text
    for key in data["settings"]:
        assert key in page.text


def test_the_verdict_stands_first_and_says_what_failed_and_what_to_do() -> None:
    text = whole().text
    assert text.index("Fix 2 things before training.") < text.index("Every row that was read")
    for check in report()["verdict"]["checks"]:
        if not check["passed"]:
            assert text.index(check["meaning"]) < text.index("Every row that was read")


@pytest.mark.parametrize(
    ("passed", "suspicious", "kept", "headline"),
    [
        (True, 0, 9, "Ready to train."),
        (True, 3, 9, "Ready to train. 1 thing is worth a look."),
        (False, 3, 9, "Fix 1 thing before training."),
        (True, 0, 0, "No row is left to train on."),
    ],
)
def test_the_headline_follows_from_the_checks(
    passed: bool, suspicious: int, kept: int, headline: str
) -> None:
    data = {
        "splits": {
            "train": {"rows": {"kept": kept, "read": 9}, "suspicious": [{"kind": "k", "rows": suspicious}]}
        },
        "verdict": {"checks": [{"name": "c", "passed": passed}], "passed": passed},
    }
    assert headline in Page(inspect_page(data)).text


def test_a_whole_report_of_three_splits_is_a_small_page() -> None:
    assert len(inspect_page(report()).encode()) < 300_000


def test_the_page_refers_to_nothing_outside_itself() -> None:
    html = inspect_page(report())
    links = [attrs[key] or "" for _, attrs in Page(html).elements for key in ("href", "src") if key in attrs]
    assert links
    assert all(link.startswith(("#", "data:,")) for link in links)
    assert "@import" not in html
    assert "url(" not in html


def test_every_link_leads_to_a_part_of_the_page_and_no_id_stands_twice() -> None:
    elements = whole().elements
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"] for tag, attrs in elements if tag == "a"}
    assert targets <= {f"#{id}" for id in ids}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_of_a_report_becomes_an_element_or_an_attribute(payload: str) -> None:
    # The same report with one harmless word everywhere is the oracle: the two pages have the same structure.
    def filled(filler: str) -> Page:
        return Page(inspect_page(with_strings(report(), lambda text: filler + "".join(text[-9:].split()))))

    attacked, harmless = filled(payload), filled("word")
    structure = [[(tag, sorted(attrs)) for tag, attrs in page.elements] for page in (attacked, harmless)]
    assert structure[0] == structure[1]
    assert payload in attacked.text  # shown as it was written


@pytest.mark.parametrize(
    "path",
    [
        *("settings", "splits", "across", "epoch", "verdict", "command", "created", "package"),
        *("splits/train", "splits/validation/rows", "across/train_validation", "verdict/checks"),
        *(f"splits/train/{key}" for key in report()["splits"]["train"]),
    ],
)
def test_a_part_that_is_null_is_left_out_of_the_page(path: str) -> None:
    page = Page(inspect_page(without(path)))
    assert not page.open
    assert "None" not in page.text
    assert len(page.elements) <= len(whole().elements)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"splits": {}},
        {"splits": {"train": {}}},
        {"splits": {"train": {"rows": {"read": 0, "kept": 0, "left_out": 0}, "left_out": [], "limits": []}}},
        {"splits": {"train": {"lengths": {"pair": {"edges": [0, 1], "counts": [0]}}, "rendered": [{}]}}},
    ],
)
def test_a_report_with_next_to_nothing_in_it_still_gives_a_page(data: dict[str, Any]) -> None:
    assert Page(inspect_page(data)).elements[0][0] == "html"


def test_half_a_surrogate_pair_and_control_characters_can_be_written_as_utf_8() -> None:
    html = inspect_page(with_strings(report(), lambda text: text + "\ud800\x00\x1b"))
    html.encode()
    assert "\x00" not in html
    assert "train.jsonl:12\ufffd\ufffd\ufffd" in html


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
