"""Figures of held-out pairs: means by hand, buckets, and calibration where the truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_pairs import pair, store

from orpo_lightning.data.pair_keys import order_of_answers
from orpo_lightning.data.table import PairTable
from orpo_lightning.judging.buckets import buckets_of
from orpo_lightning.judging.calibration import calibration, predictions
from orpo_lightning.judging.figures import Scores, of_buckets, of_change, of_model

BASE = Scores(np.array([-1.0, -2.0, -0.5, -3.0]), np.array([-2.0, -1.0, -0.4, -2.5]))
TRAINED = Scores(np.array([-0.8, -1.2, -0.3, -2.0]), np.array([-2.5, -2.0, -0.4, -1.5]))
PROMPTS = np.array([7, 7, 8, 9], np.uint64)


def test_the_quantities_of_a_model_are_means_over_pairs() -> None:
    found = of_model(TRAINED, PROMPTS)
    assert found["accuracy"]["mean"] == 0.75
    assert found["margin"]["mean"] == pytest.approx((1.7 + 0.8 + 0.1 - 0.5) / 4)
    assert found["logps_chosen"]["mean"] == pytest.approx(-4.3 / 4)
    assert found["logps_rejected"]["mean"] == pytest.approx(-6.4 / 4)

    def log_odds(logp: float) -> float:
        return float(np.log(np.exp(logp) / (1 - np.exp(logp))))

    ratios = [log_odds(c) - log_odds(r) for c, r in zip(*TRAINED, strict=True)]
    assert found["log_odds_ratio"]["mean"] == pytest.approx(np.mean(ratios))
    assert found["accuracy"]["low"] <= 0.75 <= found["accuracy"]["high"]


def test_a_change_is_paired() -> None:
    shifted = Scores(BASE.chosen + 0.25, BASE.rejected)
    found = of_change(BASE, shifted, PROMPTS)
    # Every pair moved by the same, so nothing is uncertain, however far apart the pairs are.
    assert found["logps_chosen"] == {"mean": 0.25, "low": 0.25, "high": 0.25}
    assert found["logps_rejected"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert of_change(BASE, TRAINED, PROMPTS)["accuracy"]["mean"] == 0.75 - 0.25


def table(folder: Path) -> PairTable:
    """Return pairs of two sources, of 8 lengths, two of whose rejected answers are the longer ones."""
    first = [pair([1] * n, [2] * (n + 1), [3] * n) for n in range(1, 5)]
    second = [pair([5], [2] * n, [3] * (n + 1)) for n in (10, 11)] + [pair([6], [7] * 20, [8] * 20)]
    one = store(folder / "one", first, name="one.jsonl", agreements=[2, 3, 3, np.nan], margins=[1, 2, 3, 4])
    nan = [np.nan] * 3
    other = store(folder / "two", second, name="two.jsonl", agreements=nan, margins=nan)
    return PairTable.of([one, other])


def test_pairs_are_told_apart_by_all_that_is_known_of_them(tmp_path: Path) -> None:
    found: dict[str, dict[str, list[int]]] = {}
    for by, name, members in buckets_of(table(tmp_path)):
        found.setdefault(by, {})[name] = np.flatnonzero(members).tolist()
    assert found["source"] == {"one.jsonl": [0, 1, 2, 3], "two.jsonl": [4, 5, 6]}
    assert found["longer answer"] == {"chosen": [0, 1, 2, 3], "rejected": [4, 5], "neither": [6]}
    assert found["agreement"] == {"2": [0], "3": [1, 2], "not given": [3, 4, 5, 6]}
    assert found["score margin"] == {"1": [0], "2": [1], "3": [2], "4": [3], "not given": [4, 5, 6]}
    # Prompt and longer answer have 3, 5, 7, 9, 12, 13 and 21 tokens.
    lengths = {"up to 5 tokens": [0, 1], "over 5 to 9 tokens": [2, 3], "over 9 to 12 tokens": [4]}
    assert found["length"] == lengths | {"over 12 to 21 tokens": [5, 6]}


def test_a_table_whose_pairs_are_alike_is_not_cut(tmp_path: Path) -> None:
    alike = [pair([n], [n + 10, 1], [n + 20, 2]) for n in range(5)]
    found = buckets_of(PairTable.of([store(tmp_path / "alike", alike, agreements=[3] * 5)]))
    assert [(bucket.by, bucket.name) for bucket in found] == [("longer answer", "neither")]


def test_a_bucket_has_the_accuracy_of_its_own_pairs(tmp_path: Path) -> None:
    pairs = table(tmp_path)
    base = Scores(np.zeros(7) - 1, np.array([-2.0, 0, -2, 0, -2, 0, -2]))
    after = Scores(np.zeros(7) - 1, np.array([-2.0, -2, -2, -2, 0, 0, 0]))
    rows = of_buckets(
        buckets_of(pairs), {"base": base, "adapter": after}, pairs.keys[:, 0], ("base", "adapter")
    )
    one = next(row for row in rows if row["name"] == "one.jsonl")
    assert (one["pairs"], one["prompts"]) == (4, 4)
    assert one["accuracy"]["base"]["mean"] == 0.5
    assert one["accuracy"]["adapter"]["mean"] == 1.0
    assert one["change"]["mean"] == 0.5


def random_keys(count: int) -> Any:
    return np.random.default_rng(5).integers(2**63, size=(count, 3), dtype=np.uint64)


def test_the_order_of_two_answers_knows_nothing_of_the_label() -> None:
    keys = random_keys(4000)
    first = order_of_answers(keys)
    assert (order_of_answers(keys[:, [0, 2, 1]]) == ~first).all()
    assert abs(first.mean() - 0.5) < 3 * 0.5 / 4000**0.5
    # One answer that is always the rejected one does not always stand on the same side.
    keys[:, 2] = 12345
    assert abs(order_of_answers(keys).mean() - 0.5) < 3 * 0.5 / 4000**0.5


def drawn(scale: float, count: int = 3000) -> dict[str, Any]:
    """Return the calibration of a model whose log odds ratios are `scale` times the honest ones."""
    draw = np.random.default_rng(3)
    honest = draw.normal(0, 1.5, count)
    chosen_is_first = draw.random(count) < 1 / (1 + np.exp(-honest))
    ratio = np.where(chosen_is_first, honest, -honest)  # of chosen over rejected
    keys = random_keys(count)
    return calibration(predictions(scale * ratio, keys), np.arange(count))


def test_honest_odds_are_calibrated() -> None:
    found = drawn(1.0)
    assert found["ece"]["mean"] < found["ece_if_calibrated"]["high"]
    assert sum(one["pairs"] for one in found["bins"]) == found["pairs"] == 3000
    inside = [one["happened"]["low"] <= one["predicted"] <= one["happened"]["high"] for one in found["bins"]]
    assert len(inside) == 10
    assert sum(inside) >= 8


def test_odds_three_times_too_large_are_seen_as_over_confident() -> None:
    found = drawn(3.0)
    assert found["ece"]["mean"] > 5 * found["ece_if_calibrated"]["high"]
    assert found["ece"]["low"] <= found["ece"]["mean"] <= found["ece"]["high"]
    lowest, highest = found["bins"][0], found["bins"][-1]
    assert lowest["happened"]["low"] > lowest["predicted"]
    assert highest["happened"]["high"] < highest["predicted"]
    assert found["brier"]["mean"] > drawn(1.0)["brier"]["mean"]


def test_a_coin_has_a_brier_score_of_a_quarter_and_no_error() -> None:
    found = calibration(predictions(np.zeros(500), random_keys(500)), np.arange(500))
    assert found["brier"]["mean"] == 0.25
    assert [one["predicted"] for one in found["bins"]] == [0.5]
    assert found["ece"]["mean"] < 0.1


def test_the_brier_score_is_that_of_the_chosen_answer_whatever_the_order() -> None:
    ratio = np.random.default_rng(1).normal(0, 2, 300)
    found = calibration(predictions(ratio, random_keys(300)), np.arange(300))
    assert found["brier"]["mean"] == pytest.approx(np.mean((1 - 1 / (1 + np.exp(-ratio))) ** 2))


def test_pairs_of_one_prompt_make_the_error_less_certain() -> None:
    ratio = np.repeat(np.random.default_rng(2).normal(1, 2, 100), 5)
    made = predictions(ratio, random_keys(500))
    alone, together = calibration(made, np.arange(500)), calibration(made, np.repeat(np.arange(100), 5))
    assert together["ece"]["mean"] == pytest.approx(alone["ece"]["mean"])
    width = [one["brier"]["high"] - one["brier"]["low"] for one in (alone, together)]
    assert width[1] > 1.5 * width[0]
