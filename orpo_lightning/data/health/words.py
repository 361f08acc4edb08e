"""A report in words: a few lines for the start of a run, half a page for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from orpo_lightning.data.health.thresholds import failed

_MOST_LINES = 6
_MOST_REASONS = 5
_WIDTH = 96

Report = Mapping[str, Any]
Line = tuple[str, str]
"""What it is about, and what is said of it."""


def brief(report: Report) -> list[str]:
    """Return at most six lines on what is wrong or surprising in the data; none where all is well."""
    lines = [_finding(one) for one in failed(report["verdict"])]
    for name, part in report["splits"].items():
        lines += [f"{name}: {hint}" for hint in part["hints"]]
    if len(lines) > _MOST_LINES:
        more = len(lines) - _MOST_LINES + 1
        lines = [
            *lines[: _MOST_LINES - 1],
            f"{more} more: python -m orpo_lightning inspect shows all of them",
        ]
    return lines


def summary(report: Report) -> str:
    """Return half a page for the terminal."""
    lines: list[Line] = []
    for name, part in report["splits"].items():
        lines += _rows(name, part)
        # What the first split is like, the others are like too: of these, only what is wrong is said.
        lines += _figures(part) if name == next(iter(report["splits"])) else []
        lines += [("  hint", hint) for hint in part["hints"]]
    lines += [*_across(report["across"]), *_epoch(report["epoch"]), *_verdict(report["verdict"])]
    return laid_out(lines)


def laid_out(lines: list[Line]) -> str:
    """Return texts behind their labels, wrapped below themselves; a label that comes again is left out."""
    width, before, made = max(len(label) for label, _ in lines), "", []
    for label, text in lines:
        head = f"{label if label != before else '':<{width}}  "
        made += textwrap.wrap(
            text,
            width + 2 + _WIDTH,
            initial_indent=head,
            subsequent_indent=" " * (width + 4),
            break_long_words=False,
            break_on_hyphens=False,
        )
        before = label
    return "\n".join(made)


def amount(value: float) -> str:
    """Return a share as a percentage, and a count as a number."""
    return f"{value:,}" if isinstance(value, int) else percent(value)


def percent(share: float | None) -> str:
    """Return a share of 1 as a percentage; a small one never reads as none at all."""
    if share is None:
        return "–"
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _finding(check: Report) -> str:
    found = f"{check['name']}: {amount(check['found'])}, more than {amount(check['limit'])}"
    return f"{found}. {check['meaning']}"


def _rows(name: str, part: Report) -> Iterator[Line]:
    rows = part["rows"]
    sources = " + ".join(f"{one['source']} ({one['shape']})" for one in part["sources"])
    yield name, f"{sources}: rows read {rows['read']:,}, kept {rows['kept']:,}, left out {rows['left_out']:,}"
    for one in part["left_out"][:_MOST_REASONS]:
        yield "  left out", _counted(one, one["reason"])
    others = part["left_out"][_MOST_REASONS:]
    if others:
        yield "  left out", f"{sum(one['rows'] for one in others):,} for {len(others)} more reasons"
    for one in part["suspicious"]:
        if one["rows"]:
            yield "  suspicious", _counted(one, one["kind"])


def _counted(one: Report, name: str) -> str:
    first = f", first {one['examples'][0]}" if one["examples"] else ""
    return f"{one['rows']:,} {name} ({percent(one['share'])}){first}"


def _figures(part: Report) -> Iterator[Line]:
    lengths = ", ".join(
        f"{name} {one['median']:g} / {one['p95']:,} / {one['max']:,}"
        for name, one in part["lengths"].items()
        if one["max"] is not None
    )
    yield "  tokens", f"{lengths} (median / 95% / longest)"
    limit = next(one for one in part["limits"] if one["is_set"])
    beyond = f"{limit['pairs_over']:,} pairs ({percent(limit['share'])})"
    cut = percent(part["answers"]["cut_share"])
    yield "  limit", f"beyond max_length {limit['max_length']:,}: {beyond}; {cut} of the answers are cut"
    longer = part["longer"]
    sides = f"chosen in {percent(longer['chosen_longer'])}, rejected in {percent(longer['rejected_longer'])}"
    wins = percent(longer["longer_wins_accuracy"])
    yield "  longer", f"{sides}; “the longer answer wins” would be right for {wins}"
    yield "  alike", f"{percent(part['overlap']['median'])} of the tokens of both answers (median)"
    margins = part["margins"]
    if margins:
        below = f"{margins['negative']:,} below 0, {margins['zero']:,} of 0"
        scored = margins["rows_with_scores"]
        yield "  margins", f"median {margins['median']:g}, of {scored:,} pairs with scores; {below}"


def _across(across: Report) -> Iterator[Line]:
    for between, part in across.items():
        split = between.removeprefix("train_")
        pairs = part[f"{split}_pairs_of_shared_prompts"]
        if pairs:
            same = f"{part['shared_pairs']:,} of them are trained on, first {part['examples'][0]}"
            yield "leak", f"{split} pairs whose prompt is in train: {pairs:,}; {same}"


def _epoch(layouts: list[Report]) -> Iterator[Line]:
    if layouts:
        ours, random = layouts[:2]
        padding = (
            f"{percent(ours['padded_share'])} padding ({percent(random['padded_share'])} in random batches)"
        )
        slowest = ours.get("slowest_device", 1.0)
        balance = f", slowest device {slowest:.3f} x the mean" if slowest > 1 else ""
        yield "epoch", f"{ours['steps']:,} optimizer steps, {ours['tokens']:,} tokens, {padding}{balance}"


def _verdict(verdict: Report) -> Iterator[Line]:
    wrong, count = failed(verdict), len(verdict["checks"])
    yield "verdict", f"failed: {len(wrong)} of {count} checks" if wrong else f"passed: all {count} checks"
    for one in wrong:
        yield "verdict", _finding(one)
