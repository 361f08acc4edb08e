"""The page of a sweep: what it shows, and that it works in a browser."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from orpo_lightning.pages.dots import Dot, axis_of, dots, limits
from orpo_lightning.pages.find_lr_page import find_lr_page
from orpo_lightning.pages.sweep_page import best_of, history, panel, sweep_page
from tests.browser import Browser
from tests.page_checks import OPEN_ALL, PHONE, faint_texts, hidden_texts, opened, tab_through
from tests.sweep_report import report


def test_the_best_trial_its_settings_and_every_other_trial_stand_on_the_page() -> None:
    made = report()
    page, best = sweep_page(made), best_of(made)
    assert best is not None
    assert f"trial {best['number']}" in page
    assert all(key in page for key in best["settings"])
    assert page.count('<th scope="row">') >= len(made["trials"])
    assert "no finite gradient in 5 optimizer steps" in page


def test_the_line_of_the_history_is_the_best_so_far_of_trials_that_ran_to_their_end() -> None:
    made = report()
    path = [dot.y for dot in history(made).path]
    assert path == sorted(path, reverse=True)
    best = best_of(made)
    assert best is not None
    assert path[-1] == best["value"]
    made["goal"] = "max"
    rising = [dot.y for dot in history(made).path]
    assert rising == sorted(rising)


@pytest.mark.parametrize("key", report()["space"])
def test_a_key_has_a_dot_for_each_trial_that_has_a_value(key: str) -> None:
    made = report()
    shown = panel(made, key).dots
    assert len(shown) == sum(trial["value"] is not None for trial in made["trials"])
    assert [dot.look for dot in shown].count("best") == 1


def test_powers_of_ten_are_equally_far_apart_and_named() -> None:
    axis = axis_of([1e-5, 1e-4, 1e-3, 1e-2], log=True)
    places = list(axis.places.values())
    gaps = [after - before for before, after in pairwise(places)]
    assert max(gaps) == pytest.approx(min(gaps))
    assert [text for _, text in axis.ticks] == ["1e-05", "0.0001", "0.001", "0.01"]


def test_words_and_a_single_number_have_places_within_the_chart() -> None:
    for values in (["nf4", "none", None], [3], [True, False]):
        assert all(0 < place < 100 for place in axis_of(values).places.values())


def test_a_value_far_worse_than_most_stands_at_the_edge_and_is_told_in_full() -> None:
    low, high = limits([1.0, 1.1, 1.2, 1.3, 50.0], low_is_good=True)
    assert low == 1.0
    assert high < 3
    shown = [Dot(x, y, "usual", f"is {y}") for x, y in enumerate([1.0, 1.1, 1.2, 1.3, 50.0])]
    markup = str(dots(shown, axis_of(range(5)), label="l", low_is_good=True))
    heights = [float(y) for y in re.findall(r'class="trial usual" cx="[^"]*" cy="([^"]*)"', markup)]
    assert min(heights) >= 0
    assert heights[4] == min(heights)
    assert "is 50.0" in markup


def test_the_same_from_the_other_side_and_nothing_where_nothing_is_finite() -> None:
    assert limits([1.0, 0.9, 0.8, -50.0], low_is_good=False)[0] > -3
    assert str(dots([Dot(0, math.nan, "usual", "")], axis_of([0]), label="l", low_is_good=True)) == ""


def test_a_sweep_without_a_single_value_has_a_page() -> None:
    made = report()
    made |= {"trials": [trial for trial in made["trials"] if trial["state"] == "failed"], "best": None}
    assert "No trial has run to its end." in sweep_page(made)
    made["trials"] = []
    assert "No trial has run to its end." in sweep_page(made)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "sweep.html"
    path.write_text(sweep_page(report()), encoding="utf-8")
    return path


@pytest.fixture
def page(chromium: Browser, file: Path) -> Iterator[Browser]:
    with opened(chromium, file) as shown:
        yield shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_background(page: Browser, scheme: str) -> None:
    page.media(scheme=scheme)
    page.run(OPEN_ALL)
    faint, count = faint_texts(page)
    assert count > 150
    assert faint == []


def test_the_tab_key_reaches_every_control(page: Browser) -> None:
    wanted, reached = tab_through(page)
    assert len(wanted) >= 6
    assert reached == wanted


def test_pointer_and_arrow_keys_read_the_dots(page: Browser) -> None:
    readout = "return document.querySelector('#history .readout').textContent"
    assert page.run(readout) == "The line is the best so far."
    page.run("document.querySelector('#history svg[role=img]').focus({focusVisible: true})")
    page.press("Right")
    assert re.match(r"trial \d+: 0\.\d+; lr ", page.run(readout))
    page.point("#history .hit:nth-of-type(2) .near")
    assert page.run(readout).startswith("trial ")


def test_a_phone_never_scrolls_sideways_and_print_hides_nothing(page: Browser) -> None:
    page.window(*PHONE)
    page.run(OPEN_ALL)
    assert page.run("return document.documentElement.scrollWidth") <= PHONE[0]
    page.media(kind="print")
    page.run("document.querySelectorAll('.points').forEach((one) => one.remove())")  # the line shows them
    assert hidden_texts(page) == []


def test_the_page_of_find_lr_works_as_well(chromium: Browser, tmp_path: Path) -> None:
    rates = [10 ** (-6 + 6 * step / 59) for step in range(60)]
    losses: list[float | str] = [3 - 0.01 * step for step in range(50)] + [9.0] * 9 + ["nan"]
    suggestion = {"rate": 1e-4, "reason": "r", "steepest": 1e-4, "lowest": 1e-2, "diverged": 0.1}
    made = {"rates": rates, "losses": losses, "smoothed": [float(loss) for loss in losses[:59]]}
    path = tmp_path / "find-lr.html"
    path.write_text(find_lr_page({**made, "suggestion": suggestion}, ["suggestion: 1e-4", "it is low"]))
    with opened(chromium, path) as shown:
        assert shown.run("return document.querySelectorAll('.trial.best').length") == 1
        assert faint_texts(shown)[0] == []
        shown.window(*PHONE)
        assert shown.run("return document.documentElement.scrollWidth") <= PHONE[0]
