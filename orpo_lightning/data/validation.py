"""Which of the held-out pairs are validated on: the first so many of one seeded, stratified order."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from orpo_lightning.batching.costs import longest_and_distinct
from orpo_lightning.batching.sorted_sampler import SortedSampler
from orpo_lightning.data.splits import stratified_order
from orpo_lightning.data.table import PairTable
from orpo_lightning.errors import UsageError

FinalValidation = Literal["sample", "full"]


class ValidationPairs:
    """All pairs that may be validated on, and how many of them are.

    Any number of them contains every smaller one, so that what is known of a pair (the base model's
    log-probabilities) stays known when the number changes.

    Args:
        whole: all pairs.
        size: how many are used; None or more than there are takes all.
        seed: decides the order.
    """

    def __init__(self, whole: PairTable, size: int | None, seed: int) -> None:
        """Draw the order."""
        self.whole = whole
        self.order = stratified_order(longest_and_distinct(whole.lengths)[0], whole.source_of, seed)
        self._plan: SortedSampler | None = None
        self.size = len(whole)
        self.resize(size)

    def resize(self, size: int | None) -> None:
        """Use so many pairs from now on; None takes all."""
        self.size = len(self.whole) if size is None else min(size, len(self.whole))
        if self._plan is not None:
            self._plan.take(self.chosen)

    def follow_with(self, plan: SortedSampler) -> None:
        """Let a plan of batches hold the pairs that are used, also when their number changes."""
        self._plan = plan
        plan.take(self.chosen)

    @property
    def chosen(self) -> Tensor:
        """(size,) int64, which pairs of `whole` are used, in their order there."""
        return self.first(self.size)

    def first(self, size: int) -> Tensor:
        """Return which pairs of `whole` a sample of so many has, in their order there."""
        return self.order[:size].sort().values

    @property
    def sample(self) -> PairTable:
        """The pairs that are used."""
        return self.whole.select(self.chosen)


def parse_budget(value: Any) -> float | None:
    """Return `data.validation_budget` as a share: "5%" and 0.05 are the same; None stays None.

    Raises:
        UsageError: it is no share of time.
    """
    if value is None:
        return None
    text = str(value).strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise UsageError(
            f"data.validation_budget: expected a share of the training time, such as 5%, found {value!r}"
        )
    return share
