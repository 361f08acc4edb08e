"""Our own columns: a prompt and two answers, or two texts or conversations that begin alike."""

from __future__ import annotations

import re
from typing import Any

import pytest

from orpo_lightning.data.records import PreferenceRecord, split_shared_prefix, to_record
from orpo_lightning.errors import DataError
from tests.shape_samples import assistant, system, user


def fails(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        to_record(row, "x.jsonl:3")


def test_explicit_text_stays_as_it_is() -> None:
    row = {"prompt": "Q: ", "chosen": " yes\n", "rejected": "2024-01-01", "score": 3}
    assert to_record(row, "x.jsonl:3") == PreferenceRecord("Q: ", " yes\n", "2024-01-01", "x.jsonl:3")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: red? A: yes", "Q: red? A: no", "Q: red? A:"),
        ("say the cat", "say the car", "say the"),
        ("count: 1", "count: 12", "count:"),
        ("Human: hi\n\nAssistant:Yes", "Human: hi\n\nAssistant:No", "Human: hi\n\nAssistant:"),
        ("A:\nyes", "A:\nno", "A:\n"),
        ("it is. So", "it is! So", "it is"),
        ("more", "more of it", "more"),
    ],
)
def test_implicit_text_parts_before_the_first_differing_word_and_its_space(
    chosen: str, rejected: str, prompt: str
) -> None:
    record = to_record({"chosen": chosen, "rejected": rejected}, "x", shape="implicit text")
    assert record.prompt == prompt
    assert (record.chosen, record.rejected) == (chosen[len(prompt) :], rejected[len(prompt) :])


def test_identical_implicit_text_is_left_to_be_counted_and_not_an_error() -> None:
    assert split_shared_prefix("a b", "a b", "x") == ("", "a b", "a b")


@pytest.mark.parametrize(("chosen", "rejected"), [("yes", "no"), ("cat", "car"), (" yes", " no")])
def test_implicit_text_that_shares_no_beginning_is_an_error(chosen: str, rejected: str) -> None:
    fails({"chosen": chosen, "rejected": rejected}, "x.jsonl:3: there is no key 'prompt', and chosen and")


def test_explicit_messages_may_hold_the_reply_only_or_repeat_the_prompt() -> None:
    turns = [system("Be brief."), user("Hi"), assistant("Hello"), user("2 + 2?")]
    expected = PreferenceRecord(turns, [assistant("4")], [assistant("5")], "x")
    replies = {"prompt": turns, "chosen": [assistant("4")], "rejected": [assistant("5")]}
    whole = {"prompt": turns, "chosen": [*turns, assistant("4")], "rejected": [*turns, assistant("5")]}
    mixed = {"prompt": turns, "chosen": [assistant("4")], "rejected": [*turns, assistant("5")]}
    strings = {"prompt": turns, "chosen": "4", "rejected": "5"}
    for row in (replies, whole, mixed, strings):
        assert to_record(row, "x") == expected


def test_implicit_messages_are_answered_by_the_last_turn_only() -> None:
    turns = [user("Hi"), assistant("Hello"), user("2 + 2?")]
    row = {"chosen": [*turns, assistant("4")], "rejected": [*turns, assistant("5")]}
    assert to_record(row, "x") == PreferenceRecord(turns, [assistant("4")], [assistant("5")], "x")


def test_messages_win_over_the_plain_prompt_beside_them() -> None:
    row = {
        "prompt": "2 + 2?",
        "prompt_id": "f00",
        "chosen": [user("2 + 2?"), assistant("4")],
        "rejected": [user("2 + 2?"), assistant("5")],
        "messages": [user("2 + 2?"), assistant("4")],
        "score_chosen": 8.0,
        "score_rejected": 5.0,
    }
    expected = PreferenceRecord([user("2 + 2?")], [assistant("4")], [assistant("5")], "x", margin=3.0)
    assert to_record(row, "x") == expected


def test_a_plain_prompt_before_single_replies_is_the_user_turn() -> None:
    row = {"prompt": "2 + 2?", "chosen": [assistant("4")], "rejected": [assistant("5")]}
    assert to_record(row, "x").prompt == [user("2 + 2?")]


def test_a_system_column_comes_in_front_of_messages_without_a_system_turn() -> None:
    row = {"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert to_record(row | {"system": "Be brief."}, "x").prompt == [system("Be brief."), user("Hi")]
    assert to_record(row | {"system": ""}, "x").prompt == [user("Hi")]
    own = row | {"prompt": [system("Mine."), user("Hi")], "system": "Be brief."}
    assert to_record(own, "x").prompt == [system("Mine."), user("Hi")]


def test_messages_keep_role_and_content_only() -> None:
    chosen = [assistant("a") | {"score": 1, "tool_calls": None}]
    row = {"prompt": [user("Hi")], "chosen": chosen, "rejected": [assistant("b")]}
    assert to_record(row, "x").chosen == [assistant("a")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "x.jsonl:3: expected an object with chosen and rejected, found a list"),
        (
            {"prompt": "p", "win": "a", "chosen": "b"},
            "x.jsonl:3: key 'rejected' is missing; the row's keys are 'prompt', 'win', 'chosen'",
        ),
        (
            {"prompt": "p", "chosen": None, "rejected": "b"},
            "chosen must be text or a list of messages, found null",
        ),
        (
            {"prompt": "p", "chosen": "a", "rejected": 5},
            "rejected must be text or a list of messages, found int 5",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": True}, "found true or false"),
        ({"prompt": "p", "chosen": "a", "rejected": float("nan")}, "found float nan"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "x.jsonl:3: prompt must be text, found null"),
        (
            {"prompt": "p", "chosen": "a", "rejected": [assistant("b")]},
            "found: chosen is text, rejected a list",
        ),
        (
            {"prompt": "p", "chosen": "a\ud800", "rejected": "b"},
            "chosen is not valid Unicode: lone surrogate at",
        ),
    ],
)
def test_rows_of_no_known_shape_are_named_with_what_was_found(row: Any, message: str) -> None:
    fails(row, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": 5}, "x.jsonl:3: prompt must be text or a list of messages, found int 5"),
        ({"chosen": []}, "chosen: the last message must be from 'assistant', found no message"),
        (
            {"chosen": [user("a")]},
            "x.jsonl:3: chosen: the last message must be from 'assistant', found 'user'",
        ),
        ({"chosen": ["a"]}, "chosen[0]: expected a message with role and content, found text"),
        (
            {"chosen": [{"role": "assistant"}]},
            "chosen[0]: expected a message with role and content, found keys",
        ),
        (
            {"chosen": [{"role": "bot", "content": "a"}]},
            "role must be one of system, user, assistant, tool, found",
        ),
        ({"chosen": [{"role": "assistant", "content": None}]}, "chosen[0].content must be text, found null"),
        (
            {"prompt": [user("Hi"), {"role": "user", "content": [{"type": "image"}]}]},
            "x.jsonl:3: prompt[1].content[0]: text only: expected a part of type 'text', found type 'image'",
        ),
        ({"chosen": [user("Ho"), assistant("a")]}, "chosen begins with a user turn but does not repeat"),
        (
            {
                "prompt": None,
                "chosen": [user("Hi"), assistant("a")],
                "rejected": [user("Ho"), assistant("b")],
            },
            "x.jsonl:3: chosen and rejected answer different prompts: turn 0 differs",
        ),
        (
            {"rejected": [assistant("b"), user("Really?"), assistant("c")]},
            "different prompts: turns before the answer: 1 (chosen), 3 (rejected)",
        ),
        ({"prompt": None}, "x.jsonl:3: no turn before the answer"),
    ],
)
def test_messages_that_cannot_be_used_are_named_by_place(changes: dict[str, Any], message: str) -> None:
    fails(
        {"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]} | changes, message
    )
