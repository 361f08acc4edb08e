"""A prompt and two answers under our own names, as raw text: nothing is put around it, as in TRL."""

from __future__ import annotations

from orpo_lightning.data.scores import agreement, margin
from orpo_lightning.data.shapes.base import ANSWERS, PreferenceRecord, Row, Shape, are_texts
from orpo_lightning.data.values import check_text, need
from orpo_lightning.errors import DataError

PROMPT_COLUMNS = frozenset(
    ("prompt", "question", "query", "instruction", "input", "messages", "conversations", "conversation")
)
"""Where there is one of these, the prompt stands in it, and not at the beginning of both answers."""


def split_shared_prefix(chosen: str, rejected: str, where: str) -> tuple[str, str, str]:
    """Split two texts that begin alike into the prompt they share and their own answers.

    They part before the first word that differs, never within one, and the space before that word belongs to
    the answers, as most tokenizers join a space to the word after it.

    Raises:
        DataError: they share no beginning.
    """
    if chosen == rejected:  # no place to part at; such a pair is dropped later on, and counted
        return "", chosen, rejected
    cut = _shared_length(chosen, rejected)
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


def _shared_length(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike, found by halving: slices compare fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _is_explicit(row: Row) -> bool:
    # A system column is of chats: such a row is one of the shapes that make turns.
    return are_texts(row, "prompt", *ANSWERS) and "system" not in row


def _read_explicit(row: Row, where: str) -> PreferenceRecord:
    prompt, chosen, rejected = (
        check_text(need(row, key, where), f"{where}: {key}") for key in ("prompt", *ANSWERS)
    )
    return PreferenceRecord(prompt, chosen, rejected, where, margin=margin(row), agreement=agreement(row))


def _is_implicit(row: Row) -> bool:
    return are_texts(row, *ANSWERS) and not row.keys() & PROMPT_COLUMNS


def _read_implicit(row: Row, where: str) -> PreferenceRecord:
    chosen, rejected = (check_text(need(row, key, where), f"{where}: {key}") for key in ANSWERS)
    parts = split_shared_prefix(chosen, rejected, where)
    return PreferenceRecord(*parts, where, margin=margin(row), agreement=agreement(row))


EXPLICIT_TEXT = Shape("explicit text", _is_explicit, _read_explicit, without=frozenset(("system",)))
IMPLICIT_TEXT = Shape("implicit text", _is_implicit, _read_implicit, without=PROMPT_COLUMNS)
