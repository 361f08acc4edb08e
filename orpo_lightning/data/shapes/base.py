"""What every shape of row becomes, and what a shape is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.messages import (
    Message,
    read_tools,
    refuse_different_prompts,
    whole_conversation,
    with_system,
)
from orpo_lightning.data.scores import agreement, margin
from orpo_lightning.data.values import kind, need
from orpo_lightning.errors import DataError

Row = Mapping[str, Any]
ANSWERS = ("chosen", "rejected")
NO_PREFERENCE = "no preference"
"""Why a row is left out in which no answer is better than another."""


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
    tools: list[dict[str, Any]] | None = None
    """The functions a chat template may declare to the model; of messages only."""
    margin: float | None = None
    """By how much the chosen answer was judged better, where the rows have scores."""
    rows: int = 1
    """How many rows of the source it was made from."""
    agreement: float | None = None
    """How many judges agreed that it is better, or their share, where the rows say so."""


class Opinion(NamedTuple):
    """One answer that was liked or not: half a preference."""

    prompt: str | list[Message]
    completion: str | list[Message]
    liked: bool
    where: str
    tools: list[dict[str, Any]] | None
    row: Row


class Shape(NamedTuple):
    """One form that the rows of a data set may have."""

    name: str
    matches: Callable[[Row], bool]
    """Whether a row has this shape's columns, with values of its types."""
    read: Callable[[Row, str], PreferenceRecord | LeftOut | Opinion]
    """Returns what a row at a place says; raises DataError where it does not fit."""
    without: frozenset[str] = frozenset()
    """Columns of which a row may hold none: with one of them it would mean something else."""


def is_messages(value: Any) -> bool:
    """Return whether a value is one message or a list of them, by its type."""
    return isinstance(value, (list, tuple, dict, Mapping))  # Mapping last: the slowest to ask


def are_texts(row: Row, *keys: str) -> bool:
    """Return whether there is text under each key."""
    return all(isinstance(row.get(key), str) for key in keys)


def has_answers(row: Row) -> bool:
    """Return whether chosen and rejected are both text, or both messages."""
    return are_texts(row, *ANSWERS) or all(is_messages(row.get(key)) for key in ANSWERS)


def check_answers(row: Row, where: str, keys: tuple[str, str] = ANSWERS) -> None:
    """Raise unless two answers are there, both text or both messages."""
    for key in keys:
        value = need(row, key, where)
        if not isinstance(value, str) and not is_messages(value):
            raise DataError(f"{where}: {key} must be text or a list of messages, found {kind(value)}")
    one, other = (row[key] for key in keys)
    if isinstance(one, str) != isinstance(other, str):
        kinds = f"{keys[0]} is {kind(one)}, {keys[1]} {kind(other)}"
        raise DataError(f"{where}: expected {keys[0]} and {keys[1]} of one kind, found: {kinds}")


def conversational(
    turns: list[Message], row: Row, where: str, keys: tuple[str, str] = ANSWERS
) -> PreferenceRecord:
    """Return the record of two answers, each a text, a message, or messages that end with it.

    Args:
        turns: what was said before; empty where the answers are whole conversations.
        row: holds the answers, and perhaps a system turn, tools and scores.
        where: its place.
        keys: the answers' columns, the better one's first.

    Raises:
        DataError: an answer is missing or cannot be used, or they answer different prompts.
    """
    better, worse = keys
    chosen = whole_conversation(turns, need(row, better, where), f"{where}: {better}")
    rejected = whole_conversation(turns, need(row, worse, where), f"{where}: {worse}")
    refuse_different_prompts(chosen, rejected, where)
    prompt = with_system(row, chosen[:-1], where)
    return PreferenceRecord(
        prompt,
        chosen[-1:],
        rejected[-1:],
        where,
        tools=read_tools(row, where),
        margin=margin(row),
        agreement=agreement(row),
    )
