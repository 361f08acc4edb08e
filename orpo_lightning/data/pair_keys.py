"""Which pairs are the same, the other way round, or of the same prompt: told by their hashes, all at once."""

from __future__ import annotations

from typing import Any

import numpy as np

Keys = np.ndarray[Any, Any]
"""(n, 3) uint64: hashes of prompt, chosen and rejected of each pair."""

_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))


def first_of_same(keys: Keys) -> Keys:
    """Return (n,) int64: of each pair, the first that is the same in prompt and both answers."""
    return _first_of_equal(_mixed(keys[:, 0], keys[:, 1], keys[:, 2]))


def is_contradicted(keys: Keys) -> Keys:
    """Return (n,) bool: whether another pair prefers these two answers to this prompt the other way round."""
    first = first_of_reversed(keys)
    return first >= 0


def first_of_reversed(keys: Keys) -> Keys:
    """Return (n,) int64: of each pair, the first that prefers its answers the other way; -1 for none."""
    forward = _mixed(keys[:, 0], keys[:, 1], keys[:, 2])
    backward = _mixed(keys[:, 0], keys[:, 2], keys[:, 1])
    order = np.argsort(forward, kind="stable")
    at = np.searchsorted(forward[order], backward)
    at = np.minimum(at, max(len(order) - 1, 0))
    found = order[at] if len(order) else np.empty(0, np.int64)
    return np.where(forward[found] == backward, found, -1)


def stands_in(keys: Keys, others: Keys) -> Keys:
    """Return (n,) bool: whether the same pair is among the others."""
    return np.isin(_mixed(*keys.T), _mixed(*others.T))


def prompt_stands_in(keys: Keys, others: Keys) -> Keys:
    """Return (n,) bool: whether a pair of the same prompt is among the others."""
    return np.isin(keys[:, 0], others[:, 0])


def order_of_answers(keys: Keys) -> Keys:
    """Return (n,) bool: whether the chosen answer comes first in an order that knows nothing of the label.

    Of the two orders it is the one whose hash, the prompt mixed in, is the smaller: the same order whichever
    was chosen, and perhaps the other one for the same answers to another prompt.
    """
    return _mixed(keys[:, 0], keys[:, 1], keys[:, 2]) < _mixed(keys[:, 0], keys[:, 2], keys[:, 1])


def _mixed(*columns: Keys) -> Keys:
    """Return one hash of several, in which their order counts; of 64 bits, 5 million pairs never collide."""
    mixed: Keys = np.zeros(len(columns[0]), np.uint64)
    with np.errstate(over="ignore"):
        for column, factor in zip(columns, _MIX, strict=True):
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX[0] + column * factor
    return mixed


def _first_of_equal(values: Keys) -> Keys:
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    begins = np.ones(len(order), bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    first = np.empty(len(order), np.int64)
    if len(order):
        first[order] = order[begins][np.cumsum(begins) - 1]
    return first
