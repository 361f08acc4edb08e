"""Which pairs are looked at apart: by source, length, which answer is the longer, and how judges agreed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orpo_lightning.data.table import PairTable
from orpo_lightning.judging.figures import Array, Bucket

_FEW = 5
"""So many different values are told apart; where there are more, pairs are cut into quarters."""


def buckets_of(pairs: PairTable) -> list[Bucket]:
    """Return the buckets of a table, none of them empty; what tells no pairs apart has none."""
    lengths = pairs.lengths.numpy()
    longest = lengths[:, 0] + lengths[:, 1:].max(axis=1)
    found = [
        *_by_source(pairs),
        *_quarters("length", longest, "tokens"),
        *_by_longer(lengths[:, 1], lengths[:, 2]),
        *_by_number("agreement", pairs.agreements),
        *_by_number("score margin", pairs.margins),
    ]
    return [bucket for bucket in found if bucket.members.any()]


def _by_source(pairs: PairTable) -> Iterator[Bucket]:
    of = pairs.source_of.numpy()
    if len(np.unique(of)) > 1:
        for number, source in enumerate(pairs.sources):
            yield Bucket("source", source.info.source, of == number)


def _by_longer(chosen: Array, rejected: Array) -> Iterator[Bucket]:
    """Yield where length alone would be right and where it would be wrong."""
    yield Bucket("longer answer", "chosen", chosen > rejected)
    yield Bucket("longer answer", "rejected", chosen < rejected)
    yield Bucket("longer answer", "neither", chosen == rejected)


def _by_number(by: str, values: Array) -> Iterator[Bucket]:
    known = ~np.isnan(values)
    levels = np.unique(values[known])
    if not len(levels) or (len(levels) == 1 and known.all()):
        return
    if len(levels) <= _FEW:
        for level in levels:
            yield Bucket(by, f"{level:g}", known & (values == level))
    else:
        yield from _quarters(by, values, "")
    yield Bucket(by, "not given", ~known)


def _quarters(by: str, values: Array, unit: str) -> Iterator[Bucket]:
    """Yield four buckets of about as many pairs each, fewer where many values are equal."""
    known = ~np.isnan(values)
    # An edge is a value that is there, so that its bucket's name is true.
    ends = np.unique(np.quantile(values[known], (0.25, 0.5, 0.75, 1.0), method="lower"))
    if len(ends) < 2:
        return
    below = -np.inf
    for end in ends:
        word = f"up to {end:g}" if below == -np.inf else f"over {below:g} to {end:g}"
        yield Bucket(by, f"{word} {unit}".strip(), known & (values > below) & (values <= end))
        below = end
