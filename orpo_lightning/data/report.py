"""What a run's header says of its data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orpo_lightning.data.cache import PairTable
from orpo_lightning.data.tokenization import Dropped


@dataclass(frozen=True)
class SplitReport:
    """One split of the data; `str` gives it on one line."""

    source: str
    pairs: int
    """Kept, after splitting and sampling."""
    tokens: dict[str, int]
    """In all these pairs: `prompt`, `chosen`, `rejected`."""
    dropped: dict[str, Dropped] = field(default_factory=dict)
    """Of the whole source, by reason."""
    stop_tokens: dict[str, int] = field(default_factory=dict)
    """Which token ends how many answers of the whole source."""
    cut_answers: int = 0

    def __str__(self) -> str:
        """Return one line: pairs, source, tokens, stop tokens, what was dropped and why."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.tokens.items())
        stops = " or ".join(map(repr, self.stop_tokens)) or "no stop token"
        parts = [f"{self.pairs:,} pairs of {self.source}", f"tokens: {kinds}", f"answers end with {stops}"]
        if self.cut_answers:
            parts.append(f"{self.cut_answers:,} answers cut")
        if self.dropped:
            reasons = (f"{d.pairs:,} {reason} (first {d.first[0]})" for reason, d in self.dropped.items())
            parts.append(f"dropped: {', '.join(reasons)}")
        return "; ".join(parts)


def make_report(table: PairTable, tokenizer: Any) -> SplitReport:
    """Return what is in a table and what was dropped from its source."""
    prompt, chosen, rejected = table.lengths.sum(dim=0).tolist()
    info = table.info
    return SplitReport(
        source=info.source,
        pairs=len(table),
        tokens={"prompt": prompt, "chosen": chosen, "rejected": rejected},
        dropped=info.dropped,
        stop_tokens={tokenizer.convert_ids_to_tokens(token): n for token, n in info.stop_tokens.items()},
        cut_answers=info.cut_answers,
    )
