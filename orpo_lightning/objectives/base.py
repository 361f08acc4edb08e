"""The seam between log-probabilities and loss."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from orpo_lightning.logps import PairLogps


class Mean(NamedTuple):
    """A quantity to be averaged: its sum here and how many it is the sum of, both of shape ()."""

    sum: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody calls here


class Term(NamedTuple):
    """One term of a loss: weight * (sum over the optimizer step) / (count over the optimizer step)."""

    weight: float
    sum: Tensor
    """(), this micro-batch's share of the numerator, with gradient."""
    count: Tensor  # type: ignore[assignment]
    """(), this micro-batch's share of the denominator."""
    step_count: Tensor
    """(), the denominator of the whole optimizer step; equal to `count` where the step is this batch."""


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
