"""How the pairs of an optimizer step become micro-batches: within a budget of tokens, alike on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from orpo_lightning.batching.costs import (
    LayoutTokens,
    cost,
    largest_first,
    longest_and_distinct,
    padded_tokens,
)
from orpo_lightning.errors import UsageError

FILLER = -1
"""Stands in a plan where a rank has no pair left but must run a micro-batch: a pair without weight."""

_BISECTIONS = 8
"""To a part in 256 of a full micro-batch's cost; balance needs no more."""


class Split(NamedTuple):
    """What decides how a step is split; as for `PlannedSampler`."""

    batch_size: int
    accumulate: int = 1
    world_size: int = 1
    sort: bool = True
    """Whether pairs of like length come together; a budget always sorts."""
    tokens_per_batch: int | None = None
    layout_tokens: LayoutTokens = padded_tokens

    @property
    def pairs_per_step(self) -> int:
        """Pairs of one optimizer step on all devices, but for the last of an epoch."""
        return self.batch_size * self.accumulate * self.world_size

    def micro_batches(self, num_pairs: int) -> int:
        """Return how many micro-batches each rank has for so many pairs in a row, one that is skipped too."""
        if self.tokens_per_batch is not None:
            return -(-num_pairs // self.pairs_per_step) * self.accumulate
        whole, rest = divmod(num_pairs, self.pairs_per_step)
        return whole * self.accumulate + micro_batches_per_rank(
            rest, batch_size=self.batch_size, world_size=self.world_size
        )


def micro_batches_per_rank(num_pairs: int, *, batch_size: int, world_size: int) -> int:
    """Return how many micro-batches of at most `batch_size` each rank needs if all have equally many."""
    return -(-num_pairs // (batch_size * world_size))


def deal(step: Tensor, *, batch_size: int, world_size: int) -> list[list[int]]:
    """Split one optimizer step's pairs into micro-batches of sizes that differ by at most one.

    There are equally many for every rank and none is empty: where there are fewer pairs than micro-batches,
    the last ones hold a filler.

    Args:
        step: (P,) pair indices, P >= 1.
        batch_size: most pairs in one micro-batch.
        world_size: number of ranks.
    """
    slots = world_size * micro_batches_per_rank(len(step), batch_size=batch_size, world_size=world_size)
    return [chunk.tolist() or [FILLER] for chunk in torch.tensor_split(step, slots)]


def split_step(step: Tensor, lengths: Tensor, split: Split) -> list[list[list[int]]]:
    """Return the micro-batches of every rank, [rank][micro-batch][pair].

    With a budget the step becomes as few micro-batches as hold it, of costs as equal as can be; a rank has
    `accumulate` of them in any case, since Lightning steps after so many: those a step does not need are
    empty, and the module skips them. They come last, so that a run that is cut off after a few micro-batches
    (fast_dev_run, overfit_batches) computes something; but among several ranks the last is never empty: with
    it they add up their gradients. All ranks compute equally many, those with fewer a filler, and skip the
    same: weights that are shared out are gathered by all of them in every forward and backward pass.

    Args:
        step: (P,) pair indices, P >= 1.
        lengths: (P, 3) their tokens of prompt, chosen and rejected.
        split: how to.
    """
    if not split.sort and split.tokens_per_batch is None:
        slots = deal(step, batch_size=split.batch_size, world_size=split.world_size)
        return [slots[rank :: split.world_size] for rank in range(split.world_size)]
    # Which pairs share a micro-batch must not depend on the layout if no budget says so: a mixture of experts
    # has a loss of each micro-batch as a whole.
    sort_by = padded_tokens if split.tokens_per_batch is None else split.layout_tokens
    order = largest_first(lengths, sort_by)
    step, lengths = step[order], lengths[order]
    if split.tokens_per_batch is None:
        batches = deal(step, batch_size=split.batch_size, world_size=split.world_size)
        return _share_out(batches, lengths, split)
    ends = _cut_for_ranks(*_plain(lengths), split)
    batches = [step[first:end].tolist() for first, end in zip([0, *ends], ends, strict=False)]
    shares = _share_out(batches, lengths, split)
    most = max(map(len, shares))
    return [_filled_up(of_rank, most, split) for of_rank in shares]


def _share_out(batches: list[list[int]], lengths: Tensor, split: Split) -> list[list[list[int]]]:
    """Return the micro-batches of each rank, the costliest first.

    Args:
        batches: of all ranks; fillers are behind all pairs.
        lengths: (P, 3) of their pairs, in their order.
        split: how many ranks there are, and how their tokens are counted.
    """
    longest, distinct = _plain(lengths)
    costs, first = [], 0
    for batch in batches:
        end = first + len(batch)
        most = max(longest[first:end], default=0)
        costs.append(cost(split.layout_tokens(len(batch), most, sum(distinct[first:end])), most))
        first = end
    shares = share_out(costs, ranks=split.world_size, most=-(-len(batches) // split.world_size))
    return [[batches[number] for number in share] for share in shares]


def _filled_up(batches: list[list[int]], computed: int, split: Split) -> list[list[int]]:
    batches = [*batches, *([FILLER] for _ in range(computed - len(batches)))]
    skipped: list[list[int]] = [[] for _ in range(split.accumulate - computed)]
    place = computed if split.world_size == 1 else computed - 1
    return [*batches[:place], *skipped, *batches[place:]]


def _plain(lengths: Tensor) -> tuple[list[int], list[int]]:
    longest, distinct = longest_and_distinct(lengths)
    return longest.tolist(), distinct.tolist()


def _cut_for_ranks(longest: Sequence[int], distinct: Sequence[int], split: Split) -> list[int]:
    """Return where micro-batches end: as few for each rank as the budget allows, then alike in cost."""
    assert split.tokens_per_batch is not None
    budget, tokens = split.tokens_per_batch, split.layout_tokens
    fewest = cut(longest, distinct, lambda *batch: tokens(*batch) <= budget)
    parts = -(-len(fewest) // split.world_size) * split.world_size
    if parts == 1:
        return fewest

    def is_within(most: float) -> Callable[[int, int, int], bool]:
        def fits(pairs: int, longest: int, distinct: int) -> bool:
            count = tokens(pairs, longest, distinct)
            return count <= budget and cost(count, longest) <= most

        return fits

    # Pairs come by their tokens: the longest need not be the first.
    best, low, high = fewest, 0.0, cost(budget, max(longest))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        ends = cut(longest, distinct, is_within(middle))
        if len(ends) <= parts:
            best, high = ends, middle
        else:
            low = middle
    return best


def cut(longest: Sequence[int], distinct: Sequence[int], fits: Callable[[int, int, int], bool]) -> list[int]:
    """Return where each micro-batch ends if pairs are put into it, in their order, as long as they fit.

    No cut has fewer micro-batches, provided that what fits also fits without one of its pairs.

    Args:
        longest: of each pair, the tokens of its longer sequence.
        distinct: of each pair, its tokens with the prompt once.
        fits: told the pairs, longest sequence and distinct tokens of a micro-batch of at least two pairs.
    """
    ends, first, most, total = [], 0, 0, 0
    for number, (long, own) in enumerate(zip(longest, distinct, strict=True)):
        most, total = max(most, long), total + own
        if number > first and not fits(number + 1 - first, most, total):
            ends.append(number)
            first, most, total = number, long, own
    return [*ends, len(longest)]


def share_out(costs: Sequence[float], *, ranks: int, most: int) -> list[list[int]]:
    """Give micro-batches to ranks, the costliest first, each to the rank that has the least to do so far.

    Args:
        costs: of each micro-batch.
        ranks: among how many.
        most: micro-batches that a rank may have.

    Returns:
        Of each rank, which micro-batches, the costliest first.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        rank = min((r for r in range(ranks) if len(shares[r]) < most), key=lambda r: loads[r])
        shares[rank].append(number)
        loads[rank] += costs[number]
    return shares


def check_budget(lengths: Tensor, split: Split, repeats: int = 1) -> None:
    """Refuse a budget under which some step could not be split; no epoch can then fail for it.

    Args:
        lengths: (n, 3) tokens of prompt, chosen and rejected of each pair.
        split: with a budget.
        repeats: how often a pair may stand in one step.

    Raises:
        UsageError: says which other values give the same steps.
    """
    budget, tokens = split.tokens_per_batch, split.layout_tokens
    if budget is None or not len(lengths):
        return
    largest = largest_first(lengths, tokens)[: split.pairs_per_step].repeat_interleave(repeats)
    worst = lengths[largest[: split.pairs_per_step]]
    longest, distinct = _plain(worst)
    if (alone := tokens(1, longest[0], distinct[0])) > budget:
        raise UsageError(
            f"data.tokens_per_batch: expected at least {alone}, the tokens of the longest pair, found "
            f"{budget}; raise it or lower data.max_length"
        )
    # Any other step has at each place, longest first, a pair that is no longer: it needs no more than these.
    needed = -(-len(cut(longest, distinct, lambda *batch: tokens(*batch) <= budget)) // split.world_size)
    if needed > split.accumulate:
        pairs = split.batch_size * split.accumulate
        accumulate = next(count for count in range(needed, pairs + 1) if pairs % count == 0)
        raise UsageError(
            f"data.tokens_per_batch {budget}: {pairs} pairs a step and device, the longest, need {needed} "
            f"micro-batches, trainer.accumulate_grad_batches allows {split.accumulate}; set it to "
            f"{accumulate} and data.batch_size to {pairs // accumulate}: the same pairs a step, split only "
            "as far as it needs"
        )
