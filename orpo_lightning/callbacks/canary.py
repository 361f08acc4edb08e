"""Measures at each validation what the training costs in general text: a canary that must not fall silent."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning

from orpo_lightning.observing.canary import ALARM, GENERAL, digest_of, mean_nll, read_texts, token_rows
from orpo_lightning.observing.undisturbed import as_base, undisturbed

log = logging.getLogger(__name__)


class Canary(lightning.Callback):
    """Logs the loss of general text at each validation: `val/canary_nll`, and how it changed since the base.

    Warns when it is more than 0.1 nats a token above the base's (a tenth more perplexity), and again after
    things were well. It costs one forward pass over the texts (of the package's own: some 500 tokens, as
    much as two or three pairs) and one more, once, for the base.

    Args:
        file: texts: a .jsonl file of rows with `text`, or any other text file, paragraphs apart by empty
            lines (the first 64, of each 256 tokens); "general" are twelve that come with the package; null
            measures nothing.
    """

    def __init__(self, file: str | None = GENERAL) -> None:
        """Read the texts.

        Raises:
            DataError: there are none.
        """
        self.file = file
        self.texts = [] if file is None else read_texts(file)
        self.base: float | None = None
        self.now: float | None = None
        self._rows: list[list[int]] = []
        self._digest = ""
        self._is_told = False

    def state_dict(self) -> dict[str, Any]:
        """Return the base's loss, and of which texts it is."""
        return {"base": self.base, "now": self.now, "texts": self._digest, "told": self._is_told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the base's loss; other texts are noticed when the run starts."""
        self.base, self.now = state_dict["base"], state_dict["now"]
        self._digest, self._is_told = state_dict["texts"], state_dict["told"]

    def header_rows(self) -> dict[str, str]:
        """Return what is measured, and its cost, for the header of a run."""
        if not self.texts:
            return {"canary": "none (callback Canary: file null)"}
        which = f"{len(self.texts)} texts ({self.file})"
        return {"canary": f"loss of {which} at each validation, a forward pass each"}

    def facts(self) -> dict[str, Any] | None:
        """Return what is known, for the record of the run; None before the first validation."""
        if self.now is None or not math.isfinite(self.now):
            return None
        return {"file": self.file, "texts": len(self.texts), "nll": self.now, "base_nll": self.base}

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Tokenise the texts; forget what a checkpoint knows of others."""
        self._tokenise(trainer)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure the base while it is at hand: where all weights are trained it is not for long."""
        if self._rows and self.base is None:
            self._measure_base(trainer, pl_module)

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Measure and log; all ranks do, as a model that is shared out needs them all."""
        if trainer.sanity_checking or not self.texts or not hasattr(pl_module, "model"):
            return
        if not self._rows:
            self._tokenise(trainer)
        if self._rows and self.base is None:
            self._measure_base(trainer, pl_module)
        if not self._rows:
            return
        self.now = self._measure(trainer, pl_module)
        values = {"canary_nll": self.now}
        if self.base is not None:
            values["canary_nll_change"] = self.now - self.base
            self._watch(trainer.global_step, self.now, self.base)
        name = getattr(pl_module, "validation_name", "val")
        for key, value in values.items():
            pl_module.log(f"{name}/{key}", value, rank_zero_only=False)

    def _tokenise(self, trainer: lightning.Trainer) -> None:
        processor = getattr(trainer.datamodule, "processor", None)  # type: ignore[attr-defined]
        self._rows = [] if processor is None else token_rows(self.texts, processor)
        if self._digest != (digest := digest_of(self._rows)):
            self.base, self._digest, self._is_told = None, digest, False

    def _measure_base(self, trainer: lightning.Trainer, module: Any) -> None:
        switch = as_base(module, trainer.global_step if trainer.state.fn == "fit" else 1)
        if switch is not None:
            with switch:
                self.base = self._measure(trainer, module)

    def _measure(self, trainer: lightning.Trainer, module: Any) -> float:
        with undisturbed(trainer, module):
            return mean_nll(module._take_apart(), self._rows, module.device)

    def _watch(self, step: int, now: float, base: float) -> None:
        is_wrong = not now - base <= ALARM
        if is_wrong and not self._is_told:
            log.warning(
                "step %d: general text has a loss of %.3g, %.3g under the base (perplexity x %.3g): the "
                "model forgets what the pairs do not teach; lower model.optimizer.lr or "
                "model.objective.beta, or train for fewer steps",
                step,
                now,
                base,
                math.exp(min(now - base, 50.0)),
            )
        self._is_told = is_wrong
