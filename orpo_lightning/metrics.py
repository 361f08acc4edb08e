"""What a run remembers between two logged steps: weighted means on the device, and how fast it went."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from orpo_lightning.batching.base import PairBatch
from orpo_lightning.intervals import deviations, half_width, interval
from orpo_lightning.objectives.base import Mean, ObjectiveOutput, PairShares, Term

_NONE = torch.zeros(0)


class WeightedMeans(Metric):
    """Sums and counts of every quantity an objective reports, in one tensor: one reduction over ranks.

    A mean of micro-batch means would weigh a short batch like a long one; sums and counts do not.
    """

    full_state_update = False
    totals: Tensor

    def __init__(self) -> None:
        """Start empty; the names come with the first update."""
        super().__init__()
        self.names: tuple[str, ...] = ()
        self.weights: dict[str, float] = {}
        self.add_state("totals", torch.zeros(0, 2), dist_reduce_fx="sum")

    def update(self, output: ObjectiveOutput, *, is_filler: bool = False) -> None:
        """Add one micro-batch's sums and counts; of a filler nothing, but a rank may know the names by it."""
        means: dict[str, Mean | Term] = {**output.terms, **output.metrics}
        rows = torch.stack([torch.stack((mean.sum.detach(), mean.count.detach())) for mean in means.values()])
        # fp64 where there is any: token counts of a large validation set pass 2^24.
        rows = rows if rows.device.type == "mps" else rows.double()
        rows = torch.zeros_like(rows) if is_filler else rows
        if not self.names:
            self.names = tuple(means)
            self.weights = {name: term.weight for name, term in output.terms.items()}
            self.totals = torch.zeros_like(rows)
        assert self.names == tuple(means), "an objective reports the same quantities for every batch"
        self.totals = self.totals + rows

    def compute(self) -> dict[str, Tensor]:
        """Return every mean by name and `loss`, the weighted sum of terms; {} before the first update."""
        values = (self.totals[:, 0] / self.totals[:, 1].clamp(min=1)).float()
        counts = self.totals[:, 1].tolist()
        # A mean of nothing is left out: 0 would be an accuracy. Terms of the loss are nothing then, and stay.
        means = {
            name: value
            for name, value, count in zip(self.names, values, counts, strict=True)
            if count > 0 or name in self.weights
        }
        if not means:
            return {}
        loss = torch.stack([weight * means[name] for name, weight in self.weights.items()]).sum()
        return {"loss": loss, **means}

    def reset(self) -> None:
        """Forget everything."""
        self.names = ()
        super().reset()

    def sums(self) -> dict[str, Any]:
        """Return what was added up so far in this process, as plain values for a checkpoint."""
        return {"names": list(self.names), "weights": dict(self.weights), "totals": self.totals.cpu()}

    def go_on_from(self, sums: Mapping[str, Any], device: torch.device) -> None:
        """Take over what another process had added up."""
        self.reset()
        self.names, self.weights = tuple(sums["names"]), dict(sums["weights"])
        if self.names:
            self.totals = sums["totals"].to(device)
            self._update_count = 1  # else compute warns that nothing was added up


class IntervalMeans(WeightedMeans):
    """Weighted means with the 95 % interval of each: `ci_low/NAME` and `ci_high/NAME` beside `NAME`.

    What each pair adds is kept, a few numbers a pair: only so is the loss, a sum of means over pairs and over
    tokens, given the interval that its terms have together.
    """

    shares: list[Tensor] | Tensor

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.with_shares: tuple[str, ...] = ()
        self.add_state("shares", [], dist_reduce_fx="cat")

    def update(self, output: ObjectiveOutput, *, is_filler: bool = False) -> None:
        """Add one batch; of a filler nothing, but its place among the pairs."""
        super().update(output, is_filler=is_filler)
        means: dict[str, Mean | Term] = {**output.terms, **output.metrics}
        shares = {name: mean.pairs for name, mean in means.items() if mean.pairs is not None}
        self.with_shares = tuple(shares)
        if shares:
            rows = torch.stack([torch.stack(pairs, dim=1) for pairs in shares.values()], dim=1)
            rows = torch.zeros_like(rows) if is_filler else rows
            assert isinstance(self.shares, list)
            self.shares.append(rows if rows.device.type == "mps" else rows.double())

    def compute(self) -> dict[str, Tensor]:
        """Return every mean by name, and its interval where at least two pairs say something of it."""
        means = super().compute()
        # Gathered from all ranks they are one tensor already.
        shares = self.shares if isinstance(self.shares, Tensor) else torch.cat(self.shares or [_NONE])
        if not len(shares):
            return means
        columns = {name: PairShares(*shares[:, i].unbind(1)) for i, name in enumerate(self.with_shares)}
        intervals = {name: interval(*column) for name, column in columns.items()}
        intervals["loss"] = self._of_loss(means["loss"], columns)
        for name, ends in intervals.items():
            if ends is not None:
                means |= {f"ci_low/{name}": ends[0].float(), f"ci_high/{name}": ends[1].float()}
        return means

    def _of_loss(self, loss: Tensor, columns: dict[str, PairShares]) -> tuple[Tensor, Tensor] | None:
        """Return the interval of the weighted sum of terms; None where a term does not tell its pairs."""
        if not self.weights.keys() <= columns.keys():
            return None
        terms = [columns[name] for name in self.weights]
        pairs = int(torch.stack([term.counts > 0 for term in terms]).any(dim=0).sum())
        if pairs < 2:
            return None
        moved = torch.stack([deviations(*term) for term in terms], dim=1)
        weights = torch.tensor(list(self.weights.values()), dtype=moved.dtype, device=moved.device)
        half = half_width((moved * weights).sum(dim=1), pairs)
        return loss - half, loss + half


def with_padding(output: ObjectiveOutput, batch: PairBatch) -> ObjectiveOutput:
    """Return an output that also reports `padding`: the share of computed tokens that belong to no text.

    It is added up on the device like all else, and read where values are logged. Flat rows have none.
    """
    ids, mask = batch.model_inputs["input_ids"], batch.model_inputs.get("attention_mask")
    # Within a forward pass the default dtype may be half, which ends at 65,504 or counts to 256.
    computed = torch.full((), float(ids.numel()), dtype=torch.float32, device=ids.device)
    padded = torch.zeros_like(computed) if mask is None else computed - mask.sum()
    return output._replace(metrics={**output.metrics, "padding": Mean(padded, computed)})


def interval_words(metrics: Mapping[str, Any], name: str) -> str:
    """Return " [low, high]" of a logged value such as val/loss, or nothing where none was logged."""
    stage, _, rest = name.partition("/")
    ends = [metrics.get(f"{stage}_{end}/{rest}") for end in ("ci_low", "ci_high")]
    known = ", ".join(f"{float(end):.4g}" for end in ends if end is not None)
    return f" [{known}]" if known else ""


class Speed:
    """Pairs and scored tokens per second of this process, pauses (validation) left out."""

    def __init__(self) -> None:
        """Start counting now."""
        self.restart()

    def restart(self) -> None:
        """Forget what was counted."""
        self.pairs = self.tokens = 0
        self._start = time.perf_counter()

    def add(self, pairs: int, tokens: int) -> None:
        """Count a micro-batch; both numbers are known without asking the device."""
        self.pairs += pairs
        self.tokens += tokens

    def pause(self) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """Start the clock again."""
        self._start += time.perf_counter() - self._paused

    @property
    def seconds(self) -> float:
        """The time since the last restart, never nothing."""
        return max(time.perf_counter() - self._start, 1e-9)

    def rates(self) -> dict[str, Any]:
        """Return `pairs_per_second` and `tokens_per_second` since the last restart."""
        seconds = self.seconds
        return {"pairs_per_second": self.pairs / seconds, "tokens_per_second": self.tokens / seconds}
