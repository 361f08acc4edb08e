"""Pairs beyond the length limits: left out, cut, or an error."""

from __future__ import annotations

from typing import Literal, NamedTuple

from orpo_lightning.batching.base import TokenizedPair
from orpo_lightning.data.token_rules import truncate
from orpo_lightning.errors import DataError

Overlong = Literal["drop", "truncate", "error"]

IDENTICAL_CUT = "identical after truncation"
PROMPT_TOO_LONG = "prompt too long"
PAIR_TOO_LONG = "pair too long"
NO_ROOM = "prompt leaves no room for an answer"
BEYOND_LIMITS = frozenset({PROMPT_TOO_LONG, PAIR_TOO_LONG, NO_ROOM, IDENTICAL_CUT})
"""Reasons that the limits give, and not the rows."""


class Limits(NamedTuple):
    """How long pairs may be."""

    max_length: int
    """Most tokens of prompt and one answer together."""
    max_prompt_length: int | None = None
    overlong: Overlong = "drop"

    def fit(self, pair: TokenizedPair, where: str, bos: int | None) -> TokenizedPair | str:
        """Return the pair within the limits, or why it is left out.

        Raises:
            DataError: it is too long and `overlong` is "error".
        """
        prompt, answer = len(pair.prompt), max(len(pair.chosen), len(pair.rejected))
        too_long = self._exceeded(prompt, answer)
        if too_long is None:
            return pair
        if self.overlong == "error":
            found = f"{prompt} tokens of prompt and {answer} of answer"
            limits = f"data.max_length {self.max_length}, data.max_prompt_length {self.max_prompt_length}"
            raise DataError(f"{where}: {too_long}: {found} ({limits})")
        if self.overlong == "drop":
            return too_long
        cut = truncate(pair, max_length=self.max_length, max_prompt_length=self.max_prompt_length, bos=bos)
        if not cut.chosen:
            return NO_ROOM
        return IDENTICAL_CUT if cut.chosen == cut.rejected else cut

    def _exceeded(self, prompt: int, answer: int) -> str | None:
        """Return which limit a prompt and its longer answer, in tokens, exceed."""
        if self.max_prompt_length is not None and prompt > self.max_prompt_length:
            return PROMPT_TOO_LONG
        if prompt >= self.max_length:
            return NO_ROOM
        return PAIR_TOO_LONG if prompt + answer > self.max_length else None
