"""Prompt and answers as messages, in the arrangements of columns in use."""

from __future__ import annotations

from collections.abc import Mapping

from orpo_lightning.data.messages import read_messages, user_turn
from orpo_lightning.data.shapes.base import (
    ANSWERS,
    PreferenceRecord,
    Row,
    Shape,
    check_answers,
    conversational,
    has_answers,
    is_messages,
)
from orpo_lightning.data.shapes.plain import PROMPT_COLUMNS
from orpo_lightning.data.values import check_text, first_key, is_list, kind, need
from orpo_lightning.errors import DataError

_BEFORE = ("messages", "conversations", "conversation")
_OPENAI = ("preferred_output", "non_preferred_output")
_OTHER = ("rejected_response", "rejected_messages")


def _is_explicit(row: Row) -> bool:
    if "prompt" not in row or not has_answers(row):
        return False
    prompt = row["prompt"]
    return is_list(prompt) or (is_messages(row["chosen"]) and (prompt is None or isinstance(prompt, str)))


def read_explicit(row: Row, where: str) -> PreferenceRecord:
    """Read messages; a plain `prompt` beside whole conversations repeats their user turn: left aside.

    Before single replies it is the user turn.
    """
    prompt = need(row, "prompt", where)
    check_answers(row, where)
    if is_list(prompt):
        return conversational(read_messages(prompt, f"{where}: prompt"), row, where)
    if prompt is not None and not isinstance(prompt, str):
        raise DataError(f"{where}: prompt must be text or a list of messages, found {kind(prompt)}")
    if isinstance(row["chosen"], str):
        raise DataError(f"{where}: expected messages in prompt, or in chosen and rejected; found text in all")
    is_reply = all(isinstance(row[key], Mapping) or len(row[key]) == 1 for key in ANSWERS)
    turns = [user_turn(check_text(prompt, f"{where}: prompt"))] if is_reply and prompt is not None else []
    return conversational(turns, row, where)


def _is_whole(row: Row) -> bool:
    """Return whether both answers are conversations that begin with a user or system turn."""
    starts = [row[key][0] for key in ANSWERS if is_list(row.get(key)) and len(row[key]) > 1]
    speakers = (start.get("role", start.get("from")) for start in starts if isinstance(start, Mapping))
    return sum(speaker in ("system", "user", "human") for speaker in speakers) == 2


def _is_implicit(row: Row) -> bool:
    if not all(is_messages(row.get(key)) for key in ANSWERS):
        return False
    return _is_whole(row) or not row.keys() & PROMPT_COLUMNS


def _read_implicit(row: Row, where: str) -> PreferenceRecord:
    for key in ANSWERS:
        if not is_messages(need(row, key, where)):
            raise DataError(f"{where}: {key} must be a list of messages, found {kind(row[key])}")
    return conversational([], row, where)


def _is_conversation(row: Row) -> bool:
    return has_answers(row) and any(is_list(row.get(key)) for key in _BEFORE)


def _read_conversation(row: Row, where: str) -> PreferenceRecord:
    """Read the turns before the answer, and two answers: each a message, a list of messages or text."""
    return conversational(_before(row, where), row, where)


def _is_swift(row: Row) -> bool:
    return is_list(row.get("messages")) and "chosen" not in row and any(key in row for key in _OTHER)


def _read_swift(row: Row, where: str) -> PreferenceRecord:
    """Read a conversation that ends with the chosen answer, and the rejected one beside it."""
    turns = _before(row, where)
    other = next((key for key in _OTHER if row.get(key)), _OTHER[0])
    conversations = {**row, "messages": turns, other: need(row, other, where)}
    if other == _OTHER[0]:
        conversations[other] = turns[:-1] + read_messages(row[other], f"{where}: {other}")
    return conversational([], conversations, where, ("messages", other))


def _is_openai(row: Row) -> bool:
    return "input" in row and all(key in row for key in _OPENAI)


def _read_openai(row: Row, where: str) -> PreferenceRecord:
    """Read OpenAI's preference fine-tuning format: turns and tools under `input`."""
    given = need(row, "input", where)
    if not isinstance(given, Mapping) or not is_list(given.get("messages")):
        raise DataError(f"{where}: input must be an object with a list of messages, found {kind(given)}")
    turns = read_messages(given["messages"], f"{where}: input.messages")
    if not turns:
        raise DataError(f"{where}: input.messages is empty; expected the turns before the answer")
    return conversational(turns, {**row, "tools": given.get("tools")}, where, _OPENAI)


def _before(row: Row, where: str) -> list[dict[str, object]]:
    key = first_key(row, _BEFORE, where)
    if not is_list(row[key]):
        raise DataError(f"{where}: {key} must be a list of messages, found {kind(row[key])}")
    turns = read_messages(row[key], f"{where}: {key}")
    if not turns:
        raise DataError(f"{where}: {key} is empty; expected the turns before the answer")
    return turns


EXPLICIT_MESSAGES = Shape("explicit messages", _is_explicit, read_explicit)
IMPLICIT_MESSAGES = Shape("implicit messages", _is_implicit, _read_implicit)
CONVERSATION = Shape("conversation", _is_conversation, _read_conversation)
OPENAI = Shape("openai", _is_openai, _read_openai)
SWIFT = Shape("swift", _is_swift, _read_swift)
