"""Which pairs each rank sees when: whole optimizer steps are planned ahead, so that their totals are known.

A plan depends on nothing but its arguments and the epoch: every rank and every resumed run has the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from orpo_lightning.batching.base import Normalisers, PairBatch, TokenizedPair
from orpo_lightning.batching.costs import LayoutTokens, padded_tokens
from orpo_lightning.batching.mixture import epoch_order, mixed_order, most_repeats
from orpo_lightning.batching.packing import FILLER, Split, check_budget, split_step
from orpo_lightning.batching.padded import count_targets
from orpo_lightning.batching.planned import PlannedBatch, StepTotals
from orpo_lightning.batching.sorted_sampler import SortedSampler
from orpo_lightning.stop_signals import leave_to_parent

__all__ = ["FILLER", "Loader", "PlannedBatch", "PlannedSampler", "SortedSampler", "StepTotals"]

Collate = Callable[..., PairBatch]
"""Called with pairs and `normalisers=`: a layout of orpo_lightning.batching, its other arguments bound."""


_EMPTY = TokenizedPair([], [], [])


class PlannedPairs(NamedTuple):
    """A planned micro-batch with its pairs looked up."""

    pairs: list[TokenizedPair]
    totals: StepTotals | None


class PlannedSampler(Sampler[PlannedBatch]):
    """Plans an epoch of training as whole optimizer steps of world_size * accumulate * batch_size pairs.

    Only the last step may be smaller; every pair is used once, or as often as the mixture says. With
    `shuffle`, each epoch has its own order, and within a step pairs of like length come together: that saves
    padding, and changes no gradient since a step is normalised as a whole. Several ranks get micro-batches
    of like cost (`costs.cost`).

    A budget of tokens changes how a step is split and nothing else. The pairs of a step are what a user
    chooses, by batch_size times accumulate; a split by tokens must not change them. But Lightning steps after
    every `accumulate` micro-batches, so each step has exactly that many: those that hold the pairs, as few as
    the budget allows, and empty ones, which the module skips. So `accumulate` is the most micro-batches
    that a step may become. (Filling all of them evenly would make them smaller than need be in most steps, as
    there must be enough for the longest; another number for each step would move all that Lightning counts
    in micro-batches: validation, checkpoints, the end of an epoch.) A budget under which some step
    could not be split is refused at the beginning, with values that can: batch_size 1 always does.

    Args:
        lengths: (n, 3) tokens of prompt, chosen and rejected of each pair.
        batch_size: pairs in one micro-batch of one rank; with a budget, on average if all are needed.
        accumulate: micro-batches of one rank in an optimizer step.
        world_size: number of ranks.
        rank: the one this sampler is for.
        shuffle: False keeps the pairs in the order they stand in; a budget sorts them within a step.
        seed: with the epoch, all the order depends on.
        mixture: (pairs, weight) of each source, where sources are mixed otherwise than by their sizes; their
            pairs stand one source behind the other.
        tokens_per_batch: most tokens of a micro-batch, however many pairs that are.
        layout_tokens: how the layout counts them.

    Raises:
        UsageError: the budget is too small for the longest pairs.
    """

    def __init__(
        self,
        lengths: Tensor,
        *,
        batch_size: int,
        accumulate: int = 1,
        world_size: int = 1,
        rank: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        mixture: Sequence[tuple[int, float]] | None = None,
        tokens_per_batch: int | None = None,
        layout_tokens: LayoutTokens = padded_tokens,
    ) -> None:
        """Start at the first micro-batch of epoch 0."""
        self.mixture = mixture
        self.lengths, self.targets = lengths, count_targets(lengths)
        self.split = Split(batch_size, accumulate, world_size, shuffle, tokens_per_batch, layout_tokens)
        self.rank, self.shuffle, self.seed = rank, shuffle, seed
        self.epoch = 0
        self.start, self.start_epoch = 0, 0
        check_budget(lengths, self.split, 1 if mixture is None else most_repeats(mixture))

    @property
    def sampler(self) -> PlannedSampler:
        """Itself: Lightning sets the epoch of a batch sampler's sampler only, else all epochs are alike."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration plans."""
        self.epoch = epoch

    def resume_at(self, epoch: int, seen: int) -> None:
        """Let the first iteration, if it is of that epoch, leave out its first `seen` micro-batches."""
        # Lightning may set another epoch in between: it counts steps before it restores its own progress.
        self.epoch = self.start_epoch = epoch
        self.start = seen

    @property
    def skipped(self) -> int:
        """How many micro-batches the next iteration leaves out."""
        return self.start if self.epoch == self.start_epoch else 0

    def __len__(self) -> int:
        """Return the micro-batches of a whole epoch on each rank, whatever a resumed one leaves out."""
        return self.split.micro_batches(len(self.lengths))

    def __iter__(self) -> Iterator[PlannedBatch]:
        """Yield this rank's micro-batches of the epoch."""
        skip, self.start = self.skipped, 0
        for number, batch in enumerate(self._epoch()):
            if number >= skip:
                yield batch

    def steps(self) -> Iterator[tuple[Tensor, list[list[list[int]]]]]:
        """Yield the pairs of each step of the epoch, and how they are split: [rank][micro-batch][pair]."""
        for step in self.order().split(self.split.pairs_per_step) if len(self.lengths) else ():
            yield step, split_step(step, self.lengths[step], self.split)

    def _epoch(self) -> Iterator[PlannedBatch]:
        for step, ranks in self.steps():
            totals = self._totals(step)
            for batch in ranks[self.rank]:
                yield PlannedBatch(batch, totals)

    def pairs_of(self, batches: Iterable[int]) -> list[int]:
        """Return the pairs of some micro-batches of this rank and epoch, each by its number in it."""
        wanted = set(batches)
        numbered = enumerate(self._epoch())
        return [
            pair for number, batch in numbered if number in wanted for pair in batch.indices if pair != FILLER
        ]

    def order(self) -> Tensor:
        """Return the pairs of the epoch, in their order."""
        if self.mixture is not None:
            sizes, weights = zip(*self.mixture, strict=True)
            return mixed_order(sizes, weights, seed=self.seed, epoch=self.epoch, shuffle=self.shuffle)
        count = len(self.lengths)
        return epoch_order(count, seed=self.seed, epoch=self.epoch) if self.shuffle else torch.arange(count)

    def _totals(self, step: Tensor) -> StepTotals:
        targets = self.targets[step]
        # A pair without weight has no targets at all, so only the pairs themselves need the test.
        prompt, chosen, _ = targets.sum(dim=0).tolist()
        return StepTotals(int((targets[:, 1] > 0).sum()), prompt, chosen)


class PlannedDataset(Dataset[TokenizedPair]):
    """Looks up the pairs of a micro-batch: DataLoader hands what a batch sampler yields to `__getitems__`."""

    def __init__(self, pairs: Sequence[TokenizedPair]) -> None:
        """Wrap any sequence of pairs."""
        self.pairs = pairs

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> TokenizedPair:
        """Return one pair, or the one without weight."""
        return _EMPTY if index == FILLER else self.pairs[index]

    def __getitems__(self, batch: PlannedBatch) -> PlannedPairs:
        """Return the pairs of one micro-batch, with its step's totals."""
        return PlannedPairs([self[index] for index in batch.indices], batch.totals)


class _CollatePlanned:
    """A class rather than a closure: worker processes that are spawned must unpickle it."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, planned: PlannedPairs) -> PairBatch:
        totals = planned.totals
        normalisers = None if totals is None else Normalisers(*map(torch.tensor, totals))
        if planned.pairs:
            batch = self.collate(planned.pairs, normalisers=normalisers)
            return batch._replace(is_filler=True) if planned.pairs[0] is _EMPTY else batch
        # Of no pairs: a module that does not skip it gets a batch it can compute, without a target.
        return self.collate([_EMPTY], normalisers=normalisers)._replace(num_pairs=0)


class Loader(DataLoader[TokenizedPair]):
    """A DataLoader over a plan that knows how many micro-batches of the epoch were handed out: `seen`.

    Args:
        pairs: what the plan's indices point into.
        plan: the batch sampler.
        collate: makes a batch of pairs; picklable.
        num_workers: worker processes; 0 loads in this one.
        pin_memory: copy batches to pinned memory, for a faster way to a GPU.
    """

    def __init__(
        self,
        pairs: Sequence[TokenizedPair],
        plan: PlannedSampler | SortedSampler,
        collate: Collate,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """Stand before the first micro-batch of the plan."""
        super().__init__(
            PlannedDataset(pairs),
            batch_sampler=cast("Sampler[list[int]]", plan),
            collate_fn=cast("Callable[[list[TokenizedPair]], PairBatch]", _CollatePlanned(collate)),
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=leave_to_parent,
        )
        self.plan = plan
        self.seen = _skipped(plan)

    # A generator: the workers start at the first `next`, after Lightning has set the epoch.
    def __iter__(self) -> Iterator[PairBatch]:  # type: ignore[override]
        """Yield the epoch's batches."""
        self.seen = _skipped(self.plan)
        for batch in super().__iter__():
            self.seen += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the data module keeps the position; Lightning gives loaders theirs back too late.

        Without this method Lightning warns that training cannot be resumed within an epoch.
        """
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""


def _skipped(plan: PlannedSampler | SortedSampler) -> int:
    return plan.skipped if isinstance(plan, PlannedSampler) else 0
