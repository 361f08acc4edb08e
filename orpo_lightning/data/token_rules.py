"""What is added to token ids and taken off: BOS, stop token, truncation."""

from __future__ import annotations

from typing import Any

from orpo_lightning.batching.base import TokenizedPair
from orpo_lightning.errors import UsageError


def leading_ids(tokenizer: Any) -> list[int]:
    """Return what the tokenizer itself puts in front of text: its BOS, or nothing."""
    plain, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    return full[:start]


class StopRule:
    """Ends an answer with exactly one stop token: the one its template wrote, else the tokenizer's EOS."""

    def __init__(self, tokenizer: Any) -> None:
        """Collect the special tokens."""
        added = tokenizer.added_tokens_decoder
        self.special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
        if tokenizer.unk_token_id != tokenizer.eos_token_id:
            self.special.discard(tokenizer.unk_token_id)  # an unknown last character is no stop
        self.tokenizer = tokenizer
        self._blank: dict[int, bool] = {}

    def end(self, answer: list[int]) -> list[int]:
        """Return the answer cut behind the first special token of its end, or with EOS behind it.

        Templates write line ends, and some a second stop token, behind the one generation stops at.
        """
        for position in range(self._trailing(answer), len(answer)):
            if answer[position] in self.special:
                return answer[: position + 1]
        if self.tokenizer.eos_token_id is None:
            raise UsageError("data.tokenizer: it has no EOS token, and the answers end with no other stop")
        return [*answer, self.tokenizer.eos_token_id]

    def is_empty(self, pair: TokenizedPair) -> bool:
        """Return whether an answer consists of white space and special tokens only."""
        return any(self._trailing(answer) == 0 for answer in (pair.chosen, pair.rejected))

    def _trailing(self, answer: list[int]) -> int:
        """Return where the run of special and white-space tokens begins that the answer ends with."""
        position = len(answer)
        while position > 0 and (answer[position - 1] in self.special or self._is_blank(answer[position - 1])):
            position -= 1
        return position

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self.tokenizer.decode([token]).strip()
        return self._blank[token]


def truncate(
    pair: TokenizedPair, *, max_length: int, max_prompt_length: int | None, bos: int | None
) -> TokenizedPair:
    """Cut the prompt on the left, keeping a leading BOS, and answers on the right: their stop tokens go."""
    prompt = pair.prompt
    if max_prompt_length is not None and len(prompt) > max_prompt_length:
        kept = prompt[:1] if prompt[0] == bos else []
        rest = max_prompt_length - len(kept)
        prompt = kept + prompt[len(prompt) - rest :]
    room = max(0, max_length - len(prompt))
    return TokenizedPair(prompt, pair.chosen[:room], pair.rejected[:room])
