"""How much the two answers of a pair have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from orpo_lightning.data import flags
from orpo_lightning.data.health.distributions import Numbers
from orpo_lightning.data.splits import sample

SAMPLE = 5000
"""Most pairs that are looked at."""
NEAR_IDENTICAL = 0.9
"""Share of common tokens above which two answers are nearly the same."""


class Overlaps(NamedTuple):
    """What a sample of pairs shows."""

    pairs: Numbers
    """(s,) which pairs were looked at, rising."""
    shares: Numbers
    """(s,) float64, common tokens of the answers of each."""

    def near_identical(self) -> Numbers:
        """Return which of all pairs are nearly identical."""
        return self.pairs[self.shares > NEAR_IDENTICAL]

    def as_report(self) -> dict[str, Any]:
        """Return the report's part."""
        edges = [number / 20 for number in range(21)]
        return {
            "edges": edges,
            "counts": np.histogram(self.shares, edges)[0].tolist(),
            "median": round(float(np.median(self.shares)), 4) if len(self.shares) else None,
            "near_identical": int((self.shares > NEAR_IDENTICAL).sum()),
            "sample": len(self.pairs),
        }


def overlaps(pairs: Sequence[Any], bits: Numbers, seed: int) -> Overlaps:
    """Compare the answers of all pairs, or of a sample of them that depends on the seed alone.

    Args:
        pairs: n pairs as token ids.
        bits: (n,) flags of each; an answer that is not cut ends with a stop token, which says nothing.
        seed: chooses the sample.
    """
    chosen_ones = sample(len(pairs), SAMPLE, seed)
    shares = []
    for index in chosen_ones.tolist():
        pair, noted = pairs[index], int(bits[index])
        chosen = pair.chosen if noted & flags.CHOSEN_CUT else pair.chosen[:-1]
        rejected = pair.rejected if noted & flags.REJECTED_CUT else pair.rejected[:-1]
        shares.append(common_share(chosen, rejected))
    return Overlaps(torch.as_tensor(chosen_ones).numpy(), np.array(shares, np.float64))


def common_share(one: Sequence[int], other: Sequence[int]) -> float:
    """Return twice the tokens that two answers share, each as often as in both, over all tokens (Dice)."""
    size = len(one) + len(other)
    return 2 * (Counter(one) & Counter(other)).total() / size if size else 1.0
