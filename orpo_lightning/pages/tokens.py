"""A rendered row on a page: each token coloured and underlined by its part in training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from markupsafe import Markup

from orpo_lightning.pages.words import visible

KINDS = {
    "prompt": "in front of both answers",
    "chosen": "the answer to prefer",
    "rejected": "the answer to avoid",
    "stop": "ends an answer, and is learnt; an answer that was cut has none",
    "masked": "read by the model, never predicted",
}
_BLOCKS = ("prompt", "chosen", "rejected")
# A page of three rows a split stays small: of a long run its two ends are shown.
_HEAD, _TAIL = 160, 60


class Block(NamedTuple):
    """The prompt or one of the answers."""

    name: str
    size: int
    html: Markup


def blocks(tokens: Iterable[Mapping[str, Any]]) -> list[Block]:
    """Return a row's tokens as its prompt, its chosen and its rejected answer."""
    parts = groupby(_named(tokens), key=lambda part: part[0])
    return [_block(name, [part[1:] for part in run]) for name, run in parts]


def _named(tokens: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield block, kind and text of each token; stop and masked tokens belong to the block they stand in."""
    block = _BLOCKS[0]
    for token in tokens:
        kind = token.get("kind")
        kind = kind if kind in KINDS else "masked"
        block = kind if kind in _BLOCKS else block
        yield block, kind, str(token.get("text", ""))


def _block(name: str, tokens: Sequence[tuple[str, str]]) -> Block:
    runs = groupby(tokens, key=lambda token: token[0])
    html = Markup("").join(_run(kind, [text for _, text in run]) for kind, run in runs)
    return Block(name, len(tokens), html)


def _run(kind: str, texts: Sequence[str]) -> Markup:
    left_out = len(texts) - _HEAD - _TAIL
    if left_out <= 1:
        return _span(kind, texts)
    note = Markup('<span class="elided">{:,} tokens not shown</span>').format(left_out)
    return _span(kind, texts[:_HEAD]) + note + _span(kind, texts[-_TAIL:])


def _span(kind: str, texts: Sequence[str]) -> Markup:
    inner = Markup("").join(Markup("<i>{}</i>").format(visible(text)) for text in texts)
    return Markup('<span class="{}">{}</span>').format(kind, inner)
