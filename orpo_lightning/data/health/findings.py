"""What is suspicious about pairs that are trained on all the same: counted, with the first of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from orpo_lightning.data import flags
from orpo_lightning.data.health.distributions import Numbers, share
from orpo_lightning.data.health.overlap import NEAR_IDENTICAL, Overlaps
from orpo_lightning.data.pair_keys import first_of_reversed, first_of_same

EXAMPLES = 5
DUPLICATES = "exact duplicates"
CONTRADICTIONS = "contradictory pairs"
REPEATED_PROMPT = "prompt repeated in the answers"
NEARLY_SAME = "near-identical answers"


class Finding(NamedTuple):
    """Pairs of one suspicious kind."""

    kind: str
    rows: int
    """How many pairs."""
    of: int
    """Among how many that were looked at."""
    meaning: str
    """One sentence: what it does to training, and what to do."""
    examples: list[tuple[int, ...]]
    """Numbers of the first pairs, together where it takes two."""

    def as_report(self, places: dict[int, str]) -> dict[str, Any]:
        """Return the report's part; `places` says where each pair of the examples stands."""
        return {
            "kind": self.kind,
            "rows": self.rows,
            "share": share(self.rows, self.of),
            "meaning": self.meaning,
            "examples": [" and ".join(places[pair] for pair in example) for example in self.examples],
        }


def findings(keys: Numbers, bits: Numbers, margins: Numbers, alike: Overlaps) -> list[Finding]:
    """Return every kind that is looked for, those of which there are none too.

    Args:
        keys: (n, 3) uint64, hashes of prompt, chosen and rejected.
        bits: (n,) flags of each pair.
        margins: (n,) score of chosen less that of rejected, NaN where there is none.
        alike: how much the answers have in common.
    """
    found = [*_doubled(keys), _of(NEARLY_SAME, alike.near_identical(), len(alike.pairs), _nearly_same(alike))]
    noted = [_of(kind, np.flatnonzero(bits & bit), len(keys), meaning) for kind, bit, meaning in _NOTED]
    return [*found, *noted, *_unsure(margins)]


def _doubled(keys: Numbers) -> Iterable[Finding]:
    # Only few pairs share prompt and both answers with another: all else is done with these alone.
    few = np.flatnonzero(in_doubt(keys))
    numbers = np.arange(len(few))
    first, reverse = first_of_same(keys[few]), first_of_reversed(keys[few])
    repeats = np.flatnonzero(first != numbers)
    yield Finding(
        DUPLICATES,
        len(repeats),
        len(keys),
        "Trained on once for every copy; data.duplicates drop keeps the first.",
        [(int(few[first[i]]), int(few[i])) for i in repeats[:EXAMPLES]],
    )
    opposed = np.flatnonzero(reverse >= 0)
    couples = np.sort(np.stack([few[opposed], few[reverse[opposed]]], axis=1), axis=1)
    yield Finding(
        CONTRADICTIONS,
        len(opposed),
        len(keys),
        "Two pairs prefer the same answers in opposite ways, so that one label is wrong; "
        "data.contradictions drop leaves both out.",
        [(int(one), int(other)) for one, other in np.unique(couples, axis=0)[:EXAMPLES]],
    )


def in_doubt(keys: Numbers) -> Numbers:
    """Return (n,) bool: whether another pair has the same prompt and the same answers, in either order."""
    low, high = np.minimum(keys[:, 1], keys[:, 2]), np.maximum(keys[:, 1], keys[:, 2])
    with np.errstate(over="ignore"):
        mixed = keys[:, 0] * np.uint64(0x9E3779B97F4A7C15) + low * np.uint64(0xC2B2AE3D27D4EB4F) + high
    ordered = np.sort(mixed)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return np.zeros(len(mixed), bool)
    nearest = np.searchsorted(repeated, mixed).clip(max=len(repeated) - 1)
    return repeated[nearest] == mixed


def _nearly_same(alike: Overlaps) -> str:
    return (
        f"More than {NEAR_IDENTICAL:.0%} of the tokens are the same, in nearly the same order; "
        f"{len(alike.pairs):,} pairs were looked at. They teach little, and what differs may be chance."
    )


def _of(kind: str, pairs: Numbers, of: int, meaning: str) -> Finding:
    return Finding(kind, len(pairs), of, meaning, [(int(pair),) for pair in pairs[:EXAMPLES]])


def _unsure(margins: Numbers) -> Iterable[Finding]:
    scored = int((~np.isnan(margins)).sum())
    if not scored:
        return
    yield _of(
        "negative score margin",
        np.flatnonzero(margins < 0),
        scored,
        "The rejected answer has the higher score, so label or score is wrong; data.min_margin 0 drops them.",
    )
    yield _of(
        "equal scores",
        np.flatnonzero(margins == 0),
        scored,
        "The scores prefer neither answer, so the label is chance; a data.min_margin above 0 drops them.",
    )


_NOTED = (
    (
        REPEATED_PROMPT,
        flags.PROMPT_REPEATED,
        "Both answers begin with the prompt, so it is learnt as an answer; data.repeated_prompt strip takes "
        "it off.",
    ),
    (
        "control token written in a text",
        flags.CONTROL_TOKEN,
        "Encoded as text, so that it ends no turn; if it is left over from another template, take it out.",
    ),
    (
        "control characters",
        flags.CONTROL_CHARACTER,
        "NUL or the like is trained on with the text; look where the file comes from.",
    ),
)


def places_of(
    parts: Iterable[Sequence[Finding]], look_up: Callable[[list[int]], list[str]]
) -> dict[int, str]:
    """Return where the examples stand, looked up all at once.

    Args:
        parts: findings.
        look_up: returns the places of pairs.
    """
    numbers = sorted(
        {pair for part in parts for found in part for example in found.examples for pair in example}
    )
    return dict(zip(numbers, look_up(numbers), strict=True))
