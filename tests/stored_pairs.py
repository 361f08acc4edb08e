"""Tokenised pairs of a test's own, stored as the cache stores them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from orpo_lightning.batching.base import TokenizedPair
from orpo_lightning.data.table import (
    COLUMNS,
    DROPPED,
    INFO,
    PLACES,
    Dropped,
    StoredPairs,
    TableInfo,
    column_file,
)


def key(ids: Sequence[int]) -> int:
    return int.from_bytes(blake2b(np.array(ids, np.int32).tobytes(), digest_size=8).digest(), "little")


def keys_of(pairs: Sequence[Any]) -> np.ndarray[Any, Any]:
    return np.array([[key(ids) for ids in pair] for pair in pairs], np.uint64).reshape(-1, 3)


def store(
    folder: Path,
    pairs: Sequence[Any],
    *,
    name: str = "pairs.jsonl",
    margins: Sequence[float] | None = None,
    agreements: Sequence[float] | None = None,
    flags: Sequence[int] | None = None,
    whole: Sequence[Sequence[int]] | None = None,
    dropped: dict[str, Dropped] | None = None,
    scripts: dict[str, int] | None = None,
) -> StoredPairs:
    """Store pairs of ids; the row of pair i stands in line i + 1."""
    folder.mkdir(parents=True)
    lengths = np.array([[len(ids) for ids in pair] for pair in pairs], np.int32).reshape(-1, 3)
    whole_lengths = lengths if whole is None else np.array(whole, np.int32).reshape(-1, 3)
    columns = {
        "tokens": np.array([token for pair in pairs for ids in pair for token in ids], np.int32),
        "lengths": lengths,
        "keys": keys_of(pairs),
        "margins": np.array([np.nan] * len(pairs) if margins is None else margins, np.float32),
        "agreements": np.array([np.nan] * len(pairs) if agreements is None else agreements, np.float32),
        "flags": np.array([0] * len(pairs) if flags is None else flags, np.uint8),
        "whole_lengths": whole_lengths,
    }
    for column in COLUMNS:
        columns[column].tofile(column_file(folder, column))
    dropped = dropped or {}
    info = TableInfo(
        source=name,
        shape="explicit messages",
        fingerprint="0",
        pairs=len(pairs),
        tokens=len(columns["tokens"]),
        whole=len(whole_lengths),
        rows=len(pairs) + sum(rows for rows, _ in dropped.values()),
        dropped=dropped,
        stop_tokens={},
        cut_answers=0,
        scripts=scripts or {},
        notes=[],
    )
    (folder / INFO).write_text(json.dumps(asdict(info)))
    (folder / PLACES).write_text("".join(f"{name}:{number}\n" for number in range(1, len(pairs) + 1)))
    (folder / DROPPED).write_text("")
    return StoredPairs(folder)


def pair(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> TokenizedPair:
    return TokenizedPair(list(prompt), list(chosen), list(rejected))
