"""The page of `inspect` as text: what it says, what it escapes, what it does without."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest

from orpo_lightning.pages import tokens, words
from orpo_lightning.pages.inspect_page import inspect_page, remarks, taken
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
    ("check", "links", "left"),
    [
        ("k", ["3 in train", "2 in test"], []),
        ("test: k", ["2 in test"], ["3 in train"]),
        ("other", [], ["3 in train", "2 in test"]),
    ],
)
def test_a_failed_check_links_to_what_it_found_and_that_is_not_told_twice(
    check: str, links: list[str], left: list[str]
) -> None:
    noticed = remarks(
        {
            "splits": {
                "train": {"suspicious": [{"kind": "k", "rows": 3}]},
                "test": {"suspicious": [{"kind": "k", "rows": 2}]},
            }
        }
    )
    assert [place.words for place in taken(noticed, check)] == links
    assert [place.words for place in noticed["k"]] == left


def test_a_failed_check_of_rows_that_are_gone_links_to_those_left_out() -> None:
    data = report()
    data["splits"]["train"]["suspicious"] = []
    data["verdict"]["checks"] = [{"name": "train: exact duplicates", "found": 3, "limit": 0, "passed": False}]
    left_out = data["splits"]["train"]["rows"]["left_out"]
    page = Page(inspect_page(data))
    assert f"{left_out:,} left out of train" in page.text


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
