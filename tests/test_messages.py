"""Messages: each form in use becomes the one plain form, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from orpo_lightning.data.messages import ROLES, read_messages, read_tools, whole_conversation
from orpo_lightning.errors import DataError
from tests.shape_samples import assistant, gpt, human, system, user

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def refused(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_messages(value, "x.jsonl:3: chosen")
    assert "\n" not in str(caught.value)


def test_messages_come_out_as_role_and_content_in_copies_of_their_own() -> None:
    given = [system("s"), user("ü"), assistant(""), {"role": "tool", "content": "r"}]
    read = read_messages(given, "x")
    assert read == given
    assert all(one is not other for one, other in zip(read, given, strict=True))


def test_a_text_is_the_assistants_message_and_one_message_a_list_of_it() -> None:
    assert read_messages("yes", "x") == [assistant("yes")]
    assert read_messages(user("Hi"), "x") == [user("Hi")]
    assert read_messages((user("Hi"),), "x") == [user("Hi")]


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        ("system", "system"),
        ("human", "user"),
        ("user", "user"),
        ("gpt", "assistant"),
        ("chatgpt", "assistant"),
        ("bot", "assistant"),
        ("assistant", "assistant"),
        ("model", "assistant"),
        ("observation", "tool"),
        ("tool", "tool"),
    ],
)
def test_sharegpt_speakers_become_roles(speaker: str, role: str) -> None:
    assert read_messages([{"from": speaker, "value": "t", "weight": 1}], "x") == [
        {"role": role, "content": "t"}
    ]


def test_a_sharegpt_function_call_is_an_assistants_tool_call() -> None:
    text = json.dumps({"name": "add", "arguments": {"a": 1}})
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    expected = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert read_messages([{"from": "function_call", "value": text}], "x") == [expected]
    several = [{"from": "function_call", "value": f"[{text}, {text}]"}]
    assert read_messages(several, "x") == [expected | {"tool_calls": [call, call]}]


def test_both_forms_may_stand_in_one_conversation() -> None:
    assert read_messages([human("Hi"), assistant("Hello"), gpt("Well")], "x") == [
        user("Hi"),
        assistant("Hello"),
        assistant("Well"),
    ]


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}])
def test_a_message_that_only_calls_tools_has_an_empty_content(content: dict[str, Any]) -> None:
    read = read_messages([{"role": "assistant", "tool_calls": [CALL], **content}], "x")
    assert read == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        # OpenAI writes arguments as JSON text, templates write objects as JSON: text would be quoted twice.
        ({"function": {"name": "add", "arguments": '{"a": 1}'}}, {"name": "add", "arguments": {"a": 1}}),
        ({"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"a": 1}}),
        ({"function": {"name": "add", "arguments": None}}, {"name": "add", "arguments": {}}),
        ({"id": None, "type": None, "function": {"name": "add"}}, {"name": "add", "arguments": {}}),
        # A model that wrote broken JSON gave a bad answer, and that may be what is to be learned.
        ({"function": {"name": "add", "arguments": '{"a": '}}, {"name": "add", "arguments": '{"a": '}),
        ({"function": {"name": "add", "arguments": "[1]"}}, {"name": "add", "arguments": "[1]"}),
    ],
)
def test_tool_calls_come_out_in_one_form(call: dict[str, Any], expected: dict[str, Any]) -> None:
    (message,) = read_messages([{"role": "assistant", "content": None, "tool_calls": [call]}], "x")
    assert message["tool_calls"] == [{"type": "function", "function": expected}]


def test_a_tool_keeps_its_name_and_call_and_others_keep_neither() -> None:
    tool = {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"}
    assert read_messages([tool], "x") == [tool]
    assert read_messages([tool | {"name": None}], "x") == [
        {k: tool[k] for k in ("role", "content", "tool_call_id")}
    ]
    assert read_messages([user("Hi") | {"name": "Ann", "tool_calls": [], "score": 3}], "x") == [user("Hi")]


def test_columns_that_are_null_for_want_of_a_value_are_as_good_as_none() -> None:
    # As Parquet gives them where another message of the column has them.
    message = {"role": "user", "content": "Hi", "tool_calls": None, "name": None, "tool_call_id": None}
    assert read_messages([message], "x") == [user("Hi")]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two", "image_url": None}]
    assert read_messages([{"role": "user", "content": parts}], "x") == [user("one two")]
    assert read_messages([{"role": "user", "content": []}], "x") == [user("")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "x.jsonl:3: chosen must be text or a list of messages, found int 5"),
        ([["a"]], "x.jsonl:3: chosen[0]: expected a message with role and content, found a list"),
        ([user("a"), None], "x.jsonl:3: chosen[1]: expected a message with role and content, found null"),
        ([{"role": "user"}], "chosen[0]: expected a message with role and content, found keys 'role'"),
        ([{}], "chosen[0]: expected a message with role and content, found keys none"),
        ([{"role": "user", "value": "a"}], "found keys 'role', 'value'"),
        (
            [{"role": "bot", "content": "a"}],
            "chosen[0]: role must be one of system, user, assistant, tool, "
            "found 'bot' (write 'assistant' instead)",
        ),
        ([{"role": "human", "content": "a"}], "found 'human' (write 'user' instead)"),
        ([{"role": "function", "content": "a"}], "found 'function' (write 'tool' instead)"),
        ([{"role": "developer", "content": "a"}], "found 'developer' (write 'system' instead)"),
        ([{"role": "judge", "content": "a"}], "assistant, tool, found 'judge'"),
        ([{"role": None, "content": "a"}], "assistant, tool, found null"),
        ([{"role": ["user"], "content": "a"}], "assistant, tool, found a list"),
        ([{"from": "narrator", "value": "a"}], "from must be one of system, human, user, gpt"),
        ([{"from": {}, "value": "a"}], "found an object"),
        ([{"from": "gpt", "value": 3}], "chosen[0].value must be text, found int 3"),
        (
            [{"from": "function_call", "value": "add(1)"}],
            "chosen[0].value: expected a tool call as JSON text",
        ),
        (
            [{"from": "function_call", "value": "[1]"}],
            "chosen[0].value[0]: expected a tool call with a function's",
        ),
        ([{"role": "assistant", "content": None}], "chosen[0].content must be text, found null"),
        (
            [{"role": "assistant", "content": None, "tool_calls": []}],
            "chosen[0].content must be text, found null",
        ),
        (
            [{"role": "user", "content": None, "tool_calls": [CALL]}],
            "chosen[0].content must be text, found null",
        ),
        ([{"role": "user", "content": 1.5}], "chosen[0].content must be text, found float 1.5"),
        ([{"role": "user", "content": {"a": 1}}], "chosen[0].content must be text, found an object"),
        ([{"role": "user", "content": ["a"]}], "content[0]: expected a part with type and text, found text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
            "chosen[0].content[1]: text only: expected a part of type 'text', found type 'image_url'",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "chosen[0].content[0].text must be text, found null",
        ),
        (
            [{"role": "assistant", "content": "", "tool_calls": "x"}],
            "tool_calls must be a list of tool calls, found",
        ),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]}],
            "tool_calls[0]: expected a tool call with a function's name and arguments, found keys 'type'",
        ),
        (
            [{"role": "tool", "content": "a", "tool_call_id": 7}],
            "chosen[0].tool_call_id must be text, found int 7",
        ),
        ([user("a\ud800")], "chosen[0].content is not valid Unicode: lone surrogate at character 1"),
        ("\udfff", "x.jsonl:3: chosen is not valid Unicode: lone surrogate at character 0"),
        (
            [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"name": "f", "arguments": {"a": "\ud800"}}],
                }
            ],
            "chosen[0].tool_calls[0] is not valid Unicode: lone surrogate",
        ),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": b"x"}}]}],
            "chosen[0].tool_calls[0] cannot be written as JSON: Object of type bytes",
        ),
    ],
)
def test_messages_that_cannot_be_used_are_named_by_place(value: Any, message: str) -> None:
    refused(value, message)


def test_a_message_about_a_fault_stays_short_whatever_the_fault_holds() -> None:
    for value in (
        [{"role": "x" * 10**6, "content": "a"}],
        [{"from": "x" * 10**6, "value": "a"}],
        [{f"key {i}": i for i in range(10**4)}],
        [{"role": "user", "content": 10**5000}],
        [{"role": "user", "content": [{"type": "y" * 10**6}]}],
    ):
        with pytest.raises(DataError) as caught:
            read_messages(value, "x:1")
        assert len(str(caught.value)) < 400


def test_tool_calls_nested_too_deep_are_named() -> None:
    deep: Any = "end"
    for _ in range(100_000):
        deep = [deep]
    refused(
        [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": deep}}]}],
        "chosen[0].tool_calls[0] cannot be written as JSON: maximum recursion depth",
    )


@pytest.mark.parametrize("role", ROLES)
def test_every_role_that_is_named_in_the_message_is_allowed(role: str) -> None:
    assert read_messages([{"role": role, "content": "a"}], "x") == [{"role": role, "content": "a"}]


def test_a_conversation_repeats_the_prompt_or_goes_on_from_it() -> None:
    prompt, answer = [user("Hi"), assistant("Hello"), user("2 + 2?")], assistant("4")
    for given in ([*prompt, answer], [answer], answer, "4"):
        assert whole_conversation(prompt, given, "x") == [*prompt, answer]
    assert whole_conversation([], [*prompt, answer], "x") == [*prompt, answer]
    longer = [assistant("Let me see."), user("Well?"), answer]
    assert whole_conversation(prompt, longer, "x") == [*prompt, *longer]


TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ([TOOL], [TOOL]),
        ((TOOL,), [TOOL]),
        (json.dumps([TOOL]), [TOOL]),
        (None, None),
        ([], None),
        ("", None),
        (" ", None),
        ("[]", None),
    ],
)
def test_tools_are_a_list_or_its_json_text(tools: Any, expected: Any) -> None:
    assert read_tools({"tools": tools}, "x") == expected
    assert read_tools({}, "x") is None


@pytest.mark.parametrize(
    ("tools", "found"),
    [
        ("add", "'add'"),
        ({"a": 1}, "an object"),
        (5, "int 5"),
        (["add"], "a list"),
        ('{"a": 1}', """'{"a": 1}'"""),
    ],
)
def test_other_tools_are_refused(tools: Any, found: str) -> None:
    message = f"x:1: tools must be a list of objects, or its JSON text, found {found}"
    with pytest.raises(DataError, match=re.escape(message)):
        read_tools({"tools": tools}, "x:1")
