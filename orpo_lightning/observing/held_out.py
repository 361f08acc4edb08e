"""What the held-out pairs of a run say: now, and how far that is from where it began."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from orpo_lightning.observing.evidence import Interval, of_mean, of_share

LEVEL = 0.99
"""Of every interval that decides: half a dozen things are looked for, and at 95 % one of them would be
found every few runs with nothing to it."""
SEEN = 0.01
"""Nats a token: 1 % of perplexity. Pair by pair far less can be told from chance, and means nothing."""
_LOGGED = 0.95  # of the intervals that a run logs
BASE, FIRST = "the base model", "the first validation"

Point = tuple[int, float]
Pairs = Mapping[str, Any]


def points(curves: Iterable[Mapping[str, Any]], name: str) -> list[Point]:
    """Return (step, value) of a logged quantity; "NaN" and "Infinity" are such numbers."""
    found = [(row["step"], row.get(name)) for row in curves]
    return [(int(step), float(value)) for step, value in found if value is not None]


class HeldOut(NamedTuple):
    """Intervals of LEVEL; what is not known is None."""

    pairs: int | None = None
    since: str = BASE
    """What the changes are from."""
    accuracy: Interval | None = None
    accuracy_change: Interval | None = None
    margin: Interval | None = None
    margin_change: Interval | None = None
    chosen_change: Interval | None = None
    rejected_change: Interval | None = None

    @property
    def improves(self) -> bool:
        """Whether accuracy or margin rose, the margin by more than nobody would see."""
        accuracy, margin = self.accuracy_change, self.margin_change
        return bool(accuracy and accuracy.rises) or bool(margin and margin.rises and margin.mean > SEEN)

    @property
    def worsens(self) -> bool:
        """Whether accuracy or margin fell."""
        accuracy, margin = self.accuracy_change, self.margin_change
        return bool(accuracy and accuracy.falls) or bool(margin and margin.falls and margin.mean < -SEEN)


class Column(NamedTuple):
    """The pairs that can be judged, a list for each of what is known of them."""

    prompts: list[int]
    chosen: list[float]
    rejected: list[float]
    base_chosen: list[float]
    base_rejected: list[float]
    tokens_chosen: list[int]
    tokens_rejected: list[int]

    @property
    def longer(self) -> list[float]:
        """By how many e-folds the chosen answer is the longer one; below 0 where it is the shorter."""
        both = zip(self.tokens_chosen, self.tokens_rejected, strict=True)
        return [math.log(max(c, 1) / max(r, 1)) for c, r in both]

    @property
    def margins(self) -> list[float]:
        """By how much the chosen answer is the likelier one, a token."""
        return [c - r for c, r in zip(self.chosen, self.rejected, strict=True)]

    @property
    def base_margins(self) -> list[float]:
        """The same under the base."""
        return [c - r for c, r in zip(self.base_chosen, self.base_rejected, strict=True)]

    @property
    def wins(self) -> list[float]:
        """1 where the chosen answer is the likelier one."""
        return [float(margin > 0) for margin in self.margins]

    @property
    def base_wins(self) -> list[float]:
        """The same under the base."""
        return [float(margin > 0) for margin in self.base_margins]

    def where(self, wanted: Sequence[bool]) -> Column:
        """Return the pairs for which `wanted` is true."""
        kept: list[Any] = [[v for v, keep in zip(one, wanted, strict=True) if keep] for one in self]
        return Column(*kept)

    def with_base(self) -> Column:
        """Return the pairs whose values under the base are known."""
        known = [math.isfinite(c + r) for c, r in zip(self.base_chosen, self.base_rejected, strict=True)]
        return self.where(known)


def columns(pairs: Pairs) -> Column:
    """Return the pairs of a `pairs.npz` whose values are finite, as plain lists."""
    numbers: list[Any] = [
        [float(value) for value in pairs[name]]
        for name in ("chosen", "rejected", "base_chosen", "base_rejected")
    ]
    tokens = [[int(count) for count in pairs[f"tokens_{side}"]] for side in ("chosen", "rejected")]
    whole = Column([int(key[0]) for key in pairs["keys"]], *numbers, *tokens)
    return whole.where([math.isfinite(c + r) for c, r in zip(whole.chosen, whole.rejected, strict=True)])


def change(now: Sequence[float], before: Sequence[float], prompts: Sequence[int]) -> Interval | None:
    """Return the interval of a mean change, pair by pair."""
    return of_mean([a - b for a, b in zip(now, before, strict=True)], prompts, LEVEL)


def of_run(curves: Sequence[Mapping[str, Any]], column: Column | None) -> HeldOut:
    """Return what a run's held-out pairs say, with changes from the base, or else from the first validation.

    Args:
        curves: the lines of `curves.jsonl`.
        column: the pairs of the last validation; None where they are not known.
    """
    if column is None or not column.prompts:
        return of_curves(curves)
    facts = of_pairs(column)
    if column.with_base().prompts or facts.accuracy is None:
        return facts
    # All weights are trained, or the adapter's first values were taken out of the base: it is gone.
    logged = of_curves(curves, column)
    return facts if logged.accuracy_change is None else logged


def of_pairs(column: Column) -> HeldOut:
    """Return what the pairs of the last validation say."""
    known = column.with_base()
    facts = HeldOut(
        pairs=len(column.prompts),
        accuracy=of_share(column.wins, column.prompts, LEVEL),
        margin=of_mean(column.margins, column.prompts, LEVEL),
    )
    if not known.prompts:
        return facts
    return facts._replace(
        accuracy_change=change(known.wins, known.base_wins, known.prompts),
        margin_change=change(known.margins, known.base_margins, known.prompts),
        chosen_change=change(known.chosen, known.base_chosen, known.prompts),
        rejected_change=change(known.rejected, known.base_rejected, known.prompts),
    )


def of_curves(curves: Sequence[Mapping[str, Any]], column: Column | None = None) -> HeldOut:
    """Return what the logged validations say: how the last one differs from the first.

    Both are of the same pairs, which `pairs.npz` alone tells apart: intervals of changes are too wide here.

    Args:
        curves: the lines of `curves.jsonl`.
        column: the pairs, where they are known: a run logs intervals that take each for a draw of its own,
            and they are widened as those of the pairs are by counting prompts.
    """
    wider = (1.0, 1.0) if column is None else _by_prompts(column)
    accuracy, margin = (
        [one.wider(by) for one in _intervals(curves, f"rewards/{name}")]
        for name, by in zip(("accuracies", "margins"), wider, strict=True)
    )
    moved = [_intervals(curves, f"logps_change/{side}")[-1:] for side in ("chosen", "rejected")]
    return HeldOut(
        pairs=None if column is None else len(column.prompts),
        since=FIRST,
        accuracy=accuracy[-1] if accuracy else None,
        accuracy_change=_between(accuracy),
        margin=margin[-1] if margin else None,
        margin_change=_between(margin),
        chosen_change=moved[0][0] if moved[0] else None,
        rejected_change=moved[1][0] if moved[1] else None,
    )


def _by_prompts(column: Column) -> tuple[float, float]:
    """Return how many times wider accuracy's and margin's intervals are where prompts are the draws."""
    draws = (column.prompts, range(len(column.prompts)))
    accuracy = [of_share(column.wins, one, LEVEL) for one in draws]
    margin = [of_mean(column.margins, one, LEVEL) for one in draws]
    return _ratio(*accuracy), _ratio(*margin)


def _ratio(prompts: Interval | None, pairs: Interval | None) -> float:
    if prompts is None or pairs is None or pairs.low == pairs.high:
        return 1.0
    return max(1.0, (prompts.high - prompts.low) / (pairs.high - pairs.low))


def _intervals(curves: Sequence[Mapping[str, Any]], name: str) -> list[Interval]:
    """Return a value's intervals at all validations that logged one."""
    ends = [dict(points(curves, f"val_ci_{end}/{name}")) for end in ("low", "high")]
    found = [
        Interval(value, ends[0][step], ends[1][step]).around(_LOGGED, LEVEL)
        for step, value in points(curves, f"val/{name}")
        if step in ends[0] and step in ends[1]
    ]
    return [one for one in found if all(map(math.isfinite, one))]


def _between(values: Sequence[Interval]) -> Interval | None:
    if len(values) < 2:
        return None
    first, last = values[0], values[-1]
    mean = last.mean - first.mean
    half = math.hypot((first.high - first.low) / 2, (last.high - last.low) / 2)
    return Interval(mean, mean - half, mean + half)
