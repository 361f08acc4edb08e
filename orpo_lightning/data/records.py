"""What a row of a preference data set may look like, and the one shape that everything becomes.

The shapes: explicit (prompt, chosen, rejected) or implicit (chosen and rejected begin alike), each as plain
strings or as lists of messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from orpo_lightning.errors import DataError

Message = dict[str, str]
ROLES = ("system", "user", "assistant", "tool")


class PreferenceRecord(NamedTuple):
    """One preference: a prompt and two answers, either all text or all messages."""

    prompt: str | list[Message]
    """Raw text, or the turns before the answer."""
    chosen: str | list[Message]
    """Raw text, or one assistant message."""
    rejected: str | list[Message]
    """Raw text, or one assistant message."""
    where: str
    """Where the row came from, for messages: `pairs.jsonl:12`."""


def to_records(rows: Iterable[Mapping[str, Any]], origin: str) -> Iterator[PreferenceRecord]:
    """Yield a record for every row.

    Args:
        rows: mappings; one with an attribute `where` names its own place.
        origin: names the place of the others, with their number.
    """
    for number, row in enumerate(rows, start=1):
        yield to_record(row, getattr(row, "where", None) or f"{origin} row {number}")


def to_record(row: Mapping[str, Any], where: str) -> PreferenceRecord:
    """Recognise the shape of one row.

    Raises:
        DataError: the row has none of the shapes.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: expected an object with chosen and rejected, found {_kind(row)}")
    for key in ("chosen", "rejected"):
        if key not in row:
            keys = ", ".join(map(repr, row)) or "none"
            raise DataError(f"{where}: key {key!r} is missing; the row's keys are {keys}")
    chosen, rejected = row["chosen"], row["rejected"]
    if _is_list(chosen) and _is_list(rejected):
        return _conversational(row, where)
    for key in ("chosen", "rejected"):
        if not isinstance(row[key], str) and not _is_list(row[key]):
            raise DataError(f"{where}: {key} must be text or a list of messages, found {_kind(row[key])}")
    if _is_list(chosen) != _is_list(rejected):
        kinds = f"chosen is {_kind(chosen)}, rejected {_kind(rejected)}"
        raise DataError(f"{where}: expected chosen and rejected of one kind, found: {kinds}")
    _check_text(chosen, f"{where}: chosen")
    _check_text(rejected, f"{where}: rejected")
    if "prompt" not in row:
        return PreferenceRecord(*split_shared_prefix(chosen, rejected, where), where)
    if _is_list(row["prompt"]):
        return _conversational(row, where)
    _check_text(row["prompt"], f"{where}: prompt")
    return PreferenceRecord(row["prompt"], chosen, rejected, where)


def split_shared_prefix(chosen: str, rejected: str, where: str) -> tuple[str, str, str]:
    """Split two texts that begin alike into the prompt they share and their own answers.

    They part before the first word that differs, never within one, and the space before that word belongs to
    the answers, as most tokenizers join a space to the word after it.

    Raises:
        DataError: they share no beginning.
    """
    if chosen == rejected:  # no place to part at; such a pair is dropped later on, and counted
        return "", chosen, rejected
    cut = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    if chosen[cut : cut + 1].isalnum() or rejected[cut : cut + 1].isalnum():
        while cut > 0 and chosen[cut - 1].isalnum():
            cut -= 1
    if chosen[:cut].endswith(" "):
        cut -= 1
    if cut == 0:
        raise DataError(
            f"{where}: there is no key 'prompt', and chosen and rejected do not begin alike; "
            "add the prompt, under its own key or in front of both answers"
        )
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _conversational(row: Mapping[str, Any], where: str) -> PreferenceRecord:
    """Read messages; a plain `prompt` beside whole conversations repeats their user turn: left aside."""
    prompt = row.get("prompt")
    if _is_list(prompt):
        turns = _messages(prompt, f"{where}: prompt")
    elif isinstance(prompt, str) and len(row["chosen"]) == 1 and len(row["rejected"]) == 1:
        turns = [{"role": "user", "content": _check_text(prompt, f"{where}: prompt")}]
    elif prompt is None or isinstance(prompt, str):
        turns = []
    else:
        raise DataError(f"{where}: prompt must be text or a list of messages, found {_kind(prompt)}")
    chosen = _conversation(turns, row["chosen"], f"{where}: chosen")
    rejected = _conversation(turns, row["rejected"], f"{where}: rejected")
    for number, (one, other) in enumerate(zip(chosen[:-1], rejected[:-1], strict=False)):
        if one != other:
            raise DataError(f"{where}: chosen and rejected answer different prompts: turn {number} differs")
    if len(chosen) != len(rejected):
        raise DataError(
            f"{where}: chosen and rejected answer different prompts: "
            f"turns before the answer: {len(chosen) - 1} (chosen), {len(rejected) - 1} (rejected)"
        )
    if len(chosen) == 1:
        raise DataError(f"{where}: no turn before the answer; expected a prompt or whole conversations")
    return PreferenceRecord(_with_system(row, chosen[:-1], where), chosen[-1:], rejected[-1:], where)


def _conversation(prompt: list[Message], answer: Any, where: str) -> list[Message]:
    """Return the whole conversation, which `answer` may hold already or only go on with."""
    reply = [{"role": "assistant", "content": answer}]
    turns = reply if isinstance(answer, str) else _messages(answer, where)
    if not turns or turns[-1]["role"] != "assistant":
        found = repr(turns[-1]["role"]) if turns else "no message"
        raise DataError(f"{where}: the last message must be from 'assistant', found {found}")
    if not prompt or (len(turns) > len(prompt) and turns[: len(prompt)] == prompt):
        return turns
    if turns[0]["role"] in ("system", "user"):
        role = turns[0]["role"]
        raise DataError(f"{where} begins with a {role} turn but does not repeat the prompt's turns")
    return prompt + turns


def _with_system(row: Mapping[str, Any], turns: list[Message], where: str) -> list[Message]:
    """Put a `system` column in front of the turns, unless they have a system turn or the column is empty."""
    system = row.get("system")
    if not system or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": _check_text(system, f"{where}: system")}, *turns]


def _messages(value: Any, where: str) -> list[Message]:
    """Check a list of messages and keep of each what a template reads: role and content."""
    messages = []
    for number, message in enumerate(value):
        place = f"{where}[{number}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            found = f"keys {sorted(map(str, message))}" if isinstance(message, Mapping) else _kind(message)
            raise DataError(f"{place}: expected a message with role and content, found {found}")
        if message["role"] not in ROLES:
            raise DataError(f"{place}: role must be one of {', '.join(ROLES)}, found {message['role']!r}")
        messages.append(
            {"role": message["role"], "content": _check_text(message["content"], f"{place}.content")}
        )
    return messages


def _check_text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place} must be text, found {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place} is not valid Unicode: lone surrogate at character {error.start}") from None
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _kind(value: Any) -> str:
    """Name a value's type in the words of a data file."""
    names = {type(None): "null", dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), f"{type(value).__name__} {value!r}"[:60])
