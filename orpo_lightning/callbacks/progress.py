"""Progress as plain lines, for output that is not a terminal: a job's log, a pipe, a notebook's cell."""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar

from orpo_lightning.durations import clock
from orpo_lightning.metrics import interval_words

log = logging.getLogger(__name__)
# What a line shows, and how the metric is called after train/, val/ or test/.
_SHOWN = {"loss": "loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}


class PlainProgress(ProgressBar):
    """Prints one line per logged optimizer step and per validation, through the package's logger."""

    def __init__(self) -> None:
        """Start enabled and without a clock."""
        super().__init__()
        self._enabled = True
        self._start: tuple[float, int] | None = None
        self._seen_step = 0
        self._due_step: int | None = None

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def disable(self) -> None:
        """Print nothing; Lightning asks for it on every rank but the first."""
        self._enabled = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock behind the remaining time."""
        self._seen_step = trainer.global_step
        self._start = (time.monotonic(), trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Remember that a line is due: the module logs its values only after this hook of the callbacks."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step != self._seen_step and every and step % every == 0:
            self._due_step = step
        self._seen_step = step

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Print the line that is due."""
        self._print_step(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the line that is due."""
        self._print_step(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the line that is due."""
        self._print_step(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print a validation's result."""
        if not trainer.sanity_checking:
            name = getattr(pl_module, "validation_name", "val")
            title = "validation" if name == "val" else "validation on all pairs"
            title += f" at step {trainer.global_step}" if trainer.state.fn == "fit" else ""
            self._print(title, _shown(trainer.callback_metrics, name))

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print a test's result."""
        self._print("test", _shown(trainer.callback_metrics, "test"))

    def _print_step(self, trainer: lightning.Trainer) -> None:
        step, self._due_step = self._due_step, None
        if step is None or self._start is None:
            return
        since, first_step = self._start
        total = trainer.estimated_stepping_batches
        parts = _shown(trainer.callback_metrics, "train")
        speed = trainer.callback_metrics.get("train/pairs_per_second")
        if speed is not None:
            parts.append(f"{float(speed):.3g} pairs/s")
        parts.append(f"eta {remaining(step - first_step, total - step, time.monotonic() - since)}")
        self._print(f"step {step}/{total}", parts)

    def _print(self, title: str, parts: list[str]) -> None:
        if self._enabled:
            log.info("  ".join([title, *parts]))


def remaining(steps_done: int, steps_left: float, seconds: float) -> str:
    """Return the time that the steps left will take, as h:mm:ss, or "?" before anything is known."""
    if steps_done < 1 or steps_left == float("inf"):
        return "?"
    return clock(seconds / steps_done * max(steps_left, 0))


def _shown(metrics: dict[str, Any], stage: str) -> list[str]:
    full = {label: f"{stage}/{name}" for label, name in _SHOWN.items()}
    return [
        f"{label} {float(metrics[name]):.4g}{interval_words(metrics, name)}"
        for label, name in full.items()
        if name in metrics
    ]
