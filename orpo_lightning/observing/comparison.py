"""Runs set side by side: which settings differ, where they ended, and what the pairs they share say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orpo_lightning.bootstrap import estimate
from orpo_lightning.observing.run_files import RunFiles, flat, is_place
from orpo_lightning.observing.summary import final

Array = np.ndarray[Any, Any]
MEASURES = ("accuracy", "margin", "logps of chosen", "logps of rejected")


def comparison(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Return what two or more runs differ in, as JSON takes it; each is compared with the first one."""
    labels = labels_of(runs)
    ends = [final(run) for run in runs]
    names = list(dict.fromkeys(name for end in ends for name in end))
    return {
        "runs": labels,
        "settings": different(runs),
        "final": {name: [end.get(name) for end in ends] for name in names},
        "paired": [
            paired(run, runs[0], label, labels[0]) for run, label in zip(runs[1:], labels[1:], strict=True)
        ],
    }


def labels_of(runs: Sequence[RunFiles]) -> list[str]:
    """Return what to call each run: its folder's name, or the whole path where two share one."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else str(run.folder) for run in runs]


def different(runs: Sequence[RunFiles]) -> dict[str, list[Any]]:
    """Return the settings that differ between the runs that have a config.yaml; null where one has none."""
    flats = [flat(run.config) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flats for key in one) if not is_place(key)]
    known = [one for one in flats if one]
    found = {key: [one.get(key) for one in flats] for key in keys}
    return {
        key: values
        for key, values in found.items()
        if any(one.get(key) != known[0].get(key) for one in known)
    }


def paired(run: RunFiles, reference: RunFiles, label: str, other: str) -> dict[str, Any]:
    """Return how a run differs from another one on the pairs that both were validated on."""
    found: dict[str, Any] = {"run": label, "against": other, "pairs": 0, "prompts": 0, "measures": {}}
    shared = shared_rows(run.pairs, reference.pairs)
    if shared is None:
        return found | {
            "sentence": f"{label} and {other} share no held-out pairs: nothing to compare pair by pair."
        }
    here, there, prompts = shared
    measures = {}
    for name, ours, theirs in zip(MEASURES, _measures(here), _measures(there), strict=True):
        difference = estimate((ours - theirs).tolist(), prompts)
        measures[name] = {
            "run": float(ours.mean()),
            "reference": float(theirs.mean()),
            "difference": difference.mean,
            "low": difference.low,
            "high": difference.high,
        }
    found |= {"pairs": len(prompts), "prompts": len(set(prompts)), "measures": measures}
    return found | {"sentence": sentence(found)}


def shared_rows(
    ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None
) -> tuple[Array, Array, list[int]] | None:
    """Return the log-probabilities (n, 2) of both runs on their common pairs, and the prompts of these."""
    if ours is None or theirs is None:
        return None
    where = {tuple(key): index for index, key in enumerate(np.asarray(theirs["keys"]).tolist())}
    both = [
        (index, where[tuple(key)])
        for index, key in enumerate(np.asarray(ours["keys"]).tolist())
        if tuple(key) in where
    ]
    if not both:
        return None
    at, other = (np.array(column) for column in zip(*both, strict=True))
    rows = _rows(ours)[at], _rows(theirs)[other]
    finite = np.isfinite(rows[0]).all(axis=1) & np.isfinite(rows[1]).all(axis=1)
    if not finite.any():
        return None
    prompts = np.asarray(ours["keys"])[at][finite, 0].tolist()
    return rows[0][finite], rows[1][finite], prompts


def _rows(pairs: Mapping[str, Any]) -> Array:
    return np.stack([np.asarray(pairs["chosen"], float), np.asarray(pairs["rejected"], float)], axis=1)


def _measures(rows: Array) -> tuple[Array, ...]:
    margin = rows[:, 0] - rows[:, 1]
    return (margin > 0).astype(float), margin, rows[:, 0], rows[:, 1]


def sentence(found: Mapping[str, Any]) -> str:
    """Return in words which of two runs is right more often, or that it cannot be told."""
    run, other, accuracy = found["run"], found["against"], found["measures"]["accuracy"]
    of = f"Of the {found['pairs']:,} pairs they share (of {found['prompts']:,} prompts)"
    both = f"{run} has {accuracy['run']:.3f} right and {other} {accuracy['reference']:.3f}"
    ends = f"{accuracy['difference']:+.3f}, 95 % {accuracy['low']:+.3f} to {accuracy['high']:+.3f}"
    margin = found["measures"]["margin"]
    if accuracy["low"] > 0 or accuracy["high"] < 0:
        better = run if accuracy["difference"] > 0 else other
        return f"{of}, {both}: {better} is better ({ends})."
    words = f"{of}, {both}: no difference that these pairs could show ({ends})"
    if margin["low"] > 0 or margin["high"] < 0:
        wider = run if margin["difference"] > 0 else other
        words += (
            f"; the margin of {wider} is wider ({margin['difference']:+.3f}, "
            f"{margin['low']:+.3f} to {margin['high']:+.3f})"
        )
    return f"{words}."
