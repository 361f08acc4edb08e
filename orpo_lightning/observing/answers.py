"""Greedy answers of a model that is being trained, and how they are set side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orpo_lightning.data.messages import user_turn
from orpo_lightning.data.prompts import Prompt, PromptEncoder
from orpo_lightning.data.table import PairTable
from orpo_lightning.modeling import causal_model
from orpo_lightning.using.generation import continued
from orpo_lightning.using.model_limits import context_length_of

_SHOWN = 2000


def stop_ids(model: Any, tokenizer: Any, tables: Iterable[PairTable | None]) -> list[int]:
    """Return the tokens that end an answer: those of the data, the tokenizer's EOS, the model's own."""
    own = getattr(causal_model(model).generation_config, "eos_token_id", None)
    found = {*(own if isinstance(own, (list, tuple)) else [own]), tokenizer.eos_token_id}
    for table in tables:
        for source in table.sources if table is not None else ():
            found |= source.info.stop_tokens.keys()
    return sorted(token for token in found if token is not None)


def prompt_ids(texts: Iterable[str], tokenizer: Any) -> list[list[int]]:
    """Return the tokens of each prompt: as a user's turn where there is a chat template, else as it is.

    Raises:
        DataError: the chat template cannot render one, or nothing is left of it.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    prompts = [
        Prompt([user_turn(text)] if has_template else text, f"Samples: prompt {number}")
        for number, text in enumerate(texts, start=1)
    ]
    return PromptEncoder(tokenizer).encode(prompts)


def greedy(
    model: Any, prompts: Sequence[Sequence[int]], *, stops: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Return the answer to each prompt, taking the likeliest token each time, its stop token left out.

    The model's own generation_config, which may ask for sampling or penalties, has no say.

    Args:
        model: a causal language model in eval mode, or a PEFT model of one.
        prompts: ids, at least one each; all are answered at a time.
        stops: tokens that end an answer.
        max_new_tokens: of an answer, its stop token included; fewer where the model's positions end.
    """
    width = max(map(len, prompts))
    context = context_length_of(causal_model(model).config) or width + max_new_tokens
    room = max(1, min(max_new_tokens, context - width))
    written = continued(model, prompts, stops, room, pad=stops[0] if stops else 0)
    return [_until_stop(row, set(stops)) for row in written]


def _until_stop(answer: list[int], stops: set[int]) -> list[int]:
    end = next((place for place, token in enumerate(answer) if token in stops), len(answer))
    return answer[:end]


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the answers of rows with `prompt`, `base`, `before` and `now` side by side."""
    names = ("prompt", "base", "before", "now")
    cells = [names, ["---"] * len(names), *([_cell(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cell(text: str | None) -> str:
    """Return a text as the content of a cell, where nothing of it is markup."""
    if text is None:
        return "–"
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + " …"
    # As numbers: no character of an answer can then open a tag, a link or another cell.
    marked = "".join(f"&#{ord(letter)};" if letter in "&<>|*_`[]()!#\\~" else letter for letter in shown)
    return "<br>".join(marked.splitlines()) or " "
