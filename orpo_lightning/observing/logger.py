"""The logger behind `curves.jsonl`: everything that anyone logs, beside the user's own loggers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from orpo_lightning.observing.files import append_values, cut_lines

CURVES = "curves.jsonl"


class CurvesLogger(Logger):
    """Appends each set of values that is logged to `curves.jsonl`, with the optimizer steps done as `step`.

    Args:
        folder: of the run.
        step: of all lines; None takes the step that each set of values is logged with.
    """

    def __init__(self, folder: str, step: int | None = None) -> None:
        """Keep the place; the file is made with the first line."""
        super().__init__()
        self.path, self.step = Path(folder) / CURVES, step

    @property
    def name(self) -> str:
        """The name of this logger."""
        return "curves"

    @property
    def version(self) -> str:
        """None of it: a run has one file."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a line.

        Raises:
            SurroundingsError: the disk is full.
        """
        at = step if self.step is None else self.step
        append_values(self.path, {"step": at, **metrics}, "the file of curves")

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them."""

    @rank_zero_only
    def cut(self, first: int | None) -> None:
        """Take off the lines from that step on, or what is torn alone."""
        cut_lines(self.path, first)
