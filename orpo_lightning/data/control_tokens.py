"""Control tokens whose text stands in a message: encoded as that text, not as the token.

Such a row is rendered with a mark inside each of these texts, so that those the template writes stay the only
whole ones. They get names of their own then, the marks go, and a copy of the tokenizer reads the result that
knows its control tokens under these names: what the messages say is ordinary text to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from orpo_lightning.errors import UsageError

# Noncharacters, which Unicode keeps out of texts. A row with a control token in a message loses any it has.
_MARK, _OPEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_NEVER = re.compile(r"(?!)")
Ids = Callable[[list[str]], list[list[int]]]


class ControlTokens:
    """The special tokens of one tokenizer, as texts.

    Other added tokens, such as the marks of a thought or a tool call, are part of what an answer may say.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Collect them."""
        special = set(tokenizer.all_special_ids)
        self.ids = {
            token.content: number
            for number, token in tokenizer.added_tokens_decoder.items()
            # A single character cannot be marked inside, and white space is no control token to anybody.
            if (token.special or number in special) and len(token.content.strip()) > 1
        }
        self.names = {text: f"{_OPEN}{number}{_CLOSE}" for text, number in self.ids.items()}
        longest_first = sorted(map(re.escape, self.ids), key=len, reverse=True)
        self._pattern = re.compile("|".join(longest_first)) if longest_first else _NEVER

    def are_in(self, value: Any) -> bool:
        """Return whether one stands anywhere in the texts of a message, or of a list of them."""
        if isinstance(value, str):
            return self._pattern.search(value) is not None
        if isinstance(value, dict):
            return any(map(self.are_in, value.values()))
        return isinstance(value, (list, tuple)) and any(map(self.are_in, value))

    def marked(self, value: Any) -> Any:
        """Return a copy of messages or tools in which no text holds a whole control token."""
        if isinstance(value, str):
            text = re.sub(f"[{_MARK}{_OPEN}{_CLOSE}]", "", value)
            while self._pattern.search(text):  # once more where two of them overlapped
                text = self._pattern.sub(lambda found: found[0][0] + _MARK + found[0][1:], text)
            return text
        if isinstance(value, dict):
            return {key: self.marked(part) for key, part in value.items()}
        return [self.marked(part) for part in value] if isinstance(value, (list, tuple)) else value

    def named(self, text: str) -> str:
        """Return a marked rendering without marks, the template's control tokens under their other names."""
        return self._pattern.sub(lambda found: self.names[found[0]], text).replace(_MARK, "")

    def pieces(self, named: str) -> list[str | int]:
        """Return a named rendering cut into texts and the ids of the control tokens between them."""
        parts = re.split(f"{_OPEN}(\\d+){_CLOSE}", named)
        return [int(part) if number % 2 else part for number, part in enumerate(parts) if part]


def guarded(tokenizer: Any, tokens: ControlTokens) -> Ids:
    """Return a function from named renderings to their ids.

    Raises:
        UsageError: the tokenizer cannot be told to read its control tokens under other names.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda strings: [_by_pieces(tokenizer, tokens.pieces(text)) for text in strings]
    copy = _renamed(backend, tokens.names)
    encoded = copy.encode_batch(list(tokens.names.values()), add_special_tokens=False)
    for (text, number), encoding in zip(tokens.ids.items(), encoded, strict=True):
        if encoding.ids != [number]:
            raise UsageError(
                f"data.tokenizer: a message holds the text of a control token, and this tokenizer cannot be "
                f"told to encode {text!r} as text; remove control tokens from the data"
            )
    return lambda strings: [
        one.ids for one in copy.encode_batch_fast(list(strings), add_special_tokens=False)
    ]


def _renamed(backend: Any, names: dict[str, str]) -> Any:
    """Return a copy of a tokenizer whose control tokens have other names and the same ids."""
    from tokenizers import Tokenizer

    parts = json.loads(backend.to_str())
    for token in parts["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = parts["model"]
    rename: Callable[[str], str] = lambda token: names.get(token, token)  # noqa: E731
    if isinstance(model["vocab"], dict):
        model["vocab"] = {rename(token): number for token, number in model["vocab"].items()}
    else:
        model["vocab"] = [[rename(token), score] for token, score in model["vocab"]]
    if "merges" in model:
        merges: Iterable[Any] = (
            tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in model["merges"]
        )
        model["merges"] = [pair for pair in merges if names.keys().isdisjoint((*pair, "".join(pair)))]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    parts |= {"post_processor": None, "truncation": None, "padding": None}
    copy = Tokenizer.from_str(json.dumps(parts))
    copy.encode_special_tokens = False
    return copy


def _by_pieces(tokenizer: Any, pieces: list[str | int]) -> list[int]:
    """Encode with a tokenizer in Python, which can be told to see no control token in a text."""
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, int):
            ids.append(piece)
        else:
            ids += tokenizer.convert_tokens_to_ids(tokenizer.tokenize(piece, split_special_tokens=True))
    return ids
