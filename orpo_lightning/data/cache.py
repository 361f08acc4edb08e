"""Tokenised pairs on disk: made once, found again by what they were made from, read without loading them whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from orpo_lightning.batching.base import TokenizedPair
from orpo_lightning.data import records, token_rules, tokenization
from orpo_lightning.data.tokenization import Dropped, TokenizedRecords
from orpo_lightning.errors import SurroundingsError


class TableInfo(NamedTuple):
    """What is known of a tokenised source as a whole."""

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


def cache_key(content: str, tokenizer: Any, settings: dict[str, Any]) -> str:
    """Return the name of the cache of rows with that fingerprint under that tokenizer and those settings.

    The rules' own source is a part of it: after they change, no old tokens are found.
    """
    parts = [content, _tokenizer_state(tokenizer), json.dumps(settings, sort_keys=True)]
    parts += [Path(module.__file__).read_text("utf-8") for module in (records, token_rules, tokenization)]
    return hashlib.sha256("\0".join(hashlib.sha256(part.encode()).hexdigest() for part in parts).encode()).hexdigest()


def _tokenizer_state(tokenizer: Any) -> str:
    """Return everything that decides what a tokenizer and its template make of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    tokens = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids]
    added = {i: repr(token) for i, token in sorted(tokenizer.added_tokens_decoder.items())}
    return json.dumps([type(tokenizer).__name__, state, tokens, added, tokenizer.chat_template])


def cached_table(folder: Path, key: str, make: Callable[[], TokenizedRecords]) -> PairTable:
    """Return the table stored under `key`; make and store it first where there is none, or a damaged one.

    Raises:
        SurroundingsError: the folder cannot be written.
    """
    entry = folder / key[:32]
    table = _load(entry)
    if table is not None:
        return table
    made = make()
    try:
        _store(entry, made)
    except OSError as error:
        raise SurroundingsError(
            f"{folder}: cannot store the tokenised pairs: {error.strerror or error}; set data.cache_dir to "
            "a folder that can be written"
        ) from error
    table = _load(entry)
    assert table is not None
    return table


def _store(entry: Path, made: TokenizedRecords) -> None:
    """Write everything beside the final place and move it there, so that a kill leaves all or nothing."""
    tokens = np.frombuffer(made.tokens, dtype=np.int32) if made.tokens else np.zeros(0, np.int32)
    lengths = np.array(made.lengths, dtype=np.int64).reshape(-1, 3)
    digest = hashlib.sha256(tokens.tobytes() + lengths.tobytes()).hexdigest()
    info = TableInfo(digest, made.dropped, made.stop_tokens, made.cut_answers)
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        np.save(temporary / "tokens.npy", tokens)
        np.save(temporary / "lengths.npy", lengths)
        (temporary / "info.json").write_text(json.dumps(info._asdict()), encoding="utf-8")
        for file in temporary.iterdir():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        if entry.exists() and _load(entry) is None:
            shutil.rmtree(entry)
        os.replace(temporary, entry)
    except OSError:
        if _load(entry) is None:  # else another process was faster, with the same tokens
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load(entry: Path) -> PairTable | None:
    """Return the stored table, or None where it is missing or incomplete."""
    try:
        info = json.loads((entry / "info.json").read_text(encoding="utf-8"))
        lengths = torch.from_numpy(np.load(entry / "lengths.npy"))
        # numpy refuses to map an empty array.
        tokens = np.load(entry / "tokens.npy", mmap_mode="r" if len(lengths) else None)
        known = TableInfo(
            info["fingerprint"],
            {reason: Dropped(*dropped) for reason, dropped in info["dropped"].items()},
            {int(token): count for token, count in info["stop_tokens"].items()},
            info["cut_answers"],
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return PairTable(tokens, lengths, known) if len(tokens) == int(lengths.sum()) else None
