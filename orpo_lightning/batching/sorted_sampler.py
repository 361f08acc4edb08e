"""Which pairs each rank validates on, in which batches: largest first, filled up to a number of tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from orpo_lightning.batching.costs import (
    LayoutTokens,
    largest_first,
    longest_and_distinct,
    padded_tokens,
    tokens_alone,
)
from orpo_lightning.batching.packing import FILLER, cut
from orpo_lightning.batching.planned import PlannedBatch


class SortedSampler(Sampler[PlannedBatch]):
    """Plans validation: every pair once over all ranks, largest first, equally many batches on every rank.

    Largest first, so that a batch too large for the memory fails at once. The batches carry no totals: each
    is measured by itself, and metrics add up sums and counts.

    Args:
        lengths: (n, 3) tokens of prompt, chosen and rejected of each pair.
        batch_size: pairs in one batch of one rank, `tokens` left out.
        tokens: tokens of a batch, as the layout counts them; a larger pair has a batch of its own.
        layout_tokens: how it counts them.
        world_size: number of ranks.
        rank: the one this sampler is for.
    """

    def __init__(
        self,
        lengths: Tensor,
        *,
        batch_size: int | None = None,
        tokens: int | None = None,
        layout_tokens: LayoutTokens = padded_tokens,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        """Plan all pairs."""
        assert (batch_size is None) != (tokens is None)
        self.lengths, self.batch_size, self.tokens = lengths, batch_size, tokens
        self.layout_tokens, self.world_size, self.rank = layout_tokens, world_size, rank
        self.batches: list[PlannedBatch] = []
        self.take(torch.arange(len(lengths)))

    def take(self, pairs: Tensor) -> None:
        """Plan these pairs from the next iteration on (indices (m,) int64), and no others."""
        pairs = pairs[largest_first(self.lengths[pairs], self.layout_tokens)]
        batches = [chunk.tolist() for chunk in pairs.split(self._sizes(self.lengths[pairs])) if len(chunk)]
        batches += [[FILLER]] * (-len(batches) % self.world_size)
        self.batches = [PlannedBatch(batch, None) for batch in batches[self.rank :: self.world_size]]

    def _sizes(self, lengths: Tensor) -> list[int] | int:
        if self.batch_size is not None:
            return self.batch_size
        longest, distinct = longest_and_distinct(lengths)
        budget, layout_tokens = self.tokens, self.layout_tokens
        ends = cut(longest.tolist(), distinct.tolist(), lambda *batch: layout_tokens(*batch) <= budget)
        return [end - first for first, end in zip([0, *ends], ends, strict=False)]

    def __len__(self) -> int:
        """Return the batches of this rank."""
        return len(self.batches)

    def __iter__(self) -> Iterator[PlannedBatch]:
        """Yield this rank's batches."""
        return iter(self.batches)


def plan_validation(
    lengths: Tensor,
    *,
    batch_size: int | None,
    training: tuple[int, int | None],
    layout_tokens: LayoutTokens,
    ranks: tuple[int, int],
) -> SortedSampler:
    """Return a plan of all pairs whose batches fit where those of training do.

    Without gradients nothing is kept between layers: of a model whose activations are recomputed, at least
    four times the tokens fit.

    Args:
        lengths: (n, 3) tokens of prompt, chosen and rejected of each pair.
        batch_size: pairs in a batch where that is set.
        training: pairs and, where that is set, tokens of a micro-batch of training.
        layout_tokens: how the layout counts them.
        ranks: the own one, and how many there are.
    """
    pairs, tokens = training
    if batch_size is not None:
        tokens = None
    elif tokens is not None:
        tokens = 4 * tokens
    else:
        # Not more than twice the pairs of the longest need: as many as fit of the shorter ones. The same in
        # every layout, as in training without a budget.
        layout_tokens = padded_tokens
        largest = int(tokens_alone(lengths, layout_tokens).max()) if len(lengths) else 1
        tokens = 2 * pairs * max(1, largest)
    rank, world_size = ranks
    return SortedSampler(
        lengths,
        batch_size=batch_size,
        tokens=tokens,
        layout_tokens=layout_tokens,
        world_size=world_size,
        rank=rank,
    )
