"""The seam between log-probabilities and loss."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from orpo_lightning.logps import PairLogps


class PairShares(NamedTuple):
    """What each of B pairs adds to the sum and to the count of a mean, both (B,), detached."""

    sums: Tensor
    counts: Tensor


class Mean(NamedTuple):
    """A quantity to be averaged: its sum here and how many it is the sum of, both of shape ()."""

    sum: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody calls here
    pairs: PairShares | None = None
    """What each pair adds to both; without it no interval can be given."""

    @classmethod
    def over(cls, sums: Tensor, counts: Tensor, count: Tensor | None = None) -> Mean:
        """Return the mean of what B pairs add to its sum and count, (B,) each, detached.

        Args:
            sums: what each adds to the sum.
            counts: what each adds to the count.
            count: their sum, where it is at hand.
        """
        return cls(sums.sum(), counts.sum() if count is None else count, PairShares(sums, counts))


class Term(NamedTuple):
    """One term of a loss: weight * (sum over the optimizer step) / (count over the optimizer step)."""

    weight: float
    sum: Tensor
    """(), this micro-batch's share of the numerator, with gradient."""
    count: Tensor  # type: ignore[assignment]
    """(), this micro-batch's share of the denominator."""
    step_count: Tensor
    """(), the denominator of the whole optimizer step; equal to `count` where the step is this batch."""
    pairs: PairShares | None = None
    """What each pair adds to `sum` and `count`; without it no interval can be given."""

    @classmethod
    def over(cls, weight: float, sums: Tensor, counts: Tensor, step_count: Tensor | None) -> Term:
        """Return the term of what B pairs add to its sum and count, (B,) each.

        Args:
            weight: of the term in the loss.
            sums: with gradient.
            counts: what they are to be divided by, together.
            step_count: their sum over the whole optimizer step; None where the step is these pairs.
        """
        count = counts.sum()
        shares = PairShares(sums.detach(), counts)
        return cls(weight, sums.sum(), count, count if step_count is None else step_count, shares)


class ObjectiveOutput(NamedTuple):
    """What an objective says of a micro-batch."""

    terms: dict[str, Term]
    """Each is logged as the mean of its own; `loss` is logged as their weighted sum."""
    metrics: dict[str, Mean]
    """Further quantities to log, detached."""

    @property
    def loss(self) -> Tensor:
        """(), this micro-batch's part of the optimizer step's loss; the parts of a step add up to it."""
        parts = [term.weight * term.sum / term.step_count.clamp(min=1) for term in self.terms.values()]
        return sum(parts[1:], start=parts[0])


class Objective:
    """From a policy's log-probabilities of B pairs to a loss. Subclass as a frozen dataclass.

    (This base is a plain class on purpose: jsonargparse cannot swap a subclass in for a dataclass.)
    """

    needs_reference = False
    """Whether the reference model's log-probabilities are needed as well."""

    def __call__(self, policy: PairLogps, reference: PairLogps | None = None) -> ObjectiveOutput:
        """Return the loss terms and metrics of these pairs."""
        raise NotImplementedError
