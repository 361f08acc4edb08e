"""From records to token ids: which tokenizer, which pairs are kept, and why the others are not."""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Callable, Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orpo_lightning.batching.base import TokenizedPair
from orpo_lightning.data.records import PreferenceRecord
from orpo_lightning.data.token_rules import StopRule, encode, leading_ids, render, truncate
from orpo_lightning.errors import DataError, SurroundingsError, UsageError

Overlong = Literal["drop", "truncate", "error"]

EMPTY = "empty answer"
IDENTICAL = "identical answers"
IDENTICAL_CUT = "identical after truncation"
PROMPT_TOO_LONG = "prompt too long"
PAIR_TOO_LONG = "pair too long"
NO_ROOM = "prompt leaves no room for an answer"

_CHUNK = 512
_PLACES_KEPT = 5


class Dropped(NamedTuple):
    """Pairs left out for one reason."""

    pairs: int
    first: list[str]
    """Where the first few of them stand."""


class TokenizedRecords(NamedTuple):
    """n pairs as flat arrays, and what happened on the way."""

    tokens: array[int]
    """int32: prompt, chosen and rejected answer of the first pair, of the second, ..."""
    lengths: array[int]
    """(3n) int64: how many tokens each of them has."""
    dropped: dict[str, Dropped]
    """By reason."""
    stop_tokens: dict[int, int]
    """Which token ends how many whole answers."""
    cut_answers: int
    """Answers cut at the end: these teach no stop token."""


def load_tokenizer(
    name_or_path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> Any:
    """Load a tokenizer, set up for left-padded training.

    Args:
        name_or_path: hub id or folder.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run code that comes with the tokenizer.
        chat_template: a template, or the path of a .jinja file, in place of the tokenizer's own.

    Raises:
        SurroundingsError: there is no such tokenizer, or it cannot be reached.
        UsageError: `chat_template` is neither template nor file.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=trust_remote_code, padding_side="left"
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SurroundingsError(f"data.tokenizer: cannot load {name_or_path!r}: {reason}") from error
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    if tokenizer.pad_token is None:
        # Padding is told by position, never by id: a token of its own would only resize the embeddings.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_template(template: str) -> str:
    """Return a chat template, given itself or the path of its file."""
    if "{%" in template or "{{" in template:
        return template
    path = Path(template).expanduser()
    if not path.is_file():
        raise UsageError(f"data.chat_template: expected a template or a .jinja file, found {template!r}")
    return path.read_text(encoding="utf-8")


def tokenize_records(
    records: Iterable[PreferenceRecord],
    tokenizer: Any,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
    overlong: Overlong = "drop",
    name: str = "pairs",
) -> TokenizedRecords:
    """Tokenise records, leave out those nothing can be learned from, and count them by reason.

    Args:
        records: prompt and answers, text or messages.
        tokenizer: of `transformers`, with a chat template if there are messages.
        max_length: most tokens of prompt and one answer together.
        max_prompt_length: most tokens of the prompt; None sets no limit of its own.
        overlong: drop and count what is longer; truncate prompts on the left, answers on the right; or raise.
        name: shown beside the progress bar, which appears on a terminal only.

    Raises:
        DataError: the template cannot render a row, or a row is too long and `overlong` is "error".
        UsageError: the tokenizer lacks the chat template or the stop token that the records need.
    """
    from tqdm import tqdm

    result = TokenizedRecords(array("i"), array("q"), {}, {}, 0)
    stop = StopRule(tokenizer)
    leading = leading_ids(tokenizer)
    fit = _fitter(tokenizer, max_length, max_prompt_length, overlong)
    cut_answers = 0
    rows = iter(tqdm(records, desc=f"tokenising {name}", unit=" pairs", disable=None))
    while chunk := list(islice(rows, _CHUNK)):
        different = [record for record in chunk if not _is_dropped_as_identical(record, result.dropped)]
        texts = [render(record, tokenizer) for record in different]
        for record, pair in zip(different, encode(texts, tokenizer, leading), strict=True):
            whole = pair._replace(chosen=stop.end(pair.chosen), rejected=stop.end(pair.rejected))
            fitted = EMPTY if stop.is_empty(whole) else fit(whole, record.where)
            if isinstance(fitted, str):
                _count(result.dropped, fitted, record.where)
                continue
            result.tokens.extend(chain(*fitted))
            result.lengths.extend(map(len, fitted))
            for before, after in zip(whole[1:], fitted[1:], strict=True):
                if len(after) == len(before):
                    result.stop_tokens[after[-1]] = result.stop_tokens.get(after[-1], 0) + 1
                else:
                    cut_answers += 1
    return result._replace(cut_answers=cut_answers)


def _fitter(
    tokenizer: Any, max_length: int, max_prompt_length: int | None, overlong: Overlong
) -> Callable[[TokenizedPair, str], TokenizedPair | str]:
    """Return a function of a pair and its place: the pair within the limits, or why it is dropped."""

    def fit(pair: TokenizedPair, where: str) -> TokenizedPair | str:
        if pair.chosen == pair.rejected:
            return IDENTICAL
        prompt, answer = len(pair.prompt), max(len(pair.chosen), len(pair.rejected))
        too_long = _too_long(prompt, answer, max_length, max_prompt_length)
        if too_long is None:
            return pair
        if overlong == "error":
            found = f"{prompt} tokens of prompt and {answer} of answer"
            limits = f"data.max_length {max_length}, data.max_prompt_length {max_prompt_length}"
            raise DataError(f"{where}: {too_long}: {found} ({limits})")
        if overlong == "drop":
            return too_long
        cut = truncate(
            pair, max_length=max_length, max_prompt_length=max_prompt_length, bos=tokenizer.bos_token_id
        )
        if not cut.chosen:
            return NO_ROOM
        return IDENTICAL_CUT if cut.chosen == cut.rejected else cut

    return fit


def _too_long(prompt: int, answer: int, max_length: int, max_prompt_length: int | None) -> str | None:
    """Return which limit a prompt and its longer answer, in tokens, exceed."""
    if max_prompt_length is not None and prompt > max_prompt_length:
        return PROMPT_TOO_LONG
    if prompt >= max_length:
        return NO_ROOM
    return PAIR_TOO_LONG if prompt + answer > max_length else None


def _is_dropped_as_identical(record: PreferenceRecord, dropped: dict[str, Dropped]) -> bool:
    if _normal(record.chosen) != _normal(record.rejected):
        return False
    _count(dropped, IDENTICAL, record.where)
    return True


def _normal(answer: str | list[dict[str, str]]) -> str:
    """Return the answer's text as a reader sees it: without outer white space, accents composed."""
    text = answer if isinstance(answer, str) else answer[0]["content"]
    return unicodedata.normalize("NFC", text).strip()


def _count(dropped: dict[str, Dropped], reason: str, where: str) -> None:
    pairs, first = dropped.get(reason, Dropped(0, []))
    dropped[reason] = Dropped(pairs + 1, [*first, where][:_PLACES_KEPT])
