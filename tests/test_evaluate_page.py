"""The page and the table of an evaluation: every figure is there, and the page works in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orpo_lightning.judging import words
from orpo_lightning.pages.evaluate_page import cell, evaluate_page, headline, value
from tests.browser import Browser, browser
from tests.evaluation_report import report
from tests.page_checks import COLOURS, CONTRASTS, DESK, HIDDEN, NAME, OPEN_ALL, PHONE, REACHABLE


def test_every_figure_stands_on_the_page_and_in_the_table() -> None:
    made = report()
    page, table = evaluate_page(made), words.table(made)
    for name, one in made["models"].items():
        for key in words.QUANTITIES:
            assert cell(one[key]) in page, (name, key)
            assert words.value(one[key]) in table, (name, key)
    for row in made["buckets"]:
        for one in row["accuracy"].values():
            assert cell(one) in page
            assert words.value(one) in table
    assert value(made["judge"]["win_rate"]) in page
    assert "11 wins, 5 ties, 5 losses of 21 prompts" in table
    assert "replies without a verdict: 1; prompts left out for it: 1" in table
    assert words.value(made["canary"]["factor"]) in table


def test_a_report_is_plain_json() -> None:
    assert json.loads(json.dumps(report(), allow_nan=False)) == report()


def test_a_whole_model_alone_has_a_page_and_a_table_without_comparison() -> None:
    made = report()
    for key in ("change", "against", "judge", "canary"):
        made[key] = None
    own = {"model": made["models"]["adapter"]}
    calibrated = {"model": made["calibration"]["models"]["adapter"]}
    rows = [
        {**row, "accuracy": {"model": row["accuracy"]["adapter"]}, "change": None} for row in made["buckets"]
    ]
    made |= {"models": own, "buckets": rows, "samples": []}
    made["calibration"] = {"definition": "", "models": calibrated}
    assert "base" not in words.table(made)
    page = evaluate_page(made)
    assert "Judged answers" not in page
    assert "General text" not in page
    accuracy = own["model"]["accuracy"]
    assert words.last_line(made) == (
        f"held-out accuracy {accuracy['mean']:.3f} (240 pairs, 95 % interval {accuracy['low']:.3f} to "
        f"{accuracy['high']:.3f})"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ((0.1, 0.02, 0.2), "Right in 10.0 % more of the pairs than base."),
        ((-0.1, -0.2, -0.02), "Right in 10.0 % fewer of the pairs than base."),
        ((0.1, -0.02, 0.2), "No change in accuracy that 240 pairs could show."),
    ],
)
def test_the_headline_claims_no_more_than_the_interval(change: tuple[float, ...], sentence: str) -> None:
    made = report()
    made["change"]["accuracy"] = dict(zip(("mean", "low", "high"), change, strict=True))
    assert headline(made).replace("\u00a0", " ") == sentence


def test_script_in_an_answer_is_text() -> None:
    made = report()
    made["samples"][0]["adapter"] = made["judge"]["name"] = "<script>alert(1)</script>"
    page = evaluate_page(made)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as session:
        yield session


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluation") / "evaluation.html"
    path.write_text(evaluate_page(report()), encoding="utf-8")
    return path


@pytest.fixture
def page(chromium: Browser, file: Path) -> Iterator[Browser]:
    """Show the page on a desk; in the end nothing may have been fetched or complained about."""
    chromium.media()
    chromium.window(*DESK)
    chromium.open(file)
    yield chromium
    assert chromium.messages() == []
    assert {address.partition("#")[0] for address in chromium.requests()} == {file.resolve().as_uri()}


def test_the_reliability_diagram_is_read_with_the_arrow_keys(page: Browser) -> None:
    readout = "return document.querySelector('#calibration .readout').textContent"
    assert page.run(readout).startswith("Calibration error")
    page.run("document.querySelector('#calibration svg[role=img]').focus({focusVisible: true})")
    page.press("Right", "Right")
    bins = report()["calibration"]["models"]["base"]["bins"]
    found = re.fullmatch(r"predicted (\S+): base (\S+) \[.*\]", page.run(readout))
    assert found, page.run(readout)
    assert any(float(found[1]) == pytest.approx(one["predicted"], abs=1e-3) for one in bins)


def test_the_tab_key_reaches_every_control_in_the_order_of_the_page(page: Browser) -> None:
    wanted = page.run(f"{REACHABLE}.map({NAME})")
    assert len(wanted) >= 8
    reached = []
    for _ in wanted:
        page.press("Tab")
        reached.append(page.run(f"return {NAME}(document.activeElement)"))
    assert reached == wanted


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_and_mark_stands_out(page: Browser, scheme: str) -> None:
    page.media(scheme=scheme)
    page.run(OPEN_ALL)
    seen = page.run(COLOURS + CONTRASTS)
    assert len(seen) > 150
    assert [one for one in seen if one[0] < 4.5] == []
    for look in range(3):
        paint = f"getComputedStyle(document.querySelector('#buckets .dot{look}')).fill"
        assert page.run(f"{COLOURS} return contrast(parse({paint}), behind(document.body))") >= 3


def test_a_desk_is_wide_enough_for_three_models(page: Browser) -> None:
    assert page.run("return document.documentElement.scrollWidth") == DESK[0]
    first = "return [...document.querySelectorAll('.wide th:first-child')].map((one) => one.offsetWidth)"
    assert min(page.run(first)) > 80


def long_words() -> dict[str, Any]:
    made = report()
    path = "folder_without_a_break" * 9
    made["names"]["model"] = made["judge"]["name"] = made["buckets"][0]["name"] = path
    made["settings"]["model"] = made["samples"][0]["adapter"] = path
    made["data"]["left_out"][path] = 1234567890
    return made


@pytest.mark.parametrize("made", [report, long_words], ids=["usual", "long words"])
def test_a_phone_never_scrolls_sideways(page: Browser, file: Path, made: Any, tmp_path: Path) -> None:
    long = tmp_path / "evaluation.html"
    long.write_text(evaluate_page(made()), encoding="utf-8")
    page.window(*PHONE)
    page.open(long)
    page.run(OPEN_ALL)
    assert page.run("return document.documentElement.scrollWidth") == PHONE[0]
    page.open(file)


def test_nothing_is_hidden_in_print(page: Browser) -> None:
    page.media("print")
    assert page.run(HIDDEN) == []
