"""How preference pairs become micro-batches: the seam (base), a layout (padded), a run's plan (sampler)."""

from __future__ import annotations

from orpo_lightning.batching.base import Normalisers, PairBatch, TokenizedPair
from orpo_lightning.batching.padded import pad_pairs

__all__ = ["Normalisers", "PairBatch", "TokenizedPair", "pad_pairs"]
