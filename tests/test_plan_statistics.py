"""A planned epoch is as random as a shuffled one: which pairs meet in a step, and when long ones come.

Gradients see the pairs of an optimizer step, however they are split; so these are statistics of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import pytest
import torch

from orpo_lightning.batching.sampler import PlannedSampler

PAIRS, STEP, EPOCHS = 48, 8, 800
LENGTHS = torch.stack([torch.full((PAIRS,), 5), torch.arange(1, PAIRS + 1), torch.ones(PAIRS).long()], 1)
Epochs = list[torch.Tensor]
"""Of each epoch, (steps, STEP) the pairs of each step."""


def planned() -> Iterator[torch.Tensor]:
    """Yield what is really handed out, micro-batch by micro-batch, under a budget and on two ranks."""
    settings = {"batch_size": 1, "accumulate": 4, "world_size": 2, "seed": 7, "tokens_per_batch": 220}
    ranks = [PlannedSampler(LENGTHS, rank=rank, **settings) for rank in (0, 1)]
    for epoch in range(EPOCHS):
        handed_out = []
        for rank in ranks:
            rank.set_epoch(epoch)
            batches = [batch.indices for batch in rank]
            handed_out.append([chain(*batches[first : first + 4]) for first in range(0, len(batches), 4)])
        yield torch.tensor([[*one, *other] for one, other in zip(*handed_out, strict=True)])


def shuffled() -> Iterator[torch.Tensor]:
    dice = torch.Generator().manual_seed(1)
    for _ in range(EPOCHS):
        yield torch.randperm(PAIRS, generator=dice).view(-1, STEP)


def grouped_by_length() -> Iterator[torch.Tensor]:
    """Yield what must be found out: sorted within windows of half the pairs, as `group_by_length` does."""
    dice = torch.Generator().manual_seed(1)
    for _ in range(EPOCHS):
        windows = torch.randperm(PAIRS, generator=dice).view(2, -1).sort(dim=1).values
        yield windows.view(-1, STEP)[torch.randperm(PAIRS // STEP, generator=dice)]


def long_first() -> Iterator[torch.Tensor]:
    """Yield what must be found out: random steps, the one with the longest pairs earlier by a little."""
    dice = torch.Generator().manual_seed(2)
    for steps in shuffled():
        noise = 20 * torch.rand(len(steps), generator=dice)
        yield steps[(steps.float().mean(1) + noise).argsort(descending=True)]


def co_occurrence(epochs: Epochs) -> torch.Tensor:
    """Return (PAIRS, PAIRS): in how many epochs two pairs stood in the same step."""
    found = torch.zeros(PAIRS, PAIRS)
    for steps in epochs:
        step_of = torch.empty(PAIRS).long()
        step_of[steps.flatten()] = torch.arange(len(steps)).repeat_interleave(STEP)
        found += step_of[:, None] == step_of[None]
    return found


def meets_at_random(epochs: Epochs) -> bool:
    """Return whether all pairs meet all others equally often, and those of like length no others more."""
    above = torch.ones(PAIRS, PAIRS).triu(1).bool()
    counts = co_occurrence(epochs)[above]
    share = (STEP - 1) / (PAIRS - 1)
    scores = (counts - EPOCHS * share) / (EPOCHS * share * (1 - share)) ** 0.5
    near = ((torch.arange(PAIRS)[:, None] - torch.arange(PAIRS)[None]).abs() <= 4)[above]
    # About a thousand standard normal values, nearly independent: 5 is one in 1.7 million for each.
    spread = abs(scores.std().item() - 1) < 0.15
    return spread and scores.abs().max().item() < 5 and abs(scores[near].mean().item()) < 0.4


def has_no_trend(epochs: Epochs) -> bool:
    """Return whether the mean length of a step does not depend on its place in the epoch."""
    slopes = []
    for steps in epochs:
        means = steps.float().mean(dim=1)
        place = torch.arange(len(means)) - (len(means) - 1) / 2
        slopes.append((means * place).sum() / place.square().sum())
    values = torch.stack(slopes)
    return abs(values.mean() / (values.std() / len(values) ** 0.5)).item() < 4


@pytest.mark.parametrize(
    ("sampler", "is_random", "is_even"),
    [
        (planned, True, True),
        (shuffled, True, True),
        (grouped_by_length, False, True),
        (long_first, True, False),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_pairs_meet_and_lengths_come_as_in_plain_shuffling(
    sampler: Callable[[], Iterator[torch.Tensor]], is_random: bool, is_even: bool
) -> None:
    epochs = list(sampler())
    assert meets_at_random(epochs) == is_random
    assert has_no_trend(epochs) == is_even
