"""What the runs of the training benchmark say: ratios, the share of the floor, that the work was equal."""

from __future__ import annotations

from typing import Any

from benchmark_report import spread
from benchmark_watch import COMPARED, largest_difference

ABLATIONS = ("layout", "head", "sampler")
"""What can be switched off alone."""
# Means over pairs: the same however a step is split. The NLL is one over the tokens of a step here, and a
# mean of its micro-batches' means in TRL.
PAIRED = tuple(name for name in COMPARED if name not in ("loss", "nll_loss"))
_RATIO_NAMES = {
    "train_pairs_per_second": "train_pairs_per_second",
    "validation_pairs_per_second": "validation_pairs_per_second",
    "peak_memory_above_model": "peak_memory_above_model_mb",
    "first_step_seconds": "first_step_seconds",
    "first_step_after_call_seconds": "first_step_after_call_seconds",
}


def comparison(runs: dict[str, list[dict[str, Any]]], accumulate: int) -> dict[str, Any]:
    """Return ratios by allocator, the floor's share, how far the losses differ, and everything measured."""
    found: dict[str, Any] = {}
    for allocator, taken in runs.items():
        key = "ratios" if allocator == "neutral" else f"ratios_{allocator}_allocator"
        found[key] = {
            name: spread([run["ours"][figure] / run["trl"][figure] for run in taken], 4)
            for name, figure in _RATIO_NAMES.items()
        }
        over_floor = [run["ours"]["seconds"] / run["floor"]["seconds"] for run in taken]
        found.setdefault("step_over_matrix_products", {})[allocator] = spread(over_floor)
    first = next(iter(runs.values()))[0]
    if first["ours"]["validated_pairs"] < first["trl"]["validated_pairs"]:
        found["sampled_validation"] = {name: sampled_validation(taken) for name, taken in runs.items()}
    return found | {
        "equal_work": equal_work(first["ours"], first["trl"], COMPARED if accumulate == 1 else PAIRED),
        "layout": first["ours"]["layout"],
        "summary": {allocator: summarise(taken) for allocator, taken in runs.items()},
        "runs": {allocator: [_short(run) for run in taken] for allocator, taken in runs.items()},
    }


def ablation(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return what is lost without each idea, run by run, and that the losses stay as they are."""
    taken = runs["neutral"]
    figures = {name: figure for name, figure in _RATIO_NAMES.items() if not name.startswith("first")}
    work = {name: equal_work(taken[0][name], taken[0]["ours"]) for name in ABLATIONS}
    return {
        "ratios_without": {
            without: {
                name: spread([run[without][figure] / run["ours"][figure] for run in taken], 4)
                for name, figure in figures.items()
            }
            for without in ABLATIONS
        },
        "equal_work": {key: max(each[key] for each in work.values()) for key in work[ABLATIONS[0]]},
        "equal_work_without": work,
        "layout": taken[0]["ours"]["layout"],
        "summary": {"neutral": summarise(taken)},
        "runs": {"neutral": [_short(run) for run in taken]},
    }


def sampled_validation(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a validation of ours on a sample takes of TRL's on all pairs, and what each found.

    Values are of the first run; the NLL is not among them, since TRL's is a mean over batches.
    """
    ours, trl = runs[0]["ours"], runs[0]["trl"]
    share = {
        key: spread([run["ours"][key] / run["trl"]["validation_seconds"] for run in runs], 4)
        for key in ("validation_seconds", "first_validation_seconds")
    }
    ends = ours["validation_intervals"]
    values = {name: {"interval": ends[name], "all_pairs": trl["validation_losses"][name]} for name in PAIRED}
    return {
        "pairs": trl["validated_pairs"],
        "sample": ours["validated_pairs"],
        "share_of_trls_seconds": share["validation_seconds"],
        "share_of_trls_seconds_with_the_base": share["first_validation_seconds"],
        "values": values,
    }


def equal_work(
    one: dict[str, Any], other: dict[str, Any], names: tuple[str, ...] = COMPARED
) -> dict[str, float]:
    """Return how far the losses differ: in the first step, in any, and in a validation on the same pairs."""
    found = {
        "first_step": max(largest_difference(one["losses"][:1], other["losses"][:1], name) for name in names),
        "all_steps": max(largest_difference(one["losses"], other["losses"], name) for name in names),
    }
    if one["validated_pairs"] != other["validated_pairs"]:
        return found
    ends = ([one["validation_losses"]], [other["validation_losses"]])
    # The NLL of a whole validation is a mean over tokens here, and a mean of batches there.
    return found | {"validation": max(largest_difference(*ends, name) for name in PAIRED)}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return min, median and max of every figure of every side over the runs."""
    return {
        side: {
            name: spread([run[side][name] for run in runs], 4)
            for name, value in runs[0][side].items()
            if isinstance(value, int | float)
        }
        for side in runs[0]
    }


def _short(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run without its pairs."""
    long = ("order", "lengths", "train_pairs", "validation_pairs")
    return {
        side: {name: value for name, value in each.items() if name not in long} for side, each in run.items()
    }
