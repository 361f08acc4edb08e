"""What the data module refuses: arguments that cannot work, and checkpoints of another run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orpo_lightning.errors import CheckpointError, UsageError


def share_or_source(validation: str | float | None) -> str | float | None:
    """Return a share as a number; the command line hands it over as text."""
    if isinstance(validation, str):
        try:
            validation = float(validation)
        except ValueError:
            return validation
    if validation is not None and not 0 < validation < 1:
        raise UsageError(f"data.validation: expected a source or a share between 0 and 1, found {validation}")
    return validation


def refuse_small(least: int, **values: int | None) -> None:
    """Stop at the first `data.` argument below its least value; None is left open and passes."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"data.{name}: expected at least {least}, found {value}")


def refuse_impossible_limits(max_length: int, max_prompt_length: int | None, overlong: str) -> None:
    """Stop where no pair could be within the limits."""
    refuse_small(2, max_length=max_length)
    refuse_small(1, max_prompt_length=max_prompt_length)
    if max_prompt_length is not None and max_prompt_length >= max_length:
        raise UsageError(
            f"data.max_prompt_length: expected less than data.max_length ({max_length}), which holds prompt "
            f"and answer, found {max_prompt_length}"
        )
    if overlong not in ("drop", "truncate", "error"):
        raise UsageError(f"data.overlong: expected drop, truncate or error, found {overlong!r}")


def refuse_other_run(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Stop where training cannot go on from a saved position.

    Args:
        saved: of the checkpoint, `seen`, `fingerprint` and what decides the plan of an epoch.
        here: of this run, `source`, `fingerprint` and the same.
    """
    if saved["fingerprint"] != here["fingerprint"]:
        raise CheckpointError(
            f"{here['source']}: the training data differs from the checkpoint's (other rows, tokenizer, "
            "limits or held-out share); use the same data, or start a new run"
        )
    # At the beginning of an epoch there is no place to be found within it.
    plan = here.keys() - {"source", "fingerprint"} if saved["seen"] else ()
    if other := [f"{key} {saved[key]} became {here[key]}" for key in sorted(plan) if saved[key] != here[key]]:
        raise CheckpointError(
            f"the checkpoint stands within an epoch that was planned differently: {', '.join(other)}; "
            "resume with the same values"
        )
