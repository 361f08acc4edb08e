"""Warns when the logged values say that a run is going wrong, with what that usually means."""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import median
from typing import Any

import lightning

log = logging.getLogger(__name__)
_WINDOW = 50
_FEWEST = 8


class DivergenceWatch(lightning.Callback):
    """Looks at each logged training step; each of its warnings comes once, and again after things were well.

    * The loss is more than twice its running median (over the last 50 logged steps, from the eighth on).
    * The mean log-probability of chosen tokens has fallen by more than one nat below its start: the model
      forgets how to write the answers it is to prefer.
    """

    def __init__(self) -> None:
        """Start with no values."""
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._first: list[float] = []
        self._seen_step = 0
        self._told: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, so that a resumed run warns as the whole one would."""
        return {"losses": list(self._losses), "first": self._first, "told": sorted(self._told)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what is remembered."""
        self._losses.extend(state_dict["losses"])
        self._first, self._told = state_dict["first"], set(state_dict["told"])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the steps before this one as seen."""
        self._seen_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the values of the step before, which the module logs after this hook's counterpart."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step == self._seen_step or not every or step % every:
            return
        self._seen_step = step
        values = trainer.callback_metrics
        if "train/loss" in values:
            self._watch_loss(step, float(values["train/loss"]))
        if "train/logps/chosen" in values:
            self._watch_chosen(step, float(values["train/logps/chosen"]))

    def _watch_loss(self, step: int, loss: float) -> None:
        usual = median(self._losses) if len(self._losses) >= _FEWEST else None
        if math.isfinite(loss):  # the median of a list with NaN is any of its values
            self._losses.append(loss)
        self._say(
            "loss",
            usual is not None and not loss <= 2 * usual,
            f"step {step}: loss {loss:.4g}, usual is {usual or 0:.4g}: the learning rate may be too high "
            "(model.optimizer.lr), the warm-up too short, or these rows unlike the others",
        )

    def _watch_chosen(self, step: int, chosen: float) -> None:
        if len(self._first) < _FEWEST // 2:
            self._first += [chosen] if math.isfinite(chosen) else []
            return
        start = median(self._first)
        self._say(
            "chosen",
            not chosen >= start - 1,
            f"step {step}: log-probability of chosen tokens {chosen:.4g}, {start:.4g} at the start: the "
            "model unlearns the chosen answers too; lower the learning rate or model.objective.beta",
        )

    def _say(self, what: str, is_wrong: bool, line: str) -> None:
        if is_wrong and what not in self._told:
            log.warning("%s", line)
        self._told = self._told | {what} if is_wrong else self._told - {what}
