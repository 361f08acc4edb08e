"""A run in numbers: what its page shows and what `report --json` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from orpo_lightning.observing.findings import findings
from orpo_lightning.observing.run_files import RunFiles, flat, is_place, last_step, names, values

_BARS = 30


def summary(run: RunFiles, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything about a run but its curves and samples, as JSON takes it.

    Args:
        run: its files.
        defaults: of all keys, flat.
    """
    record = run.record
    return {
        "run": str(run.folder),
        "name": run.name,
        "findings": [one._asdict() for one in findings(run.curves, run.pairs)],
        "how": record.get("how"),
        "steps": last_step(run),
        "seconds": record.get("seconds"),
        "device": record.get("device"),
        "final": final(run),
        "settings": changed(run.config, defaults),
        "data": record.get("data") or {},
        "margins": margins(run.pairs),
        "warnings": list(record.get("warnings") or []),
        "notes": list(run.notes),
    }


def final(run: RunFiles) -> dict[str, Any]:
    """Return the last value of everything logged, with step and interval; what is not finite is null."""
    found = {}
    for name in names(run):
        last = values(run, name)[-1]
        found[name] = last._asdict() | {"value": last.value if math.isfinite(last.value) else None}
    return found


def changed(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are not the default's, each with the default where there is one."""
    found: dict[str, Any] = {}
    for key, value in flat(config).items():
        if is_place(key):
            continue
        if key not in defaults and value is not None:
            found[key] = {"value": value}
        elif key in defaults and value != defaults[key]:
            found[key] = {"value": value, "default": defaults[key]}
    return found


def margins(pairs: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return how the margins of the held-out pairs are spread, now and under the base, over the same bars.

    A margin is by how much the chosen answer is the likelier one, in nats a token.
    """
    if pairs is None:
        return None
    sides = {
        "now": np.asarray(pairs["chosen"], float) - np.asarray(pairs["rejected"], float),
        "base": np.asarray(pairs["base_chosen"], float) - np.asarray(pairs["base_rejected"], float),
    }
    finite = {name: values[np.isfinite(values)] for name, values in sides.items()}
    there = {name: values for name, values in finite.items() if len(values)}
    if "now" not in there:
        return None
    edges = _edges(np.concatenate(list(there.values())))
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in there.items()}
    medians = {name: float(np.median(values)) for name, values in there.items()}
    return {"edges": edges.tolist(), "counts": counts, "medians": medians}


def _edges(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return edges equally far apart, zero among them; few values beyond are in the first and last bar."""
    low, high = np.quantile(values, (0.005, 0.995))
    low, high = min(low, 0.0), max(high, 0.0)
    step = _round((high - low) / _BARS or 0.1)
    edges = step * np.arange(math.floor(low / step), math.ceil(high / step) + 1)
    edges = edges if len(edges) > 1 else np.array([0.0, step])
    edges[0], edges[-1] = min(edges[0], values.min()), max(edges[-1], values.max())
    return edges


def _round(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= value))
