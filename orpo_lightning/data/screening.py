"""What a record's texts say before any token is made: of no use for training, or worth a note."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from orpo_lightning.data import flags
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.records import PreferenceRecord

EMPTY = "empty answer"
EMPTY_PROMPT = "empty prompt"
IDENTICAL = "identical answers"
IDENTICAL_NORMAL = "identical after normalisation"
LOW_MARGIN = "score margin below data.min_margin"
NO_MARGIN = "no scores to compare with data.min_margin"

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# Zero-width and directional marks: an answer of nothing else shows nothing.
_INVISIBLE = dict.fromkeys([0xAD, 0x34F, 0x61C, *range(0x200B, 0x2010), *range(0x2060, 0x2070), 0xFEFF])


class Screen:
    """Looks at records before they are tokenised.

    Args:
        control_tokens: texts of the tokenizer's control tokens; they are no part of what an answer says.
        min_margin: pairs whose scores differ by less are left out.
        allow_empty_prompt: keep pairs whose prompt says nothing.
        repeated_prompt: "strip" takes the prompt off both answers where they begin with it.
    """

    def __init__(
        self,
        control_tokens: list[str],
        *,
        min_margin: float | None = None,
        allow_empty_prompt: bool = False,
        repeated_prompt: str = "keep",
    ) -> None:
        """Keep the rules."""
        self._control_tokens = tuple(sorted(control_tokens, key=len, reverse=True))
        self._min_margin, self._allow_empty_prompt = min_margin, allow_empty_prompt
        self._strip = repeated_prompt == "strip"

    def __call__(self, record: PreferenceRecord) -> tuple[PreferenceRecord, int] | LeftOut:
        """Return the record and its flags, or why it is left out."""
        reason = self._useless(record)
        if reason:
            return left_out(record, reason)
        noted = 0
        if is_repeated(record):
            noted |= flags.PROMPT_REPEATED
            if self._strip:
                record = _without_prompt(record)
                if reason := self._useless(record):
                    return left_out(record, reason)
        texts = (_text(part) for part in (record.prompt, record.chosen, record.rejected))
        if any(_CONTROL.search(text) for text in texts):
            noted |= flags.CONTROL_CHARACTER
        return record, noted

    def _useless(self, record: PreferenceRecord) -> str | None:
        chosen, rejected = (self._normal(answer) for answer in (record.chosen, record.rejected))
        if chosen == rejected:
            return IDENTICAL if record.chosen == record.rejected else IDENTICAL_NORMAL
        if not (chosen and rejected):
            return EMPTY
        if not self._allow_empty_prompt and not _says_something(record.prompt):
            return EMPTY_PROMPT
        if self._min_margin is None:
            return None
        if record.margin is None:
            return NO_MARGIN
        return LOW_MARGIN if record.margin < self._min_margin else None

    def _normal(self, answer: str | list[dict[str, Any]]) -> str:
        """Return what a reader sees: accents composed, no outer white space, no closing control tokens."""
        text = _text(answer)
        if not text.isascii():
            text = unicodedata.normalize("NFC", text).translate(_INVISIBLE)
        text = text.strip()
        while text.endswith(self._control_tokens):
            token = next(token for token in self._control_tokens if text.endswith(token))
            text = text.removesuffix(token).rstrip()
        return text


def is_repeated(record: PreferenceRecord) -> bool:
    """Return whether raw text answers begin with their prompt, so that it would be trained on twice."""
    prompt, chosen, rejected = record.prompt, record.chosen, record.rejected
    if not (isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str)):
        return False
    start = prompt.strip()
    # Of a word or two it may be chance.
    return len(start) >= 8 and chosen.lstrip().startswith(start) and rejected.lstrip().startswith(start)


def left_out(record: PreferenceRecord, reason: str, detail: str = "") -> LeftOut:
    """Return a record as left out, with its content."""
    content = {"prompt": record.prompt, "chosen": record.chosen, "rejected": record.rejected}
    return LeftOut(record.where, reason, detail or f"{record.where}: {reason}", content, record.rows)


def _without_prompt(record: PreferenceRecord) -> PreferenceRecord:
    prompt = record.prompt.strip()  # type: ignore[union-attr]
    cut: Callable[[Any], str] = lambda answer: answer.lstrip()[len(prompt) :]  # noqa: E731
    return record._replace(chosen=cut(record.chosen), rejected=cut(record.rejected))


def _says_something(prompt: str | list[dict[str, Any]]) -> bool:
    if isinstance(prompt, str):
        return bool(prompt.strip())
    return any(
        turn["role"] != "system" and (_content(turn).strip() or "tool_calls" in turn) for turn in prompt
    )


def _text(part: str | list[dict[str, Any]]) -> str:
    return part if isinstance(part, str) else "\n".join(map(_content, part))


def _content(turn: dict[str, Any]) -> str:
    """Return what a message says; tool calls say something too."""
    calls = turn.get("tool_calls")
    return (turn.get("content") or "") + (f"\n{calls}" if calls else "")
