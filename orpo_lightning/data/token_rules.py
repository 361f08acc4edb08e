"""How one record becomes token ids: prompt, seam, stop token and truncation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from orpo_lightning.batching.base import TokenizedPair
from orpo_lightning.data.records import PreferenceRecord
from orpo_lightning.errors import DataError, UsageError

# A text encoded behind one of these shows how it continues other text; several, as one may join what follows.
_ANCHORS = ("\n", ":", "0", "a")


class Texts(NamedTuple):
    """What of a record is encoded: the text before the answers, and the text each adds to it."""

    prompt: str
    chosen: str
    rejected: str
    is_rendered: bool
    """By a chat template, which writes every special token itself."""


def render(record: PreferenceRecord, tokenizer: Any) -> Texts:
    """Return the texts of a record: messages through the chat template, plain text as it is.

    Raises:
        DataError: the template refuses the row, or does not continue its own prompt.
        UsageError: there is no template.
    """
    if isinstance(record.prompt, str):
        assert isinstance(record.chosen, str)
        assert isinstance(record.rejected, str)
        return Texts(record.prompt, record.chosen, record.rejected, is_rendered=False)
    if not tokenizer.chat_template:
        raise UsageError(
            f"{record.where} holds messages and the tokenizer has no chat template; "
            "set data.chat_template to a template or a .jinja file"
        )
    conversations = (record.prompt + list(answer) for answer in (record.chosen, record.rejected))
    try:
        prompt = tokenizer.apply_chat_template(record.prompt, tokenize=False, add_generation_prompt=True)
        chosen, rejected = (tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations)
    except Exception as error:  # a template is a program: it raises what it likes
        raise DataError(f"{record.where}: the chat template cannot render this row: {error}") from error
    for answer, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.startswith(prompt):
            raise DataError(
                f"{record.where}: the chat template does not render the {answer} conversation as going on "
                "from its own generation prompt; set data.chat_template to one that does"
            )
    return Texts(prompt, chosen[len(prompt) :], rejected[len(prompt) :], is_rendered=True)


def encode(texts: list[Texts], tokenizer: Any, leading: list[int]) -> Iterator[TokenizedPair]:
    """Yield the token ids of each record, the prompt's exactly those that inference would begin with.

    Args:
        texts: rendered records.
        tokenizer: of `transformers`.
        leading: what the tokenizer puts in front of plain text, from `leading_ids`.
    """

    def ids(strings: Iterable[str]) -> list[list[int]]:
        strings = list(strings)
        # verbose: it would warn of texts longer than the model's context, which have their own policy here.
        return tokenizer(strings, add_special_tokens=False, verbose=False)["input_ids"] if strings else []

    prompts = ids(text.prompt for text in texts)
    whole_chosen = ids(text.prompt + text.chosen for text in texts)
    whole_rejected = ids(text.prompt + text.rejected for text in texts)
    for text, prompt, chosen, rejected in zip(texts, prompts, whole_chosen, whole_rejected, strict=True):
        needs_leading = not text.is_rendered and prompt[: len(leading)] != leading
        yield TokenizedPair(
            leading + prompt if needs_leading else prompt,
            _answer(prompt, chosen, text.chosen, ids),
            _answer(prompt, rejected, text.rejected, ids),
        )


def _answer(
    prompt: list[int], whole: list[int], answer: str, ids: Callable[[Iterable[str]], list[list[int]]]
) -> list[int]:
    """Return the answer's tokens: the rest of the whole text, or its own if a token would straddle the seam.

    Encoded by itself, text often gets a mark of a word's beginning in front (SentencePiece) that it has not
    got behind other text. So it is encoded behind an anchor whose own tokens are then taken off.
    """
    if whole[: len(prompt)] == prompt:
        return whole[len(prompt) :]
    for anchor in _ANCHORS:
        anchored, alone = ids((anchor + answer, anchor))
        if anchored[: len(alone)] == alone:
            return anchored[len(alone) :]
    return ids((answer,))[0]


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
