"""The flat layout: where each token stands, what is scored, and who sees whom."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orpo_lightning.batching import Normalisers, PairBatch, TokenizedPair, lay_flat, pad_pairs
from orpo_lightning.batching.shared_prefix import KEYWORD, SharedPrefix

FIRST = TokenizedPair([1, 2, 3], [4, 5], [6])
SECOND = TokenizedPair([7], [8], [9, 10])
FILLER = TokenizedPair([], [], [])

answers = st.lists(st.integers(0, 99), max_size=5)
pairs_of_any_kind = st.lists(st.builds(TokenizedPair, answers, answers, answers), min_size=1, max_size=5)


def plan_of(batch: PairBatch) -> SharedPrefix:
    return batch.model_inputs[KEYWORD]


def test_pairs_stand_one_after_the_other_and_a_rejected_answer_goes_on_where_its_prompt_ended() -> None:
    batch = lay_flat([FIRST, SECOND])
    assert batch.model_inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert batch.model_inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 1, 2]]
    assert "attention_mask" not in batch.model_inputs


def test_the_prompts_last_token_predicts_the_first_token_of_both_answers() -> None:
    batch = lay_flat([FIRST, SECOND])
    assert batch.target_ids.tolist() == [2, 3, 4, 5, 8, 6, 9, 10]
    assert batch.target_positions.tolist() == [0, 1, 2, 3, 6, 2, 6, 8]
    assert batch.target_sequences.tolist() == [0, 0, 0, 0, 1, 2, 3, 3]
    assert batch.target_is_completion.tolist() == [False, False, True, True, True, True, True, True]


def test_the_plan_names_each_sequences_queries_once_and_its_keys_whole() -> None:
    plan = plan_of(lay_flat([FIRST, SECOND]))
    assert plan.lengths == ((3, 2, 1), (1, 1, 2))
    assert plan.longest == 5
    assert plan.query_ends.tolist() == [0, 5, 6, 8, 10]
    assert plan.keys.tolist() == [0, 1, 2, 3, 4, *[0, 1, 2, 5], *[6, 7], *[6, 8, 9]]
    assert plan.key_ends.tolist() == [0, 5, 9, 11, 14]
    assert plan.query_ends.dtype == plan.key_ends.dtype == torch.int32


@given(pairs_of_any_kind)
@settings(max_examples=150, deadline=None)
def test_the_same_targets_as_in_the_padded_layout_each_predicted_by_the_token_before_it(
    pairs: list[TokenizedPair],
) -> None:
    flat, padded = lay_flat(pairs), pad_pairs(pairs, pad_id=0)
    for name in ("target_ids", "target_sequences", "target_is_completion"):
        assert torch.equal(getattr(flat, name), getattr(padded, name)), name
    for name in ("input_ids", "position_ids"):
        found, wanted = (batch.model_inputs[name].flatten() for batch in (flat, padded))
        assert torch.equal(found[flat.target_positions], wanted[padded.target_positions]), name


@given(pairs_of_any_kind)
@settings(max_examples=150, deadline=None)
def test_the_keys_of_a_sequence_are_its_tokens_and_its_queries_the_last_of_them(
    pairs: list[TokenizedPair],
) -> None:
    batch = lay_flat(pairs)
    plan, ids = plan_of(batch), batch.model_inputs["input_ids"][0]
    sequences = [side for pair in pairs for side in (pair.prompt + pair.chosen, pair.prompt + pair.rejected)]
    if not any(sequences):
        return
    keys, queries = plan.key_ends.tolist(), plan.query_ends.tolist()
    for i, tokens in enumerate(sequences):
        stands = plan.keys[keys[i] : keys[i + 1]]
        assert ids[stands].tolist() == tokens
        assert batch.model_inputs["position_ids"][0, stands].tolist() == list(range(len(tokens)))
        own = torch.arange(queries[i], queries[i + 1])
        assert torch.equal(stands[len(stands) - len(own) :], own)


def test_a_batch_without_any_token_is_a_token_without_a_target() -> None:
    batch = lay_flat([FILLER, FILLER])
    assert batch.num_pairs == 2
    assert batch.model_inputs["input_ids"].shape == (1, 1)
    assert batch.target_ids.tolist() == []


def test_a_pair_without_answers_has_no_target_and_leaves_the_others_theirs() -> None:
    batch = lay_flat([TokenizedPair([1, 2], [], [3]), SECOND])
    assert batch.target_ids.tolist() == [8, 9, 10]
    assert batch.target_sequences.tolist() == [1, 3, 3]


def test_normalisers_travel_with_the_batch() -> None:
    normalisers = Normalisers(*(torch.tensor(total) for total in (2, 30, 12)))
    assert lay_flat([FIRST], normalisers=normalisers).normalisers is normalisers
    assert lay_flat([FIRST]).normalisers is None
