"""How preference pairs become micro-batches: the seam (base), the layouts, a run's plan (sampler)."""

from __future__ import annotations

from orpo_lightning.batching.base import Layout, Normalisers, PairBatch, TokenizedPair
from orpo_lightning.batching.padded import pad_pairs
from orpo_lightning.batching.shared_prefix import lay_flat

__all__ = ["Layout", "Normalisers", "PairBatch", "TokenizedPair", "lay_flat", "pad_pairs"]
