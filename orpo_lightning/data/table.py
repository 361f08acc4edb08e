"""Tokenised pairs as they lie on disk, and tables of them that the training reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from orpo_lightning.batching.base import TokenizedPair

PLACES = "places.txt"
DROPPED = "dropped.jsonl"
INFO = "info.json"


class Dropped(NamedTuple):
    """Rows left out for one reason."""

    rows: int
    first: list[str]
    """Where the first few of them stand."""


@dataclass
class TableInfo:
    """What is known of a tokenised source as a whole; plain values only."""

    source: str
    """What the user calls it."""
    shape: str
    """How its rows were read: "explicit messages", "hh", ..."""
    fingerprint: str
    """A hash of all token ids: the same for the same training data, wherever and however it is stored."""
    pairs: int
    tokens: int
    whole: int
    """Pairs that were tokenised, those beyond a limit included."""
    rows: int
    """Rows read: those of the kept pairs and those that were left out, every one of them."""
    dropped: dict[str, Dropped]
    """By reason."""
    stop_tokens: dict[int, int]
    """Which token ends how many whole answers."""
    cut_answers: int
    scripts: dict[str, int]
    """In which script how many answers of a sample are written."""
    notes: list[str]
    """What the chat template needed, a sentence each."""
    largest_token: int = -1
    """The largest token id; -1 where that was not looked at."""

    @property
    def rows_per_pair(self) -> int:
        """How many rows a pair was made from: one, or two where answers stand in rows of their own."""
        kept = self.rows - sum(dropped.rows for dropped in self.dropped.values())
        return kept // self.pairs if self.pairs else 1


# Of each file: its type, and how many values it has for a table of that info.
_COLUMNS: dict[str, tuple[Any, Any]] = {
    "tokens": (np.int32, lambda info: info.tokens),
    "lengths": (np.int32, lambda info: 3 * info.pairs),
    "keys": (np.uint64, lambda info: 3 * info.pairs),
    "margins": (np.float32, lambda info: info.pairs),
    "agreements": (np.float32, lambda info: info.pairs),
    "flags": (np.uint8, lambda info: info.pairs),
    "whole_lengths": (np.int32, lambda info: 3 * info.whole),
}
COLUMNS = tuple(_COLUMNS)


def column_file(folder: Path, name: str) -> Path:
    """Return the file of one of `COLUMNS`."""
    return folder / f"{name}.bin"


class StoredPairs:
    """All pairs of one source, memory-mapped from a folder of the cache.

    Args:
        folder: as `orpo_lightning.data.cache` writes it.

    Raises:
        ValueError, OSError, KeyError, TypeError: the folder is missing, damaged or of another version.
    """

    def __init__(self, folder: Path) -> None:
        """Map the files."""
        values = json.loads((folder / INFO).read_text(encoding="utf-8"))
        values["dropped"] = {reason: Dropped(*dropped) for reason, dropped in values["dropped"].items()}
        values["stop_tokens"] = {int(token): count for token, count in values["stop_tokens"].items()}
        self.folder, self.info = folder, TableInfo(**values)
        columns = {name: _map(folder, name, self.info) for name in COLUMNS}
        self.tokens, self.margins, self.flags = columns["tokens"], columns["margins"], columns["flags"]
        self.agreements, self.keys = columns["agreements"], columns["keys"].reshape(-1, 3)
        self.whole_lengths = columns["whole_lengths"].reshape(-1, 3)
        self.lengths = torch.from_numpy(columns["lengths"].reshape(-1, 3).astype(np.int64))
        sizes = self.lengths.sum(dim=1)
        self.offsets = sizes.cumsum(0) - sizes

    def places(self, pairs: Collection[int]) -> dict[int, str]:
        """Return where the rows of these pairs stand, as `file:line`, without holding those of all others."""
        wanted = sorted(frozenset(pairs))
        return dict(zip(wanted, self.places_in_order(wanted), strict=True))

    def places_in_order(self, pairs: Iterable[int]) -> Iterator[str]:
        """Yield where the rows of these pairs, in rising order, stand."""
        with (self.folder / PLACES).open(encoding="utf-8") as file:
            at = 0
            for pair in pairs:
                yield next(islice(file, pair - at, None)).rstrip("\n")
                at = pair + 1


def _map(folder: Path, name: str, info: TableInfo) -> np.ndarray[Any, Any]:
    kind, count = _COLUMNS[name]
    file, size = column_file(folder, name), count(info)
    if file.stat().st_size != size * np.dtype(kind).itemsize:
        raise ValueError(f"{file} does not have the size that {INFO} says")
    return np.memmap(file, kind, "r") if size else np.empty(0, kind)


class PairTable(Sequence[TokenizedPair]):
    """Pairs of one or several stored sources, in any selection and order.

    Args:
        sources: where the pairs are stored.
        source_of: (n,) int16, of each pair the number of its source.
        row: (n,) int64, of each pair its number within that source.
    """

    def __init__(self, sources: Sequence[StoredPairs], source_of: Tensor, row: Tensor) -> None:
        """Look up the lengths and offsets."""
        self.sources, self.source_of, self.row = tuple(sources), source_of, row
        self.lengths = self._look_up(lambda source: source.lengths)
        self.offsets = self._look_up(lambda source: source.offsets)

    @classmethod
    def of(cls, sources: Sequence[StoredPairs]) -> PairTable:
        """Return all pairs of the sources, one source behind the other."""
        sizes = [source.info.pairs for source in sources]
        source_of = torch.arange(len(sources), dtype=torch.int16).repeat_interleave(torch.tensor(sizes))
        return cls(sources, source_of, torch.cat([torch.arange(size) for size in sizes]))

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.row)

    @overload
    def __getitem__(self, index: int) -> TokenizedPair: ...

    @overload
    def __getitem__(self, index: slice) -> PairTable: ...

    def __getitem__(self, index: int | slice) -> TokenizedPair | PairTable:
        """Return one pair as lists of ids, or a slice as a table."""
        if isinstance(index, slice):
            return self.select(torch.arange(len(self))[index])
        start, (prompt, chosen, rejected) = int(self.offsets[index]), self.lengths[index].tolist()
        tokens = self.sources[int(self.source_of[index])].tokens
        ids = tokens[start : start + prompt + chosen + rejected].tolist()
        return TokenizedPair(ids[:prompt], ids[prompt : prompt + chosen], ids[prompt + chosen :])

    def select(self, indices: Tensor) -> PairTable:
        """Return a table of these pairs (indices (m,) int64), in this order."""
        return PairTable(self.sources, self.source_of[indices], self.row[indices])

    @property
    def keys(self) -> np.ndarray[Any, Any]:
        """(n, 3) uint64, hashes of prompt, chosen and rejected: equal for equal token ids."""
        return self._look_up(lambda source: source.keys)

    @property
    def margins(self) -> np.ndarray[Any, Any]:
        """(n,) float32, score of chosen less that of rejected; NaN where the row has none."""
        return self._look_up(lambda source: source.margins)

    @property
    def agreements(self) -> np.ndarray[Any, Any]:
        """(n,) float32, how many judges agreed, or their share; NaN where the row does not say."""
        return self._look_up(lambda source: source.agreements)

    @property
    def flags(self) -> np.ndarray[Any, Any]:
        """(n,) uint8, bits of `orpo_lightning.data.flags`."""
        return self._look_up(lambda source: source.flags)

    @property
    def whole_lengths(self) -> np.ndarray[Any, Any]:
        """(m, 3) int32, lengths of all pairs of the sources before any limit; not those of the n pairs."""
        return np.concatenate([source.whole_lengths for source in self.sources])

    @property
    def name(self) -> str:
        """What the user calls the sources."""
        return " + ".join(source.info.source for source in self.sources)

    @property
    def largest_token(self) -> int:
        """The largest token id of the sources; -1 where that is not known."""
        return max(source.info.largest_token for source in self.sources)

    def counts(self) -> list[int]:
        """Return how many pairs are of each source."""
        return torch.bincount(self.source_of.long(), minlength=len(self.sources)).tolist()

    def places(self) -> list[str]:
        """Return where the row of each pair stands, as `file:line`."""
        pairs = list(zip(self.source_of.tolist(), self.row.tolist(), strict=True))
        places = [
            source.places([row for of, row in pairs if of == number])
            for number, source in enumerate(self.sources)
        ]
        return [places[source][row] for source, row in pairs]

    def places_and_rows(self) -> Iterator[tuple[str, int]]:
        """Yield where each pair stands and how many rows it is made of, source by source.

        They come in the order of the files, and none but the one at hand is in memory.
        """
        for number, source in enumerate(self.sources):
            rows = self.row[self.source_of == number].sort().values.tolist()
            for where in source.places_in_order(rows):
                yield where, source.info.rows_per_pair

    def fingerprint(self) -> str:
        """Return a hash of the pairs and their order."""
        digest = hashlib.sha256(" ".join(source.info.fingerprint for source in self.sources).encode())
        digest.update(self.source_of.numpy().tobytes() + self.row.numpy().tobytes())
        return digest.hexdigest()

    def _look_up(self, column: Any) -> Any:
        """Return a column of the sources, (n, ...) in the order of this table."""
        columns = [column(source) for source in self.sources]
        if len(columns) == 1:
            return columns[0][self.row if torch.is_tensor(columns[0]) else self.row.numpy()]
        is_tensor = torch.is_tensor(columns[0])
        rows = [torch.as_tensor(self.row[self.source_of == number]) for number in range(len(columns))]
        values = [part[row if is_tensor else row.numpy()] for part, row in zip(columns, rows, strict=True)]
        # Sorted by source, then put back where each pair stands.
        order = self.source_of.argsort(stable=True)
        if is_tensor:
            together = torch.cat(values)
            return torch.empty_like(together).index_copy_(0, order, together)
        found = np.concatenate(values)
        result = np.empty_like(found)
        result[order.numpy()] = found
        return result
