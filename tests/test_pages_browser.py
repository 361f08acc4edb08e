"""The page of `inspect` in a browser: clicked through, by keyboard, on a phone, in the dark, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orpo_lightning.pages.inspect_page import inspect_page
from orpo_lightning.pages.tokens import KINDS
from tests.browser import Browser
from tests.page_checks import (
    COLOURS,
    DESK,
    OPEN_ALL,
    PHONE,
    colour,
    faint_texts,
    hidden_texts,
    opened,
    tab_through,
    visible_panels,
)
from tests.page_report import report


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(inspect_page(report()), encoding="utf-8")
    return path


@pytest.fixture
def page(chromium: Browser, file: Path) -> Iterator[Browser]:
    """Show the whole report on a desk; in the end nothing may have been fetched or complained about."""
    with opened(chromium, file) as shown:
        yield shown


def show_split(page: Browser, index: int) -> None:
    page.click(f"#split{index}-tab")
    assert visible_panels(page) == [f"split{index}"]


def test_a_click_on_a_tab_shows_its_split_alone(page: Browser) -> None:
    assert visible_panels(page) == ["split0"]
    for index in (2, 1, 0):
        show_split(page, index)
        assert page.run("return document.querySelector('[aria-selected=true]').id") == f"split{index}-tab"


def test_the_arrow_keys_go_from_tab_to_tab(page: Browser) -> None:
    page.run("document.querySelector('#split0-tab').focus()")
    for keys, shown in ((["Right"], 1), (["Right"], 2), (["Right"], 2), (["Left", "Left"], 0)):
        page.press(*keys)
        assert visible_panels(page) == [f"split{shown}"]
        assert page.run("return document.activeElement.id") == f"split{shown}-tab"
        stops = "return [...document.querySelectorAll('[role=tab]')].map((tab) => tab.tabIndex)"
        assert page.run(stops) == [0 if index == shown else -1 for index in range(3)]


def test_a_link_of_the_verdict_opens_the_split_it_leads_into(page: Browser) -> None:
    page.click("a[href='#split1-suspicious']")
    assert visible_panels(page) == ["split1"]
    top = page.run("return document.querySelector('#split1-suspicious').getBoundingClientRect().top")
    assert 0 <= top < DESK[1] / 2


def test_an_address_with_a_part_opens_there(page: Browser, file: Path) -> None:
    page.open(file, "#split2-lengths")
    assert visible_panels(page) == ["split2"]


def test_a_click_opens_the_table_below_a_chart(page: Browser) -> None:
    table = "return document.querySelector('#split0-lengths details table').checkVisibility()"
    assert page.run(table) is False
    page.click("#split0-lengths details summary")
    assert page.run(table) is True


def test_the_pointer_and_the_arrow_keys_read_the_bars_of_a_chart(page: Browser) -> None:
    lengths = report()["splits"]["train"]["lengths"]["pair"]
    edges, counts = lengths["edges"], lengths["counts"]
    readout = "return document.querySelector('#split0-lengths .readout').textContent"
    summary = page.run(readout)
    assert summary.startswith("Median")
    page.point("#split0-lengths .hit:nth-of-type(10)")
    pointed = page.run(readout)
    assert any(
        f"{edges[i]:,.0f} to {edges[i + 1]:,.0f} tokens: {counts[i]:,} pairs" in pointed for i in range(12)
    )
    page.point("h1")
    assert page.run(readout) == summary
    page.run("document.querySelector('#split0-lengths figcaption + svg').focus({focusVisible: true})")
    page.press("Right", "Right")
    assert page.run(readout).startswith(f"{edges[2]:.0f} to {edges[3]:.0f} tokens: {counts[2]:,} pairs")


def test_the_tab_key_reaches_every_control_in_the_order_of_the_page(page: Browser) -> None:
    wanted, reached = tab_through(page)
    assert len(wanted) > 25
    assert reached == wanted


def test_the_page_follows_the_readers_scheme_and_the_button_turns_it_round(page: Browser) -> None:
    light = colour(page)
    page.media(scheme="dark")
    dark = colour(page)
    assert dark != light
    page.click("#theme")
    assert colour(page) == light
    page.click("#theme")
    assert colour(page) == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_background(page: Browser, scheme: str) -> None:
    page.media(scheme=scheme)
    page.run(OPEN_ALL)
    seen = 0
    for index in range(3):
        show_split(page, index)
        faint, count = faint_texts(page)
        assert faint == []
        seen += count
    assert seen > 3000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("mark", [".bar", ".over", ".piece0", ".piece1", ".piece2", "line.cut"])
def test_every_mark_of_a_chart_stands_out_from_the_paper(page: Browser, mark: str, scheme: str) -> None:
    page.media(scheme=scheme)
    what = "stroke" if mark.startswith("line") else "fill"
    paint = f"getComputedStyle(document.querySelector('.body {mark}')).{what}"
    assert page.run(f"{COLOURS} return contrast(parse({paint}), behind(document.body))") >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_token_is_told_by_more_than_its_colour(page: Browser, kind: str) -> None:
    # The line below it, its background put aside.
    line = ("borderBottomStyle", "borderBottomWidth")
    bare = "rgba(0, 0, 0, 0)"

    def look(name: str) -> list[Any]:
        token = f".legend .{name} i"
        return [
            *(colour(page, token, what) for what in line),
            colour(page, token, "borderBottomColor") == bare,
        ]

    looks = {name: look(name) for name in KINDS}
    assert [name for name, look in looks.items() if look == looks[kind]] == [kind]


def long_words() -> dict[str, Any]:
    """Return a report with paths, reasons and numbers longer than a phone is wide."""
    data = report()
    train = data["splits"]["train"]
    path = "folder_without_a_break" * 9 + ".jsonl"
    train["sources"][0].update(source=path, rows=1234567890, kept=1234567890)
    train["left_out"][0].update(examples=[f"{path}:1234567"] * 5, reason="r" * 80, rows=1234567890)
    train["suspicious"][0].update(kind="k" * 80, meaning="m" * 200)
    train["limits"][3].update(pairs_over=12345678, tokens_lost=1234567890)
    train["rendered"][0]["tokens"][3]["text"] = "x" * 300
    train["stop_tokens"][0]["token"] = "<|" + "s" * 90 + "|>"
    data["epoch"][0].update(layout="l" * 90, tokens=123456789012)
    data["settings"]["tokenizer"] = path
    data["command"] += " --data.train " + path
    data["verdict"]["checks"][1].update(name="n" * 80, meaning="w" * 200)
    return data


@pytest.mark.parametrize("data", [report, long_words], ids=["usual", "long words"])
def test_a_phone_never_scrolls_sideways(page: Browser, file: Path, data: Any, tmp_path: Path) -> None:
    long = tmp_path / "report.html"
    long.write_text(inspect_page(data()), encoding="utf-8")
    page.window(*PHONE)
    page.open(long)
    page.run(OPEN_ALL)
    for index in range(3):
        show_split(page, index)
        assert page.run("return document.documentElement.scrollWidth") == PHONE[0]
    page.open(file)


def test_on_a_phone_each_share_of_a_limit_stands_below_its_own_number(page: Browser) -> None:
    page.window(*PHONE)
    boxes = page.run(
        "return [...document.querySelectorAll('#split0-limits tr')].map((row) => [...row.children]"
        ".map((cell) => cell.getBoundingClientRect()).map((box) => [box.right, box.top, box.bottom]))"
    )
    assert len(boxes) == 7
    for limit, pairs, share, _, tokens, tokens_share in boxes:
        for number, below in ((pairs, share), (tokens, tokens_share)):
            assert below[0] == number[0]
            assert below[1] >= number[2]
        assert limit[0] < pairs[0] < tokens[0]
        assert limit[1] == pairs[1] == tokens[1]


def test_nothing_is_hidden_in_print(page: Browser) -> None:
    assert hidden_texts(page)  # on the screen there is: closed tables, two of the three splits
    page.media("print")
    assert hidden_texts(page) == []


def test_print_is_black_on_white_whatever_the_scheme(page: Browser) -> None:
    page.click("#theme")
    page.media("print", "dark")
    assert colour(page) == "rgb(255, 255, 255)"


def test_the_page_prints(page: Browser, tmp_path: Path) -> None:
    page.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_without_a_script_every_split_can_be_read(page: Browser, file: Path) -> None:
    page.scripts(allowed=False)
    try:
        page.open(file)
        assert visible_panels(page) == ["split0", "split1", "split2"]
        assert page.run("return document.querySelector('#theme').checkVisibility()") is False
    finally:
        page.scripts(allowed=True)


def test_script_in_a_report_is_text_and_would_not_run_if_it_were_not(
    page: Browser, file: Path, tmp_path: Path
) -> None:
    data = report()
    attack = '<img src=x onerror="document.title=1"><script>document.title = 1</script>'
    data["splits"]["train"]["rendered"][0]["tokens"][4]["text"] = attack
    data["splits"]["train"]["hints"] = data["settings"]["tokenizer"] = attack
    (tmp_path / "report.html").write_text(inspect_page(data), encoding="utf-8")
    page.open(tmp_path / "report.html")
    assert page.run("return document.querySelectorAll('img').length") == 0
    assert page.run("return document.querySelectorAll('script').length") == 1
    # The second wall: even as an element it fetches nothing and runs nothing.
    page.run("document.querySelector('main').insertAdjacentHTML('beforeend', arguments[0])", attack)
    assert page.run("return document.title") != "1"
    assert all("Content Security Policy" in message for message in page.messages())
    page.open(file)
