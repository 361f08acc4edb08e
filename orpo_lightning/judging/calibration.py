"""Are the odds that a model gives its preferences honest? A reliability diagram, its error, Brier's score.

The label of a pair is always "chosen", so sigmoid(log odds ratio) could only be too low: nothing could be
over-confident. So each pair is first put into an order, A and B, that knows nothing of the label: of the two
orders that with the smaller hash of prompt, first and second answer. What is predicted is that A is the
better answer, with probability sigmoid(log odds(A) - log odds(B)); what happens is that A is the chosen one,
or is not. About one half of the labels are then 1, whatever the data. A model is calibrated if, of the pairs
to which it gives 0.8, A is the chosen one in four of five.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from orpo_lightning.bootstrap import RESAMPLES, estimate
from orpo_lightning.data.pair_keys import Keys, order_of_answers
from orpo_lightning.judging.figures import Array, written

BINS = 10
DEFINITION = (
    "each pair is put into an order A, B by a hash that knows nothing of the label; predicted is that A is "
    "the better answer, with probability sigmoid(log odds(A) - log odds(B)); what happens is that A is the "
    "chosen one"
)


class Predictions(NamedTuple):
    """Of each pair, (n,) float64 each."""

    probability: Array
    """That answer A is the better one."""
    outcome: Array
    """1 where it is."""


def predictions(log_odds_ratios: Array, keys: Keys) -> Predictions:
    """Put each pair into its order.

    Args:
        log_odds_ratios: (n,) of chosen over rejected.
        keys: (n, 3) hashes of prompt, chosen and rejected.
    """
    chosen_is_a = order_of_answers(keys)
    ratio = np.where(chosen_is_a, log_odds_ratios, -log_odds_ratios)
    return Predictions(1 / (1 + np.exp(-np.clip(ratio, -700, 700))), chosen_is_a.astype(np.float64))


def calibration(made: Predictions, prompts: Array, *, bins: int = BINS, seed: int = 0) -> dict[str, Any]:
    """Return the diagram's bins, the expected calibration error and the Brier score.

    Args:
        made: of each pair.
        prompts: (n,) the prompt of each pair; prompts are drawn, not pairs.
        bins: equally wide ones from 0 to 1.
        seed: of the draws.
    """
    place = _bin_of(made.probability, bins)
    expected, limit = _error_if_calibrated(made.probability, place, bins, seed)
    return {
        "pairs": len(place),
        "bins": _bins(made, place, prompts, bins),
        "ece": _error_with_interval(made, place, prompts, bins, seed),
        "ece_if_calibrated": {"mean": expected, "high": limit},
        "brier": written(estimate((made.probability - made.outcome) ** 2, prompts)),
    }


def _bin_of(probability: Array, bins: int) -> Array:
    return np.minimum((probability * bins).astype(np.int64), bins - 1)


def _bins(made: Predictions, place: Array, prompts: Array, bins: int) -> list[dict[str, Any]]:
    found = []
    for number in np.unique(place):
        here = place == number
        happened = written(estimate(made.outcome[here], prompts[here]))
        predicted = float(made.probability[here].mean())
        span = {"from": int(number) / bins, "to": (int(number) + 1) / bins}
        found.append({**span, "pairs": int(here.sum()), "predicted": predicted, "happened": happened})
    return found


def _error(gaps: Array, pairs: int) -> Array:
    """Return the mean over pairs of |share - mean probability| of their bin, (...), of sums (..., bins)."""
    return np.abs(gaps).sum(axis=-1) / pairs


def _error_with_interval(
    made: Predictions, place: Array, prompts: Array, bins: int, seed: int
) -> dict[str, float]:
    """Return the error with the percentile interval of its bootstrap over prompts."""
    _, group = np.unique(prompts, return_inverse=True)
    sums = np.zeros((group.max() + 1, bins))
    np.add.at(sums, (group, place), made.outcome - made.probability)
    counts = np.bincount(group)
    draw, errors = np.random.default_rng(seed), np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 256):
        block = draw.integers(len(sums), size=(min(256, RESAMPLES - start), len(sums)))
        times = np.stack([np.bincount(one, minlength=len(sums)) for one in block])
        errors[start : start + len(block)] = _error(times @ sums, 1) / (times @ counts)
    low, high = np.quantile(errors, (0.025, 0.975))
    return {"mean": float(_error(sums.sum(axis=0), len(place))), "low": float(low), "high": float(high)}


def _error_if_calibrated(probability: Array, place: Array, bins: int, seed: int) -> tuple[float, float]:
    """Return the error that a calibrated model would show on as many pairs: its mean and 95 % point.

    It is never 0: of few pairs no share is exactly its probability.
    """
    draw, errors = np.random.default_rng(seed), np.empty(1000)
    for number in range(len(errors)):
        happened = draw.random(len(probability)) < probability
        errors[number] = _error(np.bincount(place, happened - probability, minlength=bins), len(place))
    return float(errors.mean()), float(np.quantile(errors, 0.95))
