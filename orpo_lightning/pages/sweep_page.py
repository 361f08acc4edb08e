"""The page of `sweep`: which settings won, how each key mattered, how the trials went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orpo_lightning.pages.dots import Axis, Dot, axis_of
from orpo_lightning.pages.frame import render
from orpo_lightning.pages.lines import Point, Series, figure
from orpo_lightning.pages.words import counted
from orpo_lightning.sweeping.space import short

Report = Mapping[str, Any]
_LONGEST_CELL = 40
_CURVES = 4


class Panel(NamedTuple):
    """A chart of the trials' values."""

    title: str
    dots: Sequence[Dot]
    axis: Axis
    words: str
    path: Sequence[Dot] = ()


def sweep_page(report: Report) -> str:
    """Return the HTML page of a sweep: one file that needs nothing else.

    Args:
        report: as `sweeping.report.as_json` makes it.
    """
    best = best_of(report)
    return render(
        "sweep.html.jinja",
        report=report,
        maker=f"{report.get('package') or ''} · sweep",
        title=f"Sweep over {', '.join(short(report['space']))}",
        best=best,
        best_settings=[] if best is None else [(key, _cell(one)) for key, one in best["settings"].items()],
        counts=_counts(report),
        history=history(report),
        panels=[panel(report, key) for key in report["space"]],
        curves=curves(report),
        trials=_rows(report),
        names=short(report["space"]),
        low_is_good=report["goal"] == "min",
    )


def best_of(report: Report) -> Report | None:
    """Return the best trial."""
    return next((trial for trial in report["trials"] if trial["number"] == report["best"]), None)


def _measured(report: Report) -> list[Report]:
    """Return the trials with a value, in their order."""
    return [t for t in report["trials"] if t["value"] is not None and math.isfinite(t["value"])]


def _dot(report: Report, trial: Report, x: Any) -> Dot:
    look = "best" if trial["number"] == report["best"] else "ended" if trial["state"] == "pruned" else "usual"
    chosen = ", ".join(
        f"{name} {_cell(value)}"
        for name, value in zip(short(trial["chosen"]), trial["chosen"].values(), strict=True)
    )
    ended = " when it was ended early" if trial["state"] == "pruned" else ""
    return Dot(x, trial["value"], look, f"trial {trial['number']}: {figure(trial['value'])}{ended}; {chosen}")


def history(report: Report) -> Panel:
    """Return the value of each trial by its number, with the best so far as a line."""
    shown = [_dot(report, trial, trial["number"]) for trial in _measured(report)]
    pick = min if report["goal"] == "min" else max
    path: list[Dot] = []
    for trial in _measured(report):
        if trial["state"] == "complete":
            best = pick(path[-1].y, trial["value"]) if path else trial["value"]
            path.append(Dot(trial["number"], best, "usual", ""))
    axis = axis_of([dot.x for dot in shown] or [0])
    return Panel(f"{report['metric']} by trial", shown, axis, "The line is the best so far.", path)


def panel(report: Report, key: str) -> Panel:
    """Return the value of each trial by what it has of a key."""
    space, trials = report["space"][key], _measured(report)
    shown = [_dot(report, trial, trial["chosen"][key]) for trial in trials]
    ends = [space["low"], space["high"]] if "low" in space else []
    listed = [] if ends else list(space["values"])
    numbers = sorted(one for one in listed if isinstance(one, (int, float)) and not isinstance(one, bool))
    # Values of a list that someone wrote down as 0.1, 1, 10 stand equally far apart.
    log = bool(space.get("log")) or (
        len(numbers) == len(listed) > 2 and numbers[0] > 0 and numbers[-1] / numbers[0] >= 20
    )
    best = best_of(report)
    words = "" if best is None else f"Best at {_cell(best['chosen'][key])}."
    return Panel(key, shown, axis_of([*ends, *listed, *(dot.x for dot in shown)] or [0], log=log), words)


def curves(report: Report) -> list[Series]:
    """Return how the best trials came to their values, the best first."""
    complete = [trial for trial in _measured(report) if trial["state"] == "complete" and trial["values"]]
    complete.sort(key=lambda trial: trial["value"], reverse=report["goal"] == "max")
    return [
        Series(f"trial {trial['number']}", [Point(float(x), float(y)) for x, y in trial["values"]])
        for trial in complete[:_CURVES]
    ]


def _counts(report: Report) -> list[tuple[str, str]]:
    states = [trial["state"] for trial in report["trials"]]
    told = {"complete": "ran to their end", "pruned": "ended early", "failed": "failed", "running": "run now"}
    found = [(words, str(states.count(state))) for state, words in told.items() if state in states]
    return [(f"of {counted(report['planned'], 'trial')} begun", str(len(states))), *found]


def _rows(report: Report) -> list[Report]:
    def rank(trial: Report) -> tuple[bool, float]:
        value = trial["value"] if trial["state"] == "complete" else None
        sign = 1 if report["goal"] == "min" else -1
        return (value is None, 0.0 if value is None else sign * value)

    return [
        {**trial, "cells": [_cell(trial["chosen"].get(key)) for key in report["space"]]}
        for trial in sorted(report["trials"], key=rank)
    ]


def _cell(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…"
