"""Tokenised pairs on disk: made once, found again by what they were made from, and memory-mapped."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from orpo_lightning.batching.base import TokenizedPair
from orpo_lightning.data import records, token_rules, tokenization
from orpo_lightning.data.records import to_records
from orpo_lightning.data.sources import Rows
from orpo_lightning.data.tokenization import Dropped, TokenizedRecords, tokenize_records
from orpo_lightning.errors import DataError, SurroundingsError


class TableInfo(NamedTuple):
    """What is known of a tokenised source as a whole."""

    source: str
    """What the user calls it."""
    fingerprint: str
    """A hash of all token ids: the same for the same training data, wherever and however it is stored."""
    dropped: dict[str, Dropped]
    stop_tokens: dict[int, int]
    cut_answers: int


class PairTable(Sequence[TokenizedPair]):
    """Pairs in one flat array of tokens, which may be a memory map.

    Args:
        tokens: int32, all pairs one behind the other.
        lengths: (n, 3) int64 tokens of prompt, chosen and rejected answer.
        info: about the source the pairs are from.
        offsets: (n,) where each pair begins; None where `tokens` holds these pairs and no others.
    """

    def __init__(
        self, tokens: np.ndarray[Any, Any], lengths: Tensor, info: TableInfo, offsets: Tensor | None = None
    ) -> None:
        """Keep the arrays."""
        sizes = lengths.sum(dim=1)
        self.tokens, self.lengths, self.info = tokens, lengths, info
        self.offsets = sizes.cumsum(0) - sizes if offsets is None else offsets

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> TokenizedPair: ...

    @overload
    def __getitem__(self, index: slice) -> PairTable: ...

    def __getitem__(self, index: int | slice) -> TokenizedPair | PairTable:
        """Return one pair as lists of ids, or a slice as a table."""
        if isinstance(index, slice):
            return self.select(torch.arange(len(self))[index])
        start, (prompt, chosen, rejected) = int(self.offsets[index]), self.lengths[index].tolist()
        ids = self.tokens[start : start + prompt + chosen + rejected].tolist()
        return TokenizedPair(ids[:prompt], ids[prompt : prompt + chosen], ids[prompt + chosen :])

    def prompt_key(self, index: int) -> bytes:
        """Return what is equal for pairs of the same prompt."""
        start = int(self.offsets[index])
        return self.tokens[start : start + int(self.lengths[index, 0])].tobytes()

    def select(self, indices: Tensor) -> PairTable:
        """Return a table of these pairs (indices (m,) int64), in this order."""
        return PairTable(self.tokens, self.lengths[indices], self.info, self.offsets[indices])

    def fingerprint(self) -> str:
        """Return a hash of the pairs and their order."""
        digest = hashlib.sha256(self.info.fingerprint.encode())
        digest.update(self.offsets.numpy().tobytes())
        return digest.hexdigest()


def default_cache_dir() -> Path:
    """Return the user's cache folder for this package."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "orpo_lightning"


def open_table(rows: Rows, tokenizer: Any, limits: dict[str, Any], folder: Path) -> PairTable:
    """Return the tokenised pairs of a source, from the folder where they are there already.

    Args:
        rows: the source.
        tokenizer: of `transformers`.
        limits: `max_length`, `max_prompt_length` and `overlong` of `tokenize_records`.
        folder: holds all caches.

    Raises:
        DataError: the source cannot be used, or no pair of it.
        UsageError: the tokenizer does not fit the data.
        SurroundingsError: the folder cannot be written.
    """
    entry = folder / cache_key(rows, tokenizer, limits)
    table = _load(entry)
    if table is None:
        found = to_records(rows.read(), rows.source)
        made = tokenize_records(found, tokenizer, **limits, name=rows.source)
        if not made.lengths:
            reasons = ", ".join(f"{pairs} {reason}" for reason, (pairs, _) in made.dropped.items())
            raise DataError(f"{rows.source}: no usable pair is left; dropped: {reasons}")
        table = _store(entry, rows.source, made)
    return table


def cache_key(rows: Rows, tokenizer: Any, limits: dict[str, Any]) -> str:
    """Return the name of the cache of these rows under that tokenizer and those limits.

    The rules' own source is a part of it: after they change, no old tokens are found.
    """
    rules = [inspect.getsource(module) for module in (records, token_rules, tokenization)]
    parts = [rows.source, rows.fingerprint, _tokenizer_state(tokenizer), limits, rules]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _tokenizer_state(tokenizer: Any) -> list[Any]:
    """Return everything that decides what a tokenizer and its template make of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    # Not decisions: what the last call asked for, and a call may lie between two runs' looks here.
    state = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.all_special_ids]
    added = [repr(item) for item in sorted(tokenizer.added_tokens_decoder.items())]
    return [type(tokenizer).__name__, state, ids, added, tokenizer.chat_template]


def _store(entry: Path, source: str, made: TokenizedRecords) -> PairTable:
    """Write everything beside the final place and move it there, so that a kill leaves all or nothing."""
    tokens = np.frombuffer(made.tokens, dtype=np.int32)
    lengths = np.frombuffer(made.lengths, dtype=np.int64).reshape(-1, 3)
    digest = hashlib.sha256(tokens.tobytes() + lengths.tobytes()).hexdigest()
    info = TableInfo(source, digest, made.dropped, made.stop_tokens, made.cut_answers)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=entry.parent) as name:
            temporary = Path(name) / entry.name
            temporary.mkdir()
            np.save(temporary / "tokens.npy", tokens)
            np.save(temporary / "lengths.npy", lengths)
            (temporary / "info.json").write_text(json.dumps(info._asdict()), encoding="utf-8")
            _put(temporary, entry)
    except OSError as error:
        raise SurroundingsError(
            f"{entry.parent}: cannot store the tokenised pairs: {error.strerror or error}; "
            "free space there, or set data.cache_dir to another folder"
        ) from error
    table = _load(entry)
    assert table is not None
    return table


def _put(temporary: Path, entry: Path) -> None:
    for file in temporary.iterdir():
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    if entry.exists() and _load(entry) is None:
        shutil.rmtree(entry)  # damaged
    try:
        os.replace(temporary, entry)
    except OSError:
        if _load(entry) is None:  # else another process was faster, with the same tokens
            raise


def _load(entry: Path) -> PairTable | None:
    """Return the stored table, or None where it is missing or incomplete."""
    try:
        info = json.loads((entry / "info.json").read_text(encoding="utf-8"))
        lengths = torch.from_numpy(np.load(entry / "lengths.npy"))
        tokens = np.load(entry / "tokens.npy", mmap_mode="r")
        known = TableInfo(
            info["source"],
            info["fingerprint"],
            {reason: Dropped(*dropped) for reason, dropped in info["dropped"].items()},
            {int(token): count for token, count in info["stop_tokens"].items()},
            info["cut_answers"],
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return PairTable(tokens, lengths, known) if len(tokens) == int(lengths.sum()) else None
