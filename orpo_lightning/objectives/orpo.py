"""Odds ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from orpo_lightning.logps import PairLogps
from orpo_lightning.objectives.base import Mean, Objective, ObjectiveOutput, Term

EPSILON = 1e-6
"""Mean log-probabilities above -EPSILON count as -EPSILON: a certain answer's odds would be infinite."""


class _LogOdds(torch.autograd.Function):
    """Straight-through at the bound: a clamp would kill the gradient of a near-certain rejected answer."""

    @staticmethod
    def forward(ctx: Any, logp: Tensor) -> Tensor:
        bounded = logp.clamp(max=-EPSILON)
        ctx.save_for_backward(bounded)
        # -log(expm1(-x)) overflows in fp32 beyond x = -88; from -20 on the other form is exact to rounding.
        near = -torch.log(torch.expm1(-bounded.clamp(min=-20)))
        return torch.where(bounded > -20, near, bounded - torch.log1p(-torch.exp(bounded)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (bounded,) = ctx.saved_tensors
        return grads[0] * -1 / torch.expm1(bounded)


def log_odds(logp: Tensor) -> Tensor:
    """Return log(p / (1 - p)) for log-probabilities of any shape (Eq. 4), finite for every logp <= 0.

    The derivative is 1 / (1 - p), at most 1e6.
    """
    return _LogOdds.apply(logp)


@dataclass(frozen=True)
class ORPO(Objective):
    """loss = NLL(chosen) + beta * mean(-log sigmoid(log odds(chosen) - log odds(rejected)))   (Eqs. 6 and 7).

    Args:
        beta: weight of the odds-ratio term: the paper's lambda, the authors' code's alpha.
        nll_scope: which tokens of the chosen sequence the NLL is over: "sequence" is prompt and answer (TRL,
            the authors' code), "completion" the answer alone (LLaMA-Factory).
        nll_reduction: "token" is the mean over all NLL tokens of the optimizer batch (TRL, there per
            micro-batch), "sequence" the mean over pairs of each pair's mean (the paper's Eq. 1 and 2,
            LLaMA-Factory).
    """

    beta: float = 0.1
    nll_scope: Literal["sequence", "completion"] = "sequence"
    nll_reduction: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ValueError(f"ORPO: beta must be a number >= 0, found {self.beta}")
        for name, value, allowed in (
            ("nll_scope", self.nll_scope, ("sequence", "completion")),
            ("nll_reduction", self.nll_reduction, ("token", "sequence")),
        ):
            if value not in allowed:
                raise ValueError(f"ORPO: {name} must be one of {', '.join(allowed)}, found {value!r}")

    def __call__(self, policy: PairLogps, reference: PairLogps | None = None) -> ObjectiveOutput:
        """Return the terms `nll_loss` and `odds_ratio_loss` and the preference metrics of B pairs."""
        weights = policy.weights
        step_pairs = None if policy.normalisers is None else policy.normalisers.pairs
        chosen, rejected = policy.answer_means()
        ratio = log_odds(chosen) - log_odds(rejected)
        odds_ratio_loss = Term.over(self.beta, weights * softplus(-ratio), weights, step_pairs)
        return ObjectiveOutput(
            terms={"nll_loss": self._nll_term(policy, weights), "odds_ratio_loss": odds_ratio_loss},
            metrics=_metrics(self.beta, policy, chosen.detach(), rejected.detach(), ratio.detach()),
        )

    def _nll_term(self, policy: PairLogps, weights: Tensor) -> Term:
        nll, tokens = -policy.chosen_sum, policy.chosen_tokens
        if self.nll_scope == "sequence":
            nll, tokens = nll - policy.prompt_sum, tokens + policy.prompt_tokens
        step = policy.normalisers
        if self.nll_reduction == "sequence":
            mean = weights * nll / tokens.clamp(min=1)
            return Term.over(1.0, mean, weights, None if step is None else step.pairs)
        if step is None:
            return Term.over(1.0, weights * nll, weights * tokens, None)
        prompt = step.prompt_tokens if self.nll_scope == "sequence" else torch.zeros_like(step.prompt_tokens)
        return Term.over(1.0, weights * nll, weights * tokens, step.completion_tokens + prompt)


def _metrics(
    beta: float, policy: PairLogps, chosen: Tensor, rejected: Tensor, ratio: Tensor
) -> dict[str, Mean]:
    """Return what is logged beside the loss; `chosen` and `rejected` are mean log-probabilities (B,)."""
    weights, pairs = policy.weights, policy.weights.sum()
    longer = torch.sign(policy.chosen_tokens - policy.rejected_tokens) / 2 + 0.5
    wins = (chosen > rejected).to(weights.dtype)
    longer_is_wrong = weights * (policy.rejected_tokens > policy.chosen_tokens)
    saturated = (torch.maximum(chosen, rejected) > -EPSILON).to(weights.dtype)

    def over_pairs(values: Tensor) -> Mean:
        return Mean.over(weights * values, weights, pairs)

    def per_token(sums: Tensor, counts: Tensor) -> Mean:
        return Mean.over(-weights * sums.detach(), weights * counts)

    return {
        "log_odds_ratio": over_pairs(ratio),
        "rewards/chosen": over_pairs(beta * chosen),
        "rewards/rejected": over_pairs(beta * rejected),
        "rewards/margins": over_pairs(beta * (chosen - rejected)),
        "rewards/accuracies": over_pairs(wins),
        "rewards/accuracies_longer_is_wrong": Mean.over(longer_is_wrong * wins, longer_is_wrong),
        "logps/chosen": over_pairs(chosen),
        "logps/rejected": over_pairs(rejected),
        "nll/prompt": per_token(policy.prompt_sum, policy.prompt_tokens),
        "nll/completion": per_token(policy.chosen_sum, policy.chosen_tokens),
        "length/prompt": over_pairs(policy.prompt_tokens),
        "length/chosen": over_pairs(policy.chosen_tokens),
        "length/rejected": over_pairs(policy.rejected_tokens),
        "length/longer_is_chosen": over_pairs(longer),
        "pairs/saturated": over_pairs(saturated),
        "pairs/skipped": Mean.over(1 - weights, torch.ones_like(weights)),
    }
