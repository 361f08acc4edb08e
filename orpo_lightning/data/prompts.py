"""Prompts without answers, as inference has them: the same tokens that training puts before an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from orpo_lightning.data.encoding import Encoder
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.messages import Message, read_messages, read_tools, user_turn, with_system
from orpo_lightning.data.records import to_record
from orpo_lightning.data.rendering import Renderer, Texts
from orpo_lightning.data.shapes.base import ANSWERS, PreferenceRecord
from orpo_lightning.data.token_rules import StopRule
from orpo_lightning.data.values import check_text, kind, names
from orpo_lightning.errors import DataError, UsageError

_KEYS = ("prompt", "messages")


class Prompt(NamedTuple):
    """What is to be answered."""

    turns: str | list[Message]
    """Plain text, taken as it is, or messages, which go through the chat template."""
    where: str
    """Its place, for messages: `prompts.jsonl:12`."""
    tools: list[dict[str, Any]] | None = None


def read_prompt(row: Mapping[str, Any], where: str) -> Prompt:
    """Return the prompt of a row: its `prompt` or `messages`, or that of a preference pair.

    Raises:
        DataError: it has none, or one that cannot be used.
    """
    if all(row.get(key) is not None for key in ANSWERS):  # of a pair it depends on the shape
        record = to_record(row, where)
        return Prompt(record.prompt, where, record.tools)
    key = next((key for key in _KEYS if row.get(key) is not None), None)
    if key is None:
        raise DataError(f"{where}: expected a key prompt or messages, found {names(row)}")
    value = row[key]
    if isinstance(value, str):
        return Prompt(check_text(value, f"{where}: {key}"), where)
    turns = read_messages(value, f"{where}: {key}")
    if not turns or turns[-1]["role"] not in ("user", "tool"):
        found = repr(turns[-1]["role"]) if turns else "no message"
        raise DataError(f"{where}: {key}: the last message must be from 'user' or 'tool', found {found}")
    return Prompt(with_system(row, turns, where), where, read_tools(row, where))


class PromptEncoder:
    """Encodes prompts with one tokenizer, by the rules of training.

    Where a chat template writes another prompt in front of answers that are not thought about first, it is
    that one: what training puts in front of them.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Render nothing yet."""
        self._tokenizer = tokenizer
        self._renderer, self._encoder = Renderer(tokenizer), Encoder(tokenizer)

    @property
    def notes(self) -> list[str]:
        """What the user should know of how prompts were made, a sentence each, once."""
        return self._renderer.notes

    def encode(self, prompts: Iterable[Prompt]) -> list[list[int]]:
        """Return the token ids of each prompt.

        Raises:
            DataError: the chat template cannot render one, or nothing is left of it.
            UsageError: there are messages and no chat template.
        """
        asked = list(prompts)
        texts = [self.texts(prompt) for prompt in asked]
        found = [pair.prompt for pair in self._encoder.encode(texts)]
        for prompt, ids in zip(asked, found, strict=True):
            if not ids:
                raise DataError(f"{prompt.where}: the prompt is empty: expected at least one token")
        return found

    def texts(self, prompt: Prompt) -> Texts:
        """Return what of a prompt is encoded, without answers.

        Raises:
            DataError: the chat template cannot render it.
            UsageError: there are messages and no chat template.
        """
        if isinstance(prompt.turns, str):
            return Texts(prompt.turns, "", "", is_rendered=False)
        rendered = self._renderer.render([_with_answers(prompt.turns, prompt.where, prompt.tools)])[0]
        if isinstance(rendered, LeftOut):
            raise DataError(rendered.detail)
        return rendered._replace(chosen="", rejected="")

    def end_of_turn(self) -> int | None:
        """Return the stop token that the chat template ends an answer with; None without a template."""
        if not getattr(self._tokenizer, "chat_template", None):
            return None
        rendered = Renderer(self._tokenizer).render([_with_answers([user_turn("a")], "the chat template")])[0]
        if isinstance(rendered, LeftOut):
            return None
        answer = self._encoder.encode([rendered])[0].chosen
        try:
            return StopRule(self._tokenizer).end(answer)[-1]
        except UsageError:  # it has no stop at all: answers end at their longest
            return None


def _with_answers(
    turns: list[Message], where: str, tools: list[dict[str, Any]] | None = None
) -> PreferenceRecord:
    """Return a record whose answers stand for any that is not thought about first."""
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in ("Yes.", "No."))
    return PreferenceRecord(turns, chosen, rejected, where, tools)


def describe(prompts: Iterable[Prompt]) -> str:
    """Return how many prompts are messages and how many plain text, in words."""
    texts = [kind(prompt.turns) == "text" for prompt in prompts]
    plain, chat = sum(texts), len(texts) - sum(texts)
    parts = [f"{chat:,} through the chat template"] if chat or not plain else []
    parts += [f"{plain:,} plain text, taken as it is"] if plain else []
    return ", ".join(parts)
