"""Messages of a conversation: read from the forms in use, and checked, into one plain form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orpo_lightning.data.values import check_json, check_text, is_list, kind, names, quote
from orpo_lightning.errors import DataError

Message = dict[str, Any]
"""`role` and `content`, always text; an assistant's `tool_calls`, a tool's `tool_call_id` and `name`."""

ROLES = ("system", "user", "assistant", "tool")
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
"""Under ShareGPT's `from`."""
_MEANT = _SPEAKERS | {"ai": "assistant", "developer": "system", "function": "tool", "ipython": "tool"}
"""Under `role`, where only the four are allowed: which of them is probably meant."""


def user_turn(text: str) -> Message:
    """Return a user's message."""
    return {"role": "user", "content": text}


def read_messages(value: Any, where: str) -> list[Message]:
    """Check messages and keep of each what a template reads.

    They are `role` and `content` as OpenAI writes them, or `from` and `value` as ShareGPT does.

    Args:
        value: a list of messages, a single one, or a text: the assistant's.
        where: place and column, for messages to the user.

    Raises:
        DataError: one of them cannot be used.
    """
    if isinstance(value, str):
        return [{"role": "assistant", "content": check_text(value, where)}]
    if not is_list(value):
        if isinstance(value, Mapping):
            return [_read(value, where)]
        raise DataError(f"{where} must be text or a list of messages, found {kind(value)}")
    messages = []
    for number, message in enumerate(value):
        # Most messages are of this form; the others, and all faults, take the long way.
        if type(message) is dict and len(message) == 2:
            role, content = message.get("role"), message.get("content")
            if role in ROLES and type(content) is str:
                if not content.isascii():
                    check_text(content, f"{where}[{number}].content")
                messages.append({"role": role, "content": content})
                continue
        messages.append(_read(message, f"{where}[{number}]"))
    return messages


def whole_conversation(prompt: list[Message], answer: Any, where: str) -> list[Message]:
    """Return the turns of prompt and answer; `answer` may repeat the prompt's, or only go on from them.

    Raises:
        DataError: `answer` holds another prompt, or does not end with the assistant.
    """
    turns = read_messages(answer, where)
    if not turns or turns[-1]["role"] != "assistant":
        found = repr(turns[-1]["role"]) if turns else "no message"
        raise DataError(f"{where}: the last message must be from 'assistant', found {found}")
    if not prompt or (len(turns) > len(prompt) and turns[: len(prompt)] == prompt):
        return turns
    if turns[0]["role"] in ("system", "user"):
        role = turns[0]["role"]
        raise DataError(f"{where} begins with a {role} turn but does not repeat the prompt's turns")
    return prompt + turns


def refuse_different_prompts(chosen: list[Message], rejected: list[Message], where: str) -> None:
    """Raise where two conversations are not the same up to their last message, or have no other."""
    if chosen[:-1] != rejected[:-1]:
        number = next(
            (i for i, (a, b) in enumerate(zip(chosen[:-1], rejected[:-1], strict=False)) if a != b), None
        )
        if number is not None:
            differs = f"turn {number} differs"
        else:
            lengths = f"{len(chosen) - 1} (chosen), {len(rejected) - 1} (rejected)"
            differs = f"turns before the answer: {lengths}"
        raise DataError(f"{where}: chosen and rejected answer different prompts: {differs}")
    if len(chosen) == 1:
        raise DataError(f"{where}: no turn before the answer; expected a prompt or whole conversations")


def with_system(row: Mapping[str, Any], turns: list[Message], where: str) -> list[Message]:
    """Put a `system` column in front of the turns, unless they have a system turn or the column is empty."""
    system = row.get("system")
    if not system or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": check_text(system, f"{where}: system")}, *turns]


def read_tools(row: Mapping[str, Any], where: str) -> list[dict[str, Any]] | None:
    """Return what a `tools` column declares, a list or its JSON text; None where there is none.

    Raises:
        DataError: it is neither.
    """
    tools = row.get("tools")
    if not tools or (isinstance(tools, str) and not tools.strip()):
        return None
    place = f"{where}: tools"
    if isinstance(tools, str):
        tools = _parsed(tools)
    if not is_list(tools) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{place} must be a list of objects, or its JSON text, found {quote(row['tools'])}")
    return [dict(tool) for tool in check_json(tools, place)] or None


def _read(message: Any, place: str) -> Message:
    keys = message.keys() if isinstance(message, Mapping) else ()
    if "role" in keys and ("content" in keys or message.get("tool_calls")):
        return _read_openai(message, place)
    if "from" in keys and "value" in keys:
        return _read_sharegpt(message, place)
    found = f"keys {names(keys)}" if isinstance(message, Mapping) else kind(message)
    raise DataError(f"{place}: expected a message with role and content, found {found}")


def _read_openai(message: Mapping[str, Any], place: str) -> Message:
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        expected = ", ".join(ROLES)
        raise DataError(f"{place}: role must be one of {expected}, found {quote(role)}{_hint(role)}")
    calls = message.get("tool_calls") if role == "assistant" else None
    # Templates join contents to other text: that of a message which only calls tools is empty, not null.
    read = {
        "role": role,
        "content": "" if calls and content is None else _content(content, f"{place}.content"),
    }
    if calls:
        read["tool_calls"] = _read_calls(calls, f"{place}.tool_calls")
    if role == "tool":
        for key in ("tool_call_id", "name"):
            if message.get(key) is not None:
                read[key] = check_text(message[key], f"{place}.{key}")
    return read


def _read_sharegpt(message: Mapping[str, Any], place: str) -> Message:
    speaker, value = message["from"], message["value"]
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        raise DataError(f"{place}: from must be one of {', '.join(_SPEAKERS)}, found {quote(speaker)}")
    role = _SPEAKERS[speaker]
    if speaker == "function_call":
        return {"role": role, "content": "", "tool_calls": _written_calls(value, f"{place}.value")}
    return {"role": role, "content": _content(value, f"{place}.value")}


def _hint(role: Any) -> str:
    meant = _MEANT.get(role) if isinstance(role, str) else None
    return f" (write {meant!r} instead)" if meant else ""


def _content(value: Any, place: str) -> str:
    """Return a content: text, or a list of parts whose texts are joined."""
    if not is_list(value):
        return check_text(value, place)
    texts = []
    for number, part in enumerate(value):
        where = f"{place}[{number}]"
        if not isinstance(part, Mapping):
            raise DataError(f"{where}: expected a part with type and text, found {kind(part)}")
        if part.get("type") != "text":
            found = quote(part.get("type"))
            raise DataError(f"{where}: text only: expected a part of type 'text', found type {found}")
        texts.append(check_text(part.get("text"), f"{where}.text"))
    return "".join(texts)


def _read_calls(value: Any, place: str) -> list[dict[str, Any]]:
    """Return tool calls in the form templates read: arguments as an object where their text is one."""
    if not is_list(value):
        raise DataError(f"{place} must be a list of tool calls, found {kind(value)}")
    calls = []
    for number, call in enumerate(value):
        where = f"{place}[{number}]"
        function = call.get("function") or call if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            found = f"keys {names(call)}" if isinstance(call, Mapping) else kind(call)
            raise DataError(
                f"{where}: expected a tool call with a function's name and arguments, found {found}"
            )
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            parsed = _parsed(arguments)
            arguments = parsed if isinstance(parsed, dict) else arguments
        of_function = {"name": function["name"], "arguments": {} if arguments is None else arguments}
        named = {"id": call["id"]} if call.get("id") is not None else {}
        calls.append(check_json({**named, "type": "function", "function": of_function}, where))
    return calls


def _written_calls(value: Any, place: str) -> list[dict[str, Any]]:
    """Read ShareGPT's function_call: the JSON text of one call, or of a list of them."""
    calls = _parsed(check_text(value, place))
    if not isinstance(calls, (dict, list)):
        raise DataError(
            f"{place}: expected a tool call as JSON text with name and arguments, found other text"
        )
    return _read_calls(calls if isinstance(calls, list) else [calls], place)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
