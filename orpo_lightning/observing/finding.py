"""One thing that a run shows, and how its figures are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orpo_lightning.observing.evidence import Interval
from orpo_lightning.observing.held_out import LEVEL

REVERSED, DIVERGING, LENGTH_ONLY = "reversed labels", "diverging", "length only"
DISPLACEMENT, NOT_LEARNING, LEARNING = "displacement", "not learning", "learning"
FAULTS = (DIVERGING, REVERSED, LENGTH_ONLY)
"""After one of these nothing else that the run shows is worth much."""


Curves = Sequence[Mapping[str, Any]]


class Finding(NamedTuple):
    """One thing that a run shows."""

    kind: str
    sentence: str
    """What was seen, with its figures."""
    advice: str
    """What to do, or what to do next."""

    @property
    def line(self) -> str:
        """All of it as one line."""
        return f"{self.kind}: {self.sentence} {self.advice}".strip()


def ends(interval: Interval, *, turned: bool = False) -> str:
    """Return the ends of an interval, of a rise or, turned, of a fall."""
    low, high = (-interval.high, -interval.low) if turned else (interval.low, interval.high)
    return f"{100 * LEVEL:.0f} % {low:.3f} to {high:.3f}"


def around(interval: Interval) -> str:
    """Return the ends of an interval, with their signs where one is negative."""
    signed = "+" if interval.low < 0 else ""
    return f"{100 * LEVEL:.0f} % {interval.low:{signed}.3f} to {interval.high:{signed}.3f}"
