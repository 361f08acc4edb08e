"""What a record's texts say before any token is made."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_lightning.data import flags
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.records import PreferenceRecord
from orpo_lightning.data.screening import Screen


def text(prompt: str, chosen: str, rejected: str, **more: Any) -> PreferenceRecord:
    return PreferenceRecord(prompt, chosen, rejected, "x:1", **more)


def chat(prompt: list[dict[str, Any]], chosen: str, rejected: str) -> PreferenceRecord:
    answers = ([{"role": "assistant", "content": answer}] for answer in (chosen, rejected))
    return PreferenceRecord(prompt, *answers, "x:1")


def reason(record: PreferenceRecord, **rules: Any) -> str | None:
    found = Screen(["</s>", "<|im_end|>"], **rules)(record)
    return found.reason if isinstance(found, LeftOut) else None


ASK = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("yes", "yes\n"),
        ("yes", "yes</s>"),
        ("yes<|im_end|>\n", " yes </s></s>"),
        ("caf\u00e9", "cafe\u0301"),
        ("yes", "y\u200bes\ufeff"),
        ("", " \u200b"),
    ],
)
def test_answers_that_look_the_same_are_identical(chosen: str, rejected: str) -> None:
    assert reason(text("Hi", chosen, rejected)) == "identical after normalisation"
    assert reason(chat(ASK, chosen, rejected)) == "identical after normalisation"
    assert reason(text("Hi", chosen, chosen)) == "identical answers"


@pytest.mark.parametrize(
    ("chosen", "rejected"), [("yes", "Yes"), ("yes", "yes."), ("a b", "ab"), ("</s> a", "a")]
)
def test_answers_that_differ_in_anything_visible_are_not(chosen: str, rejected: str) -> None:
    assert reason(text("Hi", chosen, rejected)) is None


@pytest.mark.parametrize("nothing", ["", " \n\t", "</s>", "\u200b\u200d", "\u2060 <|im_end|>"])
def test_an_answer_that_shows_nothing_is_empty(nothing: str) -> None:
    assert reason(text("Hi", nothing, "yes")) == reason(text("Hi", "yes", nothing)) == "empty answer"
    assert reason(chat(ASK, "yes", nothing)) == "empty answer"


def test_an_answer_that_only_calls_a_tool_is_not_empty() -> None:
    call = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}]
    other = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "g"}}]}]
    assert reason(PreferenceRecord(ASK, call, other, "x:1")) is None
    assert reason(PreferenceRecord(ASK, call, call, "x:1")) == "identical answers"


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_a_prompt_that_says_nothing_is_left_out_unless_it_is_allowed(prompt: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
    for record in (text(prompt, "yes", "no"), chat(messages, "yes", "no")):
        assert reason(record) == "empty prompt"
        assert reason(record, allow_empty_prompt=True) is None


@pytest.mark.parametrize(
    ("margin", "least", "expected"),
    [
        (1.0, 1.0, None),
        (0.9, 1.0, "score margin below data.min_margin"),
        (-2.0, 0.0, "score margin below data.min_margin"),
        (None, 0.5, "no scores to compare with data.min_margin"),
        (-2.0, None, None),
    ],
)
def test_score_margins_are_compared_with_the_least_that_is_asked_for(
    margin: float | None, least: float | None, expected: str | None
) -> None:
    assert reason(text("Hi", "yes", "no", margin=margin), min_margin=least) == expected


def test_a_prompt_repeated_in_both_answers_is_noted_and_taken_off_on_request() -> None:
    record = text("What is two?", "What is two? Two.", " What is two? Three.")
    assert Screen([])(record) == (record, flags.PROMPT_REPEATED)
    stripped, noted = Screen([], repeated_prompt="strip")(record)
    assert (stripped.chosen, stripped.rejected, noted) == (" Two.", " Three.", flags.PROMPT_REPEATED)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("What is two?", "What is two? Two.", "Two."),
        ("Hi", "Hi there", "Hi you"),
        ("What is two?", "Two", "Six"),
    ],
)
def test_a_prompt_that_one_answer_or_chance_repeats_is_not(prompt: str, chosen: str, rejected: str) -> None:
    assert Screen([])(text(prompt, chosen, rejected)) == (text(prompt, chosen, rejected), 0)


def test_answers_of_nothing_but_the_prompt_are_empty_once_it_is_taken_off() -> None:
    record = text("What is two?", "What is two?", "What is two? Three.")
    assert reason(record, repeated_prompt="strip") == "empty answer"


@pytest.mark.parametrize(("content", "noted"), [("a\x00b", flags.CONTROL_CHARACTER), ("a\tb\r\n", 0)])
def test_control_characters_are_noted_and_kept(content: str, noted: int) -> None:
    record = chat(ASK, content, "no")
    assert Screen([])(record) == (record, noted)


def test_what_is_left_out_carries_its_content_place_and_rows() -> None:
    found = Screen([])(text("Hi", "a", "a", rows=2))
    assert found == LeftOut(
        "x:1", "identical answers", "x:1: identical answers",
        {"prompt": "Hi", "chosen": "a", "rejected": "a"}, 2,
    )  # fmt: skip
