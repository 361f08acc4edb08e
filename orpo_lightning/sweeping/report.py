"""What a sweep has found: as numbers, as a table, and its best settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orpo_lightning.masking import mask
from orpo_lightning.sweeping.space import Choices, Space, label, settings, short
from orpo_lightning.sweeping.study import Study
from orpo_lightning.sweeping.trial import VALUES, values

_STATES = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
# Names of metrics in which more is better; of all others that are known, less is.
_MORE = ("rewards/accuracies", "rewards/margins", "log_odds_ratio", "logps/chosen", "logps_change/chosen")
_LESS = ("loss", "nll_loss", "odds_ratio_loss", "nll/prompt", "nll/completion")


def goal_of(metric: str) -> str | None:
    """Return min or max where a metric's name tells which of them is wanted."""
    name = metric.partition("/")[2]
    return "max" if name in _MORE else "min" if name in _LESS else None


def as_json(study: Study, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything about a sweep, secrets masked.

    Args:
        study: with its trials.
        facts: what was asked: package, created, command, metric, goal.
    """
    best = study.best()
    return {
        **facts,
        "space": {key: _values(key, one) for key, one in study.space.items()},
        "planned": study.most,
        "trials": [_trial(study, trial) for trial in study.trials() if trial.state.name != "WAITING"],
        "best": None if best is None else study.name_of(best),
    }


def _values(key: str, values: Any) -> dict[str, Any]:
    if isinstance(values, Choices):
        return {"values": [_label(key, value) for value in values.values]}
    return {"low": values.low, "high": values.high, "log": values.log}


def _trial(study: Study, trial: Any) -> dict[str, Any]:
    folder = study.run_of(trial)
    ended = trial.datetime_complete
    return {
        "number": study.name_of(trial),
        "state": _STATES[trial.state.name],
        "value": trial.value if trial.state.name in ("COMPLETE", "PRUNED") else None,
        "chosen": _chosen(study.space, trial.params),
        "settings": mask(settings(study.space, trial.params)) if trial.params else {},
        "values": [list(pair) for pair in values(folder / VALUES)],
        "seconds": (ended - trial.datetime_start).total_seconds() if ended else None,
        "reason": trial.user_attrs.get("reason", ""),
        "folder": str(folder),
    }


def _chosen(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return of each key its number or, secrets masked, the label of its value."""
    found = dict(params)
    for key, one in space.items():
        if key in found and isinstance(one, Choices):
            found[key] = _label(key, one.values[one.labels.index(found[key])])
    return found


def _label(key: str, value: Any) -> Any:
    return label(mask(value, key))


def table(report: Mapping[str, Any], most: int = 10) -> str:
    """Return the best trials, a line each, and how many of the others were pruned or failed."""
    complete = [trial for trial in report["trials"] if trial["state"] == "complete"]
    complete.sort(key=lambda trial: trial["value"], reverse=report["goal"] == "max")
    names = short(report["space"])
    rows = [["trial", report["metric"], *names]]
    rows += [
        [str(trial["number"]), f"{trial['value']:.4g}", *map(_cell, trial["chosen"].values())]
        for trial in complete[:most]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, counts(report)])


def counts(report: Mapping[str, Any]) -> str:
    """Return how many trials ended how."""
    states = [trial["state"] for trial in report["trials"]]
    told = [f"{states.count(state)} {state}" for state in _STATES.values() if state in states]
    return f"{len(states)} of {report['planned']} trials: {', '.join(told) or 'none yet'}"


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
