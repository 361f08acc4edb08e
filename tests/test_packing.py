"""From the pairs of a step to micro-batches: whole, within the budget, as few and as alike as can be."""

from __future__ import annotations

from itertools import chain, combinations, pairwise, permutations
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orpo_lightning.batching import TokenizedPair, pad_pairs
from orpo_lightning.batching.costs import cost, flat_tokens, padded_tokens
from orpo_lightning.batching.packing import FILLER, Split, check_budget, cut, share_out, split_step
from orpo_lightning.batching.padded import pair_lengths
from orpo_lightning.errors import UsageError

LAYOUTS = [padded_tokens, flat_tokens]
# Long enough that attention counts: at 12,000 tokens it is half of what all else is.
LONG = 100
lengths_of_pairs = st.lists(st.tuples(*[st.integers(1, 60)] * 3), min_size=1, max_size=9)
NAMES = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)


def tokens_of(lengths: torch.Tensor, layout: Any) -> int:
    """Return what a layout counts for these pairs as one micro-batch, from the definition."""
    if layout is flat_tokens:
        return int(lengths.sum())
    return 2 * len(lengths) * max(p + max(c, r) for p, c, r in lengths.tolist())


def time_of(lengths: torch.Tensor, layout: Any) -> float:
    """Return the cost of these pairs as one micro-batch."""
    return cost(tokens_of(lengths, layout), int((lengths[:, 0] + lengths[:, 1:].amax(1)).max()))


def ways_to_cut(count: int, parts: int) -> Any:
    """Yield every way to cut `count` pairs in a row into so many parts, as the ends."""
    for inner in combinations(range(1, count), parts - 1):
        yield [*inner, count]


def test_the_padded_layouts_tokens_are_the_elements_of_its_batch() -> None:
    pairs = [TokenizedPair([1] * p, [2] * c, [3] * r) for p, c, r in [(3, 9, 2), (5, 1, 4), (1, 1, 1)]]
    elements = pad_pairs(pairs, pad_id=0).model_inputs["input_ids"].numel()
    assert padded_tokens(3, 3 + 9, 29) == elements == 72


def test_the_cost_of_padded_rows_is_tokens_and_the_squares_of_their_lengths() -> None:
    # Three pairs are six rows of 2,048: each as many tokens, and its square over the parity.
    assert cost(padded_tokens(3, 2048, 0), 2048) == 6 * (2048 + 2048**2 / 24_576)


@NAMES
@given(lengths_of_pairs, st.integers(40, 600))
@settings(max_examples=60, deadline=None)
def test_no_other_cut_has_fewer_micro_batches(layout: Any, sizes: list[Any], budget: int) -> None:
    lengths = torch.tensor(sorted(sizes, key=lambda s: -tokens_of(torch.tensor([s]), layout)))
    longest = (lengths[:, 0] + lengths[:, 1:].amax(1)).tolist()
    ends = cut(longest, lengths.sum(1).tolist(), lambda *batch: layout(*batch) <= budget)

    def within(ends: list[int]) -> bool:
        parts = [lengths[a:b] for a, b in pairwise([0, *ends])]
        return all(len(part) == 1 or tokens_of(part, layout) <= budget for part in parts)

    assert within(ends)
    assert len(ends) == 1 or not any(map(within, ways_to_cut(len(sizes), len(ends) - 1)))


@NAMES
@given(lengths_of_pairs, st.integers(1, 3), st.integers(240, 900))
@settings(max_examples=80, deadline=None)
def test_a_step_under_a_budget_is_whole_within_it_and_has_the_same_micro_batches_to_compute_on_every_rank(
    layout: Any, sizes: list[Any], ranks: int, budget: int
) -> None:
    lengths, budget = torch.tensor(sizes) * LONG, budget * LONG
    step = torch.arange(100, 100 + len(sizes))
    split = Split(1, len(sizes), ranks, tokens_per_batch=budget, layout_tokens=layout)
    found = split_step(step, lengths, split)
    assert len(found) == ranks
    # Which of them are computed: the ranks gather weights together in each, where those are shared out.
    assert len({tuple(map(bool, batches)) for batches in found}) == 1
    for batches in found:
        assert len(batches) == len(sizes)
        used = [bool(batch) for batch in batches]
        if ranks == 1:
            assert used == sorted(used, reverse=True)  # those to be skipped come last
        else:  # before the one with which gradients are added up
            assert used[-1]
            assert used[:-1] == sorted(used[:-1], reverse=True)
        fillers = [batch == [FILLER] for batch in batches if batch]
        assert fillers == sorted(fillers)
        real = [lengths[torch.tensor(batch) - 100] for batch in batches if batch and batch != [FILLER]]
        costs = [time_of(part, layout) for part in real]
        assert costs == sorted(costs, reverse=True)
        assert all(tokens_of(part, layout) <= budget for part in real)
    assert any(all(batch != [FILLER] for batch in batches) for batches in found)
    pairs = [pair for pair in chain(*chain(*found)) if pair != FILLER]
    assert sorted(pairs) == step.tolist()


def test_a_rank_with_fewer_micro_batches_than_another_computes_fillers() -> None:
    # Six pairs of two rows of 20 in three micro-batches of two: one rank has two of them.
    lengths = torch.tensor([[10, 10, 10]]).repeat(6, 1)
    found = split_step(torch.arange(6), lengths, Split(1, 3, 2, tokens_per_batch=80))
    assert [[len(batch) for batch in batches] for batches in found] == [[2, 0, 2], [2, 0, 1]]
    assert found[1][-1] == [FILLER]


@NAMES
@given(lengths_of_pairs, st.integers(240, 900))
# The longest pair has not the most tokens.
@example([*[(1, 1, 1)] * 2, (1, 11, 60), *[(1, 18, 60)] * 2, *[(1, 19, 60)] * 3, (4, 16, 60)], 320)
@settings(max_examples=60, deadline=None)
def test_as_few_micro_batches_as_fit_and_the_costliest_as_cheap_as_can_be(
    layout: Any, sizes: list[Any], budget: int
) -> None:
    lengths, budget = torch.tensor(sizes) * LONG, budget * LONG
    split = Split(1, len(sizes), tokens_per_batch=budget, layout_tokens=layout)
    (batches,) = split_step(torch.arange(len(sizes)), lengths, split)
    found = [lengths[batch] for batch in batches if batch]
    ordered = torch.tensor(sorted(lengths.tolist(), key=lambda s: -tokens_of(torch.tensor([s]), layout)))

    def most(parts: list[torch.Tensor]) -> float:
        within = all(tokens_of(part, layout) <= budget for part in parts)
        return max(time_of(part, layout) for part in parts) if within else float("inf")

    def best(parts: int) -> float:
        cuts = ways_to_cut(len(sizes), parts)
        return min(most([ordered[a:b] for a, b in pairwise([0, *ends])]) for ends in cuts)

    fewest = next(parts for parts in range(1, len(sizes) + 1) if best(parts) < float("inf"))
    assert len(found) <= fewest
    # Found by halving eight times: to a part in 256 of the budget's cost.
    assert most(found) <= min(best(parts) for parts in range(1, fewest + 1)) + cost(budget, 120 * LONG) / 256


def test_micro_batches_are_shared_out_by_cost_equally_many_to_each() -> None:
    # 9 | 6 + 5 would be most even, but each rank is to have two at most, and four are there.
    assert share_out([9, 6, 5, 4], ranks=2, most=2) == [[0, 3], [1, 2]]
    assert share_out([5, 9, 1], ranks=2, most=2) == [[1], [0, 2]]


@given(st.lists(st.floats(1, 100), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_slowest_of_two_ranks_is_within_a_third_of_the_best_possible(costs: list[float]) -> None:
    most = -(-len(costs) // 2)

    def slowest(shares: Any) -> float:
        return max(sum(costs[i] for i in share) for share in shares)

    best = min(slowest([order[:most], order[most:]]) for order in permutations(range(len(costs))))
    # Graham's bound for two machines is 7/6; that each has equally many costs up to 4/3 of the best.
    assert slowest(share_out(costs, ranks=2, most=most)) <= best * 4 / 3 + 1e-9


@pytest.mark.parametrize(("budget", "most"), [(None, 1.3), (6000, 1.1)])
def test_sharing_out_by_cost_leaves_less_waiting_than_taking_turns(budget: int | None, most: float) -> None:
    dice = torch.Generator().manual_seed(0)
    lengths = (torch.randn(64, 3, generator=dice) * 0.7 + 4).exp().long() + 1

    def slowest(ranks: list[list[list[int]]]) -> float:
        loads = [sum(time_of(lengths[b], padded_tokens) for b in batches if b) for batches in ranks]
        return max(loads) * len(loads) / sum(loads)

    (in_order,) = split_step(torch.arange(64), lengths, Split(4, 16))
    in_turn = slowest([in_order[rank::4] for rank in range(4)])
    split = Split(4, 4, 4) if budget is None else Split(1, 16, 4, tokens_per_batch=budget)
    # What is left without a budget is that each micro-batch has four pairs, those of the longest too.
    assert slowest(split_step(torch.arange(64), lengths, split)) < most < in_turn


def test_a_budget_below_the_longest_pair_is_refused_with_what_it_needs() -> None:
    lengths = torch.tensor([[10, 20, 30], [1, 1, 1]])
    with pytest.raises(UsageError, match="expected at least 80, the tokens of the longest pair, found 79"):
        check_budget(lengths, Split(1, 4, tokens_per_batch=79))
    check_budget(lengths, Split(1, 4, tokens_per_batch=80))


@pytest.mark.parametrize(("accumulate", "needed"), [(1, 4), (2, 4), (3, 4), (6, 6)])
def test_a_budget_that_some_step_may_exceed_is_refused_with_values_that_it_cannot_exceed(
    accumulate: int, needed: int
) -> None:
    # Rows of 50: a pair has 100 tokens; 12 pairs a step under a budget of 300 are four micro-batches.
    lengths = torch.tensor([[20, 30, 30]]).repeat(40, 1)
    split = Split(12 // accumulate, accumulate, tokens_per_batch=300)
    if accumulate >= 4:
        check_budget(lengths, split)
        return
    message = f"need 4 micro-batches, .* allows {accumulate}; set it to {needed} and data.batch_size to 3"
    with pytest.raises(UsageError, match=message):
        check_budget(lengths, split)
    check_budget(lengths, Split(3, 4, tokens_per_batch=300))


@NAMES
@given(lengths_of_pairs, st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(40, 900))
@settings(max_examples=150, deadline=None)
def test_what_is_not_refused_never_fails(
    layout: Any, sizes: list[Any], batch_size: int, accumulate: int, ranks: int, budget: int
) -> None:
    lengths = torch.tensor(sizes)
    split = Split(batch_size, accumulate, ranks, tokens_per_batch=budget, layout_tokens=layout)
    try:
        check_budget(lengths, split)
    except UsageError:
        return
    for seed in range(6):
        order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
        for step in order.split(split.pairs_per_step):
            for batches in split_step(step, lengths[step], split):
                assert len(batches) == accumulate
                real = [batch for batch in batches if batch and batch != [FILLER]]
                assert all(tokens_of(lengths[batch], layout) <= budget for batch in real)


def test_pairs_that_a_mixture_repeats_within_a_step_count_as_often() -> None:
    # One long pair and many short ones: two of the long ones do not fit together.
    lengths = pair_lengths([TokenizedPair([1] * 50, [1] * 50, [1])] + [TokenizedPair([1], [1], [1])] * 7)
    split = Split(2, 2, tokens_per_batch=250)
    check_budget(lengths, split)
    with pytest.raises(UsageError, match="need 4 micro-batches"):
        check_budget(lengths, split, repeats=4)
