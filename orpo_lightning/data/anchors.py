"""Ends of prompts that stand for the whole prompt: what is encoded behind them comes out the same.

A tokenizer cuts a text at its added tokens before anything else; what follows one is encoded by itself. So
an answer is encoded behind a prompt as it is behind the prompt's end, from its last added token on. Where
there is none, most tokenizers let no token reach from a word over the space into the next: the last word will
do.
Each rule holds under conditions, all of which are checked; else the prompt stands for itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

# Added tokens are looked for among so many last tokens of a prompt, words among so many last characters.
_TOKENS, _CHARACTERS = 64, 200
_LEFT = ("word", "it's", "x9", "end.", "f(x)", "é", "да", "字", "1,", "-", '"', "😀", "A")
_RIGHT = ("word", "Don't", "9x", "été", "да", "字a", "a", "B.", "42", "_x", "the end: ", "x\n", "go  on")


class Anchors:
    """Finds, for the prompts of one tokenizer, the shortest end that may stand for them."""

    def __init__(self, backend: Any) -> None:
        """Note the added tokens.

        Args:
            backend: of the package `tokenizers`.
        """
        self._backend = backend
        self._added = backend.get_added_tokens_decoder()
        self._all = "\0".join(token.content for token in self._added.values())
        self._usable: dict[int, str] = {}

    def of(self, prompt: str, ids: list[int]) -> str:
        """Return the anchor of a prompt: its end, which may lack the space in front of a first word.

        Args:
            prompt: text.
            ids: its tokens.
        """
        is_plain = True
        for token in reversed(ids[-_TOKENS:]):
            if token in self._added:
                is_plain = False
                if content := self._content(token):
                    return prompt[prompt.rfind(content) :] if content in prompt else prompt
        return self._last_word(prompt) if is_plain else prompt

    def _content(self, token: int) -> str:
        """Return the text of an added token if every occurrence of it is that token; else nothing."""
        if token not in self._usable:
            added = self._added[token]
            # Tokens that are looked for in the normalised text are at the mercy of what stands around them.
            is_raw = not added.normalized or self._backend.normalizer is None
            is_whole = added.content and added.content == added.content.strip() and not added.single_word
            is_seen = not (added.special and self._backend.encode_special_tokens)
            usable = is_raw and is_whole and is_seen and not self._overlaps(added.content)
            self._usable[token] = added.content if usable else ""
        return self._usable[token]

    def _overlaps(self, content: str) -> bool:
        """Return whether another added token may take away a part of this one."""
        starts = (content[:end] for end in range(1, len(content)))
        return self._all.count(content) > 1 or any(start in self._ends for start in starts)

    @cached_property
    def _ends(self) -> set[str]:
        contents = (token.content for token in self._added.values())
        return {content[start:] for content in contents for start in range(1, len(content))}

    def _last_word(self, prompt: str) -> str:
        """Return the last word, if it stands behind a single space and another word and may be an anchor."""
        end, first = len(prompt), max(0, len(prompt) - _CHARACTERS)
        while (space := prompt.rfind(" ", first, end)) > first:
            before, after = prompt[space - 1], prompt[space + 1 : space + 2]
            if after.isalnum() and not (before.isspace() or before == "▁"):
                lead = self._lead
                return prompt if lead is None else lead + prompt[space + 1 :]
            end = space
        return prompt

    @cached_property
    def _lead(self) -> str | None:
        """What stands for the space before a word that begins a text; None: no word will do."""
        if any(token.lstrip or re.search(r"\S \w", token.content) for token in self._added.values()):
            return None
        if not _is_local(self._backend.normalizer) or not self._words_are_apart():
            return None
        return next((lead for lead in (" ", "") if self._agrees(lead)), None)

    def _words_are_apart(self) -> bool:
        """Return whether no token reaches over the space between two words, whatever stands around them."""
        splits = [self._is_split(left, right) for left in _LEFT for right in _RIGHT]
        if all(splits):
            return True
        # All in one piece: then it is for the vocabulary to say, as a BPE only makes what that has.
        model = self._backend.model
        if any(splits) or type(model).__name__ != "BPE" or model.dropout:
            return False
        if _states(self._backend.pre_tokenizer) - {"Metaspace", "Split"}:
            return False
        crossing = re.compile(r"[^\s▁][▁ ]")
        return not any(crossing.search(token) for token in self._backend.get_vocab(with_added_tokens=False))

    def _is_split(self, left: str, right: str) -> bool:
        text = f"{left} {right}"
        if self._backend.pre_tokenizer is None:
            return False
        pieces = self._backend.pre_tokenizer.pre_tokenize_str(text)
        return any(start in (len(left), len(left) + 1) for _, (start, _) in pieces)

    def _agrees(self, lead: str) -> bool:
        pairs = [(left, right) for left in _LEFT for right in _RIGHT]
        texts = [*(f"{a} {b}" for a, b in pairs), *(lead + b for _, b in pairs), *(a for a, _ in pairs)]
        ids = [one.ids for one in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        whole, behind, before = ids[: len(pairs)], ids[len(pairs) : 2 * len(pairs)], ids[2 * len(pairs) :]
        return all(one == a + b for one, a, b in zip(whole, before, behind, strict=True))


def _states(part: Any) -> set[str]:
    """Return the types of a normaliser or pre-tokenizer and of those it is made of."""
    if part is None:
        return set()

    def types(state: Any) -> Iterable[str]:
        inner = state.get("normalizers") or state.get("pretokenizers")
        return [one for each in inner for one in types(each)] if inner else [state["type"]]

    return set(types(json.loads(part.__getstate__())))


def _is_local(normalizer: Any) -> bool:
    """Return whether a normaliser changes a word without a look at the one before it."""
    return _states(normalizer) <= {"NFC", "NFD", "NFKC", "NFKD", "Replace", "Prepend", "Lowercase"}
