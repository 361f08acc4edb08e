"""What must be the same for a run to go on from a checkpoint, what may change, and how that is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orpo_lightning.errors import CheckpointError

FIXED = (
    "base_model",
    "revision",
    "quantization",
    "lora_r",
    "lora_alpha",
    "lora_targets",
    "lora_variant",
    "lora_init",
    "trainable_tokens",
)
"""Arguments of the module without which the saved weights mean something else."""
BASE = ("base_model", "revision")
"""Those that name the base model, which need not be loaded to be compared."""


def changed_model(
    saved: Mapping[str, Any], here: Mapping[str, Any], fixed: Sequence[str] = FIXED
) -> list[str]:
    """Return in words which of FIXED, or of some of them, a checkpoint and this run set differently.

    A base model in another folder is no difference: what counts is its weights, which `WeightsProof`
    compares.
    """
    keys = [key for key in fixed if key in saved and key in here]
    return [
        f"model.{key} {saved[key]} became {here[key]}"
        for key in keys
        if _plain(saved[key]) != _plain(here[key])
        and not (key == "base_model" and Path(str(here[key])).is_dir())
    ]


def settings_of(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the arguments of `model` or `data` in a config.yaml, whether it names a class or not."""
    values = config.get(part) or {}
    return dict(values.get("init_args", values) or {})


def refuse(differences: list[str]) -> None:
    """Raise CheckpointError where a checkpoint and a run differ."""
    if differences:
        raise CheckpointError(
            f"the checkpoint is of another run: {'; '.join(differences)}. Resume with the settings it was "
            "started with, or start another run (--run_dir NEW)"
        )


def changed_options(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return in words which other arguments of the module differ; those of this run are used."""
    keys = sorted((saved.keys() & here.keys()) - {*FIXED})
    return [
        f"{key} {saved[key]} became {here[key]}" for key in keys if _plain(saved[key]) != _plain(here[key])
    ]


def _plain(value: Any) -> Any:
    # The order of names of layers means nothing.
    return (
        sorted(value)
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
        else value
    )


SPLIT = ("batch_size", "accumulate", "world_size")
"""What may change between two steps, as each step's pairs are planned as a whole."""


def same_place(saved: Mapping[str, Any], here: Mapping[str, Any]) -> int | None:
    """Return how many micro-batches of the epoch one rank has seen, counted as this run splits steps.

    Args:
        saved: `seen` micro-batches of a rank, and SPLIT, of the checkpoint.
        here: SPLIT of this run.

    Returns:
        None where the checkpoint stands within an optimizer step of this run.
    """
    steps, rest = divmod(saved["seen"], saved["accumulate"])
    pairs = steps * pairs_per_step(saved)
    steps_here, pairs_rest = divmod(pairs, pairs_per_step(here))
    return None if rest or pairs_rest else steps_here * here["accumulate"]


def pairs_per_step(split: Mapping[str, Any]) -> int:
    """Return the pairs of an optimizer step."""
    return split["batch_size"] * split["accumulate"] * split["world_size"]


def recount(fit_loop: dict[str, Any], saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Change Lightning's counts of micro-batches in a checkpoint to this run's split of the steps.

    Args:
        fit_loop: the state of its training loop; changed in place.
        saved: SPLIT of the checkpoint.
        here: SPLIT of this run.
    """
    there = saved["accumulate"] * pairs_per_step(here)
    now = here["accumulate"] * pairs_per_step(saved)
    if there == now:
        return
    progress = fit_loop["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        behind = counts["ready"] - counts["completed"]  # saved within the hook at a batch's end
        # Rounded up: the last step of an epoch may be short.
        counts.update({key: -(-counts["ready"] * now // there) for key in counts})
        counts["completed"] -= behind
