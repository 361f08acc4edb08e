"""95 % intervals: they cover what they should, and need no assumption that the data breaks."""

from __future__ import annotations

import pytest
import torch

from orpo_lightning.batching.base import Normalisers
from orpo_lightning.intervals import deviations, interval, share_interval
from orpo_lightning.logps import PairLogps
from orpo_lightning.metrics import IntervalMeans, WeightedMeans
from orpo_lightning.objectives import ORPO, ObjectiveOutput, Term
from orpo_lightning.objectives.base import Mean
from orpo_lightning.observing.evidence import student_quantile


@pytest.mark.parametrize(
    ("freedom", "expected"), [(4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042), (100, 1.984), (10**6, 1.960)]
)
def test_students_quantile_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert student_quantile(freedom) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("wins", "pairs", "low", "high"),
    # From the table of Newcombe (1998), method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_a_shares_interval_is_wilsons(wins: int, pairs: int, low: float, high: float) -> None:
    found = share_interval(torch.tensor(wins / pairs), pairs)
    assert [end.item() for end in found] == pytest.approx([low, high], abs=1e-4)


def covered(draws: int, mean: float, sums: torch.Tensor, counts: torch.Tensor) -> float:
    """Return the share of (draws, n) samples whose interval contains the mean."""
    ends = [interval(*pairs) for pairs in zip(sums, counts, strict=True)]
    return sum(low <= mean <= high for low, high in ends) / draws  # type: ignore[misc]


def test_the_interval_of_a_mean_is_students() -> None:
    # Mean 4, squared deviations 9 + 4 + 0 + 25 over 3, t of three degrees of freedom 3.182.
    half = 3.182 * (38 / 3 / 4) ** 0.5
    found = interval(torch.tensor([1.0, 2.0, 4.0, 9.0]), torch.ones(4))
    assert [end.item() for end in found] == pytest.approx([4 - half, 4 + half], rel=0.03)


@pytest.mark.parametrize("pairs", [5, 12])
def test_intervals_of_means_cover_the_mean_of_what_they_are_drawn_from(pairs: int) -> None:
    draws = torch.randn(3000, pairs, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2
    # 95 % of 3,000, give or take four standard errors of 0.4 %.
    assert covered(3000, 2.0, draws, torch.ones_like(draws)) == pytest.approx(0.95, abs=0.016)


def test_intervals_of_token_means_cover_it_where_long_pairs_differ_from_short_ones() -> None:
    dice = torch.Generator().manual_seed(1)
    tokens = torch.randint(10, 200, (3000, 60), generator=dice).double()
    # The loss of a token falls with the length, so that sum and count vary together.
    sums = tokens * (2 - tokens / 200) + 4 * torch.randn(tokens.shape, generator=dice, dtype=torch.float64)
    lengths = torch.arange(10, 200).double()
    mean = ((lengths * (2 - lengths / 200)).sum() / lengths.sum()).item()
    assert covered(3000, mean, sums, tokens) == pytest.approx(0.95, abs=0.02)
    # As if each token were a pair of its own it would be far too narrow: what the test is about.
    moved = deviations(sums[0], tokens[0])
    by_token = 1.96 * ((sums[0] / tokens[0]).var() / tokens[0].sum()).sqrt()
    assert 1.96 * moved.square().sum().sqrt() > 2 * by_token


def test_intervals_of_shares_cover_them_where_they_are_near_one() -> None:
    wins = (torch.rand(3000, 40, generator=torch.Generator().manual_seed(2)) < 0.95).double()
    assert covered(3000, 0.95, wins, torch.ones_like(wins)) >= 0.93
    assert interval(torch.ones(8), torch.ones(8))[0] < 0.7  # type: ignore[index]


def test_pairs_that_add_nothing_do_not_narrow_an_interval() -> None:
    sums, counts = torch.tensor([1.0, 4.0, 2.5]), torch.ones(3)
    more = interval(torch.cat([sums, torch.zeros(9)]), torch.cat([counts, torch.zeros(9)]))
    assert more == interval(sums, counts)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pairs_have_no_interval(count: int) -> None:
    assert interval(torch.ones(count), torch.ones(count)) is None


# Means with their intervals


def random_logps(pairs: int, seed: int, normalisers: Normalisers | None = None) -> PairLogps:
    dice = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 30, (3, pairs), generator=dice).float()
    sums = -tokens * torch.rand(3, pairs, generator=dice) * 3
    return PairLogps(*sums, *tokens, normalisers)


def part(logps: PairLogps, start: int, end: int) -> PairLogps:
    return PairLogps(*(values[start:end] for values in logps[:6]))


def test_means_and_intervals_do_not_depend_on_the_batches_nor_on_fillers() -> None:
    logps, objective = random_logps(40, 0), ORPO(beta=0.3)
    whole, split, sums = IntervalMeans(), IntervalMeans(), WeightedMeans()
    whole.update(objective(logps))
    sums.update(objective(logps))
    for start, end in ((0, 3), (3, 25), (25, 40)):
        split.update(objective(part(logps, start, end)))
    empty = PairLogps(*torch.zeros(6, 1))
    split.update(objective(empty), is_filler=True)
    one, other = whole.compute(), split.compute()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert other[name].item() == pytest.approx(value.item(), rel=1e-6), name
    for name, value in sums.compute().items():
        assert one[name] == value
        low, high = one[f"ci_low/{name}"], one[f"ci_high/{name}"]
        assert low <= value <= high, name


def test_the_interval_of_the_loss_is_that_of_its_terms_together() -> None:
    objective, means = ORPO(beta=2.0), IntervalMeans()
    logps = random_logps(300, 3)
    means.update(objective(logps))
    found = means.compute()
    dice = torch.Generator().manual_seed(4)
    values = []
    for _ in range(2000):  # the oracle: draw pairs again and again, with replacement
        drawn = torch.randint(0, 300, (300,), generator=dice)
        values.append(objective(PairLogps(*(column[drawn] for column in logps[:6]))).loss)
    spread = 1.96 * torch.stack(values).std().item()
    half = (found["ci_high/loss"] - found["ci_low/loss"]).item() / 2
    assert half == pytest.approx(spread, rel=0.06)
    apart = sum(
        w * (found[f"ci_high/{name}"] - found[f"ci_low/{name}"]).item() / 2
        for name, w in (("nll_loss", 1.0), ("odds_ratio_loss", 2.0))
    )
    assert abs(apart / spread - 1) > 0.1  # adding the terms' own intervals up would be something else


def test_a_term_that_does_not_tell_its_pairs_leaves_the_others_their_intervals() -> None:
    output = ORPO()(random_logps(9, 5))
    one = torch.ones(())
    means = IntervalMeans()
    means.update(
        ObjectiveOutput({**output.terms, "router": Term(0.1, one, one, one)}, {"own": Mean(one, one)})
    )
    found = means.compute()
    assert "ci_low/nll_loss" in found
    assert not {"ci_low/router", "ci_low/own", "ci_low/loss"} & found.keys()
    assert {"router", "own", "loss"} <= found.keys()


def test_means_are_empty_again_after_a_reset() -> None:
    means = IntervalMeans()
    means.update(ORPO()(random_logps(9, 5)))
    means.reset()
    assert means.compute() == {}
    means.update(ORPO()(random_logps(4, 6)))
    fresh = IntervalMeans()
    fresh.update(ORPO()(random_logps(4, 6)))
    assert means.compute() == fresh.compute()
