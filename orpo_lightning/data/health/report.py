"""The whole report: every split, what they share, what an epoch costs, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orpo_lightning.data.health.across import shared
from orpo_lightning.data.health.epoch import EpochPlan, epoch_costs
from orpo_lightning.data.health.facts import fault_share
from orpo_lightning.data.health.rendered import rendered
from orpo_lightning.data.health.split import Rules, SplitFacts, examine_split
from orpo_lightning.data.health.thresholds import check

VERSION = 1


def examine(
    splits: Mapping[str, SplitFacts],
    tokenizer: Any,
    rules: Rules,
    *,
    max_dropped: float,
    plan: EpochPlan | None = None,
    with_rows: bool = True,
    strict: bool = False,
) -> dict[str, Any]:
    """Return the report on the data of a run; all values are plain, so that it can be written as JSON.

    Args:
        splits: from `gather`.
        tokenizer: of `transformers`.
        rules: the limits and the seed of the run.
        max_dropped: `data.max_dropped`, the share of faulty rows above which `fit` stops.
        plan: how an epoch is cut into batches; None leaves out what an epoch costs.
        with_rows: render three rows of each split.
        strict: whether a failed check ends with exit code 3.
    """
    parts = {name: examine_split(facts, tokenizer, rules) for name, facts in splits.items()}
    if with_rows:
        for name, facts in splits.items():
            parts[name]["rendered"] = rendered(facts.table, tokenizer)
    train = splits.get("train")
    across = {
        f"train_{name}": shared(train.table, facts.whole or facts.table, name)
        for name, facts in splits.items()
        if train is not None and name != "train"
    }
    faults = {name: fault_share(facts) for name, facts in splits.items()}
    return {
        "version": VERSION,
        "splits": parts,
        "across": across,
        "epoch": [] if train is None or plan is None else epoch_costs(train.table.lengths, plan),
        "verdict": check(parts, across, faults, max_dropped, strict=strict),
    }
