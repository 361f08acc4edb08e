"""Tokens and labels beside TRL's own: equal where TRL is right, and each difference by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model, tiny_tokenizer

from orpo_lightning.batching import TokenizedPair
from orpo_lightning.data.records import to_record
from orpo_lightning.data.tokenization import pairs_of, tokenize_records

trl_oracle = pytest.importorskip("trl_oracle", reason="TRL is the oracle: pip install 'orpo-lightning[dev]'")

MESSAGES = [
    {
        "prompt": [{"role": "user", "content": "one and two"}],
        "chosen": [{"role": "assistant", "content": "three is the one"}],
        "rejected": [{"role": "assistant", "content": "two"}],
    },
    {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "up"},
            {"role": "assistant", "content": "down"},
            {"role": "user", "content": "left"},
        ],
        "chosen": [{"role": "assistant", "content": "the other way"}],
        "rejected": [{"role": "assistant", "content": "you"}],
    },
]


def ours(rows: list[dict[str, Any]], tokenizer: Any, **limits: Any) -> list[TokenizedPair]:
    """Return our tokens."""
    records = [to_record(row, f"row {number}") for number, row in enumerate(rows)]
    return pairs_of(tokenize_records(records, tokenizer, **({"max_length": 200} | limits)))


def theirs(rows: list[dict[str, Any]], tokenizer: Any, folder: Path, **settings: Any) -> list[TokenizedPair]:
    """Return TRL's."""
    model = tiny_model("llama", tokenizer=tokenizer)
    return trl_oracle.pairs_of(trl_oracle.make_trainer(model, tokenizer, rows, folder, **settings))


def test_plain_strings_have_trls_tokens(tmp_path: Path) -> None:
    rows, tokenizer = trl_oracle.text_rows(12), tiny_tokenizer("chatml")
    assert ours(rows, tokenizer) == theirs(rows, tokenizer, tmp_path)


def test_plain_strings_with_a_tokenizer_that_adds_bos_have_trls_tokens(tmp_path: Path) -> None:
    rows, tokenizer = trl_oracle.text_rows(12), tiny_tokenizer("mistral")
    tokenizer.pad_token = tokenizer.eos_token
    found = ours(rows, tokenizer)
    assert found == theirs(rows, tokenizer, tmp_path)
    assert all(pair.prompt.count(tokenizer.bos_token_id) == 1 for pair in found)


def test_difference_one_trl_ends_chatml_answers_with_a_newline_and_a_second_stop_token(
    tmp_path: Path,
) -> None:
    tokenizer = tiny_tokenizer("chatml")
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for mine, other in zip(ours(MESSAGES, tokenizer), theirs(MESSAGES, tokenizer, tmp_path), strict=True):
        assert mine.prompt == other.prompt
        for one, two in ((mine.chosen, other.chosen), (mine.rejected, other.rejected)):
            assert one.count(stop) == 1
            assert two == [*one, *newline, stop]


def test_difference_two_trl_forces_a_bos_the_tokenizer_itself_would_not_add(tmp_path: Path) -> None:
    rows, tokenizer = trl_oracle.text_rows(3), tiny_tokenizer("chatml")
    tokenizer.bos_token = "<|im_start|>"  # defined, as SmolLM2's is, but put in front of nothing
    for mine, other in zip(ours(rows, tokenizer), theirs(rows, tokenizer, tmp_path), strict=True):
        assert tokenizer(rows[0]["prompt"])["input_ids"][0] != tokenizer.bos_token_id
        assert other == TokenizedPair([tokenizer.bos_token_id, *mine.prompt], mine.chosen, mine.rejected)


def test_difference_three_trl_keeps_a_pair_whose_answer_is_cut_away_and_ours_drops_it(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    rows = [
        {"prompt": "one " * 30, "chosen": " yes", "rejected": " no"},
        *trl_oracle.text_rows(1),
    ]
    kept = ours(rows, tokenizer, max_length=60, overlong="truncate")
    reference = theirs(rows, tokenizer, tmp_path, max_length=60)
    assert reference[0].chosen == []
    assert kept == reference[1:]


def test_an_answer_that_is_cut_is_cut_where_trl_cuts_it(tmp_path: Path) -> None:
    rows, tokenizer = (
        [{"prompt": "one two", "chosen": " up" * 30, "rejected": " down"}],
        tiny_tokenizer("chatml"),
    )
    found = ours(rows, tokenizer, max_length=40, overlong="truncate")
    assert found == theirs(rows, tokenizer, tmp_path, max_length=40)
    assert tokenizer.eos_token_id not in found[0].chosen
