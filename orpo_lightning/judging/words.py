"""An evaluation as lines of a terminal: figures with intervals side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orpo_lightning.judging.verdicts import readable

Report = Mapping[str, Any]
QUANTITIES = {
    "accuracy": "accuracy",
    "margin": "margin",
    "logps_chosen": "logps of chosen",
    "logps_rejected": "logps of rejected",
    "log_odds_ratio": "log odds ratio",
}
_SHOWN = 300


def table(report: Report) -> str:
    """Return all of a report but its samples."""
    names = list(report["models"])
    parts = [_heading(report), _figures(report, names), _buckets(report, names), _calibration(report)]
    for key, words in (("canary", _canary), ("judge", _judge)):
        if report.get(key):
            parts.append(words(report[key]))
    return "\n\n".join(parts)


def last_line(report: Report) -> str:
    """Return the accuracy, before and after where two models are compared."""
    models, change = report["models"], report.get("change")
    own = models[change["to"]] if change else next(iter(models.values()))
    accuracy = own["accuracy"]
    before = f"{models[change['from']]['accuracy']['mean']:.3f} → " if change else ""
    return (
        f"held-out accuracy {before}{accuracy['mean']:.3f} ({report['pairs']} pairs, 95 % interval "
        f"{accuracy['low']:.3f} to {accuracy['high']:.3f})"
    )


def samples(report: Report) -> str:
    """Return prompts with the answers of each model."""
    blocks = []
    for sample in report["samples"]:
        lines = [_one_line(readable(sample["prompt"]))]
        lines += [f"  {f'{name}:':9}{_one_line(sample[name])}" for name in sample if name != "prompt"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def value(found: Mapping[str, float], sign: str = "") -> str:
    """Return a mean with its interval: "0.976 [0.959, 0.990]"."""
    mean, low, high = (format(found[end], f"{sign}.3f") for end in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _heading(report: Report) -> str:
    lines = [f"{report['pairs']:,} pairs of {report['prompts']:,} prompts ({report['data']['origin']}: "]
    lines[0] += f"{report['data']['name']})"
    lines += [f"{label:14}{text}" for label, text in report["settings"].items()]
    return "\n".join(lines)


def _figures(report: Report, names: Sequence[str]) -> str:
    changes = [(key, change) for key in ("change", "against") if (change := report.get(key))]
    heads = [*names, *(f"{change['from']} to {change['to']}" for _, change in changes)]
    rows = [["", *heads]]
    for key, label in QUANTITIES.items():
        own = [value(report["models"][name][key]) for name in names]
        rows.append([label, *own, *(value(change[key], "+") for _, change in changes)])
    return _columns(rows)


def _buckets(report: Report, names: Sequence[str]) -> str:
    compared = report.get("change")
    rows = [["accuracy by", "", "pairs", *names, *(["change"] if compared else [])]]
    before = None
    for bucket in report["buckets"]:
        by = bucket["by"] if bucket["by"] != before else ""
        before = bucket["by"]
        cells = [value(bucket["accuracy"][name]) for name in names]
        change = [value(bucket["change"], "+")] if compared else []
        rows.append([by, bucket["name"], f"{bucket['pairs']:,}", *cells, *change])
    return _columns(rows)


def _calibration(report: Report) -> str:
    rows = [["calibration", "ECE", "a calibrated model's", "Brier score (0.25: a coin)"]]
    for name, found in report["calibration"]["models"].items():
        chance = found["ece_if_calibrated"]
        usual = f"{chance['mean']:.3f}, up to {chance['high']:.3f}"
        rows.append([name, value(found["ece"]), usual, value(found["brier"])])
    return _columns(rows)


def _canary(found: Report) -> str:
    own = [f"{name} {value(one)}" for name, one in found["perplexity"].items()]
    factor = f"; times {value(found['factor'])}" if found.get("factor") else ""
    return f"canary        perplexity of {found['texts']} texts: {', '.join(own)}{factor}"


def _judge(found: Report) -> str:
    lines = [f"judge         {found['name']}: {found['to']} against {found['from']}"]
    if found["win_rate"]:
        lines[0] += f", win rate {value(found['win_rate'])}"
    counts = ", ".join(f"{found[key]} {key}" for key in ("wins", "ties", "losses"))
    lines.append(
        f"              {counts} of {found['judged']} prompts; the two orders disagreed on "
        f"{found['disagreements']}, both answers were the same on {found['identical']}"
    )
    if found["malformed"]:
        lost = found["prompts"] - found["judged"]
        lines.append(
            f"              replies without a verdict: {found['malformed']}; prompts left out for it: {lost}"
        )
    return "\n".join(lines)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
