"""What the data module refuses: arguments that cannot work, and checkpoints of another run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orpo_lightning.data import flags
from orpo_lightning.data.limits import BEYOND_LIMITS
from orpo_lightning.data.screening import LOW_MARGIN, NO_MARGIN
from orpo_lightning.data.table import DROPPED, StoredPairs
from orpo_lightning.errors import CheckpointError, DataError
from orpo_lightning.run_settings import SPLIT, pairs_per_step, same_place

ASKED_FOR = BEYOND_LIMITS | {LOW_MARGIN, NO_MARGIN}
"""Reasons to leave out a pair that are the user's own settings, and no faults of the data."""
_MOST_REPEATED_PROMPTS = 0.5


def refuse_bad_data(stored: StoredPairs, max_dropped: float, repeated_prompt: str) -> None:
    """Stop where too little of a source can be used to train on the rest in good faith.

    Args:
        stored: the source.
        max_dropped: share of its rows that may be at fault; pairs beyond a limit the user set do not count.
        repeated_prompt: "strip" where prompts are taken off the answers.

    Raises:
        DataError: says how many rows, why, and in which file they are all listed.
    """
    info = stored.info
    faults = {reason: dropped for reason, dropped in info.dropped.items() if reason not in ASKED_FOR}
    named = info.dropped if not info.pairs else faults
    reasons = ", ".join(f"{rows:,} {reason} (first {first[0]})" for reason, (rows, first) in named.items())
    listed = f"all are listed in {stored.folder / DROPPED}"
    if not info.pairs:
        raise DataError(f"{info.source}: no usable pair is left; left out: {reasons}; {listed}")
    count = sum(dropped.rows for dropped in faults.values())
    if count > max_dropped * info.rows:
        raise DataError(
            f"{info.source}: {count:,} of {info.rows:,} rows ({count / info.rows:.1%}) cannot be used, more "
            f"than data.max_dropped {max_dropped:g} allows: {reasons}; {listed}"
        )
    repeated = int(((stored.flags & flags.PROMPT_REPEATED) > 0).sum())
    if repeated_prompt != "strip" and repeated > _MOST_REPEATED_PROMPTS * info.pairs:
        raise DataError(
            f"{info.source}: chosen and rejected repeat the prompt in {repeated:,} of {info.pairs:,} pairs, "
            "so it would be trained on twice: set data.repeated_prompt strip, or leave the prompt column out"
        )


def other_run(
    saved: Mapping[str, Any], here: Mapping[str, Any], changed_data: str = "stop", changed_steps: str = "stop"
) -> list[str]:
    """Return why training cannot go on from a saved position, in words; nothing where it can.

    Args:
        saved: of the checkpoint, `seen`, `fingerprint` and what decides the plan of an epoch.
        here: of this run, `source`, `fingerprint` and the same.
        changed_data: "accept" goes on at the same place of the epoch, in the order of the data there is now.
        changed_steps: "accept" goes on with another split of the steps, if it has a place there.

    Raises:
        CheckpointError: the position is within an optimizer step, so that no run can go on from it.
    """
    if same_place(saved, saved) is None:
        raise CheckpointError(
            f"the checkpoint was taken within an optimizer step, {saved['seen']:,} micro-batches into a pass "
            f"over the data where {saved['accumulate']} make a step: the gradient added up by then is lost; "
            "name another of the run's checkpoints with --resume"
        )
    found = []
    if saved["fingerprint"] != here["fingerprint"] and changed_data != "accept":
        found.append(
            f"{here['source']}: the training data differs from the checkpoint's (other rows, tokenizer, "
            "limits or held-out share); --data.changed_data accept goes on with it"
        )
    plan = here.keys() - {"source", "fingerprint"}
    other = sorted(key for key in plan if saved[key] != here[key])
    within = [key for key in other if key not in SPLIT and saved["seen"]]
    found += [f"{key} {saved[key]} became {here[key]} within an epoch" for key in within]
    split = [f"{key} {saved[key]} became {here[key]}" for key in SPLIT if key in other]
    before, now = pairs_per_step(saved), pairs_per_step(here)
    what = ", ".join(split) + (f", so {before} pairs in a step became {now}" if before != now else "")
    if same_place(saved, here) is None:
        found.append(f"{what}, and the checkpoint does not stand between two such steps")
    elif split and changed_steps != "accept":
        found.append(f"{what}; --data.changed_steps accept goes on with it")
    return found
