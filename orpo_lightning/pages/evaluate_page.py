"""The page of `evaluate`: what was learned, where, how honest the odds are, and what a judge says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from orpo_lightning.pages.frame import render
from orpo_lightning.pages.lines import Point, Series
from orpo_lightning.pages.words import NOTHING, counted, percent

Report = Mapping[str, Any]
QUANTITIES = {
    "accuracy": ("accuracy", "pairs whose chosen answer is the likelier one"),
    "margin": ("margin", "chosen less rejected, mean log-probability of a token"),
    "logps_chosen": ("chosen", "mean log-probability of a token"),
    "logps_rejected": ("rejected", "mean log-probability of a token"),
    "log_odds_ratio": ("log odds ratio", "what ORPO pushes up"),
}
_DIAGONAL = Series("calibrated", [Point(0, 0), Point(1, 1)])


def evaluate_page(report: Report) -> str:
    """Return the HTML page of an evaluation: one file that needs nothing else.

    Args:
        report: the content of evaluation.json; parts that are null are left out of the page.
    """
    return render(
        "evaluate.html.jinja",
        report=report,
        maker=f"{report.get('package') or ''} · evaluate",
        title=f"Evaluation of {report['names']['model']}",
        headline=headline(report),
        facts=facts(report),
        quantities=QUANTITIES,
        value=value,
        cell=cell,
        spans=spans,
        diagrams=diagrams(report),
        samples=samples(report),
    )


def headline(report: Report) -> str:
    """Return in a sentence what became of the accuracy, and whether these pairs can tell."""
    change, pairs = report.get("change"), counted(report["pairs"], "pair")
    if change is None:
        accuracy = next(iter(report["models"].values()))["accuracy"]
        return f"Right in {percent(accuracy['mean'])} of {pairs}."
    found = change["accuracy"]
    if found["low"] <= 0 <= found["high"]:
        return f"No change in accuracy that {pairs} could show."
    where = "more" if found["mean"] > 0 else "fewer"
    return f"Right in {percent(abs(found['mean']))} {where} of the pairs than {change['from']}."


def facts(report: Report) -> list[tuple[str, str]]:
    """Return the few numbers that matter, each with its name."""
    found = [
        (f"accuracy, {name}", percent(one["accuracy"]["mean"])) for name, one in report["models"].items()
    ]
    for name, one in report["calibration"]["models"].items():
        found.append((f"calibration error, {name}", f"{one['ece']['mean']:.3f}"))
    judge, canary = report.get("judge"), report.get("canary")
    if judge and judge["win_rate"]:
        found.append((f"answers preferred to those of {judge['from']}", percent(judge["win_rate"]["mean"])))
    if canary and canary["factor"]:
        found.append(("perplexity of general text, times", f"{canary['factor']['mean']:.3f}"))
    return found


def value(found: Mapping[str, float] | None, sign: str = "") -> str:
    """Return a mean with its interval."""
    if found is None:
        return NOTHING
    mean, low, high = (format(found[end], f"{sign}.3f") for end in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]".replace("-", "−")  # as wide as a digit


def cell(found: Mapping[str, float] | None, sign: str = "") -> Markup:
    """Return the same for a table: the interval below the mean."""
    mean, _, ends = value(found, sign).partition(" ")
    return Markup('{} <span class="ends">{}</span>').format(mean, ends) if ends else Markup(mean)


def spans(found: Sequence[Mapping[str, float]]) -> Markup:
    """Return shares with their intervals as marks on one axis from 0 to 1; the table has their numbers."""
    height, parts = 10 * len(found) + 4, []
    for look, one in enumerate(found):
        y = 7 + 10 * look
        low, mean, high = (f"{100 * one[end]:.2f}%" for end in ("low", "mean", "high"))
        parts.append(f'<line class="line line{look}" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot{look}" cx="{mean}" cy="{y}" r="3.5"/>')
    middle = f'<line class="grid" x1="50%" x2="50%" y1="0" y2="{height}"/>'
    return Markup(
        f'<svg class="meter" width="100%" height="{height}" aria-hidden="true">{middle}{"".join(parts)}</svg>'
    )


def diagrams(report: Report) -> list[tuple[str, list[Series], str]]:
    """Return the reliability diagram of each model: its name, its lines, and what it comes to."""
    found = []
    for name, one in report["calibration"]["models"].items():
        points = [
            Point(
                part["predicted"], part["happened"]["mean"], part["happened"]["low"], part["happened"]["high"]
            )
            for part in one["bins"]
        ]
        chance = one["ece_if_calibrated"]
        words = (
            f"Calibration error {value(one['ece'])}; a calibrated model's is about {chance['mean']:.3f}, "
            f"seldom above {chance['high']:.3f}."
        )
        found.append((name, [Series(name, points), _DIAGONAL], words))
    return found


def samples(report: Report) -> list[tuple[list[tuple[str, str]], list[tuple[str, str]]]]:
    """Return of each sample the turns of its prompt and the answers, each with who says it."""
    found = []
    for sample in report.get("samples") or ():
        turns = sample["prompt"]
        turns = [{"role": "prompt", "content": turns}] if isinstance(turns, str) else turns
        said = [(str(turn.get("role")), str(turn.get("content") or "")) for turn in turns]
        found.append((said, [(name, text) for name, text in sample.items() if name != "prompt"]))
    return found
