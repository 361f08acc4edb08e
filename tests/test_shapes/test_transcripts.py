"""Transcripts of `Human:` and `Assistant:`: the turns before the last are the prompt."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_lightning.data.records import to_record
from tests.shape_samples import assistant, user
from tests.test_shapes.checks import YES, fails, record


def test_a_transcript_becomes_turns_up_to_itslast() -> None:
    shared = (
        "\n\nHuman: Hi: there\n\nAssistant: Hello.\n\n\nAnd: more"
        "\n\nHuman:\n2 + 2?\nHuman: is it?\n\nAssistant:"
    )
    prompt = [user("Hi: there"), assistant("Hello.\n\n\nAnd: more"), user("2 + 2?\nHuman: is it?")]
    assert to_record({"chosen": shared + " yes", "rejected": shared + "no\n"}, "x:3") == record(prompt)


def test_a_transcript_may_have_windows_lines_and_no_empty_line_in_front() -> None:
    row = {"chosen": "Human: p\r\n\r\nAssistant: yes", "rejected": " Human: p\n\nAssistant: no"}
    assert to_record(row, "x:3") == record([user("p")])


def test_an_empty_answer_of_a_transcript_is_left_for_the_rules_about_answers() -> None:
    row = {"chosen": "Human: p\n\nAssistant: yes", "rejected": "Human: p\n\nAssistant:"}
    assert to_record(row, "x:3") == record([user("p")], YES, [assistant("")])


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        (
            "Human: p\n\nAssistant: a",
            "Human: q\n\nAssistant: b",
            "x:3: chosen and rejected answer different prompts: turn 0 differs",
        ),
        (
            "Human: p\n\nAssistant: a\n\nHuman: q\n\nAssistant: b",
            "Human: p\n\nAssistant: a",
            "x:3: chosen and rejected answer different prompts: "
            "turns before the answer: 3 (chosen), 1 (rejected)",
        ),
        (
            "Human: p\n\nAssistant: a\n\nHuman: thanks",
            "Human: p\n\nAssistant: b",
            "x:3: chosen: the last message must be from 'assistant', found 'user'",
        ),
        ("yes", "no", "x:3: chosen: expected a transcript that begins with 'Human:', found other text"),
        ("So: Human: p\n\nAssistant: a", "", "x:3: chosen: expected a transcript that begins"),
        ("Assistant: a", "Assistant: b", "x:3: no turn before the answer"),
        (None, "b", "x:3: chosen must be text, found null"),
    ],
)
def test_transcripts_that_cannot_be_used_are_named(chosen: Any, rejected: Any, message: str) -> None:
    fails({"chosen": chosen, "rejected": rejected}, message, "hh")


def test_a_transcript_of_many_empty_lines_takes_no_long_time() -> None:
    row = {"chosen": "Human: p" + "\n" * 10**6 + "Assistant: a", "rejected": "Human: p\n\nAssistant: b"}
    assert to_record(row, "x:3", "hh") == record([user("p")], [assistant("a")], [assistant("b")])
