"""Pairs that are left out because of other pairs: doubled, contradicted, or seen in training."""

from __future__ import annotations

import numpy as np
import torch

from orpo_lightning.data.pair_keys import Keys, first_of_same, is_contradicted, stands_in
from orpo_lightning.data.table import Dropped, PairTable

DUPLICATE = "exact duplicate"
CONTRADICTED = "contradicts another pair"
IN_TRAIN = "also in train"

Removed = dict[str, PairTable]
"""Pairs taken out of a table, by reason."""

_PLACES_KEPT = 5


def curate(table: PairTable, duplicates: str, contradictions: str) -> tuple[PairTable, Removed]:
    """Return a table without its doubled or contradicted pairs, and what was taken out.

    Args:
        table: the pairs.
        duplicates: "drop" keeps the first of equal pairs; "keep" keeps all.
        contradictions: "drop" takes out every pair that another contradicts; "keep" keeps them.
    """
    removed: Removed = {}
    if duplicates == "drop":
        first = first_of_same(table.keys)
        table = _without(table, first != np.arange(len(table)), DUPLICATE, removed)
    if contradictions == "drop":
        table = _without(table, is_contradicted(table.keys), CONTRADICTED, removed)
    return table, removed


def without_pairs_of(table: PairTable, train: PairTable) -> tuple[PairTable, Removed]:
    """Return a table of validation or test without the pairs that are trained on, and what was taken out."""
    removed: Removed = {}
    return _without(table, stands_in(table.keys, train.keys), IN_TRAIN, removed), removed


def counted(removed: Removed) -> dict[str, Dropped]:
    """Return how many rows were taken out for each reason, and where the first of them stand."""

    def rows(table: PairTable) -> int:
        of_sources = zip(table.counts(), table.sources, strict=True)
        return sum(count * source.info.rows_per_pair for count, source in of_sources)

    return {reason: Dropped(rows(t), t[:_PLACES_KEPT].places()) for reason, t in removed.items()}


def _without(table: PairTable, unwanted: Keys, reason: str, removed: Removed) -> PairTable:
    if not unwanted.any():
        return table
    removed[reason] = table.select(torch.from_numpy(np.flatnonzero(unwanted)))
    return table.select(torch.from_numpy(np.flatnonzero(~unwanted)))
