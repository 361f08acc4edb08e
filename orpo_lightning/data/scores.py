"""By how much the chosen answer was judged better, and by how many, where a row says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orpo_lightning.data.values import number

SCORE_COLUMNS = (
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("rating_chosen", "rating_rejected"),
)
"""The pairs of names in use, the first found first."""


def margin(row: Mapping[str, Any]) -> float | None:
    """Return the chosen answer's score minus the rejected one's, or None where one of them is no number."""
    for chosen, rejected in SCORE_COLUMNS:
        if chosen in row and rejected in row:
            better, worse = number(row[chosen]), number(row[rejected])
            if better is not None and worse is not None:
                return better - worse
    return None


def agreement(row: Mapping[str, Any]) -> float | None:
    """Return how many judges agreed, or their share; None where the row has no number in `agreement`."""
    return number(row.get("agreement"))
