"""Says after each validation what became of chosen and rejected answers since the base."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning

from orpo_lightning.observing.displacement import Change, sentence

log = logging.getLogger(__name__)


class Displacement(lightning.Callback):
    """Prints one sentence after each validation, built from `val/logps_change/chosen` and `.../rejected`.

    Chosen answers may become less likely while the margin grows: likelihood displacement. Where the base
    cannot be had back, so that no change is measured, it says so once.
    """

    def __init__(self) -> None:
        """Start with nothing said."""
        self._said_why_not = False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the sentence."""
        if trainer.sanity_checking:
            return
        name = getattr(pl_module, "validation_name", "val")
        parts = ("chosen", "rejected", "margins")
        changes = [change_of(trainer.callback_metrics, name, part) for part in parts]
        if None not in changes:
            log.info("%s", sentence(*changes))  # type: ignore[arg-type]
        elif not self._said_why_not:
            self._said_why_not = True
            log.info("how far answers move from the base is not measured: %s", _why_not(pl_module))


def change_of(metrics: Mapping[str, Any], stage: str, part: str) -> Change | None:
    """Return a logged change with its interval; None where it was not logged."""
    name = f"logps_change/{part}"
    value = metrics.get(f"{stage}/{name}")
    if value is None:
        return None
    ends = (metrics.get(f"{stage}_{end}/{name}") for end in ("ci_low", "ci_high"))
    return Change(float(value), *(None if end is None else float(end) for end in ends))


def _why_not(module: Any) -> str:
    settings = getattr(module, "hparams", {})
    if not settings.get("lora_r"):
        return "all weights are trained, and the base's are gone with the first step"
    if settings.get("lora_init") in ("pissa", "loftq"):
        return f"lora_init {settings['lora_init']} takes the adapter's first values out of the base"
    return "the objective does not report logps/chosen and logps/rejected pair by pair"
