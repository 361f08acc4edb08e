"""Which pairs each rank sees when: whole optimizer steps are planned ahead, so that their totals are known.

A plan depends on nothing but its arguments and the epoch: every rank and every resumed run has the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from orpo_lightning.batching.base import Normalisers, PairBatch, TokenizedPair
from orpo_lightning.batching.mixture import epoch_order, mixed_order
from orpo_lightning.batching.padded import count_targets

FILLER = -1
"""Stands in a plan where a rank has no pair left but must run a micro-batch: a pair without weight."""

Collate = Callable[..., PairBatch]
"""Called with pairs and `normalisers=`: a layout of orpo_lightning.batching, its other arguments bound."""


class StepTotals(NamedTuple):
    """What `Normalisers` hold, as plain numbers: they cross to worker processes with every micro-batch."""

    pairs: int
    prompt_tokens: int
    completion_tokens: int


class PlannedBatch(NamedTuple):
    """One micro-batch of one rank: which pairs, and the totals of the optimizer step it belongs to."""

    indices: list[int]
    totals: StepTotals | None


class PlannedPairs(NamedTuple):
    """A planned micro-batch with its pairs looked up."""

    pairs: list[TokenizedPair]
    totals: StepTotals | None


def micro_batches_per_rank(num_pairs: int, *, batch_size: int, world_size: int) -> int:
    """Return how many micro-batches of at most `batch_size` each rank needs if all have equally many."""
    return -(-num_pairs // (batch_size * world_size))


def deal(step: Tensor, *, batch_size: int, world_size: int) -> list[list[int]]:
    """Split one optimizer step's pairs into micro-batches of sizes that differ by at most one.

    Micro-batch j belongs to rank j % world_size. Every rank gets equally many and none is empty: where there
    are fewer pairs than micro-batches, the last ones hold a filler.

    Args:
        step: (P,) pair indices, P >= 1.
        batch_size: most pairs in one micro-batch.
        world_size: number of ranks.
    """
    slots = world_size * micro_batches_per_rank(len(step), batch_size=batch_size, world_size=world_size)
    return [chunk.tolist() or [FILLER] for chunk in torch.tensor_split(step, slots)]


class PlannedSampler(Sampler[PlannedBatch]):
    """Plans an epoch of training as whole optimizer steps of world_size * accumulate * batch_size pairs.

    Only the last step may be smaller; every pair is used once, or as often as the mixture says. With
    `shuffle`, each epoch has its own order, and within a step pairs of like length come together: that saves
    padding, and changes no gradient since a step is normalised as a whole.

    Args:
        lengths: (n, 3) tokens of prompt, chosen and rejected of each pair.
        batch_size: pairs in one micro-batch of one rank.
        accumulate: micro-batches of one rank in an optimizer step.
        world_size: number of ranks.
        rank: the one this sampler is for.
        shuffle: False keeps the pairs in the order they stand in.
        seed: with the epoch, all the order depends on.
        mixture: (pairs, weight) of each source, where sources are mixed otherwise than by their sizes; their
            pairs stand one source behind the other.
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
    ) -> None:
        """Start at the first micro-batch of epoch 0."""
        self.mixture = mixture
        self.lengths, self.targets = lengths, count_targets(lengths)
        self.batch_size, self.accumulate = batch_size, accumulate
        self.world_size, self.rank = world_size, rank
        self.shuffle, self.seed = shuffle, seed
        self.epoch = 0
        self.start, self.start_epoch = 0, 0

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
        whole, rest = divmod(len(self.lengths), self._pairs_per_step)
        last = micro_batches_per_rank(rest, batch_size=self.batch_size, world_size=self.world_size)
        return whole * self.accumulate + last

    def __iter__(self) -> Iterator[PlannedBatch]:
        """Yield this rank's micro-batches of the epoch."""
        skip, self.start = self.skipped, 0
        for number, batch in enumerate(self._epoch()):
            if number >= skip:
                yield batch

    @property
    def _pairs_per_step(self) -> int:
        return self.world_size * self.accumulate * self.batch_size

    def _epoch(self) -> Iterator[PlannedBatch]:
        for step in self._order().split(self._pairs_per_step) if len(self.lengths) else ():
            totals = self._totals(step)
            by_length = step[_longest_first(self.lengths[step])] if self.shuffle else step
            slots = deal(by_length, batch_size=self.batch_size, world_size=self.world_size)
            for slot in slots[self.rank :: self.world_size]:
                yield PlannedBatch(slot, totals)

    def _order(self) -> Tensor:
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


class SortedSampler(Sampler[PlannedBatch]):
    """Plans validation: every pair once over all ranks, longest first, equally many batches on every rank.

    Longest first, so that a batch too large for the memory fails at once. The batches carry no totals: each
    is measured by itself, and metrics add up sums and counts.

    Args:
        lengths: (n, 3) tokens of prompt, chosen and rejected of each pair.
        batch_size: pairs in one batch of one rank.
        world_size: number of ranks.
        rank: the one this sampler is for.
    """

    def __init__(self, lengths: Tensor, *, batch_size: int, world_size: int = 1, rank: int = 0) -> None:
        """Plan all batches of this rank."""
        chunks = _longest_first(lengths).split(batch_size) if len(lengths) else ()
        batches = [chunk.tolist() for chunk in chunks]
        batches += [[FILLER]] * (-len(batches) % world_size)
        self.batches = [PlannedBatch(batch, None) for batch in batches[rank::world_size]]

    def __len__(self) -> int:
        """Return the batches of this rank."""
        return len(self.batches)

    def __iter__(self) -> Iterator[PlannedBatch]:
        """Yield this rank's batches."""
        return iter(self.batches)


def _longest_first(lengths: Tensor) -> Tensor:
    """Return the order (n,) that sorts pairs by their longer sequence, falling; equals keep their order."""
    longer = lengths[:, 0] + lengths[:, 1:].amax(dim=1)
    return longer.argsort(descending=True, stable=True)


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
        return TokenizedPair([], [], []) if index == FILLER else self.pairs[index]

    def __getitems__(self, batch: PlannedBatch) -> PlannedPairs:
        """Return the pairs of one micro-batch, with its step's totals."""
        return PlannedPairs([self[index] for index in batch.indices], batch.totals)


class _CollatePlanned:
    """A class rather than a closure: worker processes that are spawned must unpickle it."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, planned: PlannedPairs) -> PairBatch:
        totals = planned.totals
        normalisers = None if totals is None else Normalisers(*map(torch.tensor, map(float, totals)))
        return self.collate(planned.pairs, normalisers=normalisers)


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
