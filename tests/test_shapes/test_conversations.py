"""Messages in every arrangement of columns, with system turns and tools."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_lightning.data.records import to_record
from tests.shape_samples import Rows, assistant, gpt, human, system, user
from tests.test_shapes.checks import NO, REPLIES, TOOL, YES, fails, record


def test_a_conversation_is_answered_by_messages_lists_of_them_or_texts() -> None:
    turns = [system("s"), user("a"), assistant("b"), user("c")]
    for chosen, rejected in ((YES[0], NO[0]), (YES, NO), ("yes", "no"), ([*turns, *YES], NO[0])):
        row = {"messages": turns, "chosen": chosen, "rejected": rejected}
        assert to_record(row, "x:3", "conversation") == record(turns)
    for column in ("conversations", "conversation"):
        row = {column: [human("a"), gpt("b"), human("c")], "chosen": gpt("yes"), "rejected": gpt("no")}
        assert to_record(row | {"system": "s"}, "x:3") == record(turns)


def test_a_conversation_brings_its_tools() -> None:
    call = '{"name": "add", "arguments": {"a": 1}}'
    row = {
        "conversations": [
            human("1 + 0?"),
            {"from": "function_call", "value": call},
            {"from": "observation", "value": "1"},
        ],
        "chosen": gpt("yes"),
        "rejected": {"from": "function_call", "value": call},
        "tools": '[{"name": "add"}]',
    }
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    calling = {"role": "assistant", "content": "", "tool_calls": calls}
    prompt = [user("1 + 0?"), calling, {"role": "tool", "content": "1"}]
    assert to_record(row, "x:3") == record(prompt, YES, [calling], tools=[{"name": "add"}])


def test_the_openai_format_is_read_with_its_tools() -> None:
    row = {
        "input": {"messages": [system("s"), user("p")], "tools": [TOOL], "parallel_tool_calls": True},
        "preferred_output": YES,
        "non_preferred_output": NO,
    }
    assert to_record(row, "x:3") == record([system("s"), user("p")], tools=[TOOL])
    assert to_record(row | {"input": {"messages": [user("p")], "tools": []}}, "x:3") == record([user("p")])


def test_a_conversation_that_ends_with_the_chosen_answer_stands_beside_the_rejected_one() -> None:
    turns = [user("a"), assistant("b"), user("c")]
    row = {"messages": [*turns, *YES], "rejected_response": "no", "system": "s"}
    assert to_record(row, "x:3") == record([system("s"), *turns])
    whole = {"messages": [*turns, *YES], "rejected_messages": [*turns, *NO]}
    assert to_record(whole, "x:3") == record(turns)


def test_answers_that_only_call_tools_are_answers() -> None:
    def calling(number: int) -> Rows:
        call = {"type": "function", "function": {"name": "add", "arguments": {"a": number}}}
        return [{"role": "assistant", "content": None, "tool_calls": [call]}]

    row = {"prompt": [user("p")], "chosen": calling(1), "rejected": calling(2), "tools": [TOOL]}
    expected = [[calling(number)[0] | {"content": ""}] for number in (1, 2)]
    assert to_record(row, "x:3") == record([user("p")], *expected, tools=[TOOL])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (REPLIES | {"messages": []}, "x:3: messages is empty; expected the turns before the answer"),
        (
            REPLIES | {"messages": [human("p"), 3]},
            "x:3: messages[1]: expected a message with role and content",
        ),
        (
            {"messages": [user("p")], "chosen": user("a"), "rejected": NO[0]},
            "x:3: chosen: the last message must be from 'assistant', found 'user'",
        ),
        (
            {"messages": [user("p")], "chosen": [user("q"), *YES], "rejected": NO},
            "x:3: chosen begins with a user turn but does not repeat the prompt's turns",
        ),
        (
            {"input": [user("p")], "preferred_output": YES, "non_preferred_output": NO},
            "x:3: input must be an object with a list of messages, found a list",
        ),
        (
            {"input": {"messages": []}, "preferred_output": YES, "non_preferred_output": NO},
            "x:3: input.messages is empty",
        ),
        (
            {"input": {"messages": [user("p")]}, "preferred_output": YES, "non_preferred_output": None},
            "x:3: non_preferred_output must be text or a list of messages, found null",
        ),
        (
            {"messages": [user("p")], "rejected_response": "no"},
            "x:3: messages: the last message must be from 'assistant', found 'user'",
        ),
        (
            REPLIES | {"prompt": [user("p")], "tools": 7},
            "x:3: tools must be a list of objects, or its JSON text",
        ),
    ],
)
def test_conversations_that_cannot_be_used_are_named(row: dict[str, Any], message: str) -> None:
    fails(row, message)
