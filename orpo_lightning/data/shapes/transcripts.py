"""Transcripts: whole conversations as one text, in which `Human:` and `Assistant:` begin the turns (HH)."""

from __future__ import annotations

import re

from orpo_lightning.data.messages import Message
from orpo_lightning.data.shapes.base import ANSWERS, PreferenceRecord, Row, Shape, are_texts, conversational
from orpo_lightning.data.values import check_text, need
from orpo_lightning.errors import DataError

# Behind an empty line: a line of an answer may well begin with such a word.
_SPEAKER = re.compile(r"\n\r?\n[ \t]*(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """Return whether a text begins with a human's turn and has an assistant's."""
    return text.lstrip().startswith("Human:") and "Assistant" in _split(text)[1::2]


def read_transcript(text: str, where: str) -> list[Message]:
    """Return the turns of a transcript, their texts without outer white space.

    Raises:
        DataError: it does not begin with a turn.
    """
    before, *rest = _split(check_text(text, where))
    if before.strip() or not rest:
        raise DataError(f"{where}: expected a transcript that begins with 'Human:', found other text")
    speakers, texts = rest[::2], rest[1::2]
    return [{"role": _ROLES[who], "content": said.strip()} for who, said in zip(speakers, texts, strict=True)]


def _split(text: str) -> list[str]:
    """Return what stands before the first turn, then each turn's speaker and text."""
    return _SPEAKER.split("\n\n" + text)


def _is_hh(row: Row) -> bool:
    return are_texts(row, *ANSWERS) and all(is_transcript(row[key]) for key in ANSWERS)


def _read_hh(row: Row, where: str) -> PreferenceRecord:
    """Read two transcripts that part in their last turn; all turns before it are the prompt."""
    turns = {key: read_transcript(need(row, key, where), f"{where}: {key}") for key in ANSWERS}
    return conversational([], {**row, **turns}, where)


HH = Shape("hh", _is_hh, _read_hh)
