"""The perplexity of general text: what a model pays in language for the preferences it learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orpo_lightning.bootstrap import Estimate, estimate
from orpo_lightning.judging.figures import Array, written
from orpo_lightning.judging.scoring import Sides
from orpo_lightning.observing.canary import text_nlls
from orpo_lightning.scoring import take_apart


def text_losses(model: Any, rows: Sequence[Sequence[int]], sides: Sides) -> dict[str, Array]:
    """Return under each side the mean negative log-probability of a token of each text, (n,).

    Args:
        model: in eval mode.
        rows: ids of each text, at least two; the first of each is not predicted.
        sides: as for `score_pairs`.
    """
    scorer, tokens = take_apart(model), np.array([len(row) - 1 for row in rows])
    found = {}
    for name, side in sides.items():
        with side():
            found[name] = text_nlls(scorer, rows, model.device).numpy() / tokens
    return found


def canary(losses: Mapping[str, Array], rows: Sequence[Sequence[int]], pair: tuple[str, str] | None) -> Any:
    """Return each model's perplexity and the factor from one to the other, texts drawn with replacement.

    Args:
        losses: of each model, as from `text_losses`.
        rows: the texts' ids.
        pair: the names of the model before and of the one after; None where nothing is compared.
    """
    tokens = [len(row) - 1 for row in rows]
    found: dict[str, Any] = {"texts": len(rows), "tokens": sum(tokens)}
    found["perplexity"] = {name: _exp(_per_token(values, tokens)) for name, values in losses.items()}
    change = None if pair is None else _per_token(losses[pair[1]] - losses[pair[0]], tokens)
    return found | {"factor": None if change is None else _exp(change)}


def _per_token(values: Array, tokens: Sequence[int]) -> Estimate:
    """Return the mean over tokens of values of their texts; whole texts are drawn."""
    return estimate(np.repeat(values, tokens), np.repeat(np.arange(len(tokens)), tokens))


def _exp(found: Estimate) -> dict[str, Any]:
    return {name: math.exp(min(value, 700)) for name, value in written(found).items()}
