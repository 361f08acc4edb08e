"""What a plan wastes: padding, and devices that wait for the slowest; counted over its first steps."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import torch

from orpo_lightning.batching.costs import cost, longest_and_distinct
from orpo_lightning.batching.packing import FILLER, Split
from orpo_lightning.batching.sampler import PlannedSampler


class PlanReport(NamedTuple):
    """What some steps of a plan cost, all ranks together."""

    steps: int
    micro_batches: int
    """Those that are computed; skipped ones do not count."""
    largest: int
    """Tokens of the largest micro-batch."""
    computed: int
    """Tokens of all micro-batches, as their layout counts them."""
    padded_share: float
    """Of these."""
    slowest: float
    """The cost of each step's slowest rank over that of a mean one, over all steps."""

    def words(self, split: Split) -> str:
        """Return it as a row of a run's header."""
        most = f" of {split.accumulate}" if split.tokens_per_batch is not None else ""
        each = self.micro_batches / max(self.steps, 1) / split.world_size
        tokens = self.computed / max(self.micro_batches, 1)
        parts = [
            f"{each:.3g}{most} a step, of {tokens:,.0f} tokens (largest {self.largest:,})",
            f"{self.padded_share:.1%} padding",
        ]
        if split.world_size > 1:
            parts.append(f"slowest device {self.slowest:.3f} x the mean")
        return ", ".join(parts)


def report_plan(plan: PlannedSampler, most_steps: int | None = None) -> PlanReport:
    """Go through the steps of the plan's epoch and add up what they cost.

    Args:
        plan: of any rank; all are counted.
        most_steps: look at so many steps only, the first; None takes all.
    """
    layout_tokens = plan.split.layout_tokens
    steps = micro_batches = largest = computed = rows = 0
    slowest = mean = 0.0
    for step, ranks in islice(plan.steps(), most_steps):
        steps += 1
        loads = []
        for batches in ranks:
            sizes = [_size(plan, batch) for batch in batches if batch]
            tokens = [layout_tokens(*size) for size in sizes]
            micro_batches += len(sizes)
            largest, computed = max([largest, *tokens]), computed + sum(tokens)
            loads.append(sum(cost(count, size[1]) for count, size in zip(tokens, sizes, strict=True)))
        slowest, mean = slowest + max(loads), mean + sum(loads) / len(loads)
        prompt, chosen, rejected = plan.lengths[step].sum(dim=0).tolist()
        rows += 2 * prompt + chosen + rejected
    # A layout without padding computes fewer tokens than there are in rows of their own.
    padded = max(0.0, 1 - rows / computed) if computed else 0.0
    return PlanReport(steps, micro_batches, largest, computed, padded, slowest / mean if mean else 1.0)


def _size(plan: PlannedSampler, batch: list[int]) -> tuple[int, int, int]:
    """Return pairs, longest sequence and distinct tokens; a filler is a row of one token of padding."""
    if batch == [FILLER]:
        return 1, 1, 1
    longest, distinct = longest_and_distinct(plan.lengths[torch.tensor(batch)])
    return len(batch), max(1, int(longest.max())), int(distinct.sum())
