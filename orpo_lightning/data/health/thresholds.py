"""When a data set is called unfit to train on: every limit in one table, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from orpo_lightning.data.curation import CONTRADICTED, DUPLICATE
from orpo_lightning.data.health.distributions import share
from orpo_lightning.data.health.findings import CONTRADICTIONS, DUPLICATES, NEARLY_SAME, REPEATED_PROMPT
from orpo_lightning.data.limits import BEYOND_LIMITS

Part = Mapping[str, Any]


class Threshold(NamedTuple):
    """One check of a split."""

    name: str
    limit: float
    """More than this fails; a whole number counts, a fraction is a share."""
    find: Callable[[Part], float]
    meaning: str
    """Why it matters and what to do, in one sentence."""


def _rows(part: Part, reason: str) -> int:
    return sum(one["rows"] for one in part["left_out"] if one["reason"] == reason)


def _share(kind: str) -> Callable[[Part], float]:
    return lambda part: next((one["share"] for one in part["suspicious"] if one["kind"] == kind), 0.0)


def _found(kind: str, reason: str) -> Callable[[Part], float]:
    """Count what is suspicious together with what was taken out for it, as a share of both and the rest."""

    def find(part: Part) -> float:
        gone = _rows(part, reason)
        there = sum(one["rows"] for one in part["suspicious"] if one["kind"] == kind)
        return share(there + gone, part["pairs"] + gone)

    return find


THRESHOLDS = (
    Threshold(
        "broken rows",
        0,
        lambda part: sum(one["rows"] for one in part["left_out"] if one["broken"]),
        "A row that cannot be read stops training, and what made it may have spoilt others: mend the file.",
    ),
    Threshold(
        "rows beyond the limits",
        0.2,
        lambda part: share(sum(_rows(part, reason) for reason in BEYOND_LIMITS), part["rows"]["read"]),
        "What is left is the short part of the data: raise data.max_length, or set data.overlong truncate.",
    ),
    Threshold(
        "exact duplicates",
        0.01,
        _found(DUPLICATES, DUPLICATE),
        "So many copies come from a mistake in collecting the pairs: look there, not only at the copies.",
    ),
    Threshold(
        "contradictory pairs",
        0.005,
        _found(CONTRADICTIONS, CONTRADICTED),
        "Where labels contradict each other, others are wrong unnoticed: check how they were made.",
    ),
    Threshold(
        "answers cut",
        0.2,
        lambda part: part["answers"]["cut_share"],
        "The model sees too few answers end: raise data.max_length, or set data.overlong drop.",
    ),
    Threshold(
        "prompt repeated in the answers",
        0.01,
        _share(REPEATED_PROMPT),
        "The prompt would be learnt as a part of the answer: set data.repeated_prompt strip.",
    ),
    Threshold(
        "near-identical answers",
        0.05,
        _share(NEARLY_SAME),
        "Such pairs teach little, and what differs may be chance: leave them out, or find better ones.",
    ),
)
SHARED = (
    Threshold(
        "pairs also in train",
        0,
        lambda shared: shared["shared_pairs"],
        "A pair that was trained on says nothing about new ones: take it out of one of the two files.",
    ),
    Threshold(
        "pairs whose prompt is in train",
        0.01,
        lambda shared: share(shared["pairs_of_shared_prompts"], shared["pairs"]),
        "The figures would flatter the model: split by prompt, as data.validation 0.1 does.",
    ),
)


def _left_out(max_dropped: float) -> Threshold:
    return Threshold(
        "rows left out",
        max_dropped,
        lambda part: part["faults"],
        "More than data.max_dropped allows is broken or of no use, so that fit stops: mend the source, or "
        "raise the limit if the rest is what you want.",
    )


def check(
    splits: Mapping[str, Part],
    across: Mapping[str, Part],
    faults: Mapping[str, float],
    max_dropped: float,
    *,
    strict: bool = False,
) -> dict[str, Any]:
    """Return the verdict: every check of every split, and whether all were passed.

    Args:
        splits: parts of the report.
        across: what two splits share, by names like "train_validation".
        faults: of each split, the largest share of faulty rows in one of its sources.
        max_dropped: `data.max_dropped`.
        strict: whether a failed check ends with exit code 3.
    """
    checks = []
    for split, part in splits.items():
        checks.append(_checked(_left_out(max_dropped), {"faults": faults[split]}, split))
        checks += [_checked(one, part, split) for one in THRESHOLDS]
    for between, part in across.items():
        split = between.removeprefix("train_")
        shared = {key.removeprefix(f"{split}_"): value for key, value in part.items()}
        checks += [_checked(one, shared, split) for one in SHARED]
    return {"strict": strict, "checks": checks, "passed": all(one["passed"] for one in checks)}


def _checked(one: Threshold, part: Part, split: str) -> dict[str, Any]:
    found = one.find(part)
    return {
        "name": f"{split}: {one.name}",
        "found": found,
        "limit": one.limit,
        "passed": found <= one.limit,
        "meaning": one.meaning,
    }


def failed(verdict: Part) -> list[Part]:
    """Return the checks that were not passed."""
    return [one for one in verdict["checks"] if not one["passed"]]
