"""Whether a training curve rose or fell, by more than its values scatter."""

from __future__ import annotations

import math

from orpo_lightning.observing.evidence import Interval, of_difference
from orpo_lightning.observing.finding import Curves
from orpo_lightning.observing.held_out import LEVEL, points

PARTS = 3
"""A training curve is compared in thirds: few enough that each holds several logged values of a short run."""


def thirds(curves: Curves, name: str) -> list[list[float]]:
    """Return a training curve in thirds; nothing where a third would hold fewer than three values."""
    values = [value for _, value in points(curves, name) if math.isfinite(value)]
    each = len(values) // PARTS
    if each < 3:
        return []
    start = len(values) - PARTS * each
    return [values[start + each * index : start + each * (index + 1)] for index in range(PARTS)]


def _rise(curves: Curves, name: str) -> Interval | None:
    """Return how far the last third of a training curve lies above its first."""
    windows = thirds(curves, name)
    return of_difference(windows[-1], windows[0], LEVEL) if windows else None


def training_rise(curves: Curves) -> tuple[str, Interval] | None:
    """Return by how much training accuracy or margin rose, where that is no chance."""
    for name, words in (("train/rewards/accuracies", "accuracy"), ("train/rewards/margins", "margin")):
        rise = _rise(curves, name)
        if rise is not None and rise.rises:
            return words, rise
    return None
