"""The left-padded layout, with every expected number worked out by hand."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

from orpo_lightning.batching import Normalisers, PairBatch, TokenizedPair, pad_pairs
from orpo_lightning.batching.padded import count_targets, pair_lengths

PAD = 9
LONG = TokenizedPair(prompt=[1, 2, 3], chosen=[4, 5], rejected=[6])
SHORT = TokenizedPair(prompt=[7], chosen=[8], rejected=[5, 6])


def test_rows_are_chosen_then_rejected_and_all_end_in_the_last_column() -> None:
    batch = pad_pairs([LONG, SHORT], PAD)
    assert batch.model_inputs["input_ids"].tolist() == [
        [1, 2, 3, 4, 5],  # chosen of LONG
        [PAD, PAD, PAD, 7, 8],  # chosen of SHORT
        [PAD, 1, 2, 3, 6],  # rejected of LONG
        [PAD, PAD, 7, 5, 6],  # rejected of SHORT
    ]
    assert batch.model_inputs["attention_mask"].tolist() == [
        [1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
    ]
    assert batch.num_pairs == 2


def test_position_ids_count_from_the_first_real_token() -> None:
    assert pad_pairs([LONG, SHORT], PAD).model_inputs["position_ids"].tolist() == [
        [0, 1, 2, 3, 4],
        [0, 0, 0, 0, 1],
        [0, 0, 1, 2, 3],
        [0, 0, 0, 1, 2],
    ]


def test_targets_are_the_chosen_sequence_but_its_first_token_and_the_rejected_answer() -> None:
    batch = pad_pairs([LONG, SHORT], PAD)
    assert batch.target_ids.tolist() == [2, 3, 4, 5, 8, 6, 5, 6]
    assert batch.target_sequences.tolist() == [0, 0, 0, 0, 1, 2, 3, 3]
    assert batch.target_is_completion.tolist() == [False, False, True, True, True, True, True, True]


def test_target_positions_are_where_the_token_before_stands_in_the_flattened_rows() -> None:
    batch = pad_pairs([LONG, SHORT], PAD)
    # Rows are 5 wide: row 0 predicts from columns 0-3, row 1 from 3, row 2 from 3, row 3 from 2 and 3.
    assert batch.target_positions.tolist() == [0, 1, 2, 3, 8, 13, 17, 18]


def test_the_first_answer_token_of_an_empty_prompt_has_no_predictor_and_is_no_target() -> None:
    batch = pad_pairs([TokenizedPair([], [1, 2], [3, 4, 5])], PAD)
    assert batch.target_ids.tolist() == [2, 4, 5]
    assert batch.target_positions.tolist() == [1, 3, 4]
    assert batch.target_is_completion.all()


def test_a_pad_id_that_is_also_a_stop_token_changes_neither_mask_nor_targets() -> None:
    eos = 5
    pair = TokenizedPair([1, eos], [2, eos], [eos])
    other, same = pad_pairs([pair, SHORT], PAD), pad_pairs([pair, SHORT], eos)
    assert same.target_ids.tolist() == [eos, 2, eos, 8, eos, 5, 6]
    for name in ("target_ids", "target_positions", "target_sequences", "target_is_completion"):
        assert torch.equal(getattr(other, name), getattr(same, name))
    assert torch.equal(other.model_inputs["attention_mask"], same.model_inputs["attention_mask"])


@pytest.mark.parametrize("without", [TokenizedPair([1, 2], [], []), TokenizedPair([], [], [])])
def test_a_pair_without_answers_has_no_target_and_leaves_the_others_theirs(without: TokenizedPair) -> None:
    batch = pad_pairs([LONG, without], PAD)
    assert batch.num_pairs == 2
    assert batch.target_ids.tolist() == [2, 3, 4, 5, 6]
    assert batch.target_sequences.tolist() == [0, 0, 0, 0, 2]


@pytest.mark.parametrize("answers", [([], [3]), ([3], [])])
def test_a_pair_with_one_empty_answer_has_no_target_at_all(answers: tuple[list[int], list[int]]) -> None:
    batch = pad_pairs([TokenizedPair([1, 2], *answers)], PAD)
    assert batch.target_ids.tolist() == []


def test_a_sequence_without_tokens_sees_one_pad_so_that_no_attention_kernel_gives_nan() -> None:
    batch = pad_pairs([TokenizedPair([], [], [])], PAD)
    assert batch.model_inputs["input_ids"].tolist() == [[PAD], [PAD]]
    assert batch.model_inputs["attention_mask"].tolist() == [[1], [1]]
    hidden = tiny_model("llama").model(**batch.model_inputs).last_hidden_state
    assert torch.isfinite(hidden).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_and_neighbours_do_not_change_the_logits_at_a_target(attention: str) -> None:
    model = tiny_model("llama", attn_implementation=attention)
    alone = pad_pairs([SHORT], PAD)
    padded = pad_pairs([LONG, SHORT, TokenizedPair([], [], [])], PAD)

    def at_targets(batch: PairBatch, sequence: int) -> torch.Tensor:
        logits = model(**batch.model_inputs).logits.flatten(0, 1)
        return logits[batch.target_positions[batch.target_sequences == sequence]]

    torch.testing.assert_close(at_targets(padded, 1), at_targets(alone, 0))
    torch.testing.assert_close(at_targets(padded, 4), at_targets(alone, 1))


def test_normalisers_travel_with_the_batch() -> None:
    normalisers = Normalisers(*(torch.tensor(total) for total in (2, 30, 12)))
    assert pad_pairs([LONG], PAD, normalisers).normalisers is normalisers
    assert pad_pairs([LONG], PAD).normalisers is None


def test_counted_targets_are_those_that_the_layout_scores() -> None:
    pairs = [
        LONG,
        SHORT,
        TokenizedPair([], [1, 2], [3, 4, 5]),
        TokenizedPair([], [1], [2, 3]),  # the chosen answer's only token has no predictor
        TokenizedPair([1, 2], [], [3]),
        TokenizedPair([1, 2], [], []),
        TokenizedPair([], [], []),
    ]
    counted = count_targets(pair_lengths(pairs))
    assert counted.tolist() == [[2, 2, 1], [0, 1, 2], [0, 1, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    batch = pad_pairs(pairs, PAD)
    sequences, is_completion = batch.target_sequences, batch.target_is_completion
    for i, (prompt, chosen, rejected) in enumerate(counted.tolist()):
        assert ((sequences == i) & ~is_completion).sum() == prompt
        assert ((sequences == i) & is_completion).sum() == chosen
        assert (sequences == len(pairs) + i).sum() == rejected
