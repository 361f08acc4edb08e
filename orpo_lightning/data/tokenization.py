"""From records to token ids, some hundreds at a time: what is kept, noted, left out and why."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from itertools import cycle, islice
from typing import Any, NamedTuple

from orpo_lightning.batching.base import TokenizedPair
from orpo_lightning.data import flags
from orpo_lightning.data.encoding import Encoder
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.limits import Limits, Overlong
from orpo_lightning.data.records import PreferenceRecord
from orpo_lightning.data.rendering import Renderer, Texts
from orpo_lightning.data.screening import EMPTY, IDENTICAL, Screen, left_out
from orpo_lightning.data.scripts_of_text import script_of
from orpo_lightning.data.token_rules import StopRule

_CHUNK = 512
# Of so many pairs one is looked at for its script.
_SCRIPT_EVERY = 16


class Chunk(NamedTuple):
    """Some hundred rows: n pairs that are kept, as flat arrays, and what became of the other rows."""

    tokens: array[int]
    """int32: prompt, chosen and rejected answer of the first pair, of the second, ..."""
    lengths: array[int]
    """(3n) int32: how many tokens each of them has."""
    keys: array[int]
    """(3n) uint64: hashes of their ids."""
    margins: array[float]
    """(n) float32: score of chosen less that of rejected, NaN where the row has none."""
    agreements: array[float]
    """(n) float32: how many judges agreed, or their share, NaN where the row does not say."""
    flags: array[int]
    """(n) uint8: bits of `orpo_lightning.data.flags`."""
    whole_lengths: array[int]
    """(3m) int32: lengths before any limit, of all pairs that were tokenised."""
    places: list[str]
    """(n) where the row of each pair stands."""
    left_out: list[LeftOut]
    kept_rows: int
    """Rows that the n pairs were made from."""
    stop_tokens: Counter[int]
    """Which token ends how many whole answers."""
    cut_answers: int
    """Answers cut at the end: these teach no stop token."""
    scripts: Counter[str]


def tokenize_records(
    records: Iterable[PreferenceRecord | LeftOut],
    tokenizer: Any,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
    overlong: Overlong = "drop",
    min_margin: float | None = None,
    allow_empty_prompt: bool = False,
    repeated_prompt: str = "keep",
    notes: list[str] | None = None,
) -> Iterator[Chunk]:
    """Tokenise records in chunks; nothing of an earlier chunk is kept.

    Args:
        records: prompt and answers, text or messages; a row that was left out before is passed on.
        tokenizer: of `transformers`, with a chat template if there are messages.
        max_length: most tokens of prompt and one answer together.
        max_prompt_length: most tokens of the prompt; None sets no limit of its own.
        overlong: leave out what is longer; truncate prompts on the left, answers on the right; or raise.
        min_margin: leave out pairs whose scores differ by less.
        allow_empty_prompt: keep pairs without a prompt.
        repeated_prompt: "strip" takes it off answers that begin with it.
        notes: gets a sentence for everything the chat template needed.

    Raises:
        DataError: a row is too long and `overlong` is "error".
        UsageError: the tokenizer lacks the chat template or the stop token that the records need.
    """
    rules = _Rules(tokenizer, Limits(max_length, max_prompt_length, overlong))
    screen = Screen(
        tokenizer.convert_ids_to_tokens(sorted(rules.stop.special)),
        min_margin=min_margin,
        allow_empty_prompt=allow_empty_prompt,
        repeated_prompt=repeated_prompt,
    )
    for prepared, pairs in _encode_ahead(rules, screen, iter(records)):
        yield rules.finish(prepared, pairs)
    if notes is not None:
        notes.extend(rules.renderer.notes)


def _encode_ahead(
    rules: _Rules, screen: Screen, rows: Iterator[PreferenceRecord | LeftOut]
) -> Iterator[tuple[_Prepared, list[TokenizedPair]]]:
    """Yield chunks with their tokens, in order.

    Two are encoded at a time, each by an encoder of its own. The tokenizer needs no interpreter: it is kept
    at work while the tokens of the other chunk are taken apart, and while this thread reads and renders.
    """
    encoders = [rules.encoder()]
    if encoders[0].is_reentrant:
        encoders.append(rules.encoder())
    turns = cycle(encoders)
    waiting: deque[tuple[_Prepared, Future[list[TokenizedPair]]]] = deque()
    with ThreadPoolExecutor(len(encoders), "encode") as pool:
        while items := list(islice(rows, _CHUNK)):
            prepared = rules.prepare([item if isinstance(item, LeftOut) else screen(item) for item in items])
            # The chunk before the last has the encoder that comes next.
            due = [waiting.popleft()] if len(waiting) == 2 else []
            done = [(chunk, encoded.result()) for chunk, encoded in due]
            texts = [texts for _, _, texts in prepared.usable]
            waiting.append((prepared, pool.submit(next(turns).encode, texts)))
            yield from done
        for prepared, encoded in waiting:
            yield prepared, encoded.result()


class _Prepared(NamedTuple):
    """A chunk that is ready to be encoded."""

    usable: list[tuple[PreferenceRecord, int, Texts]]
    """Records with their flags and texts."""
    left_out: list[LeftOut]


class _Rules:
    """The rules of one tokenizer, applied to a chunk at a time."""

    def __init__(self, tokenizer: Any, limits: Limits) -> None:
        self.renderer, self.stop = Renderer(tokenizer), StopRule(tokenizer)
        self.tokenizer, self.limits, self.bos = tokenizer, limits, tokenizer.bos_token_id
        self.count = 0

    def encoder(self) -> Encoder:
        """Return an encoder of what matters of a text."""
        # One token more than the limit shows that it is exceeded.
        return Encoder(self.tokenizer, self.limits.max_length + 1)

    def prepare(self, screened: list[tuple[PreferenceRecord, int] | LeftOut]) -> _Prepared:
        """Render all records of a chunk."""
        noted = [item for item in screened if not isinstance(item, LeftOut)]
        rendered = self.renderer.render([record for record, _ in noted])
        gone = [item for item in (*screened, *rendered) if isinstance(item, LeftOut)]
        both = zip(noted, rendered, strict=True)
        return _Prepared([(*pair, texts) for pair, texts in both if isinstance(texts, Texts)], gone)

    def finish(self, prepared: _Prepared, encoded: list[TokenizedPair]) -> Chunk:
        """Look at each pair that was encoded."""
        made = _empty_chunk()
        made.left_out.extend(prepared.left_out)
        kept_rows = cut_answers = 0
        for (record, bits, texts), pair in zip(prepared.usable, encoded, strict=True):
            whole = pair._replace(chosen=self.stop.end(pair.chosen), rejected=self.stop.end(pair.rejected))
            made.whole_lengths.extend(map(len, whole))
            fitted = self._fit(whole, record.where)
            if isinstance(fitted, str):
                made.left_out.append(left_out(record, fitted))
                continue
            bits |= flags.CONTROL_TOKEN if texts.has_control_tokens else 0
            cut = _cut_flags(whole, fitted)
            _add(made, fitted, record, bits | cut)
            for answer, bit in ((fitted.chosen, flags.CHOSEN_CUT), (fitted.rejected, flags.REJECTED_CUT)):
                if cut & bit:
                    cut_answers += 1
                else:
                    made.stop_tokens[answer[-1]] += 1
            kept_rows += record.rows
            if self.count % _SCRIPT_EVERY == 0:
                made.scripts[script_of(texts.chosen)] += 1
            self.count += 1
        return made._replace(kept_rows=kept_rows, cut_answers=cut_answers)

    def _fit(self, whole: TokenizedPair, where: str) -> TokenizedPair | str:
        if self.stop.is_empty(whole):
            return EMPTY
        return IDENTICAL if whole.chosen == whole.rejected else self.limits.fit(whole, where, self.bos)


def _empty_chunk() -> Chunk:
    arrays = (array("i"), array("i"), array("Q"), array("f"), array("f"), array("B"), array("i"))
    return Chunk(*arrays, [], [], 0, Counter(), 0, Counter())


def _add(made: Chunk, pair: TokenizedPair, record: PreferenceRecord, bits: int) -> None:
    for ids in pair:
        part = array("i", ids)
        made.tokens.extend(part)
        made.lengths.append(len(part))
        made.keys.append(int.from_bytes(blake2b(part, digest_size=8).digest(), "little"))
    made.margins.append(float("nan") if record.margin is None else record.margin)
    made.agreements.append(float("nan") if record.agreement is None else record.agreement)
    made.flags.append(bits)
    made.places.append(record.where)


def _cut_flags(whole: TokenizedPair, fitted: TokenizedPair) -> int:
    chosen, rejected = (len(after) < len(before) for before, after in zip(whole[1:], fitted[1:], strict=True))
    return flags.CHOSEN_CUT * chosen | flags.REJECTED_CUT * rejected


def pairs_of(chunks: Iterable[Chunk]) -> list[TokenizedPair]:
    """Return all pairs of some chunks; for looking at few of them."""
    found = []
    for made in chunks:
        tokens = iter(made.tokens)
        lengths = (made.lengths[first : first + 3] for first in range(0, len(made.lengths), 3))
        found += [TokenizedPair(*(list(islice(tokens, n)) for n in three)) for three in lengths]
    return found


def tally(left_out_rows: Iterable[LeftOut]) -> dict[str, tuple[int, list[str]]]:
    """Count rows by the reason they were left out for; with the places of the first few of each."""
    counted: dict[str, tuple[int, list[str]]] = {}
    for item in left_out_rows:
        rows, first = counted.get(item.reason, (0, []))
        counted[item.reason] = rows + item.rows, first if len(first) >= 5 else [*first, item.where]
    return counted
