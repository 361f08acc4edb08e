"""From texts to token ids: the prompt as inference would begin with it, and an exact seam to the answers.

The rule: an answer's tokens are those of prompt and answer together, less the prompt's own, if they begin
with these. So each prompt would be encoded three times; `Anchors` says how little of it is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

from orpo_lightning.batching.base import TokenizedPair
from orpo_lightning.data.anchors import Anchors
from orpo_lightning.data.control_tokens import ControlTokens, guarded
from orpo_lightning.data.rendering import Texts
from orpo_lightning.data.token_rules import leading_ids

Ids = Callable[[list[str]], list[list[int]]]

# A text encoded behind one of these shows how it continues other text; several, as one may join what follows.
_BEFORE = ("\n", ":", "0", "a")
# What is longer than this, in characters, is cut if so much of it is over the limit anyway.
_LONG = 1_000_000
# Of a prompt that is cut, so much of its beginning stays: the first token is kept when prompts are truncated.
_HEAD = 64
# So many characters are encoded at a time: each of their tokens takes some 150 bytes on the way.
_BATCH = 4_000_000
_ANCHORS_KEPT = 10_000
_PROBES = ["", "a", " Hello  world\n", "\n\nIt's été, 字 😀\t42", "<s></s><|im_end|>x"]


class Encoder:
    """Encodes texts with one tokenizer.

    Args:
        tokenizer: of `transformers`.
        longest: the most tokens that anybody looks at, of a prompt and of an answer. Of a text of over a
            million characters only so much is encoded as makes more tokens than that: a prompt's end with its
            very beginning, an answer's beginning. None encodes everything.
    """

    def __init__(self, tokenizer: Any, longest: int | None = None) -> None:
        """Look how the tokenizer is best called."""
        self._tokenizer, self._longest = tokenizer, longest
        self._leading = leading_ids(tokenizer)
        self._ids = _common(tokenizer)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._anchors: Anchors | None = None
        # A tokenizer's common way sets its truncation at each call, beside which no other call may run.
        self.is_reentrant = False
        """Whether another encoder of the same tokenizer may be at work at the same time."""
        if hasattr(backend, "encode_batch_fast") and _fast(backend)(_PROBES) == self._ids(_PROBES):
            self._ids, self._anchors = _fast(backend), Anchors(backend)
            self.is_reentrant = True
        self._alone: dict[str, list[int]] = {}

    def encode(self, texts: Iterable[Texts]) -> list[TokenizedPair]:
        """Return the token ids of each, in order."""
        return [pair for batch in _batches(texts) for pair in self._encode(batch)]

    def _encode(self, texts: list[Texts]) -> Iterator[TokenizedPair]:
        ordinary = [self._cut(text, self._ids) for text in texts if not text.has_control_tokens]
        marked = [self._named(text) for text in texts if text.has_control_tokens]
        pairs = iter(self._quickly(ordinary) if ordinary else ())
        guarded_pairs = iter(_jointly(marked, self._guarded) if marked else ())
        for text in texts:
            pair = next(guarded_pairs if text.has_control_tokens else pairs)
            if not text.is_rendered and pair.prompt[: len(self._leading)] != self._leading:
                pair = pair._replace(prompt=self._leading + pair.prompt)
            yield pair

    @cached_property
    def _controls(self) -> ControlTokens:
        return ControlTokens(self._tokenizer)

    @cached_property
    def _guarded(self) -> Ids:
        return guarded(self._tokenizer, self._controls)

    def _named(self, text: Texts) -> Texts:
        prompt, chosen, rejected = map(self._controls.named, (text.prompt, text.chosen, text.rejected))
        return self._cut(text._replace(prompt=prompt, chosen=chosen, rejected=rejected), self._guarded)

    def _quickly(self, texts: list[Texts]) -> list[TokenizedPair]:
        """Encode the prompts once, and the answers behind their anchors."""
        if self._anchors is None:
            return _jointly(texts, self._ids)
        prompts = self._ids([text.prompt for text in texts])
        anchors = [self._anchors.of(text.prompt, ids) for text, ids in zip(texts, prompts, strict=True)]
        strings = [anchor + text.chosen for anchor, text in zip(anchors, texts, strict=True)]
        strings += [anchor + text.rejected for anchor, text in zip(anchors, texts, strict=True)]
        if len(self._alone) > _ANCHORS_KEPT:
            self._alone.clear()
        shorter = (anchor for anchor, text in zip(anchors, texts, strict=True) if anchor != text.prompt)
        new = [anchor for anchor in dict.fromkeys(shorter) if anchor not in self._alone]
        ids = self._ids(strings + new)
        self._alone.update(zip(new, ids[len(strings) :], strict=True))
        found: list[_Found] = []
        doubtful: list[int] = []
        for number, (text, anchor, prompt) in enumerate(zip(texts, anchors, prompts, strict=True)):
            alone = prompt if anchor == text.prompt else self._alone[anchor]
            if prompt[len(prompt) - len(alone) :] != alone:  # it does not stand for the prompt after all
                doubtful.append(number)
            chosen, rejected = ids[number], ids[number + len(texts)]
            found.append(_Found(prompt, _behind(alone, chosen), _behind(alone, rejected)))
        pairs = _completed(found, texts, self._ids)
        again = _jointly([texts[number] for number in doubtful], self._ids) if doubtful else []
        for number, pair in zip(doubtful, again, strict=True):
            pairs[number] = pair
        return pairs

    def _cut(self, text: Texts, ids: Ids) -> Texts:
        """Return texts without what is far beyond the limit."""
        longest = self._longest
        if longest is None or max(map(len, text[:3])) <= _LONG:
            return text

        def enough(whole: str, part: Callable[[int], str]) -> str:
            length = 16 * longest + 1000
            while len(whole) > max(length, _LONG):
                if len(ids([part(length)])[0]) > longest + 2 * _HEAD:
                    return part(length)
                length *= 2
            return whole

        prompt = enough(text.prompt, lambda length: text.prompt[:_HEAD] + _from_word(text.prompt[-length:]))
        chosen = enough(text.chosen, lambda length: _to_word(text.chosen[:length]))
        rejected = enough(text.rejected, lambda length: _to_word(text.rejected[:length]))
        return text._replace(prompt=prompt, chosen=chosen, rejected=rejected)


class _Found(NamedTuple):
    """Token ids, None for those of an answer that does not go on from its prompt's tokens."""

    prompt: list[int]
    chosen: list[int] | None
    rejected: list[int] | None


def _jointly(texts: list[Texts], ids: Ids) -> list[TokenizedPair]:
    """Encode each answer behind its whole prompt, as the rule has it."""
    prompts = ids([text.prompt for text in texts])
    whole_chosen = ids([text.prompt + text.chosen for text in texts])
    whole_rejected = ids([text.prompt + text.rejected for text in texts])
    wholes = zip(prompts, whole_chosen, whole_rejected, strict=True)
    found = [_Found(prompt, _behind(prompt, one), _behind(prompt, other)) for prompt, one, other in wholes]
    return _completed(found, texts, ids)


def _behind(before: list[int], whole: list[int]) -> list[int] | None:
    return whole[len(before) :] if whole[: len(before)] == before else None


def _completed(found: list[_Found], texts: list[Texts], ids: Ids) -> list[TokenizedPair]:
    """Encode the answers that are missing because a token would straddle the seam: each for itself.

    By itself text often gets a mark of a word's beginning in front (SentencePiece) that it has not got behind
    other text. So it is encoded behind something whose own tokens are then taken off.
    """
    missing = [
        answer
        for pair, text in zip(found, texts, strict=True)
        for answer, tokens in ((text.chosen, pair.chosen), (text.rejected, pair.rejected))
        if tokens is None
    ]
    apart: dict[str, list[int]] = {}
    for before in _BEFORE:
        if left := [answer for answer in dict.fromkeys(missing) if answer not in apart]:
            alone, *wholes = ids([before, *(before + answer for answer in left)])
            behind = zip(left, (_behind(alone, whole) for whole in wholes), strict=True)
            apart |= {answer: tokens for answer, tokens in behind if tokens is not None}
    if left := [answer for answer in dict.fromkeys(missing) if answer not in apart]:
        apart |= zip(left, ids(left), strict=True)
    return [
        TokenizedPair(
            pair.prompt,
            apart[text.chosen] if pair.chosen is None else pair.chosen,
            apart[text.rejected] if pair.rejected is None else pair.rejected,
        )
        for pair, text in zip(found, texts, strict=True)
    ]


def _fast(backend: Any) -> Ids:
    """Return the quickest way to the ids: many texts at once, on all cores."""

    def ids(strings: list[str]) -> list[list[int]]:
        # A call of the tokenizer elsewhere may have left these on.
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        return [one.ids for one in backend.encode_batch_fast(strings, add_special_tokens=False)]

    return ids


def _common(tokenizer: Any) -> Ids:
    # verbose: it would warn of texts longer than the model's context, which have their own policy here.
    return lambda strings: tokenizer(strings, add_special_tokens=False, verbose=False)["input_ids"]


def _batches(texts: Iterable[Texts]) -> Iterator[list[Texts]]:
    batch: list[Texts] = []
    characters = 0
    for text in texts:
        length = 3 * len(text.prompt) + len(text.chosen) + len(text.rejected)
        if batch and characters + length > _BATCH:
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += length
    if batch:
        yield batch


def _to_word(text: str) -> str:
    """Return a text that was cut at its end without the word that was cut, if it is no very long one."""
    space = text.rfind(" ", len(text) - 1000)
    return text if space <= 0 else text[:space]


def _from_word(text: str) -> str:
    """Return a text that was cut at its beginning without the word that was cut."""
    space = text.find(" ", 0, 1000)
    return text if space < 0 else text[space:]
