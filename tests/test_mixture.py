"""Mixing sources: shares are kept, every pair has its turn, and the order is found again by counting."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch

from orpo_lightning.batching.mixture import epoch_order, mixed_order, quotas
from orpo_lightning.batching.sampler import PlannedSampler


def sources_of(order: torch.Tensor, sizes: list[int]) -> Counter[int]:
    bounds = torch.tensor(sizes).cumsum(0)
    return Counter(torch.searchsorted(bounds, order, right=True).tolist())


@pytest.mark.parametrize(
    ("total", "shares", "expected"),
    [
        (10, [1, 1], [5, 5]),
        (10, [1, 2], [3, 7]),  # 3.33 and 6.67: the larger remainder gets the pair that is left
        (7, [0.5, 0.25, 0.25], [3, 2, 2]),  # 3.5, 1.75, 1.75
        (1, [1, 1000], [0, 1]),
        (5, [3], [5]),
    ],
)
def test_a_total_is_divided_by_largest_remainders(
    total: int, shares: list[float], expected: list[int]
) -> None:
    assert quotas(total, shares) == expected


def test_an_epoch_has_every_sources_share_and_as_many_pairs_as_there_are() -> None:
    sizes = [90, 10]
    for epoch in range(5):
        order = mixed_order(sizes, [1, 1], seed=3, epoch=epoch)
        assert sources_of(order, sizes) == {0: 50, 1: 50}


def test_in_the_long_run_all_pairs_of_a_source_are_seen_equally_often() -> None:
    sizes, seen = [9, 6], Counter()
    # 15 pairs an epoch, 3 : 2 of them 9 and 6 with weights 3 and 2; with 1 and 2: 5 and 10.
    for epoch in range(9):
        seen.update(mixed_order(sizes, [1, 2], seed=0, epoch=epoch).tolist())
    # 45 draws over 9 pairs and 90 over 6: five and fifteen turns each, exactly.
    assert [seen[i] for i in range(9)] == [5] * 9
    assert [seen[i] for i in range(9, 15)] == [15] * 6


def test_no_pair_of_a_large_source_comes_again_before_all_had_their_turn() -> None:
    sizes = [40, 10]
    drawn: list[int] = []
    for epoch in range(2):
        drawn += [i for i in mixed_order(sizes, [2, 3], seed=1, epoch=epoch).tolist() if i < 40]
    assert sorted(drawn) == list(range(40))  # 20 of each epoch


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return mixed_order([20, 30], [1, 1], seed=seed, epoch=epoch).tolist()

    torch.manual_seed(1)
    first = order(7, 2)
    torch.manual_seed(2)
    assert order(7, 2) == first
    assert order(7, 3) != first
    assert order(8, 2) != first


def test_without_shuffling_sources_keep_their_order_and_are_spread_evenly() -> None:
    order = mixed_order([4, 2], [2, 1], seed=0, epoch=0, shuffle=False).tolist()
    assert order == [0, 4, 1, 2, 5, 3]
    assert mixed_order([4, 2], [1, 1], seed=0, epoch=1, shuffle=False).tolist() == [3, 5, 0, 4, 1, 5]


def test_one_source_or_proportional_shares_use_every_pair_once() -> None:
    for sizes in ([7], [7, 3]):
        order = mixed_order(sizes, sizes, seed=5, epoch=3)
        assert sorted(order.tolist()) == list(range(sum(sizes)))


def test_neighbouring_seeds_do_not_share_epochs() -> None:
    assert epoch_order(50, seed=1, epoch=1).tolist() != epoch_order(50, seed=2, epoch=0).tolist()


def test_a_planned_epoch_draws_by_the_mixture_and_resumes_within_it() -> None:
    lengths = torch.tensor([[5, 4, 3]]).repeat(12, 1)

    def plan() -> PlannedSampler:
        return PlannedSampler(lengths, batch_size=2, accumulate=2, seed=9, mixture=[(9, 1.0), (3, 1.0)])

    whole = [batch.indices for batch in plan()]
    drawn = list(chain.from_iterable(whole))
    assert len(drawn) == 12
    assert sum(index >= 9 for index in drawn) == 6
    resumed = plan()
    resumed.resume_at(0, 3)
    assert [batch.indices for batch in resumed] == whole[3:]
