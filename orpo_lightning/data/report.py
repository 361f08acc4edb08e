"""What a run's header says of its data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orpo_lightning.data.table import Dropped, PairTable


@dataclass(frozen=True)
class SourceReport:
    """One source of a split."""

    source: str
    shape: str
    """How its rows were read."""
    rows: int
    pairs: int
    """Of these in the split."""
    weight: float | None = None

    def __str__(self) -> str:
        """Return name, shape, and weight where it is mixed by one."""
        weight = "" if self.weight is None else f", weight {self.weight:g}"
        return f"{self.source} ({self.shape}{weight})"


@dataclass(frozen=True)
class SplitReport:
    """One split of the data; `str` gives it on one line."""

    sources: list[SourceReport]
    pairs: int
    """Kept, after cleaning, splitting and sampling."""
    tokens: dict[str, int]
    """In all these pairs: `prompt`, `chosen`, `rejected`."""
    dropped: dict[str, Dropped] = field(default_factory=dict)
    """Rows of the whole sources, by reason."""
    stop_tokens: dict[str, int] = field(default_factory=dict)
    """Which token ends how many answers of the whole sources."""
    cut_answers: int = 0
    notes: list[str] = field(default_factory=list)
    """What the chat template needed."""

    @property
    def source(self) -> str:
        """What the user calls the sources."""
        return " + ".join(source.source for source in self.sources)

    def __str__(self) -> str:
        """Return one line: pairs, sources and shapes, tokens, stop tokens, what was left out and why."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.tokens.items())
        stops = " or ".join(map(repr, self.stop_tokens)) or "no stop token"
        sources = " + ".join(map(str, self.sources))
        parts = [f"{self.pairs:,} pairs of {sources}", f"tokens: {kinds}", f"answers end with {stops}"]
        if self.cut_answers:
            parts.append(f"{self.cut_answers:,} answers cut")
        if self.dropped:
            reasons = (f"{d.rows:,} {reason} (first {d.first[0]})" for reason, d in self.dropped.items())
            parts.append(f"left out: {', '.join(reasons)}")
        return "; ".join([*parts, *self.notes])


def make_report(
    table: PairTable, tokenizer: Any, removed: Mapping[str, Dropped], weights: Sequence[float | None]
) -> SplitReport:
    """Return what is in a table, and what was left out of its sources or removed for other pairs' sake."""
    prompt, chosen, rejected = table.lengths.sum(dim=0).tolist()
    infos = [source.info for source in table.sources]
    stop_tokens: Counter[int] = Counter()
    dropped: dict[str, Dropped] = {}
    for info in infos:
        stop_tokens.update(info.stop_tokens)
        for reason, (rows, first) in info.dropped.items():
            before = dropped.get(reason, Dropped(0, []))
            dropped[reason] = Dropped(before.rows + rows, (before.first + first)[:5])
    counted = zip(infos, table.counts(), weights, strict=True)
    return SplitReport(
        sources=[SourceReport(i.source, i.shape, i.rows, count, weight) for i, count, weight in counted],
        pairs=len(table),
        tokens={"prompt": prompt, "chosen": chosen, "rejected": rejected},
        dropped={**dropped, **removed},
        stop_tokens={tokenizer.convert_ids_to_tokens(token): n for token, n in stop_tokens.items()},
        cut_answers=sum(info.cut_answers for info in infos),
        notes=list(dict.fromkeys(note for info in infos for note in info.notes)),
    )
