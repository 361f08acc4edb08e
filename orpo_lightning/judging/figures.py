"""From log-probabilities of pairs to figures with intervals: pure, and the same for every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from orpo_lightning.bootstrap import Estimate, estimate
from orpo_lightning.objectives.orpo import log_odds

Array = np.ndarray[Any, Any]


class Scores(NamedTuple):
    """Mean log-probabilities of a token of each pair's answers under one model, (n,) float64 each."""

    chosen: Array
    rejected: Array

    @property
    def wins(self) -> Array:
        """1 where the chosen answer is the likelier one."""
        return (self.chosen > self.rejected).astype(np.float64)

    @property
    def margins(self) -> Array:
        """Chosen less rejected."""
        return self.chosen - self.rejected

    @property
    def log_odds_ratios(self) -> Array:
        """Log odds of the chosen answer less those of the rejected one (Eq. 4 and 7)."""
        chosen, rejected = (log_odds(torch.from_numpy(side)).numpy() for side in self)
        return chosen - rejected

    def quantities(self) -> dict[str, Array]:
        """Return what is told of a model, one number a pair, by name."""
        return {
            "accuracy": self.wins,
            "margin": self.margins,
            "logps_chosen": self.chosen,
            "logps_rejected": self.rejected,
            "log_odds_ratio": self.log_odds_ratios,
        }


class Bucket(NamedTuple):
    """Some of the pairs: those of a source, of like length, ..."""

    by: str
    name: str
    members: Array
    """(n,) bool."""


def of_model(scores: Scores, prompts: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Return the mean of each quantity with its interval, pairs of one prompt drawn together."""
    return {name: written(estimate(values, prompts)) for name, values in scores.quantities().items()}


def of_change(before: Scores, after: Scores, prompts: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Return how far each quantity moved, pair by pair: far better known than either model's own value."""
    old, new = before.quantities(), after.quantities()
    return {name: written(estimate(new[name] - old[name], prompts)) for name in old}


def of_buckets(
    buckets: Sequence[Bucket], models: Mapping[str, Scores], prompts: Array, pair: tuple[str, str] | None
) -> list[dict[str, Any]]:
    """Return the accuracy of each model in each bucket, and how it changed from one to another.

    Args:
        buckets: each with at least one pair.
        models: by name.
        prompts: (n,) of each pair.
        pair: the names of the model before and of the one after; None where nothing is compared.
    """
    rows = []
    for by, name, members in buckets:
        own = prompts[members]
        wins = {model: scores.wins[members] for model, scores in models.items()}
        row: dict[str, Any] = {"by": by, "name": name, "pairs": len(own), "prompts": len(np.unique(own))}
        row["accuracy"] = {model: written(estimate(values, own)) for model, values in wins.items()}
        row["change"] = None if pair is None else written(estimate(wins[pair[1]] - wins[pair[0]], own))
        rows.append(row)
    return rows


def written(found: Estimate) -> dict[str, Any]:
    """Return an estimate as it stands in evaluation.json."""
    return {"mean": found.mean, "low": found.low, "high": found.high}
