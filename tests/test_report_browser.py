"""The page of runs in a browser: by pointer and keyboard, on a phone, in the dark, on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orpo_lightning.observing.comparison import comparison
from orpo_lightning.observing.run_files import read_run
from orpo_lightning.observing.summary import summary
from orpo_lightning.pages.report_page import report_page
from tests.browser import Browser
from tests.page_checks import (
    COLOURS,
    OPEN_ALL,
    PHONE,
    colour,
    faint_texts,
    hidden_texts,
    opened,
    tab_through,
    visible_panels,
)
from tests.run_folder import config, curves, samples, write_run

LINES = "#run0-curves .chart:first-child"
READOUT = f"return document.querySelector('{LINES} .readout').textContent"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page of two runs, with a path, a prompt and an answer longer than a phone is wide."""
    folder = tmp_path_factory.mktemp("runs")
    long = [*samples(), {**samples()[-1], "index": 9, "prompt": "p" * 300, "now": "n" * 300}]
    changes = config(base_model="folder_without_a_break" * 9, lora_r=64)
    write_run(folder / "one", samples=long)
    write_run(folder / ("two" * 30), config=changes, curves=curves(seed=1))
    runs = [read_run(path) for path in sorted(folder.iterdir())]
    path = folder / "report.html"
    path.write_text(report_page(runs, [summary(run, {}) for run in runs], comparison(runs)), encoding="utf-8")
    return path


@pytest.fixture
def page(chromium: Browser, file: Path) -> Iterator[Browser]:
    with opened(chromium, file) as shown:
        yield shown


def test_each_run_has_a_tab_and_a_link_of_the_verdict_opens_it(page: Browser) -> None:
    assert visible_panels(page) == ["run0"]
    page.click("a[href='#run1-verdict']")
    assert visible_panels(page) == ["run1"]
    page.click("#run0-tab")
    assert visible_panels(page) == ["run0"]


def test_the_pointer_and_the_arrow_keys_read_all_lines_of_a_chart_at_a_step(page: Browser) -> None:
    summary_words = page.run(READOUT)
    assert summary_words.startswith("At the end: training")
    page.point(f"{LINES} .hit:nth-of-type(8)")
    assert page.run(READOUT).startswith("step ")
    page.point("h1")
    assert page.run(READOUT) == summary_words
    page.run(f"document.querySelector('{LINES} svg.lines').focus({{focusVisible: true}})")
    page.press("Right", "Right", "Right", "Right")
    assert page.run(READOUT).startswith("step 25: training ")
    assert "held out 2.6 [2.5, 2.7]" in page.run(READOUT)
    line = f"getComputedStyle(document.querySelector('{LINES} .hit.on line')).stroke"
    assert page.run(f"return {line}") != "none"


def test_the_tab_key_reaches_every_control_in_the_order_of_the_page(page: Browser) -> None:
    wanted, reached = tab_through(page)
    assert len(wanted) > 50
    assert reached == wanted


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_and_every_line_stands_out_from_its_background(page: Browser, scheme: str) -> None:
    page.media(scheme=scheme)
    page.run(OPEN_ALL)
    for index in range(2):
        page.click(f"#run{index}-tab")
        faint, count = faint_texts(page)
        assert faint == []
        assert count > 800
    for mark in (".line0", ".line1", ".line2", ".line3", ".line4", ".line5"):
        page.run("document.querySelector('.lines path.line').setAttribute('class', arguments[0])", mark[1:])
        paint = f"getComputedStyle(document.querySelector('.lines {mark}')).stroke"
        assert page.run(f"{COLOURS} return contrast(parse({paint}), behind(document.body))") >= 3, mark


def test_lines_are_told_apart_without_their_colours(page: Browser) -> None:
    dashes = set()
    for index in range(6):
        page.run(
            "document.querySelector('.lines path.line').setAttribute('class', arguments[0])", f"line{index}"
        )
        dashes.add(colour(page, f".lines .line{index}", "strokeDasharray"))
    assert len(dashes) == 6


def test_a_phone_never_scrolls_sideways(page: Browser) -> None:
    page.window(*PHONE)
    page.run(OPEN_ALL)
    for index in range(2):
        page.click(f"#run{index}-tab")
        assert page.run("return document.documentElement.scrollWidth") == PHONE[0]


def test_in_print_nothing_is_hidden_but_the_points_that_the_lines_show(page: Browser, tmp_path: Path) -> None:
    page.run("document.querySelectorAll('.points').forEach((one) => one.remove())")
    assert hidden_texts(page)
    page.media("print", "dark")
    assert hidden_texts(page) == []
    assert colour(page) == "rgb(255, 255, 255)"
    page.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_without_a_script_every_run_can_be_read(page: Browser, file: Path) -> None:
    page.scripts(allowed=False)
    try:
        page.open(file)
        assert visible_panels(page) == ["run0", "run1"]
    finally:
        page.scripts(allowed=True)
