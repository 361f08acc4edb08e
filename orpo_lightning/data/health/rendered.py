"""A few pairs token by token: the text of each, and what part it has in training."""

from __future__ import annotations

from typing import Any

import torch

from orpo_lightning.batching.base import TokenizedPair
from orpo_lightning.data import flags
from orpo_lightning.data.table import PairTable

_SHORT = 400
# Of a longer pair the texts would take seconds to find, and nobody reads them.
_LONGEST = 2000


def rendered(table: PairTable, tokenizer: Any) -> list[dict[str, Any]]:
    """Return the first pair, one from the middle, and the longest, of those of at most 400 tokens.

    Where there are none so short, the shortest of the table.
    """
    numbers = _few(table.lengths.sum(dim=1))
    few = table.select(torch.tensor(numbers, dtype=torch.int64))
    described = zip(few, few.places(), few.flags.tolist(), strict=True)
    return [{"where": where, "tokens": tokens_of(pair, bits, tokenizer)} for pair, where, bits in described]


def _few(sizes: torch.Tensor) -> list[int]:
    short = (sizes <= _SHORT).nonzero()[:, 0]
    if not len(short):
        shortest = int(sizes.argmin())
        return [shortest] if sizes[shortest] <= _LONGEST else []
    longest = short[sizes[short].argmax()]
    return sorted({int(short[0]), int(short[len(short) // 2]), int(longest)})


def tokens_of(pair: TokenizedPair, bits: int, tokenizer: Any) -> list[dict[str, str]]:
    """Return text and kind of each token of prompt, chosen and rejected; the prompt once.

    Kinds: "prompt", "chosen", "rejected"; "stop" ends an answer and is learnt; "masked" is the first token of
    a sequence, which nothing predicts.

    Args:
        pair: token ids.
        bits: its flags: an answer that was cut has no stop token.
        tokenizer: of `transformers`.
    """
    prompt = pair.prompt
    chosen, rejected = (_texts(prompt + answer, tokenizer) for answer in (pair.chosen, pair.rejected))
    kinds = ["prompt"] * len(prompt)
    kinds += _answer_kinds("chosen", len(pair.chosen), bits & flags.CHOSEN_CUT)
    after = _answer_kinds("rejected", len(pair.rejected), bits & flags.REJECTED_CUT)
    kinds[:1] = ["masked"]
    if not prompt:
        after[:1] = ["masked"]
    texts = [*chosen, *rejected[len(prompt) :]]
    return [{"text": text, "kind": kind} for text, kind in zip(texts, kinds + after, strict=True)]


def _answer_kinds(side: str, count: int, is_cut: int) -> list[str]:
    return [side] * count if is_cut else [side] * (count - 1) + ["stop"]


def _texts(ids: list[int], tokenizer: Any) -> list[str]:
    """Return the text of each token; joined they are the text of all.

    By itself a token has often no text, being a part of a character, or loses its space. So each gets what it
    adds to the text of the tokens before it; a character goes to the token that completes it.
    """
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    ends, end = [], 0
    for count in range(1, len(ids)):
        beginning = tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False)
        end = _agree(beginning, whole, end)
        ends.append(end)
    ends.append(len(whole))
    return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _agree(beginning: str, whole: str, known: int) -> int:
    """Return how many characters two texts have in common at their beginning; at least those known."""
    for place in range(known, min(len(beginning), len(whole))):
        if beginning[place] != whole[place]:
            return place
    return max(known, min(len(beginning), len(whole)))
