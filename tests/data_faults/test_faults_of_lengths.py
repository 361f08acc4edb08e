"""Texts that are longer than the limits, or than anything: rows D28 to D32 of the fault table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from faults import STOP, Prepare, amid, left_out, refusal, said, spoken, texts, write

from orpo_lightning.data import flags

LONG_PROMPT = texts(1, first=900)[0] | {"prompt": "Why? " * 100}
LONG_ANSWER = texts(1, first=900)[0] | {"chosen": "Because. " * 100}


@pytest.mark.parametrize(
    ("row", "limits", "reason"),
    [
        (LONG_PROMPT, {"max_length": 100}, "prompt leaves no room for an answer"),
        (LONG_PROMPT, {"max_length": 100, "overlong": "truncate"}, "prompt leaves no room for an answer"),
        (LONG_PROMPT, {"max_length": 1000, "max_prompt_length": 50}, "prompt too long"),
        (LONG_ANSWER, {"max_length": 100}, "pair too long"),
    ],
)
def test_d28_d29_pairs_beyond_a_limit_are_left_out_and_counted(
    row: dict[str, Any], limits: dict[str, Any], reason: str, prepare: Prepare, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.jsonl", amid(row))
    data = prepare(path, **limits)
    assert left_out(data) == [(f"{path}:21", reason)]
    assert spoken(data) == said(texts())


@pytest.mark.parametrize("row", [LONG_PROMPT, LONG_ANSWER])
def test_d28_d29_or_an_error_that_names_line_numbers_and_limits(
    row: dict[str, Any], prepare: Prepare, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.jsonl", amid(row))
    tokens = {
        key: len(prepare(write(tmp_path / "one.jsonl", [row])).processor(row[key])["input_ids"])
        for key in row
    }
    found = (
        f"{tokens['prompt']} tokens of prompt and {1 + max(tokens['chosen'], tokens['rejected'])} of answer"
    )
    message = refusal(prepare, path, max_length=100, overlong="error")
    assert message.startswith(f"{path}:21: ")
    assert f": {found} (data.max_length 100, data.max_prompt_length None)" in message


def test_d28_a_long_prompt_is_cut_on_the_left_where_it_is_to_be_truncated(
    prepare: Prepare, tmp_path: Path
) -> None:
    row = LONG_PROMPT | {"prompt": "".join(f"{i}, " for i in range(200))}
    path = write(tmp_path / "x.jsonl", [row])
    whole = spoken(prepare(path))[0]
    data = prepare(path, max_length=100, max_prompt_length=40, overlong="truncate")
    (cut,) = spoken(data)
    assert len(data.train_dataset[0].prompt) == 40
    assert whole[0].endswith(cut[0])
    assert cut[1:] == whole[1:]


def test_d29_a_cut_answer_is_counted_and_ends_with_no_stop_token(prepare: Prepare, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [LONG_ANSWER])
    data = prepare(path, max_length=100, overlong="truncate")
    (pair,) = data.train_dataset
    stop = data.processor.convert_tokens_to_ids(STOP)
    assert len(pair.prompt) + len(pair.chosen) == 100
    assert LONG_ANSWER["chosen"].startswith(data.processor.decode(pair.chosen))
    assert stop not in pair.chosen
    assert pair.rejected[-1] == stop
    assert data.report()["train"].cut_answers == 1
    assert "1 answers cut" in str(data.report()["train"])
    assert data.report()["train"].stop_tokens == {STOP: 1}
    assert data.train_dataset.flags.tolist() == [flags.CHOSEN_CUT]


def test_d30_no_pair_is_kept_of_which_one_answer_was_wholly_cut_away(
    prepare: Prepare, tmp_path: Path
) -> None:
    # At every limit, from one that holds nothing of the answers to one that holds all.
    row = LONG_ANSWER | {"rejected": "No."}
    short = texts(1)[0] | {"prompt": "Q"}  # that this one stays leaves a table to look at
    path = write(tmp_path / "x.jsonl", [row, short])
    prompt = len(prepare(path).train_dataset[0].prompt)
    for limit in range(prompt - 2, prompt + 6):
        data = prepare(path, max_length=max(limit, 2), overlong="truncate", cache_dir=str(tmp_path / "c"))
        kept = [min(len(pair.chosen), len(pair.rejected)) for pair in data.train_dataset]
        assert min(kept) >= 1
        assert len(kept) + len(left_out(data)) == 2
        if limit <= prompt:
            assert (f"{path}:1", "prompt leaves no room for an answer") in left_out(data)


@pytest.mark.parametrize(("same", "kept"), [("Because. " * 99, False), ("Because. " * 2, True)])
def test_d31_a_pair_that_is_identical_after_truncation_is_left_out(
    same: str, kept: bool, prepare: Prepare, tmp_path: Path
) -> None:
    row = texts(1, first=900)[0] | {"chosen": same + "It is so.", "rejected": same + "It is not."}
    path = write(tmp_path / "x.jsonl", amid(row))
    data = prepare(path, max_length=100, overlong="truncate")
    assert left_out(data) == ([] if kept else [(f"{path}:21", "identical after truncation")])


@pytest.mark.parametrize(
    ("key", "overlong", "reason"),
    [
        ("chosen", "drop", "pair too long"),
        ("chosen", "truncate", None),
        ("prompt", "drop", "prompt leaves no room for an answer"),
    ],
)
def test_d32_a_row_of_20_megabytes_is_cut_or_left_out_in_seconds(
    key: str, overlong: str, reason: str | None, prepare: Prepare, tmp_path: Path
) -> None:
    huge = texts(1, first=900)[0] | {key: "the cat and you " * (20_000_000 // 16)}
    path = write(tmp_path / "x.jsonl", amid(huge))
    start = time.monotonic()
    data = prepare(path, overlong=overlong)
    assert time.monotonic() - start < 60
    if reason is None:
        assert left_out(data) == []
        assert len(data.train_dataset[20].prompt) + len(data.train_dataset[20].chosen) == 1024
    else:
        assert left_out(data) == [(f"{path}:21", reason)]
        listed = (data.train_dataset.sources[0].folder / "dropped.jsonl").stat().st_size
        assert listed < 100_000
