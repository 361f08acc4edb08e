"""What a plan consists of: micro-batches by the numbers of their pairs, with the totals of their step."""

from __future__ import annotations

from typing import NamedTuple


class StepTotals(NamedTuple):
    """What `Normalisers` hold, as plain numbers: they cross to worker processes with every micro-batch."""

    pairs: int
    prompt_tokens: int
    completion_tokens: int


class PlannedBatch(NamedTuple):
    """One micro-batch of one rank: which pairs, and the totals of the optimizer step it belongs to."""

    indices: list[int]
    """Without any, the micro-batch is to be skipped."""
    totals: StepTotals | None
