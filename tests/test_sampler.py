"""The plan of a run: every pair once, whole optimizer steps with known totals, however a step is split."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision

from orpo_lightning.batching import TokenizedPair, pad_pairs
from orpo_lightning.batching.costs import flat_tokens
from orpo_lightning.batching.packing import deal
from orpo_lightning.batching.padded import pair_lengths
from orpo_lightning.batching.sampler import (
    FILLER,
    Loader,
    PlannedBatch,
    PlannedSampler,
    SortedSampler,
    StepTotals,
)

# Pair i has i % 4 + 1 prompt, i % 3 + 1 chosen and i % 2 + 1 rejected tokens, so its scored tokens are
# i % 4 of the prompt and i % 3 + 1 of the chosen answer; its first chosen token is 100 + i.
PAIRS = [TokenizedPair([1] * (i % 4 + 1), [100 + i] * (i % 3 + 1), [3] * (i % 2 + 1)) for i in range(13)]
LENGTHS = pair_lengths(PAIRS)


def plan(count: int = 13, **settings: Any) -> PlannedSampler:
    return PlannedSampler(LENGTHS[:count], **({"batch_size": 2} | settings))


def all_ranks(count: int = 13, epoch: int = 0, **settings: Any) -> list[list[PlannedBatch]]:
    samplers = [plan(count, rank=rank, **settings) for rank in range(settings.get("world_size", 1))]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


def indices(batches: list[PlannedBatch]) -> list[int]:
    return list(chain.from_iterable(batch.indices for batch in batches))


@pytest.mark.parametrize("count", range(1, 14))
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_epoch_has_every_pair_once_and_equally_many_micro_batches_on_every_rank(
    count: int, batch_size: int, world_size: int, accumulate: int
) -> None:
    settings = {"batch_size": batch_size, "world_size": world_size, "accumulate": accumulate}
    ranks = all_ranks(count, **settings)
    assert sorted(set(indices(list(chain(*ranks)))) - {FILLER}) == list(range(count))
    assert Counter(indices(list(chain(*ranks))))[FILLER] < world_size
    for batches in ranks:
        assert len(batches) == len(plan(count, **settings))
        assert all(1 <= len(batch.indices) <= batch_size for batch in batches)


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world_size"), [(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)]
)
def test_a_step_holds_the_same_pairs_and_totals_however_it_is_split(
    batch_size: int, accumulate: int, world_size: int, epoch: int
) -> None:
    def steps(**settings: Any) -> list[tuple[list[int], StepTotals | None]]:
        ranks = all_ranks(epoch=epoch, **settings)
        found = []
        for first in range(0, len(ranks[0]), settings["accumulate"]):
            window = [batch for rank in ranks for batch in rank[first : first + settings["accumulate"]]]
            assert len({batch.totals for batch in window}) == 1
            found.append((sorted(set(indices(window)) - {FILLER}), window[0].totals))
        return found

    split = steps(batch_size=batch_size, accumulate=accumulate, world_size=world_size)
    assert split == steps(batch_size=4, accumulate=1, world_size=1)
    assert [len(pairs) for pairs, _ in split] == [4, 4, 4, 1]
    for pairs, totals in split:
        assert totals == (len(pairs), sum(i % 4 for i in pairs), sum(i % 3 + 1 for i in pairs))


# A pair here has at most 7 tokens a row, so 14 in the padded layout.
@pytest.mark.parametrize("tokens", [14, 20, 40, 1000])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_budget_changes_neither_the_pairs_nor_the_totals_of_a_step(tokens: int, world_size: int) -> None:
    settings = {"batch_size": 1, "accumulate": 4, "world_size": world_size, "seed": 3}
    plain, budgeted = all_ranks(**settings), all_ranks(tokens_per_batch=tokens, **settings)
    sampler = plan(tokens_per_batch=tokens, **settings)
    for first in range(0, len(sampler), 4):
        windows = [
            [batch for rank in ranks for batch in rank[first : first + 4]] for ranks in (plain, budgeted)
        ]
        one, other = ({*indices(window)} - {FILLER} for window in windows)
        assert one == other
        assert {batch.totals for batch in windows[0]} == {batch.totals for batch in windows[1]}
        assert len(windows[1]) == 4 * world_size  # the last window of the epoch too
    assert len({len(rank) for rank in budgeted}) == 1
    assert len(budgeted[0]) == len(sampler)


def test_under_a_budget_a_step_has_no_more_micro_batches_than_it_needs() -> None:
    used = [
        sum(
            bool(batch.indices)
            for batch in all_ranks(batch_size=1, accumulate=13, tokens_per_batch=tokens)[0]
        )
        for tokens in (14, 28, 1000)
    ]
    # 13 pairs of 4, 6, 8, 10, 12 or 14 tokens alone: 104 at least, so 8 or more of 14; two of any in 28.
    assert used[0] >= 8
    assert used[1] <= 7
    assert used[2] == 1


def test_a_pair_without_an_answer_counts_in_no_total() -> None:
    pairs = [TokenizedPair([1, 1, 1], [2, 2], [3]), TokenizedPair([1, 1, 1], [2, 2], [])]
    (batch,) = PlannedSampler(pair_lengths(pairs), batch_size=2)
    assert batch.totals == StepTotals(pairs=1, prompt_tokens=2, completion_tokens=2)


@pytest.mark.parametrize(
    ("pairs", "batch_size", "world_size", "expected"),
    [
        (5, 2, 1, [[0, 1], [2, 3], [4]]),
        (5, 2, 2, [[0, 1], [2], [3], [4]]),
        (7, 4, 2, [[0, 1, 2, 3], [4, 5, 6]]),
        (1, 2, 2, [[0], [FILLER]]),
        (3, 1, 2, [[0], [1], [2], [FILLER]]),
    ],
)
def test_a_short_step_is_dealt_evenly_and_filled_only_where_pairs_run_out(
    pairs: int, batch_size: int, world_size: int, expected: list[list[int]]
) -> None:
    assert deal(torch.arange(pairs), batch_size=batch_size, world_size=world_size) == expected


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    (first,) = all_ranks(seed=7, epoch=3)
    torch.manual_seed(1)
    assert all_ranks(seed=7, epoch=3) == [first]
    assert indices(first) != indices(all_ranks(seed=7, epoch=4)[0])
    assert indices(first) != indices(all_ranks(seed=8, epoch=3)[0])
    assert indices(first) != indices(all_ranks(seed=8, epoch=2)[0])


def test_the_epoch_is_set_through_the_sampler_that_lightning_looks_for() -> None:
    sampler = plan()
    before = list(sampler)
    sampler.sampler.set_epoch(1)
    assert list(sampler) != before


def test_without_shuffling_pairs_keep_their_order_in_every_epoch() -> None:
    for epoch in (0, 1):
        (batches,) = all_ranks(shuffle=False, accumulate=3, epoch=epoch)
        assert [batch.indices for batch in batches[:2]] == [[0, 1], [2, 3]]
        assert indices(batches) == list(range(13))


def test_without_a_budget_the_layout_does_not_decide_which_pairs_share_a_micro_batch() -> None:
    settings = {"batch_size": 3, "accumulate": 4, "seed": 1}
    assert all_ranks(layout_tokens=flat_tokens, **settings) == all_ranks(**settings)
    settings |= {"batch_size": 1, "accumulate": 12, "tokens_per_batch": 30}
    assert all_ranks(layout_tokens=flat_tokens, **settings) != all_ranks(**settings)


def test_with_shuffling_the_pairs_of_a_step_come_longest_first() -> None:
    (batches,) = all_ranks(accumulate=3)
    longest = (LENGTHS[:, 0] + LENGTHS[:, 1:].amax(1)).tolist()
    for first in (0, 3):
        sizes = [longest[i] for i in indices(batches[first : first + 3])]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("seen", range(8))
def test_a_resumed_epoch_goes_on_where_it_stopped_and_the_next_is_whole(seen: int) -> None:
    whole, following = (all_ranks(epoch=epoch, accumulate=3)[0] for epoch in (2, 3))
    sampler = plan(accumulate=3)
    sampler.resume_at(2, seen)
    sampler.set_epoch(0)  # what Lightning does while it counts steps
    sampler.set_epoch(2)
    assert len(sampler) == len(whole) == 7
    assert list(sampler) == whole[seen:]
    sampler.set_epoch(3)
    assert list(sampler) == following


def test_a_position_is_not_carried_into_another_epoch() -> None:
    sampler = plan()
    sampler.resume_at(2, 4)
    sampler.set_epoch(3)
    assert list(sampler) == all_ranks(epoch=3)[0]
    sampler.set_epoch(2)
    assert list(sampler) == all_ranks(epoch=2)[0]


@pytest.mark.parametrize("count", [0, 1, 5, 12, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_has_every_pair_once_over_equally_many_batches_longest_first(
    count: int, world_size: int
) -> None:
    ranks = [
        list(SortedSampler(LENGTHS[:count], batch_size=2, world_size=world_size, rank=rank))
        for rank in range(world_size)
    ]
    assert sorted(i for batches in ranks for i in indices(batches) if i != FILLER) == list(range(count))
    assert len({len(batches) for batches in ranks}) == 1
    in_turn = [i for batches in zip(*ranks, strict=True) for i in indices(list(batches)) if i != FILLER]
    longest = (LENGTHS[:, 0] + LENGTHS[:, 1:].amax(1)).tolist()
    assert [longest[i] for i in in_turn] == sorted(longest[:count], reverse=True)
    assert all(batch.totals is None for batches in ranks for batch in batches)


def load(sampler: PlannedSampler | SortedSampler, num_workers: int = 0) -> Loader:
    return Loader(PAIRS, sampler, partial(pad_pairs, pad_id=0), num_workers=num_workers)


def names(loader: Loader) -> list[list[int]]:
    """Return which pairs each batch of a loader holds, told by their chosen tokens."""
    return [sorted({token - 100 for token in batch.target_ids.tolist() if token >= 100}) for batch in loader]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_the_planned_pairs_with_their_totals(num_workers: int) -> None:
    (expected,) = all_ranks(accumulate=3)
    loader = load(plan(accumulate=3), num_workers)
    batches = list(loader)
    assert len(loader) == len(batches) == 7
    for batch, planned in zip(batches, expected, strict=True):
        assert batch.num_pairs == len(planned.indices)
        assert batch.normalisers == planned.totals
        assert all(total.shape == () and total.dtype == torch.int64 for total in batch.normalisers)
    assert names(load(plan(accumulate=3), num_workers)) == [sorted(batch.indices) for batch in expected]


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_totals_stay_exact_where_a_precision_casts_the_numbers_of_a_batch(precision: Any) -> None:
    # fp16 ends at 65,504; bf16 counts to 256.
    pairs = [TokenizedPair([1] * 40_001, [2] * 1001, [3])] * 2
    sampler = PlannedSampler(pair_lengths(pairs), batch_size=1, accumulate=2)
    for batch in Loader(pairs, sampler, partial(pad_pairs, pad_id=0)):
        cast = HalfPrecision(precision).convert_input(batch)
        assert [total.item() for total in cast.normalisers] == [2, 80_000, 2002]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("seen", [0, 3, 7])
def test_a_resumed_loader_goes_on_where_it_stopped_and_counts_from_there(seen: int, num_workers: int) -> None:
    whole, resumed = plan(), plan()
    whole.set_epoch(1)
    loader = load(resumed, num_workers)
    resumed.resume_at(1, seen)
    resumed.set_epoch(0)
    iterator = iter(loader)  # Lightning sets the epoch only after this
    resumed.set_epoch(1)
    found, counts = [], []
    for batch in iterator:
        found.append(batch.target_ids.tolist())
        counts.append(loader.seen)
    assert found == [batch.target_ids.tolist() for batch in load(whole)][seen:]
    assert counts == list(range(seen + 1, 8))


def test_a_fillers_batch_has_no_target_and_no_normaliser_of_its_own() -> None:
    # One pair on two ranks: the second rank's only micro-batch is a filler within the same step.
    loaders = [load(plan(1, world_size=2, rank=rank)) for rank in (0, 1)]
    (real,), (filler,) = loaders
    assert filler.target_ids.tolist() == []
    assert filler.normalisers == real.normalisers == (1, 0, 1)
    assert (real.is_filler, filler.is_filler) == (False, True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_micro_batch_that_is_skipped_has_no_pair_and_no_target(num_workers: int) -> None:
    sampler = plan(batch_size=1, accumulate=4, tokens_per_batch=1000)
    batches = list(load(sampler, num_workers))
    assert [batch.num_pairs for batch in batches] == [4, 0, 0, 0] * 3 + [1, 0, 0, 0]
    assert all(batch.target_ids.numel() == 0 for batch in batches if not batch.num_pairs)


@pytest.mark.parametrize("seen", range(17))
def test_a_budgeted_epoch_is_resumed_where_it_stopped(seen: int) -> None:
    settings = {"batch_size": 1, "accumulate": 4, "tokens_per_batch": 30}
    sampler = plan(**settings)
    sampler.resume_at(2, seen)
    assert list(sampler) == all_ranks(epoch=2, **settings)[0][seen:]


@pytest.mark.parametrize("world_size", [1, 2])
def test_validation_batches_are_filled_with_tokens(world_size: int) -> None:
    ranks = [
        SortedSampler(LENGTHS, tokens=30, world_size=world_size, rank=rank) for rank in range(world_size)
    ]
    in_turn = [batch.indices for batches in zip(*ranks, strict=True) for batch in batches]
    real = [batch for batch in in_turn if batch != [FILLER]]
    assert sorted(chain(*real)) == list(range(13))
    rows = (LENGTHS[:, 0] + LENGTHS[:, 1:].amax(1)).tolist()
    sizes = [2 * len(batch) * max(rows[i] for i in batch) for batch in real]
    assert max(sizes) <= 30
    # Full: the next pair, the longest that is left, would not have fitted.
    for batch, following in pairwise(real):
        longest = max(rows[i] for i in batch)
        assert 2 * (len(batch) + 1) * max(longest, rows[following[0]]) > 30


def test_a_validation_plan_can_be_narrowed_and_widened_between_its_iterations() -> None:
    sampler = SortedSampler(LENGTHS, batch_size=4)
    whole = list(sampler)
    sampler.take(torch.tensor([2, 5, 11]))
    assert sorted(indices(list(sampler))) == [2, 5, 11]
    sampler.take(torch.arange(13))
    assert list(sampler) == whole


def test_validation_batches_are_normalised_by_themselves() -> None:
    loader = load(SortedSampler(LENGTHS, batch_size=4))
    assert [batch.normalisers for batch in loader] == [None] * 4
    assert loader.seen == 4
