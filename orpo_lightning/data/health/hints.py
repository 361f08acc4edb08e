"""Signs that labels are noisy, or that something other than the preference is taught; each a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from orpo_lightning.data.health.distributions import Numbers, share
from orpo_lightning.data.health.findings import CONTRADICTIONS, NEARLY_SAME, REPEATED_PROMPT

_ONE_SIDED = 0.8
_UNEQUAL_CUT = 0.05
_NOTABLE = 0.01
# Of fewer pairs it may be chance that one side is the longer one.
_ENOUGH = 20


def hints(part: Mapping[str, Any], lengths: Numbers, margins: Numbers) -> list[str]:
    """Return the sentences that apply to a split; none where all is well.

    Args:
        part: the split's part of the report so far.
        lengths: (n, 3) tokens of prompt, chosen and rejected.
        margins: (n,) score of chosen less that of rejected, NaN where there is none.
    """
    return [*_of_scores(part, lengths, margins), *_of_pairs(part), *_of_length(part), *_of_cuts(part)]


def _of_scores(part: Mapping[str, Any], lengths: Numbers, margins: Numbers) -> Iterator[str]:
    scores = part["margins"]
    if scores is None:
        return
    scored = scores["rows_with_scores"]
    if scores["negative"]:
        yield (
            f"{_of(scores['negative'], scored, 'scored pairs')} prefer the answer with the lower score: set "
            "data.min_margin 0, or exchange chosen and rejected where the scores are right."
        )
    if scores["zero"]:
        yield (
            f"{_of(scores['zero'], scored, 'scored pairs')} have equal scores, so their labels say nothing: "
            "a data.min_margin above 0 leaves them out."
        )
    both = int(np.count_nonzero((lengths[:, 1] < lengths[:, 2]) & (margins < 0)))
    if both:
        yield (
            f"{_of(both, part['pairs'], 'pairs')} have a chosen answer that is both shorter and scored "
            "lower: look at these first, their labels may be reversed."
        )


def _of_pairs(part: Mapping[str, Any]) -> Iterator[str]:
    found, pairs = {one["kind"]: one for one in part["suspicious"]}, part["pairs"]
    opposed, alike, repeated = (found[kind] for kind in (CONTRADICTIONS, NEARLY_SAME, REPEATED_PROMPT))
    if opposed["rows"]:
        yield (
            f"{_of(opposed['rows'], pairs, 'pairs')} contradict another pair, so that about half of their "
            "labels are wrong: data.contradictions drop leaves them out."
        )
    if alike["share"] > _NOTABLE:
        yield (
            f"{_of(alike['rows'], part['overlap']['sample'], 'pairs')} have nearly identical answers: check "
            "that what differs is what you want to teach, or leave them out."
        )
    if repeated["share"] > _NOTABLE:
        yield (
            f"{_of(repeated['rows'], pairs, 'pairs')} repeat the prompt at the start of both answers: set "
            "data.repeated_prompt strip."
        )


def _of_length(part: Mapping[str, Any]) -> Iterator[str]:
    wins = part["longer"]["longer_wins_accuracy"]
    if part["pairs"] < _ENOUGH:
        return
    if wins > _ONE_SIDED:
        yield (
            f"“The longer answer wins” is right for {wins:.1%} of the pairs: a model can win by writing "
            "more. Compare its accuracy with this figure, and add pairs whose better answer is the shorter "
            "one."
        )
    if wins < 1 - _ONE_SIDED:
        yield (
            f"“The longer answer wins” is right for only {wins:.1%} of the pairs: labels may be reversed, or "
            "only brevity is taught. Read ten pairs before training."
        )


def _of_cuts(part: Mapping[str, Any]) -> Iterator[str]:
    cut = part["answers"]
    chosen, rejected = (share(cut[side], part["pairs"]) for side in ("chosen_cut", "rejected_cut"))
    if chosen - rejected > _UNEQUAL_CUT:
        yield (
            f"{chosen:.1%} of the chosen answers are cut, but {rejected:.1%} of the rejected ones: a chosen "
            "answer that is cut teaches no stop. Raise data.max_length, or set data.overlong drop."
        )
    if rejected - chosen > _UNEQUAL_CUT:
        yield (
            f"{rejected:.1%} of the rejected answers are cut, but {chosen:.1%} of the chosen ones: to stop "
            "at all is then what is preferred. Raise data.max_length, or set data.overlong drop."
        )


def _of(count: int, whole: int, noun: str) -> str:
    """Return `2 of 900 scored pairs (0.2%)`."""
    return f"{count:,} of {whole:,} {noun} ({share(count, whole):.1%})"
