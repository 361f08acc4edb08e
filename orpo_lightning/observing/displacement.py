"""Likelihood displacement in a sentence: what became of chosen and rejected answers since the base."""

from __future__ import annotations

from typing import NamedTuple

from orpo_lightning.observing.held_out import SEEN


class Change(NamedTuple):
    """How far a mean log-probability moved from the base's, with the ends of its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def direction(self) -> int:
        """1 or -1 where the interval lies on one side of zero and the value counts, else 0."""
        if abs(self.value) < SEEN:
            return 0
        low, high = (self.value if end is None else end for end in (self.low, self.high))
        return (low > 0) - (high < 0)

    def __str__(self) -> str:
        """Return the value with its sign, and the interval."""
        ends = "" if self.low is None or self.high is None else f" [{self.low:+.3g}, {self.high:+.3g}]"
        return f"{self.value:+.3g}{ends}"


# By the directions of chosen and rejected. Where both go the same way the gap between them decides:
# what is said where it fell, where it cannot be told, where it grew.
_MEANINGS: dict[tuple[int, int], str | tuple[str, str, str]] = {
    (1, -1): "preferences are learned, and the chosen answers come easier too",
    (1, 0): "preferences are learned: the chosen answers come easier, the rejected ones do not",
    (1, 1): (
        "the rejected answers gain more than the chosen ones: the preference goes the wrong way",
        "both gain alike: the style of the answers is learned, the preference not yet",
        "preferences are learned while both kinds of answers come easier",
    ),
    (0, -1): "preferences are learned by turning away from the rejected answers alone",
    (0, 0): "no movement that counts, or that this many pairs could show",
    (0, 1): "the rejected answers gain and the chosen ones do not: the preference goes the wrong way",
    (-1, -1): (
        "the chosen answers lose more than the rejected ones: the preference goes the wrong way, and fluency "
        "is lost",
        "both lose alike: fluency is lost and no preference gained",
        "preferences are learned, fluency is being paid for it",
    ),
    (-1, 0): "the chosen answers lose and the rejected ones do not: the preference goes the wrong way",
    (-1, 1): "the preference goes the wrong way: are chosen and rejected exchanged in the data?",
}


def meaning(chosen: Change, rejected: Change, gap: Change) -> str:
    """Return what two changes mean together.

    Args:
        chosen: of the chosen answers' mean log-probability of a token.
        rejected: of the rejected answers'.
        gap: of chosen less rejected, pair by pair.
    """
    found = _MEANINGS[chosen.direction, rejected.direction]
    return found if isinstance(found, str) else found[gap.direction + 1]


def sentence(chosen: Change, rejected: Change, gap: Change) -> str:
    """Return the changes and what they mean, for the console; arguments as for `meaning`."""
    return f"chosen {chosen}, rejected {rejected} since the base: {meaning(chosen, rejected, gap)}"
