"""What the data is like before it is trained on: every figure against one derived by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from orpo_lightning.batching import TokenizedPair, pad_pairs
from orpo_lightning.batching.padded import pair_lengths
from orpo_lightning.batching.sampler import PlannedDataset, PlannedSampler
from orpo_lightning.data import flags
from orpo_lightning.data.curation import CONTRADICTED, DUPLICATE
from orpo_lightning.data.health import EpochPlan, Rules, SplitFacts, brief, examine, summary
from orpo_lightning.data.health.across import shared
from orpo_lightning.data.health.distributions import describe, spread
from orpo_lightning.data.health.epoch import epoch_costs
from orpo_lightning.data.health.findings import (
    CONTRADICTIONS,
    DUPLICATES,
    NEARLY_SAME,
    REPEATED_PROMPT,
    Finding,
    findings,
)
from orpo_lightning.data.health.hints import hints
from orpo_lightning.data.health.limits import limit_costs
from orpo_lightning.data.health.overlap import SAMPLE, Overlaps, common_share, overlaps
from orpo_lightning.data.health.rendered import rendered, tokens_of
from orpo_lightning.data.health.split import (
    cut_answers,
    describe_lengths,
    describe_margins,
    longer_wins,
    stop_tokens,
)
from orpo_lightning.data.health.thresholds import check, failed
from orpo_lightning.data.left_out import BROKEN
from orpo_lightning.data.limits import PAIR_TOO_LONG
from orpo_lightning.data.table import Dropped, PairTable
from tests.stored_pairs import keys_of, pair, store

MODEL = Path(__file__).parent.parent / "configs" / "quickstart" / "model"
NAN = math.nan
NOTHING_ALIKE = Overlaps(np.array([0]), np.array([0.0]), np.array([False]))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


def found(pairs: list[TokenizedPair], **settings: Any) -> dict[str, Finding]:
    bits = np.array(settings.get("bits", [0] * len(pairs)), np.uint8)
    margins = np.array(settings.get("margins", [NAN] * len(pairs)), np.float32)
    alike = settings.get("alike", NOTHING_ALIKE)
    return {one.kind: one for one in findings(keys_of(pairs), bits, margins, alike)}


# Histograms


def test_a_histogram_of_lengths_counts_every_one_in_steps_of_powers_of_two() -> None:
    # The largest is 100, so 24 bars want steps of at least 100 / 24 = 4.2: eight.
    made = describe(np.array([0, 7, 8, 50, 100]))
    assert made["edges"] == [8 * step for step in range(14)]
    assert made["counts"] == [2, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert [made[name] for name in ("median", "p95", "max", "mean")] == [8, 100, 100, 33]


def test_one_giant_gets_a_bar_of_its_own_instead_of_pressing_all_others_into_one() -> None:
    made = describe(np.array([10] * 999 + [100_000]))
    assert made["edges"][-1] == 100_001
    assert made["edges"][-2] <= 16
    assert made["counts"][-1] == 1
    assert sum(made["counts"]) == 1000
    assert made["p95"] == 10


def test_the_last_bar_is_no_narrower_than_the_others() -> None:
    # Steps of 64 end at 1024, which one in 200 reaches: 1024 to 1025 would be a bar for one length alone.
    made = describe(np.array([*range(1000), 1023, 1024, 1024, 1024, 1024, 1024, 1024]))
    assert made["edges"][-2:] == [1024, 1088]
    assert sum(made["counts"]) == 1007


def test_a_histogram_of_scores_has_round_steps_and_loses_none() -> None:
    values = np.array([-2.0, -0.4, 0.0, 0.3, 0.3, 1.7], np.float32)
    made = spread(values)
    steps = np.diff(made["edges"][1:-1])
    assert np.allclose(steps, 0.2)  # 3.7 / 24 is 0.154
    assert sum(made["counts"]) == len(values)
    assert spread(np.array([3.0, 3.0]))["counts"] == [2]


def test_an_empty_histogram_is_still_one() -> None:
    assert describe(np.empty(0, np.int32))["counts"] == [0]


def test_the_length_of_a_pair_is_its_prompt_and_the_longer_answer() -> None:
    made = describe_lengths(np.array([[10, 4, 6], [20, 9, 1]]))
    assert made["pair"]["max"] == 29
    assert made["pair"]["median"] == 22.5
    assert made["rejected"]["max"] == 6


# Limits


LIMITED = np.array([[10, 5, 3], [100, 40, 20], [3, 200, 10], [300, 5, 5]], np.int32)


def cost(limit: int, **settings: Any) -> dict[str, Any]:
    costs = limit_costs(LIMITED, **({"max_length": 512} | settings))
    return next(one for one in costs if one["max_length"] == limit)


def test_a_limit_that_drops_costs_all_tokens_of_the_pairs_beyond_it() -> None:
    # 140, 203 and 305 tokens are more than 128; all pairs together have 18 + 160 + 213 + 310 tokens.
    made = cost(128)
    assert (made["pairs_over"], made["share"]) == (3, 0.75)
    assert made["tokens_lost"] == 160 + 213 + 310
    assert made["tokens_lost_share"] == (160 + 213 + 310) / 701
    assert cost(256)["tokens_lost"] == 310
    assert cost(512)["tokens_lost"] == 0


def test_a_limit_that_truncates_costs_what_is_cut_off_and_pairs_without_room_for_an_answer() -> None:
    # Of 40 answer tokens 28 fit behind 100 of prompt, of 200 there fit 125; behind 300 there is no room.
    assert cost(128, overlong="truncate")["tokens_lost"] == 12 + 75 + 310
    # With at most 64 of prompt: 36 and 236 prompt tokens go, and then only 200 - 125 of an answer.
    limited = cost(128, overlong="truncate", max_prompt_length=64)
    assert limited["pairs_over"] == 3
    assert limited["tokens_lost"] == 36 + 75 + 236


def test_the_limit_of_the_prompt_counts_beside_every_longer_limit() -> None:
    assert cost(4096, max_prompt_length=90)["pairs_over"] == 2
    assert cost(4096)["pairs_over"] == 0


def test_the_limit_that_is_set_stands_among_the_usual_ones() -> None:
    costs = limit_costs(LIMITED, max_length=600)
    assert [one["max_length"] for one in costs] == [128, 256, 512, 600, 1024, 2048, 4096]
    assert [one["max_length"] for one in costs if one["is_set"]] == [600]


def test_what_truncation_would_cost_is_what_truncation_takes() -> None:
    from orpo_lightning.data.token_rules import truncate

    dice = np.random.default_rng(3)
    whole = dice.integers(1, 300, (200, 3)).astype(np.int32)
    kept = 0
    for prompt, chosen, rejected in whole.tolist():
        cut = truncate(
            pair(range(prompt), range(chosen), range(rejected)),
            max_length=128,
            max_prompt_length=90,
            bos=None,
        )
        kept += sum(map(len, cut))  # 90 of prompt always leave room
    costs = limit_costs(whole, max_length=128, max_prompt_length=90, overlong="truncate")
    assert costs[0]["tokens_lost"] == int(whole.sum()) - kept


# Overlap


def test_common_tokens_count_as_often_as_both_answers_have_them() -> None:
    assert common_share([1, 1, 2], [1, 2, 2]) == 2 * 2 / 6
    assert common_share([1, 2], [3]) == 0
    assert common_share([5, 6], [6, 5]) == 1


def test_the_stop_token_of_whole_answers_is_nothing_they_have_in_common() -> None:
    pairs = [pair([1], [2, 9], [3, 9]), pair([1], [2, 9], [3, 9])]
    made = overlaps(pairs, np.array([0, flags.CHOSEN_CUT | flags.REJECTED_CUT], np.uint8), seed=1)
    assert made.shares.tolist() == [0.0, 0.5]


def test_answers_of_the_same_tokens_in_another_order_are_not_nearly_identical() -> None:
    words, edited = list(range(40)), [*range(39), 99]
    pairs = [pair([1], [*words, 7], [*edited, 7]), pair([1], [*words, 7], [*reversed(words), 7])]
    made = overlaps(pairs, np.zeros(2, np.uint8), seed=1)
    assert made.shares.tolist() == [39 / 40, 1.0]
    assert made.near_identical().tolist() == [0]  # 38 of 39 neighbours are the same, against none


def test_of_many_pairs_a_sample_is_looked_at_that_the_seed_alone_decides() -> None:
    pairs = [pair([1], [number % 7, 9], [number % 5, 9]) for number in range(SAMPLE + 500)]
    bits = np.zeros(len(pairs), np.uint8)
    one, same, other = (overlaps(pairs, bits, seed) for seed in (1, 1, 2))
    assert one.as_report()["sample"] == SAMPLE
    assert (one.pairs == same.pairs).all()
    assert not (one.pairs == other.pairs).all()
    shares = {number: float(number % 7 == number % 5) for number in range(len(pairs))}
    assert one.shares.tolist() == [shares[number] for number in one.pairs.tolist()]


# Suspicious pairs


def test_every_copy_of_a_pair_but_the_first_is_a_duplicate() -> None:
    one, other = pair([1], [2], [3]), pair([1], [3], [4])
    duplicates = found([one, other, one, other, one])[DUPLICATES]
    assert duplicates.rows == 3
    assert duplicates.examples == [(0, 2), (1, 3), (0, 4)]


def test_pairs_that_differ_in_any_part_are_no_duplicates() -> None:
    pairs = [pair([1], [2], [3]), pair([9], [2], [3]), pair([1], [9], [3]), pair([1], [2], [9])]
    kinds = found(pairs)
    assert kinds[DUPLICATES].rows == 0
    assert kinds[CONTRADICTIONS].rows == 0


def test_pairs_that_prefer_the_same_answers_both_ways_contradict_each_other() -> None:
    pairs = [pair([1], [2], [3]), pair([5], [6], [7]), pair([1], [3], [2]), pair([8], [3], [2])]
    contradictory = found(pairs)[CONTRADICTIONS]
    assert contradictory.rows == 2
    assert contradictory.examples == [(0, 2)]


def test_of_a_pair_a_copy_and_its_contrary_all_three_are_contradictory_and_one_is_a_copy() -> None:
    pairs = [pair([1], [2], [3]), pair([1], [2], [3]), pair([1], [3], [2])]
    kinds = found(pairs)
    assert (kinds[DUPLICATES].rows, kinds[CONTRADICTIONS].rows) == (1, 3)
    assert kinds[CONTRADICTIONS].examples == [(0, 2), (1, 2)]


def test_what_was_noted_on_the_way_is_counted_bit_by_bit() -> None:
    bits = [0, flags.PROMPT_REPEATED, flags.PROMPT_REPEATED | flags.CONTROL_TOKEN, flags.CONTROL_CHARACTER]
    kinds = found([pair([i], [2], [3]) for i in range(4)], bits=bits)
    assert kinds[REPEATED_PROMPT].examples == [(1,), (2,)]
    assert kinds["control token written in a text"].examples == [(2,)]
    assert kinds["control characters"].examples == [(3,)]


def test_scores_that_do_not_prefer_the_chosen_answer_are_counted_among_those_with_scores() -> None:
    kinds = found([pair([i], [2], [3]) for i in range(5)], margins=[1.0, -0.5, 0.0, NAN, 0.0])
    assert (kinds["negative score margin"].rows, kinds["equal scores"].rows) == (1, 2)
    assert kinds["equal scores"].of == 4
    assert "equal scores" not in found([pair([1], [2], [3])])


def test_thousands_of_random_pairs_are_counted_as_a_dictionary_counts_them() -> None:
    dice = np.random.default_rng(7)
    drawn = dice.integers(0, 12, (3000, 3)).tolist()
    pairs = [pair([p], [c], [r]) for p, c, r in drawn if c != r]
    seen: set[Any] = set()
    copies = sum(1 for one in map(str, pairs) if one in seen or seen.add(one))  # type: ignore[func-returns-value]
    reversed_ones = sum(str(pair(one.prompt, one.rejected, one.chosen)) in seen for one in pairs)
    kinds = found(pairs)
    assert (kinds[DUPLICATES].rows, kinds[CONTRADICTIONS].rows) == (copies, reversed_ones)


# Which answer is longer, cuts, margins


def test_ties_of_the_longer_answer_count_one_half() -> None:
    made = longer_wins(np.array([[1, 5, 3], [1, 4, 4], [1, 2, 6], [1, 9, 1]]))
    assert made == {
        "chosen_longer": 0.5,
        "equal": 0.25,
        "rejected_longer": 0.25,
        "longer_wins_accuracy": 0.625,
    }


def test_cut_answers_are_counted_on_each_side() -> None:
    made = cut_answers(np.array([0, flags.CHOSEN_CUT, flags.CHOSEN_CUT | flags.REJECTED_CUT], np.uint8))
    assert made == {"count": 6, "cut": 3, "cut_share": 0.5, "chosen_cut": 2, "rejected_cut": 1}


def test_margins_are_described_where_there_are_any() -> None:
    made = describe_margins(np.array([NAN, -1.0, 0.0, 2.0, 4.0], np.float32))
    assert made is not None
    assert {key: made[key] for key in ("rows_with_scores", "zero", "negative", "median")} == {
        "rows_with_scores": 4,
        "zero": 1,
        "negative": 1,
        "median": 1.0,
    }
    assert describe_margins(np.array([NAN, NAN], np.float32)) is None


# An epoch


@pytest.mark.parametrize("count", [1, 7, 24, 61])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("batch_size", "accumulate", "devices"), [(1, 1, 1), (4, 2, 1), (2, 3, 2), (8, 1, 3)]
)
def test_the_padding_of_an_epoch_is_that_of_the_batches_which_fit_would_make(
    count: int, shuffle: bool, batch_size: int, accumulate: int, devices: int
) -> None:
    dice = torch.Generator().manual_seed(count)
    sizes = torch.randint(1, 40, (count, 3), generator=dice).tolist()
    pairs = [pair(range(p), range(c), range(r)) for p, c, r in sizes]
    lengths = pair_lengths(pairs)
    samplers = [
        PlannedSampler(
            lengths,
            batch_size=batch_size,
            accumulate=accumulate,
            world_size=devices,
            rank=rank,
            shuffle=shuffle,
            seed=5,
        )
        for rank in range(devices)
    ]
    planned = [batch for sampler in samplers for batch in sampler]
    data = PlannedDataset(pairs)
    made = [
        pad_pairs(data.__getitems__(batch).pairs, pad_id=0).model_inputs["input_ids"] for batch in planned
    ]
    ours, random, floor = epoch_costs(lengths, EpochPlan(batch_size, accumulate, devices, shuffle, 5))
    assert ours["padded_tokens"] == sum(batch.numel() for batch in made)
    assert ours["micro_batches"] == len(planned)
    assert ours["steps"] == -(-count // (batch_size * accumulate * devices))
    assert ours["tokens"] == sum(2 * p + c + r for p, c, r in sizes)
    assert ours["padded_share"] == 1 - ours["tokens"] / ours["padded_tokens"]
    assert floor["padded_tokens"] == floor["tokens"] <= ours["padded_tokens"]
    if shuffle:
        assert ours["padded_tokens"] <= random["padded_tokens"]


@pytest.mark.parametrize("devices", [1, 2])
def test_an_epoch_under_a_budget_is_counted_as_it_is_planned(devices: int) -> None:
    dice = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 40, (61, 3), generator=dice).tolist()
    pairs = [pair(range(p), range(c), range(r)) for p, c, r in sizes]
    lengths = pair_lengths(pairs)
    plan = EpochPlan(1, 8, devices, True, 5, None, 400)
    data, made, loads = PlannedDataset(pairs), [], []
    for rank in range(devices):
        settings = {"batch_size": 1, "accumulate": 8, "world_size": devices, "rank": rank, "seed": 5}
        batches = list(PlannedSampler(lengths, tokens_per_batch=400, **settings))
        ids = [
            pad_pairs(data.__getitems__(b).pairs, pad_id=0).model_inputs["input_ids"] if b.indices else None
            for b in batches
        ]
        made += [one for one in ids if one is not None]
        times = [0 if one is None else one.numel() * (1 + one.shape[1] / 24_576) for one in ids]
        loads.append(torch.tensor(times).view(-1, 8).sum(1))
    ours, random, _ = epoch_costs(lengths, plan)
    assert ours["padded_tokens"] == sum(one.numel() for one in made)
    assert ours["micro_batches"] == len(made)
    assert ours["steps"] == random["steps"] == -(-61 // (8 * devices))
    assert ours["padded_share"] == pytest.approx(1 - ours["tokens"] / ours["padded_tokens"])
    by_step = torch.stack(loads)
    assert ours["slowest_device"] == pytest.approx((by_step.amax(0).sum() / by_step.mean(0).sum()).item())
    assert (ours["slowest_device"] > 1) == (devices > 1)


def test_a_mixture_is_counted_in_the_order_and_number_that_it_is_trained_on() -> None:
    pairs = [pair(range(1 + i % 7), range(1 + i % 5), range(1 + i % 3)) for i in range(30)]
    lengths = pair_lengths(pairs)
    mixture = [(20, 1.0), (10, 3.0)]
    sampler = PlannedSampler(lengths, batch_size=4, accumulate=2, seed=5, mixture=mixture)
    data = PlannedDataset(pairs)
    made = [
        pad_pairs(data.__getitems__(batch).pairs, pad_id=0).model_inputs["input_ids"] for batch in sampler
    ]
    ours = epoch_costs(lengths, EpochPlan(4, 2, 1, True, 5, mixture))[0]
    assert ours["padded_tokens"] == sum(batch.numel() for batch in made)


# Across splits


def test_prompts_and_pairs_that_two_splits_share_are_counted_and_placed(tmp_path: Path) -> None:
    train = PairTable.of([store(tmp_path / "a", [pair([i], [50], [51]) for i in range(5)], name="t")])
    others = [
        pair([1], [60], [61]),
        pair([1], [62], [63]),
        pair([3], [50], [51]),
        pair([4], [51], [50]),
        pair([9], [50], [51]),
    ]
    validation = PairTable.of([store(tmp_path / "b", others, name="v")])
    assert shared(train, validation, "validation") == {
        "shared_prompts": 3,
        "validation_pairs_of_shared_prompts": 4,
        "shared_pairs": 1,
        "validation_pairs": 5,
        "examples": ["v:1 and t:2", "v:2 and t:2", "v:3 and t:4", "v:4 and t:5"],
    }


# The verdict


def sound_part(**changes: Any) -> dict[str, Any]:
    """Return what the checks look at, of a split of 1000 pairs in which nothing is wrong."""
    suspicious = changes.pop("suspicious", {})
    left_out = changes.pop("left_out", {})
    return {
        "rows": {"read": 1000, "kept": 1000, "left_out": 0},
        "pairs": 1000,
        "left_out": [
            {"reason": reason, "rows": n, "broken": reason == BROKEN} for reason, n in left_out.items()
        ],
        "suspicious": [
            {"kind": kind, "rows": suspicious.get(kind, 0), "share": suspicious.get(kind, 0) / 1000}
            for kind in (DUPLICATES, CONTRADICTIONS, NEARLY_SAME, REPEATED_PROMPT)
        ],
        "answers": {"cut_share": 0.0, "chosen_cut": 0, "rejected_cut": 0},
        "overlap": {"sample": 1000},
        "longer": {"longer_wins_accuracy": 0.5},
        "margins": None,
        **changes,
    }


def failing(part: dict[str, Any], *, faults: float = 0.0) -> list[str]:
    verdict = check({"train": part}, {}, {"train": faults}, 0.05)
    assert verdict["passed"] == (not failed(verdict))
    return [one["name"] for one in failed(verdict)]


@pytest.mark.parametrize(
    ("name", "at_limit", "above"),
    [
        ("broken rows", {}, {"left_out": {BROKEN: 1}}),
        ("rows beyond the limits", {"left_out": {PAIR_TOO_LONG: 200}}, {"left_out": {PAIR_TOO_LONG: 201}}),
        ("exact duplicates", {"suspicious": {DUPLICATES: 10}}, {"suspicious": {DUPLICATES: 11}}),
        ("contradictory pairs", {"suspicious": {CONTRADICTIONS: 5}}, {"suspicious": {CONTRADICTIONS: 6}}),
        ("answers cut", {"answers": {"cut_share": 0.2}}, {"answers": {"cut_share": 0.201}}),
        (REPEATED_PROMPT, {"suspicious": {REPEATED_PROMPT: 10}}, {"suspicious": {REPEATED_PROMPT: 11}}),
        (NEARLY_SAME, {"suspicious": {NEARLY_SAME: 50}}, {"suspicious": {NEARLY_SAME: 51}}),
    ],
)
def test_a_check_passes_at_its_limit_and_fails_above_it(
    name: str, at_limit: dict[str, Any], above: dict[str, Any]
) -> None:
    assert failing(sound_part(**at_limit)) == []
    assert failing(sound_part(**above)) == [f"train: {name}"]


def test_rows_left_out_are_held_against_the_limit_of_the_user() -> None:
    assert failing(sound_part(), faults=0.05) == []
    assert failing(sound_part(), faults=0.051) == ["train: rows left out"]


def test_pairs_that_were_taken_out_count_as_those_that_are_still_there() -> None:
    # 11 of the 1011 that there were are more than 1 %; of contradictory ones 6 of 1006 more than 0.5 %.
    assert failing(sound_part(left_out={DUPLICATE: 11})) == ["train: exact duplicates"]
    assert failing(sound_part(left_out={CONTRADICTED: 6})) == ["train: contradictory pairs"]
    assert failing(sound_part(left_out={DUPLICATE: 10})) == []


def test_one_pair_that_is_trained_on_fails_and_more_than_one_percent_of_shared_prompts() -> None:
    across = {
        "shared_prompts": 5,
        "validation_pairs_of_shared_prompts": 5,
        "shared_pairs": 0,
        "validation_pairs": 500,
        "examples": [],
    }
    parts = {"train": sound_part(), "validation": sound_part()}
    faults = {"train": 0.0, "validation": 0.0}

    def names(**changes: Any) -> list[str]:
        return [
            one["name"] for one in failed(check(parts, {"train_validation": across | changes}, faults, 0.05))
        ]

    assert names() == []
    assert names(shared_pairs=1) == ["validation: pairs also in train"]
    assert names(validation_pairs_of_shared_prompts=6) == ["validation: pairs whose prompt is in train"]


# Hints


LENGTHS = np.array([[5, 6, 6]] * 1000)
SCORES = {"rows_with_scores": 900, "negative": 0, "zero": 0}


def hinted(lengths: Any = LENGTHS, each: Any = None, **changes: Any) -> list[str]:
    return hints(sound_part(**changes), lengths, np.full(1000, NAN) if each is None else each)


def test_sound_data_gives_no_hint() -> None:
    assert hinted() == []
    assert hinted(each=np.ones(1000), margins=SCORES) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"margins": SCORES | {"negative": 9}},
            "9 of 900 scored pairs (1.0%) prefer the answer with the lower",
        ),
        ({"margins": SCORES | {"zero": 18}}, "18 of 900 scored pairs (2.0%) have equal scores"),
        ({"suspicious": {CONTRADICTIONS: 4}}, "4 of 1,000 pairs (0.4%) contradict another pair"),
        ({"suspicious": {NEARLY_SAME: 20}}, "20 of 1,000 pairs (2.0%) have nearly identical answers"),
        ({"suspicious": {REPEATED_PROMPT: 20}}, "20 of 1,000 pairs (2.0%) repeat the prompt"),
        (
            {"longer": {"longer_wins_accuracy": 0.85}},
            "is right for 85.0% of the pairs: a model can win by writing",
        ),
        (
            {"longer": {"longer_wins_accuracy": 0.1}},
            "is right for only 10.0% of the pairs: labels may be reversed",
        ),
        (
            {"answers": {"cut_share": 0.1, "chosen_cut": 200, "rejected_cut": 10}},
            "20.0% of the chosen answers are cut, but 1.0% of the rejected ones",
        ),
        (
            {"answers": {"cut_share": 0.1, "chosen_cut": 10, "rejected_cut": 200}},
            "20.0% of the rejected answers are cut, but 1.0% of the chosen ones",
        ),
    ],
)
def test_each_sign_of_noisy_labels_is_a_sentence_with_its_figure(changes: dict[str, Any], words: str) -> None:
    (hint,) = hinted(**changes)
    assert words in hint


def test_a_chosen_answer_that_is_shorter_and_scored_lower_is_named_as_perhaps_reversed() -> None:
    lengths = np.array([[5, 2, 6], [5, 2, 6], [5, 8, 6], [5, 2, 6]])
    margins = np.array([-1.0, 1.0, -1.0, NAN])
    made = hinted(lengths, margins, margins=SCORES, pairs=4)
    assert [hint.partition(" have")[0] for hint in made] == ["1 of 4 pairs (25.0%)"]


def test_of_few_pairs_nothing_is_said_about_length() -> None:
    assert hinted(pairs=3, longer={"longer_wins_accuracy": 1.0}) == []


# Rendered rows


def test_the_texts_of_the_tokens_joined_are_the_text_of_all(tokenizer: Any) -> None:
    texts = ("<|im_start|>user\nNaïve 你好 👩‍🚀?", " Ja – «é» 🙂", " नहीं 👍🏽")
    prompt, chosen, rejected = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    stop = [tokenizer.eos_token_id]
    made = tokens_of(TokenizedPair(prompt, chosen + stop, rejected + stop), 0, tokenizer)
    text = "".join(token["text"] for token in made)
    assert text == texts[0] + texts[1] + tokenizer.eos_token + texts[2] + tokenizer.eos_token
    assert "\ufffd" not in text
    assert all("\ufffd" not in token["text"] for token in made)


def test_a_token_is_prompt_answer_stop_or_masked(tokenizer: Any) -> None:
    def kinds(one: TokenizedPair, bits: int = 0) -> list[str]:
        return [token["kind"] for token in tokens_of(one, bits, tokenizer)]

    whole = pair([5, 6], [7, 8], [9, 10, 11])
    assert kinds(whole) == ["masked", "prompt", "chosen", "stop", "rejected", "rejected", "stop"]
    cut = kinds(whole, flags.CHOSEN_CUT)
    assert cut == ["masked", "prompt", "chosen", "chosen", "rejected", "rejected", "stop"]
    # Without a prompt both sequences begin with a token that nothing predicts.
    assert kinds(pair([], [7, 8], [9, 10])) == ["masked", "stop", "masked", "stop"]


def test_the_first_a_middle_and_the_longest_short_row_are_rendered(tmp_path: Path, tokenizer: Any) -> None:
    sizes = [500, 10, 20, 30, 390, 25, 401]
    pairs = [pair([1] * (size - 4), [2, 3], [4, 5]) for size in sizes]
    table = PairTable.of([store(tmp_path / "a", pairs, name="p")])
    assert [row["where"] for row in rendered(table, tokenizer)] == ["p:2", "p:4", "p:5"]
    long_ones = table.select(torch.tensor([0, 6]))
    assert [row["where"] for row in rendered(long_ones, tokenizer)] == ["p:7"]


# The whole


def facts(folder: Path, pairs: list[TokenizedPair], **settings: Any) -> SplitFacts:
    stored = store(folder, pairs, **settings)
    return SplitFacts(PairTable.of([stored]), stored.info.dropped, stored.info.rows, [None])


def a_report(tmp_path: Path, tokenizer: Any, **settings: Any) -> dict[str, Any]:
    dice = np.random.default_rng(1)
    pairs = [pair([i, i + 1], dice.integers(0, 90, 5), dice.integers(0, 90, 5)) for i in range(100)]
    pairs += pairs[:2] + [pair(one.prompt, one.rejected, one.chosen) for one in pairs[2:3]]
    dropped = {
        BROKEN: Dropped(3, ["pairs.jsonl:1", "pairs.jsonl:2"]),
        PAIR_TOO_LONG: Dropped(10, ["pairs.jsonl:9"]),
    }
    train = facts(
        tmp_path / "train",
        pairs,
        dropped=dropped,
        scripts={"Latin": 3, "Han": 1},
        margins=[1.0] * 100 + [-1.0, 0.0, NAN],
    )
    validation = facts(tmp_path / "validation", pairs[:1], name="held.jsonl")
    return examine(
        {"train": train, "validation": validation},
        tokenizer,
        Rules(64),
        max_dropped=0.05,
        plan=EpochPlan(2, 4),
        **settings,
    )


def test_rows_read_are_rows_kept_and_rows_left_out_each_with_its_reason(
    tmp_path: Path, tokenizer: Any
) -> None:
    part = a_report(tmp_path, tokenizer)["splits"]["train"]
    assert part["rows"] == {"read": 116, "kept": 103, "left_out": 13}
    assert [(one["reason"], one["rows"], one["broken"]) for one in part["left_out"]] == [
        (PAIR_TOO_LONG, 10, False),
        (BROKEN, 3, True),
    ]
    assert part["left_out"][0]["share"] == 10 / 116
    assert part["sources"][0] == {
        "source": "pairs.jsonl",
        "shape": "explicit messages",
        "rows": 116,
        "kept": 103,
        "weight": None,
    }
    assert part["scripts"] == [{"script": "Latin", "share": 0.75}, {"script": "Han", "share": 0.25}]


def test_stop_tokens_are_those_of_the_answers_that_are_trained_on_and_were_not_cut(
    tmp_path: Path, tokenizer: Any
) -> None:
    first = store(tmp_path / "a", [pair([1], [5, 2], [6, 3]), pair([1], [5, 2], [7, 2])], flags=[0, 0])
    other = store(tmp_path / "b", [pair([1], [5, 9], [8, 2])], flags=[flags.CHOSEN_CUT])
    table = PairTable.of([first, other]).select(torch.tensor([2, 0]))
    two, three = tokenizer.convert_ids_to_tokens([2, 3])
    assert stop_tokens(table, tokenizer) == [{"token": two, "answers": 2}, {"token": three, "answers": 1}]


def test_examples_say_where_both_pairs_of_a_couple_stand(tmp_path: Path, tokenizer: Any) -> None:
    suspicious = {one["kind"]: one for one in a_report(tmp_path, tokenizer)["splits"]["train"]["suspicious"]}
    assert suspicious[DUPLICATES]["examples"] == [
        "pairs.jsonl:1 and pairs.jsonl:101",
        "pairs.jsonl:2 and pairs.jsonl:102",
    ]
    assert suspicious[CONTRADICTIONS]["examples"] == ["pairs.jsonl:3 and pairs.jsonl:103"]
    assert suspicious["negative score margin"]["examples"] == ["pairs.jsonl:101"]


def test_a_report_is_plain_json_and_its_verdict_names_every_check_that_failed(
    tmp_path: Path, tokenizer: Any
) -> None:
    report = a_report(tmp_path, tokenizer)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    names = [one["name"] for one in failed(report["verdict"])]
    # 2 of 103 are copies, 2 contradict each other; 3 broken of 116 are within the limit of rows left out.
    assert names == [
        "train: broken rows",
        "train: exact duplicates",
        "train: contradictory pairs",
        "validation: pairs also in train",
        "validation: pairs whose prompt is in train",
    ]


def test_the_words_at_the_start_of_a_run_are_few_and_only_of_what_is_wrong(
    tmp_path: Path, tokenizer: Any
) -> None:
    lines = brief(a_report(tmp_path, tokenizer))
    assert len(lines) == 6
    assert lines[0].startswith("train: broken rows: 3, more than 0. ")
    assert lines[1].startswith("train: exact duplicates: 1.9%, more than 1.0%. ")
    assert lines[-1].startswith("3 more: ")
    sound = facts(tmp_path / "sound", [pair([i], [i, i + 1, 7], [i + 2, 7]) for i in range(9)])
    assert brief(examine({"train": sound}, tokenizer, Rules(64), max_dropped=0.05)) == []


def test_the_summary_is_half_a_page_and_says_what_the_report_says(tmp_path: Path, tokenizer: Any) -> None:
    text = summary(a_report(tmp_path, tokenizer))
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 110
    flat = " ".join(text.split())
    for words in (
        "train pairs.jsonl (explicit messages): rows read 116, kept 103, left out 13",
        "left out 10 pair too long (8.6%), first pairs.jsonl:9",
        "2 exact duplicates (1.9%), first pairs.jsonl:1 and pairs.jsonl:101",
        "leak validation pairs whose prompt is in train: 1; 1 of them are trained on, "
        "first held.jsonl:1 and pairs.jsonl:1",
        "13 optimizer steps",
        "verdict failed: 5 of 18 checks",
    ):
        assert words in flat
