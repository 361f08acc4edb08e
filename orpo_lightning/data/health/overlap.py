"""How much the two answers of a pair have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from orpo_lightning.data import flags
from orpo_lightning.data.health.distributions import Numbers
from orpo_lightning.data.splits import sample

SAMPLE = 5000
"""Most pairs that are looked at."""
NEAR_IDENTICAL = 0.9
"""Share of common tokens, and of common neighbours, above which two answers are nearly the same."""


class Overlaps(NamedTuple):
    """What a sample of pairs shows."""

    pairs: Numbers
    """(s,) which pairs were looked at, rising."""
    shares: Numbers
    """(s,) float64, common tokens of the answers of each."""
    alike: Numbers
    """(s,) bool, whether they are nearly identical."""

    def near_identical(self) -> Numbers:
        """Return which of all pairs are nearly identical."""
        return self.pairs[self.alike]

    def as_report(self) -> dict[str, Any]:
        """Return the report's part."""
        edges = [number / 20 for number in range(21)]
        return {
            "edges": edges,
            "counts": np.histogram(self.shares, edges)[0].tolist(),
            "median": round(float(np.median(self.shares)), 4) if len(self.shares) else None,
            "near_identical": int(self.alike.sum()),
            "sample": len(self.pairs),
        }


def overlaps(pairs: Sequence[Any], bits: Numbers, seed: int) -> Overlaps:
    """Compare the answers of all pairs, or of a sample of them that depends on the seed alone.

    Args:
        pairs: n pairs as token ids.
        bits: (n,) flags of each; an answer that is not cut ends with a stop token, which says nothing.
        seed: chooses the sample.
    """
    looked_at = sample(len(pairs), SAMPLE, seed)
    shares, alike = [], []
    for number in looked_at.tolist():
        pair, noted = pairs[number], int(bits[number])
        chosen = pair.chosen if noted & flags.CHOSEN_CUT else pair.chosen[:-1]
        rejected = pair.rejected if noted & flags.REJECTED_CUT else pair.rejected[:-1]
        shares.append(common_share(chosen, rejected))
        alike.append(shares[-1] > NEAR_IDENTICAL and _in_like_order(chosen, rejected))
    return Overlaps(looked_at.numpy(), np.array(shares, np.float64), np.array(alike, bool))


def common_share(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Return twice the items that two sequences share, each as often as in both, over all of them (Dice)."""
    size = len(one) + len(other)
    return 2 * (Counter(one) & Counter(other)).total() / size if size else 1.0


def _in_like_order(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether the tokens also have the same neighbours; else their order is what differs."""
    return common_share(list(pairwise(one)), list(pairwise(other))) > NEAR_IDENTICAL
