"""Equal, reversed and shared pairs by their hashes, beside a slow search with plain Python."""

from __future__ import annotations

import random

import numpy as np
import pytest

from orpo_lightning.data.pair_keys import (
    first_of_reversed,
    first_of_same,
    is_contradicted,
    prompt_stands_in,
    stands_in,
)


def keys(*rows: tuple[int, int, int]) -> np.ndarray:
    return np.array(rows, np.uint64).reshape(-1, 3)


def test_equal_pairs_point_at_the_first_of_them() -> None:
    found = first_of_same(keys((1, 2, 3), (1, 2, 4), (1, 2, 3), (9, 2, 3), (1, 2, 3)))
    assert found.tolist() == [0, 1, 0, 3, 0]


def test_a_pair_and_its_reverse_contradict_each_other_under_the_same_prompt_only() -> None:
    pairs = keys((1, 2, 3), (1, 3, 2), (7, 3, 2), (1, 2, 4), (1, 2, 3))
    assert first_of_reversed(pairs).tolist() == [1, 0, -1, -1, 1]
    assert is_contradicted(pairs).tolist() == [True, True, False, False, True]


def test_a_pair_of_another_table_is_found_by_all_three_parts_and_its_prompt_by_one() -> None:
    train = keys((1, 2, 3), (4, 5, 6))
    other = keys((1, 2, 3), (1, 3, 2), (4, 5, 7), (8, 2, 3))
    assert stands_in(other, train).tolist() == [True, False, False, False]
    assert prompt_stands_in(other, train).tolist() == [True, True, True, False]


def test_no_pairs_are_no_trouble() -> None:
    none = keys()
    assert len(first_of_same(none)) == len(first_of_reversed(none)) == len(is_contradicted(none)) == 0
    assert stands_in(keys((1, 2, 3)), none).tolist() == [False]


@pytest.mark.parametrize("seed", range(5))
def test_the_fast_search_finds_what_a_slow_one_finds(seed: int) -> None:
    rng = random.Random(seed)
    # Few different hashes, so that everything happens often; spread over 64 bits, as real ones are.
    values = [rng.getrandbits(64) for _ in range(4)]
    rows = [tuple(rng.choice(values) for _ in range(3)) for _ in range(200)]
    pairs = keys(*rows)  # type: ignore[arg-type]
    assert first_of_same(pairs).tolist() == [rows.index(row) for row in rows]
    reverse = [(p, r, c) for p, c, r in rows]
    assert first_of_reversed(pairs).tolist() == [rows.index(x) if x in rows else -1 for x in reverse]
