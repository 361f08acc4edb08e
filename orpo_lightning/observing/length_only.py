"""Runs that learned to prefer the longer answer, whether it is the better one or not."""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

from orpo_lightning.observing.evidence import FEWEST, Interval, of_correlation, of_share
from orpo_lightning.observing.finding import LENGTH_ONLY, Finding, around
from orpo_lightning.observing.held_out import LEVEL, Column, HeldOut, change

_ONE_SIDED = 0.95
"""Share of held-out pairs with the longer answer chosen, from which on the others are too few to judge by."""
_TENTH = 0.3
"""A correlation above it explains a tenth of the spread (0.3 squared)."""


_BALANCE = (
    "Balance the lengths of chosen and rejected answers in the training data (`inspect` shows them), and "
    "judge by the accuracy where the length misleads."
)


def length_only(column: Column | None, facts: HeldOut) -> Finding | None:
    """Return that a model prefers the longer answers (or the shorter ones), chosen or not; else None."""
    if column is None or not column.prompts:
        return None
    liking = _liking(column)
    # One that the base had is no fault of a run that improves on it.
    if liking is not None and (liking.is_learned or not facts.improves):
        return Finding(LENGTH_ONLY, liking.sentence, _BALANCE)
    return _length_alone(column, facts)


def beside_length(learned: Finding, column: Column | None, facts: HeldOut) -> Finding:
    """Return that a run learns, with a liking for length that it left as it was, where there is one."""
    liking = None if column is None or not column.prompts else _liking(column)
    if liking is None:
        return learned
    said = f"{learned.sentence} Still, {liking.sentence}"
    return learned._replace(sentence=said, advice=_BALANCE)


class _Liking(NamedTuple):
    """Accuracy that is high where the answer of one length is the chosen one, and low elsewhere."""

    sentence: str
    is_learned: bool


def _liking(column: Column) -> _Liking | None:
    longer = column.where([by > 0 for by in column.longer])
    shorter = column.where([by < 0 for by in column.longer])
    return _follows("longer", longer, shorter) or _follows("shorter", shorter, longer)


def _follows(which: str, right: Column, wrong: Column) -> _Liking | None:
    where_right, where_wrong = (of_share(one.wins, one.prompts, LEVEL) for one in (right, wrong))
    if where_right is None or where_wrong is None:
        return None
    gained, lost = _change_of_wins(right), _change_of_wins(wrong)
    follows = where_right.low > 0.5 and where_wrong.high < 0.5 and not (lost and lost.rises)
    turned = gained is not None and lost is not None and gained.rises and lost.falls
    if not (follows or turned):
        return None
    is_learned = turned or _is_learned(right, wrong)
    return _Liking(
        f"accuracy is {where_right.mean:.3f} ({around(where_right)}) on the {len(right.prompts):,} held-out "
        f"pairs whose chosen answer is the {which} one and {where_wrong.mean:.3f} ({around(where_wrong)}) on "
        f"the {len(wrong.prompts):,} others: the model prefers the {which} answer"
        f"{'' if is_learned else ', as the base model did'}.",
        is_learned,
    )


def _change_of_wins(column: Column) -> Interval | None:
    known = column.with_base()
    return change(known.wins, known.base_wins, known.prompts) if known.prompts else None


def _is_learned(right: Column, wrong: Column) -> bool:
    """Tell whether the run taught the preference for length; where the base is not known, it did."""
    now: list[float] = []
    before: list[float] = []
    prompts: list[int] = []
    for column, sign in ((right.with_base(), 1.0), (wrong.with_base(), -1.0)):
        now += [sign * win for win in column.wins]
        before += [sign * win for win in column.base_wins]
        prompts += column.prompts
    learned = change(now, before, prompts) if prompts else None
    return learned is None or learned.rises


def _length_alone(column: Column, facts: HeldOut) -> Finding | None:
    """Find margins that grow with length, where the shorter answer is hardly ever the chosen one."""
    longer = [by > 0 for by in column.longer]
    known = column.with_base()
    if fmean(longer) < _ONE_SIDED or len(known.prompts) < FEWEST or not facts.improves:
        return None
    moved = [now - before for now, before in zip(known.margins, known.base_margins, strict=True)]
    linked = of_correlation(known.longer, moved, LEVEL)
    if linked is None or linked.low < _TENTH:
        return None
    return Finding(
        LENGTH_ONLY,
        f"the longer answer is the chosen one in {sum(longer):,} of {len(longer):,} held-out pairs, and the "
        f"margin has grown most where it is longest (correlation {linked.mean:.2f}, {around(linked)}): these "
        "pairs cannot tell a preference from a liking for length.",
        _BALANCE,
    )
