"""Arguments of the data module that mean nothing, refused before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orpo_lightning.errors import UsageError

_CHOICES = {
    "mix": ("proportional", "equal"),
    "layout": ("auto", "padded", "shared_prefix"),
    "on_error": ("stop", "skip"),
    "changed_data": ("stop", "accept"),
    "duplicates": ("keep", "drop"),
    "contradictions": ("keep", "drop"),
    "repeated_prompt": ("keep", "strip"),
    "final_validation": ("sample", "full"),
}
_COUNTS = ("batch_size", "validation_batch_size", "validation_size", "tokens_per_batch")


def refuse_bad_arguments(values: Mapping[str, Any]) -> None:
    """Stop at an argument outside its range.

    Args:
        values: those of `PreferenceDataModule`, by name.

    Raises:
        UsageError: says what was expected and what was found.
    """
    _refuse_impossible_limits(values["max_length"], values["max_prompt_length"], values["overlong"])
    _refuse_small(1, **{name: values[name] for name in _COUNTS if values[name] != "auto"})
    _refuse_small(0, num_workers=values["num_workers"])
    _refuse_share(max_dropped=values["max_dropped"])
    for name, allowed in _CHOICES.items():
        _refuse_choice(allowed, **{name: values[name]})


def share_or_source(validation: Any) -> Any:
    """Return a share as a number; the command line hands it over as text."""
    if isinstance(validation, str):
        try:
            validation = float(validation)
        except ValueError:
            return validation
    if isinstance(validation, (int, float)) and not 0 < validation < 1:
        raise UsageError(f"data.validation: expected a source or a share between 0 and 1, found {validation}")
    return validation


def _refuse_share(**values: float) -> None:
    """Stop at the first `data.` argument that is no share from 0 to 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UsageError(f"data.{name}: expected a share from 0 to 1, found {value}")


def _refuse_small(least: int, **values: int | None) -> None:
    """Stop at the first `data.` argument below its least value; None is left open and passes."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"data.{name}: expected at least {least}, found {value}")


def _refuse_impossible_limits(max_length: int, max_prompt_length: int | None, overlong: str) -> None:
    """Stop where no pair could be within the limits."""
    _refuse_small(2, max_length=max_length)
    _refuse_small(1, max_prompt_length=max_prompt_length)
    if max_prompt_length is not None and max_prompt_length >= max_length:
        raise UsageError(
            f"data.max_prompt_length: expected less than data.max_length ({max_length}), which holds prompt "
            f"and answer, found {max_prompt_length}"
        )
    if overlong not in ("drop", "truncate", "error"):
        raise UsageError(f"data.overlong: expected drop, truncate or error, found {overlong!r}")


def _refuse_choice(allowed: tuple[str, ...], **values: str) -> None:
    """Stop at the first `data.` argument that is none of the allowed words."""
    for name, value in values.items():
        if value not in allowed:
            raise UsageError(f"data.{name}: expected {' or '.join(allowed)}, found {value!r}")
