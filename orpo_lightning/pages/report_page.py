"""The page of a finished run, or of several side by side: what happened first, then everything behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orpo_lightning.durations import clock
from orpo_lightning.observing.finding import (
    DISPLACEMENT,
    DIVERGING,
    FAULTS,
    LEARNING,
    LENGTH_ONLY,
    NOT_LEARNING,
    REVERSED,
)
from orpo_lightning.observing.run_files import RunFiles, values
from orpo_lightning.pages.frame import render
from orpo_lightning.pages.lines import LOOKS, Point, Series, figure, with_interval
from orpo_lightning.pages.usage import usage
from orpo_lightning.pages.words import number

Summary = Mapping[str, Any]
_HEADLINES = {
    DIVERGING: "The run diverged.",
    REVERSED: "Training pairs and held-out pairs prefer opposite answers.",
    LENGTH_ONLY: "The model goes by length.",
    DISPLACEMENT: "Both answers lost likelihood.",
    NOT_LEARNING: "Nothing was learned that the held-out pairs could show.",
    LEARNING: "Preferences are learned.",
}
_UNKNOWN = "Too little was logged to judge the run by."
SHOWN = 8
"""How many prompts' answers stand on the page."""
_HELD, _TRAIN = "held out", "training"
CURVES = (
    ("Loss", ((_TRAIN, "train/loss"), (_HELD, "val/loss"))),
    (
        "Accuracy",
        (
            (_TRAIN, "train/rewards/accuracies"),
            (_HELD, "val/rewards/accuracies"),
            ("held out, longer is wrong", "val/rewards/accuracies_longer_is_wrong"),
        ),
    ),
    (
        "Log-probability of a token, held out",
        (("chosen", "val/logps/chosen"), ("rejected", "val/logps/rejected")),
    ),
    (
        "Log-probability of a token, training",
        (("chosen", "train/logps/chosen"), ("rejected", "train/logps/rejected")),
    ),
    (
        "Change from the base model, held out",
        (("chosen", "val/logps_change/chosen"), ("rejected", "val/logps_change/rejected")),
    ),
    ("Reward margin", ((_TRAIN, "train/rewards/margins"), (_HELD, "val/rewards/margins"))),
    ("Loss of general text, change from the base model", (("general text", "val/canary_nll_change"),)),
    ("Gradient norm before clipping", (("gradient norm", "train/grad_norm"),)),
    ("Learning rate", (("learning rate", "train/lr"),)),
)
SPEED = (
    ("Pairs a second", (("pairs", "train/pairs_per_second"),)),
    ("Scored tokens a second", (("tokens", "train/tokens_per_second"),)),
    ("Share of the device's peak (MFU)", (("MFU", "train/mfu"),)),
    ("Share of padding", (("padding", "train/padding"),)),
    ("Peak memory, MB", (("memory", "train/peak_memory_mb"),)),
)
_OVERLAID = (
    ("Loss, held out", "val/loss"),
    ("Loss, training", "train/loss"),
    ("Accuracy, held out", "val/rewards/accuracies"),
    ("Accuracy where longer is wrong, held out", "val/rewards/accuracies_longer_is_wrong"),
    ("Reward margin, held out", "val/rewards/margins"),
    ("Log-probability of chosen answers, held out", "val/logps/chosen"),
    ("Log-probability of rejected answers, held out", "val/logps/rejected"),
    ("Accuracy, training", "train/rewards/accuracies"),
)


class Chart(NamedTuple):
    """A chart of a page and what stands below it."""

    title: str
    series: list[Series]
    words: str


class Panel(NamedTuple):
    """One run on the page."""

    key: str
    label: str
    summary: Summary
    headline: tuple[str, str]
    figures: list[tuple[str, str]]
    curves: list[Chart]
    speed: list[Chart]
    facts: list[tuple[str, str]]
    samples: list[Mapping[str, Any]]
    left_out_samples: int
    use: Mapping[str, Any]
    run: RunFiles


def report_page(
    runs: Sequence[RunFiles], summaries: Sequence[Summary], compared: Mapping[str, Any] | None = None
) -> str:
    """Return the HTML page of runs: one file that needs nothing else.

    Args:
        runs: their files; whatever is missing is left out of the page.
        summaries: what `summary` returns of each.
        compared: what `comparison` returns of them, where there are several.
    """
    labels = compared["runs"] if compared else [run.name for run in runs]
    panels = [_panel(f"run{i}", labels[i], run, summaries[i]) for i, run in enumerate(runs)]
    package = next((run.record["package"] for run in runs if run.record.get("package")), "")
    return render(
        "report.html.jinja",
        maker=f"{package} · report",
        title=" and ".join(labels) if len(labels) < 4 else f"{labels[0]} and {len(labels) - 1} more runs",
        panels=panels,
        compared=compared,
        overlays=_overlays(labels, runs) if compared else [],
        most_overlaid=LOOKS,
    )


def _panel(key: str, label: str, run: RunFiles, summary: Summary) -> Panel:
    last = latest(run.samples)
    return Panel(
        key=key,
        label=label,
        summary=summary,
        headline=headline(summary),
        figures=figures(summary, run),
        curves=charts(run, CURVES),
        speed=charts(run, SPEED),
        facts=facts(run),
        samples=last[:SHOWN],
        left_out_samples=max(0, len(last) - SHOWN),
        use=usage(run),
        run=run,
    )


def headline(summary: Summary) -> tuple[str, str]:
    """Return how it stands, `failed`, `remarks` or `passed`, and the same as a sentence."""
    kinds = [one["kind"] for one in summary.get("findings") or ()]
    fault = next((kind for kind in kinds if kind in FAULTS), None)
    how = str(summary.get("how") or "")
    if fault is not None:
        return "failed", _HEADLINES[fault]
    if how.startswith("failed"):
        return "failed", "The run failed."
    if how == "stopped":
        return "remarks", f"The run was stopped at step {number(summary.get('steps'))}."
    if kinds[:2] == [DISPLACEMENT, LEARNING]:
        return "remarks", "Preferences are learned, and both answers lost likelihood."
    if not kinds:
        return "remarks", _UNKNOWN
    return ("passed" if kinds == [LEARNING] else "remarks"), _HEADLINES[kinds[0]]


def figures(summary: Summary, run: RunFiles) -> list[tuple[str, str]]:
    """Return the few numbers that describe the run, each with its name."""
    end: Mapping[str, Any] = summary.get("final") or {}

    def last(name: str) -> float | None:
        return (end.get(name) or {}).get("value")

    def held(name: str) -> float | None:
        # A last validation on all pairs has a name of its own; verdict and margins are of its pairs.
        steps = [(end.get(f"{stage}/{name}") or {}).get("step", -1) for stage in ("val", "val_full")]
        return last(f"val/{name}" if steps[0] > steps[1] else f"val_full/{name}")

    seconds, held_out = summary.get("seconds"), None if run.pairs is None else len(run.pairs["chosen"])
    found = [
        ("accuracy, held out", held("rewards/accuracies"), figure),
        ("loss, held out", held("loss"), figure),
        ("pairs held out", held_out, number),
        ("optimizer steps", summary.get("steps"), number),
        ("duration", seconds, clock),
        ("pairs a second", last("train/pairs_per_second"), figure),
        ("MB of memory at the peak", run.record.get("peak_memory_mb"), number),
    ]
    return [(name, words(value)) for name, value, words in found if value is not None]


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Return what the run said of itself when it began, and on what it ran."""
    record = run.record
    parameters = record.get("parameters") or {}
    rows = {
        "started": record.get("started"),
        "ended": record.get("ended"),
        "how it ended": record.get("how"),
        "device": record.get("device"),
        "parameters": number(parameters["total"]) if parameters.get("total") else None,
        **(record.get("header") or {}),  # which may say the same in more words
        **{f"version of {name}": version for name, version in (record.get("versions") or {}).items()},
    }
    return [(str(name), str(value).replace("T", " ", 1)) for name, value in rows.items() if value is not None]


def charts(run: RunFiles, wanted: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> list[Chart]:
    """Return the charts of those quantities that were logged."""
    found = []
    for title, quantities in wanted:
        series = [Series(words, _points(run, name)) for words, name in quantities]
        found.append(_chart(title, [one for one in series if one.points]))
    return [chart for chart in found if chart.series]


def _overlays(labels: Sequence[str], runs: Sequence[RunFiles]) -> list[Chart]:
    found = []
    for title, name in _OVERLAID:
        series = [Series(label, _points(run, name)) for label, run in zip(labels, runs, strict=True)]
        found.append(_chart(title, [one for one in series if one.points][:LOOKS]))
    return [chart for chart in found if chart.series]


def _points(run: RunFiles, name: str) -> list[Point]:
    return [Point(one.step, one.value, one.low, one.high) for one in values(run, name)]


def _chart(title: str, series: list[Series]) -> Chart:
    ends = ", ".join(
        f"{'' if len(series) == 1 else one.name + ' '}{with_interval(one.points[-1])}" for one in series
    )
    return Chart(title, series, f"At the end: {ends}.")


def latest(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the answers of the last step, each with those of earlier steps to its prompt under `earlier`.

    A run that goes on with other prompts has answers to both in its file, under the same numbers.
    """
    by_prompt: dict[Any, list[Mapping[str, Any]]] = {}
    for one in samples:
        by_prompt.setdefault((one.get("index"), one["prompt"]), []).append(one)
    return [
        {**answers[-1], "earlier": [(one.get("step"), one.get("now")) for one in answers[:-1]]}
        for answers in by_prompt.values()
        if answers[-1].get("step") == samples[-1].get("step")
    ]
