"""What an epoch costs in each layout of its batches: steps, tokens, and positions that are padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orpo_lightning.batching.mixture import epoch_order
from orpo_lightning.batching.packing import FILLER, Split, deal
from orpo_lightning.batching.report import report_plan
from orpo_lightning.batching.sampler import PlannedSampler

_STEPS_BALANCED = 1000


class EpochPlan(NamedTuple):
    """What decides how an epoch is cut into batches; as for `PlannedSampler`."""

    batch_size: int
    accumulate: int = 1
    devices: int = 1
    shuffle: bool = True
    seed: int = 0
    mixture: Sequence[tuple[int, float]] | None = None
    tokens_per_batch: int | None = None

    def sampler(self, lengths: Tensor) -> PlannedSampler:
        """Return the sampler of the epoch, of any device."""
        return PlannedSampler(
            lengths,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            world_size=self.devices,
            shuffle=self.shuffle,
            seed=self.seed,
            mixture=self.mixture,
            tokens_per_batch=self.tokens_per_batch,
        )


def epoch_costs(lengths: Tensor, plan: EpochPlan) -> list[dict[str, Any]]:
    """Return what the first epoch costs as it is planned, in random batches, and without any padding.

    The batches are those of `PlannedSampler`, counted for all steps at once: an epoch of millions of pairs
    would take minutes to go through. Only under a budget of tokens is every step planned. `slowest_device`
    is the time of each step's slowest device over that of a mean one, of the first thousand steps.

    Args:
        lengths: (n, 3) tokens of prompt, chosen and rejected of each pair.
        plan: how the epoch is cut into batches.
    """
    sampler = plan.sampler(lengths)
    order, split = sampler.order(), sampler.split._replace(tokens_per_batch=None)
    prompt, chosen, rejected = lengths.T
    longer = (prompt + torch.maximum(chosen, rejected))[order]
    tokens = int((2 * prompt + chosen + rejected)[order].sum())  # the prompt stands in both rows of a pair
    ours = "like lengths together" if plan.shuffle else "in the order of the data"
    padded = {
        f"left-padded, {ours} (what fit uses)": _padded(longer, split, sort=plan.shuffle),
        "left-padded, random batches": _padded(longer[_random(len(longer), plan)], split, sort=False),
        "no padding (the floor)": tokens,
    }
    steps = -(-len(order) // split.pairs_per_step)
    batches = split.micro_batches(len(order)) * split.world_size
    rows: list[dict[str, Any]] = [
        {
            "layout": layout,
            "steps": steps,
            "micro_batches": batches,
            "tokens": tokens,
            "padded_tokens": positions,
            "padded_share": 1 - tokens / positions if positions else 0.0,
        }
        for layout, positions in padded.items()
    ]
    budgeted = plan.tokens_per_batch is not None
    found = report_plan(sampler, None if budgeted else _STEPS_BALANCED)
    rows[0]["slowest_device"] = found.slowest
    if budgeted:
        rows[0] |= {
            "layout": f"left-padded, at most {plan.tokens_per_batch:,} tokens (what fit uses)",
            "micro_batches": found.micro_batches,
            "padded_tokens": found.computed,
            "padded_share": found.padded_share,
        }
    return rows


def _random(count: int, plan: EpochPlan) -> Tensor:
    if plan.shuffle:  # the order is a random one already
        return torch.arange(count)
    return epoch_order(count, seed=plan.seed, epoch=0)


def _padded(longer: Tensor, split: Split, *, sort: bool) -> int:
    """Return the positions of all batches: two rows a pair, each as wide as the batch's longest.

    Args:
        longer: (n,) tokens of the longer sequence of each pair, in the order of the epoch.
        split: how the epoch is cut into batches.
        sort: whether pairs of like length come together within a step.
    """
    step = split.pairs_per_step
    whole = longer[: len(longer) // step * step].view(-1, step)
    if sort:
        whole = whole.sort(dim=1, descending=True).values
    widths = whole.reshape(-1, split.batch_size).amax(dim=1).clamp(min=1) if len(whole) else longer[:0]
    positions = 2 * split.batch_size * int(widths.sum())
    rest = longer[len(whole) * step :]
    if sort:
        rest = rest.sort(descending=True).values
    for batch in _last_step(len(rest), split):
        # A device that has no pair left pads one that is empty.
        width = 1 if batch == [FILLER] else max(1, int(rest[batch].max()))
        positions += 2 * len(batch) * width
    return positions


def _last_step(count: int, split: Split) -> list[list[int]]:
    if not count:
        return []
    return deal(torch.arange(count), batch_size=split.batch_size, world_size=split.world_size)
