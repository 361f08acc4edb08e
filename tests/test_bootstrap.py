"""Bootstrap intervals: against the known spread of a mean, and with prompts that hold several pairs."""

from __future__ import annotations

import numpy as np
import pytest

from orpo_lightning.bootstrap import estimate


def test_the_interval_of_independent_values_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(3, 2, 900)
    found = estimate(values, range(900))
    half = 1.96 * values.std() / 30
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found.pairs == 900


def test_pairs_of_one_prompt_count_as_one_draw() -> None:
    values = np.random.default_rng(2).normal(0, 1, 100)
    once = estimate(values, range(100))
    four_times = estimate(np.repeat(values, 4), np.repeat(np.arange(100), 4))
    assert four_times.high - four_times.low == pytest.approx(once.high - once.low, rel=0.1)
    assert estimate(np.repeat(values, 4), range(400)).high < four_times.high


def test_it_is_the_same_every_time_and_a_point_for_a_single_prompt() -> None:
    assert estimate([1, 2, 3], "aab") == estimate([1, 2, 3], "aab")
    assert estimate([1.0, 2.0], "aa") == (1.5, 1.5, 1.5, 2)
